"""Find the patient of a tile, slide or report, from its group or from a TCGA barcode in its name.

Two groups belong to one patient if their TCGA barcodes or names are equal, or if one is a slide of the other
(`match_patients`).
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Shaped

_TCGA = re.compile(r"(?<![A-Z0-9])TCGA([-.])[A-Z0-9]{2}\1[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)
"""TCGA barcode of a patient, including the form with dots that R writes in names (`TCGA.A6.2671`)."""

_SEPARATOR = re.compile(r"[\W_]+")
_MAX_SLIDES = 10  # maximum mean number of slides per patient; with more, a common prefix is not a patient
_MIN_STEMS = 4  # minimum number of different prefixes of slide names


def patient(group: str) -> str:
    """Return the patient of a group: the first 12 characters of a TCGA barcode, or the stripped group if there is none.

    `TCGA-A6-2671-01Z-00-DX1`, `TCGA-A6-2671-11A` and `slides/TCGA-A6-2671-01Z.svs` are two slides and a sample of the
    patient `TCGA-A6-2671`.
    """
    name = group.strip()
    barcode = _TCGA.match(re.split(r"[/\\]", name)[-1])
    return _normalise(barcode) if barcode else name


def patient_in(name: str) -> str:
    """Return the last TCGA patient in the id of a tile or report, which may be a path; "" if there is none."""
    barcodes = [*_TCGA.finditer(name)]
    return _normalise(barcodes[-1]) if barcodes else ""


def leading_patient(name: str) -> str:
    """Return the TCGA patient (`TCGA-BP-5195`) at the beginning of a name; "" if there is none."""
    barcode = _TCGA.match(name)
    return _normalise(barcode) if barcode else ""


def all_patients_in(text: str) -> set[str]:
    """Find all TCGA patients in a text."""
    return {_normalise(barcode) for barcode in _TCGA.finditer(text)}


def _normalise(barcode: re.Match[str]) -> str:
    return barcode[0].upper().replace(".", "-")


def patients(groups: Shaped[np.ndarray, " n"], ids: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Return the patient (or slide) of each tile, from its group or, if that is empty, from its id; "" if unknown."""
    names, rows = np.unique(groups, return_inverse=True)
    result = np.asarray([patient(name) for name in names.tolist()], dtype=object)[rows]
    nameless = np.flatnonzero(result == "")
    result[nameless] = [patient_in(name) for name in ids[nameless].tolist()]
    return result


def match_patients(names: Sequence[str], others: Sequence[str]) -> tuple[list[str], list[str]]:
    """Name the patients in two sources, such as reports and tiles, so that identical names mean the same patient.

    Slides in one source are replaced with their patients in the other (`slides_of_patients`).

    Args:
        names: Patients or slides in one source, as returned by `patients`; "" if unknown.
        others: Patients or slides in the other source.
    """
    joined = slides_of_patients(names, others)
    return [joined.get(name, name) for name in names], [joined.get(name, name) for name in others]


def slides_of_patients(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Map slides in either source to their patients in the other, if one lists slides and the other patients.

    The name of a slide is that of its patient, a separator and a suffix: P001-S1 is a slide of P001, but P10 is not
    a slide of P1. Names are only matched if this holds for most slides or most patients, for more than one patient, and
    for at most ten slides per patient on average; otherwise, the prefix may be a hospital or a year.
    """
    first, second = set(names) - {""}, set(others) - {""}
    joined: dict[str, str] = {}
    for slides, owners in ((first, second), (second, first)):
        matches = _beginnings(slides, owners)
        count = len(set(matches.values()))
        most = 2 * len(matches) > len(slides) or 2 * count > len(owners)
        if most and count > 1 and len(matches) <= _MAX_SLIDES * count:
            joined |= matches
    return joined


def similar_slides(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Map names to other names that may, but need not, belong to the same patient.

    Either one name is a prefix of the other, although `slides_of_patients` does not match them, or the names
    differ only in their last one or two parts, like those of slides: S24-003-A1 and S24-003-B1. The second rule applies
    only if there are more prefixes than suffixes, because 2024-1 and 2024-2 are numbered patients.
    """
    joined = slides_of_patients(names := {*names}, others := {*others})
    first, second = names - {"", *joined}, others - {"", *joined}
    pairs = _beginnings(first, second)
    for other, name in sorted(_beginnings(second, first).items()):
        pairs.setdefault(name, other)
    for parts in (1, 2):
        split = {name: parted for name in first | second if (parted := _split_ending(name, parts))}
        stems = {stem for stem, _ in split.values()}
        if len(stems) < max(_MIN_STEMS, 1 + len({suffix for _, suffix in split.values()})):
            continue
        known = {split[other][0]: other for other in sorted(second & split.keys(), reverse=True)}
        for name in sorted((first - second) & split.keys()):
            if split[name][0] in known:
                pairs.setdefault(name, known[split[name][0]])
    return pairs


def _beginnings(names: set[str], others: set[str]) -> dict[str, str]:
    """Map each name that is not in `others` to the longest of the others that is its prefix, up to a separator."""
    matches = {}
    for name in names - others:
        starts = [name[: separator.start()] for separator in _SEPARATOR.finditer(name)]
        if owner := next((start for start in reversed(starts) if start in others), ""):
            matches[name] = owner
    return matches


def _split_ending(name: str, parts: int) -> tuple[str, str] | None:
    """Split a name into a prefix and its last parts; None if one of the two is empty."""
    separators = [*_SEPARATOR.finditer(name)]
    if len(separators) < parts:
        return None
    stem, suffix = name[: separators[-parts].start()], name[separators[-parts].end() :]
    return (stem, suffix) if stem and suffix else None
