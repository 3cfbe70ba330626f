"""Checks of this machine, its packages and the files of a configuration, with a fix for every problem."""
