"""Checks of this machine, its packages and the files of a configuration; every problem comes with a remedy."""
