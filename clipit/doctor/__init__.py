"""Checks of this machine, its packages and the files of a configuration, each with what to do about a problem."""
