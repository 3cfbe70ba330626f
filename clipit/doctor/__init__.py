"""Checks of the machine, the installed packages and a configuration's files, with a fix for every problem."""
