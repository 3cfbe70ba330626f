"""What programs are forked from imports this last: garbage is collected among what they make, not what was imported."""

import gc

gc.freeze()
