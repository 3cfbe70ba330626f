"""Simulated annotators with known accuracies."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipit.annotators.votes import Votes


def simulate_votes(
    skills: Sequence[float], tiles: int, classes: int, *, coverage: float = 0.6, seed: int = 0
) -> tuple[Votes, np.ndarray]:
    """Simulate votes of annotators with known accuracies.

    Args:
        skills: Accuracy of each annotator; errors are uniform over the other classes.
        tiles: Number of tiles.
        classes: Number of classes.
        coverage: Probability that an annotator labels a tile.
        seed: Random seed.

    Returns:
        The votes and the true class of each tile with a vote.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=tiles)
    item, annotator, label = [], [], []
    for number, skill in enumerate(skills):
        for tile in np.flatnonzero(rng.random(tiles) < coverage):
            wrong = (truth[tile] + rng.integers(1, classes)) % classes
            item.append(tile)
            annotator.append(number)
            label.append(truth[tile] if rng.random() < skill else wrong)
    names, codes = np.unique(item, return_inverse=True)
    votes = Votes(
        tuple(f"tile-{name:04d}" for name in names),
        tuple(f"annotator-{number}" for number in range(len(skills))),
        tuple(f"class-{code}" for code in range(classes)),
        codes.astype(np.int64),
        np.asarray(annotator, dtype=np.int64),
        np.asarray(label, dtype=np.int64),
        np.ones(len(item), dtype=np.int64),
    )
    return votes, truth[names]


def votes_of(rows: Sequence[Sequence[int]], classes: int) -> Votes:
    """Votes from a matrix of labels (annotators x items, -1 for missing); items without a label are dropped."""
    table = np.asarray(rows).T
    labelled = np.flatnonzero((table >= 0).any(axis=1))
    item, annotator = np.nonzero(table[labelled] >= 0)
    return Votes(
        tuple(f"tile-{row}" for row in labelled),
        tuple("ABCDEFGH"[: table.shape[1]]),
        tuple(f"class-{code}" for code in range(classes)),
        item.astype(np.int64),
        annotator.astype(np.int64),
        table[labelled][item, annotator].astype(np.int64),
        np.ones(len(item), dtype=np.int64),
    )


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path
