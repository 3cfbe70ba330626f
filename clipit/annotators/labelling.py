"""Derive tile labels from several annotators: majority, consensus, posteriors, or the labels of one annotator."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64

from clipit.annotators.agreement import explain_not_estimable, overlap_remarks
from clipit.annotators.dawid_skene import DawidSkene, dawid_skene
from clipit.annotators.votes import Votes, majority
from clipit.config.run import AnnotationsConfig
from clipit.errors import DataError, counted, shortlist

Independence = Literal["yes", "no", "unknown"]
"""Whether no annotator of the training labels contributed to the test labels."""

_FEW_TILES = 30
_WHERE = "tiles.annotations"
_SOURCE_INDEPENDENCE: dict[str, Independence] = {"same": "no", "others": "yes", "unknown": "unknown"}


@dataclass(frozen=True, eq=False)
class Consensus:
    """Votes of some annotators on some tiles, and their consensus.

    Attributes:
        estimates: Dawid-Skene estimates; None if the labels do not permit them, in which case the
            majority is used.
        posteriors: Probability of each class per item; vote fractions if there are no estimates.
        reason: Reason for missing estimates; "" if there are estimates.
    """

    votes: Votes
    estimates: DawidSkene | None
    labels: Int64[np.ndarray, " n"]
    posteriors: Float64[np.ndarray, "n c"]
    reason: str

    @property
    def method(self) -> str:
        """Name of the method that found the consensus."""
        return "majority" if self.estimates is None else "Dawid-Skene"

    @property
    def overruled(self) -> Int64[np.ndarray, " m"]:
        """Items with at least two labels whose consensus differs from more than half of these labels."""
        counts = self.votes.counts()
        clear = (2 * counts > counts.sum(axis=1, keepdims=True)) & (counts > 1)
        overruled = clear.any(axis=1) & ~np.take_along_axis(clear, self.labels[:, None], axis=1)[:, 0]
        return np.flatnonzero(overruled).astype(np.int64)

    def remarks(self, subject: str) -> list[str]:
        """List tiles whose consensus overrules a clear majority, and limits of the estimates.

        With few tiles, the skills of annotators cannot be estimated reliably, so the list of tiles becomes a warning.

        Args:
            subject: Labels to which the remarks refer, such as "test labels".
        """
        limits = [f"{subject}: {remark}" for remark in overlap_remarks(self.votes)]
        rows = self.overruled.tolist() if len(self.votes) else []
        if not rows:
            return limits
        counts, classes = self.votes.counts(), self.votes.classes
        listed = [
            f"{self.votes.items[row]} ({counts[row].max()} of {counts[row].sum()} for "
            f"{classes[counts[row].argmax()]}, consensus {classes[self.labels[row]]})"
            for row in rows
        ]
        few = len(self.votes) < _FEW_TILES
        advice = (
            f"; {counted(len(self.votes), 'tile is', 'tiles are')} too few for reliable confusion matrices, so check "
            "these tiles"
            if few
            else ""
        )
        return [
            f"{'WARNING: ' if few else ''}{subject}: the consensus differs from more than half of the labels on "
            f"{counted(len(rows), 'tile')}: {shortlist(listed)}{advice}",
            *limits,
        ]


def find_consensus(votes: Votes) -> Consensus:
    """Find the consensus with the Dawid-Skene model, or the majority if annotators' skills cannot be estimated.

    Ties (probabilities that agree to six decimal places) are broken by a hash of the item's id.
    """
    reason = explain_not_estimable(votes)
    counts = votes.counts()
    if reason:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return Consensus(votes, None, majority(counts, votes.items).labels, shares, reason)
    estimates = dawid_skene(votes)
    millionths = np.rint(estimates.posteriors * 1e6).astype(np.int64)
    return Consensus(votes, estimates, majority(millionths, votes.items).labels, estimates.posteriors, "")


@dataclass(frozen=True, eq=False)
class Annotations:
    """Annotators' labels for the tiles of a data set, with the consensus for training and for test tiles.

    Attributes:
        votes: All votes, on tiles of all splits.
        training: Votes on training and validation tiles by the annotators allowed to label them, and their consensus.
        test: Votes on test tiles by the annotators who label them, and their consensus.
        test_annotators: Annotators of the test labels; empty if the test labels come from the source.
        independent: Whether no annotator of the training labels contributed to the test labels.
        shared: Annotators who labelled both training and test tiles; empty if unknown.
    """

    votes: Votes
    training: Consensus
    test: Consensus
    test_annotators: tuple[str, ...]
    independent: Independence
    shared: tuple[str, ...] = ()

    def strata(self, ids: Sequence[str]) -> Int64[np.ndarray, " n"]:
        """Return the training annotators' majority label of each training or validation tile; -1 for unlabelled tiles.

        Labelled tiles are drawn per majority class, so that the same tiles are drawn for every value of `labels`.
        """
        votes = self.training.votes
        label_of = dict(zip(votes.items, majority(votes.counts(), votes.items).labels.tolist(), strict=True))
        return np.asarray([label_of.get(name, -1) for name in ids], dtype=np.int64)

    def posteriors(self, ids: Sequence[str]) -> Float32[np.ndarray, "n c"]:
        """Return the posteriors of training or validation tiles; rows of zeros for tiles without labels."""
        row_of = {name: row for row, name in enumerate(self.training.votes.items)}
        posteriors = np.zeros((len(ids), len(self.votes.classes)), dtype=np.float32)
        for number, name in enumerate(ids):
            if name in row_of:
                posteriors[number] = self.training.posteriors[row_of[name]]
        return posteriors


@dataclass(frozen=True)
class TileLabels:
    """Tile labels derived from annotators' labels.

    Attributes:
        classes: Class of each labelled tile in any split, by id.
        notes: Notes on the annotators of the labels, on ties, and on limits of the estimates.
    """

    classes: dict[str, int]
    annotations: Annotations
    notes: tuple[str, ...]


def label_tiles(
    votes: Votes, config: AnnotationsConfig, training: Collection[str], tests: Collection[str]
) -> TileLabels:
    """Label training, validation and test tiles.

    Estimates for training and validation tiles use no vote on a test tile, and vice versa.

    Args:
        config: Section `tiles.annotations`.
        training: Ids of training and validation tiles.

    Raises:
        DataError: An annotator is unknown, no annotator is left for training or test tiles, or the labels do not permit
            the estimates that `config.labels` needs.
    """
    _check_names(votes, config)
    source_tests = config.test_labels == "source"
    panel = config.test_annotators or votes.annotators
    training_annotators = tuple(name for name in votes.annotators if name not in config.test_annotators)
    training_consensus = find_consensus(votes.of_items(training).of_annotators(training_annotators))
    test_consensus = find_consensus(votes.of_items(tests).of_annotators(panel))
    if training and not len(training_consensus.votes):
        raise DataError(
            "no training or validation tile has a label from an annotator who may label it",
            where=f"{_WHERE}.test_annotators" if config.test_annotators else _WHERE,
            fix="correct the ids in the annotation table, or name fewer test_annotators",
        )
    labels, notes = _training_labels(training_consensus, config)
    if not source_tests:
        labels |= dict(zip(test_consensus.votes.items, test_consensus.labels.tolist(), strict=True))
        shared = _shared(training_consensus.votes, test_consensus.votes)
        independent = _independence(training_consensus.votes, test_consensus.votes, config)
        notes += _test_notes(test_consensus, independent, len(set(tests)), shared)
        idle = [name for name in config.test_annotators if name not in test_consensus.votes.annotators]
        if idle and len(test_consensus.votes):
            notes.append(f"test_annotators without a label for a test tile: {shortlist(idle)}")
    else:
        shared, independent = (), _SOURCE_INDEPENDENCE[config.source_annotators]
        notes += _source_notes(independent) if tests else []
    testers = () if source_tests else test_consensus.votes.annotators or tuple(panel)
    annotations = Annotations(votes, training_consensus, test_consensus, testers, independent, shared)
    return TileLabels(labels, annotations, tuple(notes))


def best_annotator(consensus: Consensus) -> str:
    """Return the annotator with the highest Dawid-Skene accuracy.

    Annotators with fewer than half as many tiles as the most active one are not considered.

    Raises:
        DataError: The skills cannot be estimated.
    """
    if consensus.estimates is None:
        raise DataError(
            f"the best annotator cannot be found: {consensus.reason}",
            where=f"{_WHERE}.labels",
            fix=f"name an annotator in {_WHERE}.annotator",
        )
    items = consensus.votes.items_per_annotator()
    accuracies = np.where(2 * items >= items.max(), consensus.estimates.accuracies, -1.0)
    return consensus.votes.annotators[int(accuracies.argmax())]


def _shared(training: Votes, test: Votes) -> tuple[str, ...]:
    """Return the named annotators with labels in both sets; empty for votes without names."""
    if not (training.named and test.named):
        return ()
    first, second = ({votes.annotators[a] for a in set(votes.annotator.tolist())} for votes in (training, test))
    return tuple(sorted(first & second))


def _independence(training: Votes, test: Votes, config: AnnotationsConfig) -> Independence:
    """Return whether no annotator of training tiles contributed to the consensus of test tiles."""
    if config.test_annotators:
        return "yes"
    if not training.named or not test.named:
        return "no" if config.source_annotators == "same" else "unknown"
    if _shared(training, test):
        return "no"
    return "yes" if len(training) and len(test) else "unknown"


def _source_notes(independent: Independence) -> list[str]:
    """Describe test labels that come from the source."""
    note = "test labels: taken from the source"
    if independent == "yes":
        return [f"{note}, not given by the annotators"]
    if independent == "no":
        return [
            note,
            "WARNING: the test labels of the source come from annotators who also label the training tiles, so "
            "scores of a student that learns their habits are too high",
        ]
    return [
        f"{note}; it is unknown whether they come from annotators of the training tiles: set {_WHERE}.source_annotators"
    ]


def _check_names(votes: Votes, config: AnnotationsConfig) -> None:
    configured = [*config.test_annotators, *([config.annotator] if config.annotator is not None else [])]
    unknown = [name for name in configured if name not in votes.annotators]
    if unknown:
        raise DataError(
            f"annotators without a label for these tiles: {shortlist(unknown)}",
            where=f"{_WHERE}.annotator and test_annotators",
            fix=f"the annotators are {shortlist(votes.annotators, 20)}",
        )
    if config.test_annotators and set(config.test_annotators) == set(votes.annotators):
        raise DataError(
            "all annotators are test_annotators, so none is left for the training tiles",
            where=f"{_WHERE}.test_annotators",
            fix="name fewer test_annotators",
        )


def _annotator_names(votes: Votes) -> str:
    if not votes.named:
        return "the annotators"
    return f"{counted(len(votes.annotators), 'annotator')} ({shortlist(votes.annotators)})"


def _training_labels(consensus: Consensus, config: AnnotationsConfig) -> tuple[dict[str, int], list[str]]:
    """Return the labels of training and validation tiles, and notes."""
    votes = consensus.votes
    if not len(votes):
        return {}, []
    annotator_names = _annotator_names(votes)
    if config.labels == "annotator":
        name = config.annotator or best_annotator(consensus)
        chosen_votes = votes.of_annotators([name])
        if not len(chosen_votes):
            others = [votes.annotators[row] for row in sorted({*votes.annotator.tolist()})]
            raise DataError(
                f"annotator {name} has labelled no training or validation tile",
                where=f"{_WHERE}.annotator",
                fix=f"name one of {shortlist(others, 20)}",
            )
        chosen = "" if config.annotator else ", the most accurate one according to Dawid-Skene"
        note = f"training labels: those of annotator {name}{chosen}, on {counted(len(chosen_votes), 'tile')}"
        return dict(zip(chosen_votes.items, chosen_votes.table()[:, 0].tolist(), strict=True)), [note]
    if config.labels == "majority":
        frequent = majority(votes.counts(), votes.items)
        note = f"training labels: majority of {annotator_names} on {counted(len(votes), 'tile')}"
        if frequent.tied.any():
            note += f"; {counted(int(frequent.tied.sum()), 'tie')}, broken by a hash of the tile's id"
        return dict(zip(votes.items, frequent.labels.tolist(), strict=True)), [note]
    if consensus.estimates is None:
        raise DataError(
            consensus.reason,
            where=f"{_WHERE}.labels = {config.labels}",
            fix="use labels=majority or labels=annotator, or have several annotators label the same tiles",
        )
    kind = "consensus" if config.labels == "consensus" else "posteriors"
    notes = [f"training labels: {kind} (Dawid-Skene) of {annotator_names} on {counted(len(votes), 'tile')}"]
    if consensus.estimates is not None and not consensus.estimates.converged:
        notes.append(
            f"training labels: EM has not converged after {counted(len(consensus.estimates.objective), 'iteration')}"
        )
    notes += consensus.remarks("training labels")
    return dict(zip(votes.items, consensus.labels.tolist(), strict=True)), notes


def _test_notes(consensus: Consensus, independent: Independence, n_tests: int, shared: Sequence[str]) -> list[str]:
    """State which annotators the test labels come from, and whether they also label the training tiles."""
    votes = consensus.votes
    if not n_tests:
        return []
    if not len(votes):
        return ["no test tile has a label from an annotator, so there is no test score"]
    annotator_names = _annotator_names(votes)
    notes = [
        f"test labels: consensus ({consensus.method}) of {annotator_names} on {len(votes):,} of "
        f"{counted(n_tests, 'test tile')}"
    ]
    habits = "so scores of a student that learns their habits are too high"
    if independent == "yes":
        notes[0] += "; none of them labels a training tile"
    elif independent == "no":
        names = f" ({shortlist(shared)})" if shared else ""
        fix = f"; name other annotators in {_WHERE}.test_annotators" if votes.named else ""
        notes.append(f"WARNING: the annotators of the test labels also label the training tiles{names}, {habits}{fix}")
    elif not votes.named:
        notes.append(
            "WARNING: annotators are not named. If the annotators of the test labels also label the training tiles, "
            "scores of a student that learns their habits are too high"
        )
    else:
        notes.append("it is unknown whether the annotators of the test labels also label the training tiles")
    if consensus.reason:
        notes.append(f"test labels: {consensus.reason}; the majority is used")
    return [*notes, *consensus.remarks("test labels")]
