"""Bags: slides or patients with one label each, and a reader of instance features."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64, Shaped

from clipit.errors import DataError, counted, shortlist
from clipit.evaluation.predictions import NO_LABEL
from clipit.output_files.artifacts import fingerprint
from clipit.tiles.splits import shuffled
from clipit.tiles.tileset import SPLITS

_TRAINING_SPLITS = ("train", "validation")  # splits whose labels are used in training
_PERMUTATIONS = 200  # random permutations of labels to choose from


@runtime_checkable
class InstanceReader(Protocol):
    """Source of bag features that keeps one bag in memory at a time."""

    @property
    def dim(self) -> int:
        """Dimension of the features."""

    def fingerprint(self) -> str:
        """Compute a fingerprint of all features and of their assignment to bags."""

    def sizes(self) -> Int64[np.ndarray, " b"]:
        """Return the number of instances of each bag."""

    def features(self, row: int) -> Float32[np.ndarray, "n d"]:
        """Read the features of one bag."""

    def ids(self, row: int) -> list[str]:
        """Return the ids of the instances of one bag, in the order of its features."""


@dataclass(frozen=True, eq=False)
class MilBags:
    """Bags of instances with one label each; the features stay on disk until a bag is read.

    Attributes:
        names: Unique names of slides or patients.
        labels: Class index of each bag; -1 if unlabelled or hidden from training.
        patients: Patient of each bag, or the slide if its patient is unknown (see `lone_slides`); "" where neither is
            known.
        splits: train, validation or test.
        reader: Source of the features.
        rows: Row of each bag in the reader.
        notes: Remarks on bags that were dropped or have no label.
        where: Table, folder or configuration that the bags come from, for error messages.
        lone_slides: Entries of `patients` that are slides of unknown patients.
    """

    names: Shaped[np.ndarray, " b"]
    labels: Int64[np.ndarray, " b"]
    patients: Shaped[np.ndarray, " b"]
    splits: Shaped[np.ndarray, " b"]
    classes: tuple[str, ...]
    reader: InstanceReader
    rows: Int64[np.ndarray, " b"]
    notes: tuple[str, ...] = ()
    where: str = "bags"
    lone_slides: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Validate names, splits, labels and patients; all problems are reported together."""
        problems = list(self._problems())
        if problems:
            raise DataError("\n    ".join(problems), where=self.where, fix="correct these bags")

    def _problems(self) -> Sequence[str]:
        problems = []
        repeated = sorted(name for name, count in Counter(self.names.tolist()).items() if count > 1)
        if repeated:
            problems.append(
                f"{counted(len(repeated), 'bag occurs', 'bags occur')} more than once: {shortlist(repeated)}"
            )
        unknown = sorted({*self.splits.tolist()} - {*SPLITS})
        if unknown:
            problems.append(f"unknown splits: {shortlist(unknown)}; use {', '.join(SPLITS)}")
        if self.labels.size and (self.labels.min() < NO_LABEL or self.labels.max() >= len(self.classes)):
            problems.append(f"a label is out of range for {counted(len(self.classes), 'class', 'classes')}")
        splits_of: dict[str, set[str]] = {}
        for patient, split in zip(self.patients.tolist(), self.splits.tolist(), strict=True):
            if patient:
                splits_of.setdefault(patient, set()).add(split)
        crossing = [f"{name} ({', '.join(sorted(each))})" for name, each in sorted(splits_of.items()) if len(each) > 1]
        if crossing:
            problems.append(
                f"{counted(len(crossing), 'patient is', 'patients are')} in more than one split: {shortlist(crossing)}"
            )
        return problems

    def __len__(self) -> int:
        """Return the number of bags."""
        return len(self.names)

    @property
    def dim(self) -> int:
        """Dimension of the features."""
        return self.reader.dim

    @property
    def known_patients(self) -> Shaped[np.ndarray, " b"]:
        """Patient of each bag; "" where unknown."""
        names = self.patients.tolist()
        return np.array(["" if name in self.lone_slides else name for name in names], dtype=object)

    @cached_property
    def sizes(self) -> Int64[np.ndarray, " b"]:
        """Number of instances of each bag."""
        return np.asarray(self.reader.sizes()[self.rows], dtype=np.int64)

    def features(self, bag: int) -> Float32[np.ndarray, "n d"]:
        """Read the features of one bag.

        Raises:
            DataError: The bag has no instances, a value is not finite, or a feature vector is zero, as in partially
                written files.
        """
        values = self.reader.features(int(self.rows[bag]))
        if not len(values):
            raise DataError(f"{self.names[bag]} has no instances", where=self.where, fix="drop this bag")
        invalid_rows = {
            "values that are not finite": ~np.isfinite(values).all(axis=1),
            "only zeros": ~values.any(axis=1),
        }
        for problem, invalid in invalid_rows.items():
            if invalid.any():
                ids, rows = self.ids(bag), np.flatnonzero(invalid).tolist()
                raise DataError(
                    f"{self.names[bag]} has {counted(len(rows), 'feature vector')} with {problem}: "
                    f"{shortlist([ids[row] for row in rows])}",
                    where=self.where,
                    fix="compute the features of this slide again",
                )
        return values

    def ids(self, bag: int) -> list[str]:
        """Return the ids of the instances of one bag, in the order of its features."""
        return self.reader.ids(int(self.rows[bag]))

    def select(self, rows: Bool[np.ndarray, " b"] | Int[np.ndarray, " m"]) -> "MilBags":
        """Select bags by a mask or by their positions."""
        columns = ("names", "labels", "patients", "splits", "rows")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def of_split(self, split: str) -> "MilBags":
        """Select the bags of one split; the result may be empty."""
        return self.select(self.splits == split)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of names, labels, patients, splits, classes and features."""
        columns = [self.names, self.labels, self.patients, self.splits, self.rows]
        return fingerprint([*(column.tolist() for column in columns), self.classes, self.reader.fingerprint()])

    def counts(self) -> dict[str, dict[str, int]]:
        """Count bags per split and class; unlabelled bags are counted as `(no label)`."""
        names = (*enumerate(self.classes), (NO_LABEL, "(no label)"))
        return {
            split: {name: int((self.labels[self.splits == split] == code).sum()) for code, name in names}
            for split in SPLITS
            if (self.splits == split).any()
        }


def keep_labels(bags: MilBags, per_class: int | None, seed: int) -> MilBags:
    """Keep the labels of randomly drawn training and validation bags of each class; test bags keep all labels.

    Labels kept for a smaller `per_class` are also kept for a larger one.

    Args:
        per_class: Number of labels to keep per class and split; None keeps all.
    """
    if per_class is None:
        return bags
    labels = bags.labels.copy()
    for split in _TRAINING_SPLITS:
        for code in range(len(bags.classes)):
            rows = np.flatnonzero((bags.splits == split) & (bags.labels == code))
            order = shuffled(bags.names[rows], seed, f"labels of bags, {split}")
            labels[rows[order[per_class:]]] = NO_LABEL
    return replace(bags, labels=labels)


def label_budget_note(bags: MilBags, per_class: int | None) -> tuple[str, ...]:
    """Return a note on the labels that `keep_labels` keeps, and on classes with fewer; () if all are kept."""
    if per_class is None:
        return ()
    counts = {
        f"{name} ({split} {number})": number
        for split in _TRAINING_SPLITS
        for code, name in enumerate(bags.classes)
        for number in [int(((bags.splits == split) & (bags.labels == code)).sum())]
    }
    fewer = [name for name, number in counts.items() if number < per_class]
    note = f"labels used: {per_class} training and {per_class} validation bags per class, drawn for each seed"
    return (note + (f"; there are fewer of {shortlist(fewer)}" if fewer else ""),)


def shuffle_labels(bags: MilBags, seed: int) -> MilBags:
    """Permute the labels of the training bags and, separately, those of the validation bags (control).

    With few labels, a random permutation often returns labels to their own bags. The function therefore draws many
    permutations, and uses the one whose contingency table of old and new labels is closest to that expected under
    independence. The fraction of bags that keep their label is then close to its expectation. Ties go to the
    permutation that keeps fewer labels.

    Args:
        bags: Bags with the labels that training may use.
    """
    labels = bags.labels.copy()
    for number, split in enumerate(_TRAINING_SPLITS):
        rows = _labelled(bags, split)
        labels[rows] = _permute(bags.labels[rows], len(bags.classes), np.random.default_rng([seed, number]))
    return replace(bags, labels=labels)


def unchanged_shares(bags: MilBags, permuted: MilBags) -> dict[str, tuple[float, float]]:
    """Return the fraction of labels that shuffling did not change, and the expected fraction, for train and validation.

    Args:
        bags: Bags before `shuffle_labels`.
        permuted: The same bags after it.
    """
    shares = {}
    for split in _TRAINING_SPLITS:
        rows = _labelled(bags, split)
        if len(rows):
            frequencies = np.bincount(bags.labels[rows], minlength=len(bags.classes)) / len(rows)
            same = bags.labels[rows] == permuted.labels[rows]
            shares[split] = (float(same.mean()), float((frequencies**2).sum()))
    return shares


def _labelled(bags: MilBags, split: str) -> Int64[np.ndarray, " n"]:
    return np.flatnonzero((bags.splits == split) & (bags.labels != NO_LABEL)).astype(np.int64)


def _permute(labels: Int64[np.ndarray, " n"], classes: int, generator: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Draw permutations, and return the one whose labels depend least on the original labels."""
    if not len(labels):
        return labels
    counts = np.bincount(labels, minlength=classes)
    expected = np.outer(counts, counts) / len(labels)
    best, lowest = labels, (np.inf, np.inf)
    for _ in range(_PERMUTATIONS):
        drawn = generator.permutation(labels)
        table = np.bincount(labels * classes + drawn, minlength=classes**2).reshape(classes, classes)
        distance = (round(float(((table - expected) ** 2).sum()), 6), float(np.trace(table)))
        if distance < lowest:
            best, lowest = drawn, distance
    return best
