"""Exclude imported modules from garbage collection; the fork server imports this module last."""

import gc

gc.freeze()
