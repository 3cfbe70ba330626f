"""Join slide scores with labels, patients and splits, and convert them to predictions per slide or per patient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64, Shaped

from clipit.errors import DataError, counted, repeats, shortlist
from clipit.evaluation.predictions import NO_LABEL, Predictions
from clipit.evaluation.slide_scores import POOLINGS, SCORE_PREFIX

Level = Literal["slide", "patient"]
LEVELS: tuple[Level, ...] = ("slide", "patient")
ALL_SLIDES = "all"
"""Split assigned to slides without a split."""


class PoolingKey(NamedTuple):
    """Identifier of a pooling method: its name from `slide_scores.POOLINGS`, and whether scores were smoothed first."""

    pooling: str
    smoothed: bool

    @property
    def title(self) -> str:
        """Name of the pooling in tables and sentences."""
        return f"{self.pooling} (smoothed)" if self.smoothed else self.pooling


@dataclass(frozen=True)
class SlideSet:
    """Slide scores for every pooling method, with the label, patient and split of each slide.

    Attributes:
        slides: Names of the slides, in ascending order.
        labels: Class index of each slide; -1 where unknown.
        patients: Patient of each slide; "" where unknown.
        scores: Scores of the slides by pooling; one column per class.
    """

    slides: Shaped[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    patients: Shaped[np.ndarray, " n"]
    splits: Shaped[np.ndarray, " n"]
    classes: tuple[str, ...]
    scores: Mapping[PoolingKey, Float32[np.ndarray, "n c"]]

    def predictions(self, key: PoolingKey, level: Level, split: str) -> Predictions:
        """Return the predictions for one split with one pooling method, per slide or per patient.

        A patient's score is the mean score of the patient's slides, regardless of their tissue area. If the top K were
        taken from all tiles of a patient instead, they would mostly come from large slides or from slides with
        artefacts. A slide without a known patient counts as a patient of its own.

        A patient's label is that of the patient's labelled slides. Patients whose slides have different labels are
        treated as unlabelled (see `mixed_patients`).

        The `probabilities` of the result are relative scores: the scores of a slide minus their mean over the classes.
        The predicted class stays the same. Cosine similarities may be higher for all classes of one slide than for
        those of another; relative scores can be compared between such slides. With two classes, they rank slides by
        the difference of the two scores, as the softmax of the scores does at any temperature.
        """
        rows = np.flatnonzero(self.splits == split)
        names, labels, patients = self.slides[rows], self.labels[rows], self.patients[rows]
        scores = self.scores[key][rows].astype(np.float64)
        if level == "patient":
            owners = _owners(names, patients)
            names, member = np.unique(owners, return_inverse=True)
            counts = np.bincount(member, minlength=len(names))
            sums = [np.bincount(member, column, minlength=len(names)) for column in scores.T]
            scores = np.stack(sums, axis=1).reshape(len(names), len(self.classes)) / counts[:, None]
            labels = _patient_labels(labels, member, len(names))
            patients = names
        relative = (scores - scores.mean(axis=1, keepdims=True)).astype(np.float32)
        splits = np.full(len(names), split)
        return Predictions(names, splits, labels, patients, self.classes, relative)

    def split_names(self) -> list[str]:
        """Return the names of the splits: train, validation, test, then others."""
        known = ("train", "validation", "test")
        present = sorted({str(name) for name in self.splits.tolist()})
        return [name for name in known if name in present] + [name for name in present if name not in known]

    def unknown_patients(self) -> dict[str, int]:
        """Count the labelled slides without a known patient, by split."""
        rows = (self.patients == "") & (self.labels != NO_LABEL)
        return {split: int((self.splits[rows] == split).sum()) for split in self.split_names()}

    def mixed_patients(self) -> list[str]:
        """Return the patients whose slides have different labels; they are not scored per patient."""
        return self._patients_with_several(np.where(self.labels == NO_LABEL, np.nan, self.labels))

    def crossing_patients(self) -> list[str]:
        """Return the patients with slides in several splits."""
        return self._patients_with_several(self.splits)

    def _patients_with_several(self, values: Shaped[np.ndarray, " n"]) -> list[str]:
        counts = pd.Series(values).groupby(self.patients).nunique()
        return sorted(str(name) for name in counts.index[counts > 1] if name)


def describe_patients(units: int, unknown: int, named: str = "patient") -> str:
    """Format the number of patients as text, such as "4 patients and 2 slides of unknown patients".

    Args:
        units: Number of patients, including slides without a known patient.
        unknown: Number of slides without a known patient.
        named: Noun of the known patients, such as `test patient`.
    """
    slides = f"{counted(unknown, 'slide')} of unknown patients"
    if units == unknown and unknown:
        return slides
    return counted(units - unknown, named) + (f" and {slides}" if unknown else "")


def of_patients(units: int, unknown: int) -> str:
    """Return whose slides were counted, such as "of 4 patients and of unknown patients (2 slides)".

    Args:
        units: Number of patients, including slides without a known patient.
        unknown: Number of slides without a known patient.
    """
    if units == unknown and unknown:
        return "of unknown patients"
    of_unknown = f" and of unknown patients ({counted(unknown, 'slide')})" if unknown else ""
    return f"of {counted(units - unknown, 'patient')}{of_unknown}"


def unknown_patients_note(slides: int) -> list[str]:
    """Return a note that slides without a known patient count as separate patients; empty if there are none."""
    return [f"Slides of unknown patients, each counted as a separate patient: {slides:,}."] if slides else []


def collect_slides(table: pd.DataFrame, slides: pd.DataFrame, classes: Sequence[str]) -> SlideSet:
    """Join slide scores with the table of slides.

    Args:
        table: Slide scores from `slide_scores.slide_table`.
        slides: Table of slides with the column `slide`, and optionally `label` (name of a class), `group` (patient) and
            `split`; empty cells are unknown. Slides without scores are dropped.

    Raises:
        DataError: A slide occurs twice in the table of slides or is missing from it, a label is not a class, or a slide
            lacks a pooling method that other slides have.
    """
    known = _known_slides(slides)
    names = np.unique(table["slide"].to_numpy(dtype=str)) if len(table) else np.empty(0, dtype=str)
    problems = []
    unknown = sorted(set(names.tolist()) - set(known.index))
    if unknown:
        problems.append(f"scored slides are missing from the table of slides: {shortlist(unknown)}")
    known = known.reindex(names.tolist(), fill_value="")
    unknown_labels = sorted(set(known["label"]) - {*classes, ""})
    if unknown_labels:
        problems.append(
            f"labels that are not among the scored classes: {shortlist(unknown_labels)}; the classes are "
            f"{shortlist(classes)}"
        )
    scores: dict[PoolingKey, Float32[np.ndarray, "n c"]] = {}
    columns = [SCORE_PREFIX + name for name in classes]
    for (pooling, smoothed), group in table.groupby(["pooling", "smoothed"], sort=False):
        ordered = group.sort_values("slide", kind="stable")
        key = PoolingKey(str(pooling), bool(smoothed))
        if not np.array_equal(ordered["slide"].to_numpy(dtype=str), names):
            missing = sorted(set(names.tolist()) - set(ordered["slide"]))
            problems.append(
                f"{key.title}: scores of some slides are missing or repeated: {shortlist(missing)}".rstrip()
            )
            continue
        scores[key] = ordered[columns].to_numpy(dtype=np.float32)
    if problems:
        raise DataError(
            "\n".join(problems), where="slides", fix="correct the table of slides, or score the slides again"
        )
    ordered_keys = sorted(scores, key=pooling_order)
    numbers = {name: number for number, name in enumerate(classes)}
    return SlideSet(
        slides=names,
        labels=np.array([numbers.get(label, NO_LABEL) for label in known["label"]], dtype=np.int64),
        patients=known["group"].to_numpy(dtype=str),
        splits=known["split"].replace("", ALL_SLIDES).to_numpy(dtype=str),
        classes=tuple(classes),
        scores={key: scores[key] for key in ordered_keys},
    )


def pooling_order(key: PoolingKey) -> tuple[int, bool]:
    """Return the rank of a pooling method: fewer tiles first, and unsmoothed before smoothed."""
    return POOLINGS.index(key.pooling), key.smoothed


def _known_slides(slides: pd.DataFrame) -> pd.DataFrame:
    """Return label, group and split of each slide as strings, by slide name."""
    known = pd.DataFrame({"slide": slides["slide"].astype(str)})
    for column in ("label", "group", "split"):
        values = slides[column] if column in slides else pd.Series("", index=slides.index)
        known[column] = values.astype(object).where(values.notna(), "").astype(str)
    if repeated := repeats(known["slide"].tolist(), lambda row: f"row {row + 1}"):
        raise DataError(
            f"slides occur twice: {shortlist(repeated)}", where="table of slides", fix="list each slide once"
        )
    return known.set_index("slide")


def _owners(names: Shaped[np.ndarray, " n"], patients: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Return the patient of each slide, or a name derived from the slide if the patient is unknown."""
    own_names = np.char.add("slide ", names.astype(str)) if len(names) else names
    return np.where(patients == "", own_names, patients)


def _patient_labels(
    labels: Int64[np.ndarray, " n"], member: Int64[np.ndarray, " n"], patients: int
) -> Int64[np.ndarray, " p"]:
    """Return the label that all labelled slides of each patient share; -1 if there is none."""
    known = labels != NO_LABEL
    lowest = np.full(patients, np.iinfo(np.int64).max)
    highest = np.full(patients, NO_LABEL)
    np.minimum.at(lowest, member[known], labels[known])
    np.maximum.at(highest, member[known], labels[known])
    return np.where(lowest == highest, highest, NO_LABEL).astype(np.int64)
