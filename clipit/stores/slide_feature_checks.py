"""Check feature files against each other: repeated tiles, copied or misnamed files, differing models or settings."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from clipit.errors import DataError, counted, counted_of, shortlist
from clipit.stores.slide_features import SlideFeatures, describe_copies

_SETTINGS = ("target_magnification", "patch_size", "patch_level", "overlap", "custom_downsample", "downsample")
"""Attributes in which TRIDENT and CLAM record how tiles were cut; they should be the same for all slides."""
_CHECKED, _TOLERANCE = 256, 0.02  # vectors read per slide; tolerance of unit norms for half precision
_FACTOR = 3.0  # slides from one extraction run are unlikely to have median norms that differ by more than this factor
_RECOMPUTE = "compute the features of this slide again"


def count_repeated(slide: SlideFeatures) -> int:
    """Count tiles at the position of an earlier tile, such as those appended when an extraction was resumed.

    Raises:
        DataError: Tiles at the same position have different features.
    """
    repeated = len(slide) - len(slide.first_rows)
    if repeated:
        _, position = np.unique(slide.coords, axis=0, return_inverse=True)
        vectors = slide.vectors()
        order = np.argsort(position, kind="stable")
        ids = slide.ids
        other = [
            ids[row]
            for before, row in pairwise(order.tolist())
            if position[before] == position[row] and not np.array_equal(vectors[before], vectors[row], equal_nan=True)
        ]
        if other:
            raise DataError(
                f"{counted(len(other), 'tile occurs', 'tiles occur')} twice with different features: "
                f"{shortlist(other)}",
                where=slide.path,
                fix=_RECOMPUTE,
            )
    return repeated


def check_owners(slides: Sequence[SlideFeatures], where: object) -> None:
    """Reject files that contain the name of another slide in the study.

    A name that no slide in the study has is accepted: it may be a former name of the same slide.

    Raises:
        DataError: A file contains the name of another slide in the study.
    """
    names = {slide.slide for slide in slides}
    name_in_file = {slide.slide: str(slide.attributes.get("name", "")) for slide in slides}
    wrong = [f"{name}.h5 ({other})" for name, other in name_in_file.items() if other != name and other in names]
    if wrong:
        raise DataError(
            f"{counted(len(wrong), 'feature file contains', 'feature files contain')} the name of a different slide: "
            f"{shortlist(wrong)}",
            where=where,
            fix="rename the files, or compute their features again",
        )


def check_encoders(slides: Sequence[SlideFeatures], where: object) -> None:
    """Reject features computed by different models; equal dimensions do not make features comparable.

    Raises:
        DataError: The files name different models.
    """
    slides_of_encoder: dict[str, list[str]] = {}
    for slide in slides:
        slides_of_encoder.setdefault(slide.encoder, []).append(slide.slide)
    slides_of_encoder.pop("", None)  # files that do not name a model
    if len(slides_of_encoder) > 1:
        listed = "; ".join(f"{name}: {len(names)} ({shortlist(names, 3)})" for name, names in slides_of_encoder.items())
        raise DataError(
            f"the features of the slides were computed by different models: {listed}",
            where=where,
            fix="compute the features of all slides with the same model",
        )


def describe_settings(slides: Sequence[SlideFeatures]) -> list[str]:
    """Describe tile settings that differ between slides, which makes their features hard to compare."""
    notes = []
    for setting in _SETTINGS:
        slides_of_value: dict[str, list[str]] = {}
        for slide in slides:
            if setting in slide.attributes:
                slides_of_value.setdefault(_shown(slide.attributes[setting]), []).append(slide.slide)
        if len(slides_of_value) > 1:
            groups = slides_of_value.items()
            listed = "; ".join(f"{value}: {len(names)} ({shortlist(names, 3)})" for value, names in groups)
            notes.append(f"WARNING: the tiles of the slides differ in {setting}: {listed}")
    return notes


def describe_scales(slides: Sequence[SlideFeatures]) -> list[str]:
    """Describe slides whose vectors are all the same, or differ in scale from those of the others.

    Only the first vectors of each slide are read. Vectors that are zero or not finite are ignored; they raise an
    error when the features are used.
    """
    norms: dict[str, float] = {}
    constant, unit = list[str](), list[str]()
    for slide in slides:
        vectors = slide.vectors(0, _CHECKED).astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1)
        lengths = lengths[np.isfinite(lengths) & (lengths > 0)]
        if not len(lengths):
            continue
        norms[slide.slide] = float(np.median(lengths))
        if (np.abs(lengths - 1) <= _TOLERANCE).all():
            unit.append(slide.slide)
        if len(vectors) > 1 and (vectors == vectors[0]).all():
            rest = slide.vectors(_CHECKED)
            if (rest == vectors[0].astype(np.float32)).all():
                constant.append(slide.slide)
    notes = []
    raw = [name for name in norms if name not in {*unit}]
    if unit and raw:
        few, kind = (unit, "unit-norm vectors") if len(unit) <= len(raw) else (raw, "vectors that are not unit-norm")
        notes.append(f"{_count(few, norms)} {kind}, unlike the others: {shortlist(few)}")
    median = float(np.median([norms[name] for name in raw])) if raw else 1.0
    far = [f"{name} ({norms[name]:.3g})" for name in raw if not 1 / _FACTOR <= norms[name] / median <= _FACTOR]
    if far:
        notes.append(
            f"{_count(far, norms)} vectors on a different scale (the median norm of the slides is {median:.3g}): "
            f"{shortlist(far)}"
        )
    notes = [f"{note}; compute the features of all slides in the same way" for note in notes]
    if constant:
        listed = f"{shortlist(constant)}; compute the features again"
        notes.append(f"{_count(constant, norms)} the same vector for all tiles: {listed}")
    return [f"WARNING: {note}" for note in notes]


def _count(names: Sequence[str], slides: Mapping[str, float]) -> str:
    return counted_of(len(names), len(slides), "slide has", "slides have")


def _shown(value: object) -> str:
    """Format the value of a setting; downsamples are averaged over axes and rounded, because they differ slightly."""
    if isinstance(value, list) and value and all(isinstance(each, float) for each in value):
        value = sum(value) / len(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def check_copies(
    copies: Sequence[Sequence[str]], split_of: Mapping[str, str], label_of: Mapping[str, int], where: object
) -> list[str]:
    """Check that copies of a slide have the same split and label, and return notes on them.

    Args:
        copies: Groups of slides with the same features (`find_copied_slides`).
        split_of: Split of each slide that is used.
        label_of: Label of each slide that is used; -1 if unlabelled.

    Raises:
        DataError: Copies are in different splits or have different labels.
    """
    used = [[name for name in names if name in split_of] for names in copies]
    wrong = [names for names in used if len({split_of[n] for n in names}) > 1 or len({label_of[n] for n in names}) > 1]
    if wrong:
        raise DataError(
            "slides with the same features are in different splits or have different labels: "
            f"{shortlist([' = '.join(names) for names in wrong])}",
            where=where,
            fix="one file may be a renamed copy: compute its features again, or keep only one of these slides",
        )
    return describe_copies(used)
