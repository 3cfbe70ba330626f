"""Draw training masks: nested subsets from as many patients as possible."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Shaped

from clipit.errors import counted
from clipit.patients import patients
from clipit.tiles.splits import shuffled


def draw_order(ids: Shaped[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, " n"]:
    """Order images so that the first k images are a draw of k masks from as many patients as possible.

    Patients take turns in a random order that depends on the seed; a larger draw contains all smaller ones. Each image
    without a known patient counts as a separate patient.

    Args:
        groups: Patient or slide of each image; "" where unknown.

    Returns:
        Indices of the images.
    """
    patient_of = patients(groups, ids)
    patient_of = np.where(patient_of == "", ids, patient_of)
    rank_in_patient = np.zeros(len(ids), dtype=np.int64)
    patient_rank = np.zeros(len(ids), dtype=np.int64)
    names = np.unique(patient_of)
    for position, row in enumerate(shuffled(names, seed, "order of patients with masks").tolist()):
        inside = np.flatnonzero(patient_of == names[row])
        rank_in_patient[inside[shuffled(ids[inside], seed, "order of masks")]] = np.arange(len(inside))
        patient_rank[inside] = position
    return np.lexsort((patient_rank, rank_in_patient)).astype(np.int64)


def nested_counts(configured: Sequence[int | None], available: int) -> list[int]:
    """Return the numbers of masks to train on; None means all masks, and numbers above `available` are dropped."""
    counts = {available if count is None else count for count in configured}
    return sorted(count for count in counts if count <= available)


def masks_title(count: int) -> str:
    """Return a number of masks as text, such as "2 masks"."""
    return counted(count, "mask")
