"""Find the patient of a tile, slide or report, from its group or from a TCGA barcode in its name."""

import re

import numpy as np
from jaxtyping import Shaped

_TCGA = re.compile(r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


def patient(group: str) -> str:
    """Return the patient of a group: the first 12 characters of a TCGA barcode, or the stripped group if there is none.

    `TCGA-A6-2671-01Z-00-DX1`, `TCGA-A6-2671-11A` and `slides/TCGA-A6-2671-01Z.svs` are two slides and a sample of the
    patient `TCGA-A6-2671`.
    """
    name = group.strip()
    barcode = _TCGA.match(re.split(r"[/\\]", name)[-1])
    return barcode[0].upper() if barcode else name


def patient_in(name: str) -> str:
    """Return the last TCGA patient in the id of a tile or report, which may be a path; "" if there is none."""
    barcodes = _TCGA.findall(name)
    return barcodes[-1].upper() if barcodes else ""


def leading_patient(name: str) -> str:
    """Return the TCGA patient (`TCGA-BP-5195`) at the beginning of a name; "" if there is none."""
    barcode = _TCGA.match(name)
    return barcode[0].upper() if barcode else ""


def all_patients_in(text: str) -> set[str]:
    """Find all TCGA patients in a text."""
    return {barcode.upper() for barcode in _TCGA.findall(text)}


def patients(groups: Shaped[np.ndarray, " n"], ids: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Return the patient (or slide) of each tile, from its group or, if that is empty, from its id; "" if unknown."""
    names, rows = np.unique(groups, return_inverse=True)
    result = np.asarray([patient(name) for name in names.tolist()], dtype=object)[rows]
    nameless = np.flatnonzero(result == "")
    result[nameless] = [patient_in(name) for name in ids[nameless].tolist()]
    return result
