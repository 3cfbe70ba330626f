"""Whose tissue is it? The patient that a group's name, or without a group a tile's own, stands for."""

import re

import numpy as np
from jaxtyping import Shaped

_TCGA = re.compile(r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


def patient(group: str) -> str:
    """The patient part (12 characters) of a TCGA barcode; any other name stands for itself, less blanks around it.

    `TCGA-A6-2671-01Z-00-DX1`, `TCGA-A6-2671-11A` and `slides/TCGA-A6-2671-01Z.svs` are slides and a sample of one
    patient, `TCGA-A6-2671`.
    """
    name = group.strip()
    found = _TCGA.match(re.split(r"[/\\]", name)[-1])
    return found[0].upper() if found else name


def patient_in(name: str) -> str:
    """The TCGA patient whose barcode stands in the id of a tile or report, the last one in a path; "" without any."""
    found = _TCGA.findall(name)
    return found[-1].upper() if found else ""


def patients(groups: Shaped[np.ndarray, " n"], ids: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """The patient (or slide) of each tile: `patient` of its group, without a group `patient_in` of its id, or ""."""
    names, rows = np.unique(groups, return_inverse=True)
    found = np.asarray([patient(name) for name in names.tolist()], dtype=np.str_)[rows]
    nameless = np.flatnonzero(found == "")
    from_ids = np.asarray([patient_in(name) for name in ids[nameless].tolist()], dtype=np.str_)
    if nameless.size:
        found = found.astype(np.promote_types(found.dtype, from_ids.dtype))
        found[nameless] = from_ids
    return found
