"""Whose tissue is it? The patient that a group's name stands for."""

import re

_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


def patient(group: str) -> str:
    """The patient part (12 characters) of a TCGA barcode; any other name stands for itself.

    `TCGA-A6-2671-01Z-00-DX1` and `TCGA-A6-2671-11A` are slide and sample of one patient, `TCGA-A6-2671`.
    """
    found = _TCGA.match(group)
    return found[0].upper() if found else group


def is_barcode(name: str) -> bool:
    """Whether a name begins with a TCGA patient barcode."""
    return _TCGA.match(name) is not None
