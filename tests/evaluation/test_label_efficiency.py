"""Tests of label subsets and of scores at different shares of labels."""

import numpy as np
import pytest
from evaluation_worlds import features_of
from PIL import Image

from clipit.config.run import LabelsConfig
from clipit.evaluation.features import Features
from clipit.evaluation.label_efficiency import label_efficiency, label_subset
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.neighbours import knn_probabilities, simple_shot
from clipit.tiles.hidden_labels import hide_labels
from clipit.tiles.tileset import TileSet


def simulate_splits() -> tuple[Features, Features, Features]:
    return tuple(features_of(n, 3, seed=n, spread=2.0, prefix=name) for n, name in ((200, "r"), (60, "v"), (90, "s")))


class NoReader:
    def read(self, row: int) -> Image.Image:
        raise OSError("no images here")

    def where(self, row: int) -> str:
        return f"row {row}"


def to_tileset(train: Features, validation: Features) -> TileSet:
    n = len(train) + len(validation)
    labels = np.concatenate([train.labels, validation.labels])
    return TileSet(
        ids=np.concatenate([train.ids, validation.ids]), labels=labels, truth=labels,
        splits=np.repeat(["train", "validation"], [len(train), len(validation)]),
        groups=np.full(n, ""), mpp=np.full(n, np.nan), classes=("a", "b", "c"), reader=NoReader(),
        rows=np.arange(n), stamps=np.full(n, ""),
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.05, 0.1, 0.35, 1.0])
def test_subset_equals_that_of_a_training_run(share: float) -> None:
    train, validation, _ = simulate_splits()
    hidden = hide_labels(to_tileset(train, validation), LabelsConfig(kind="fraction", value=share), 7)
    drawn = label_subset(train, validation, 3, share, 7)
    assert not isinstance(drawn, str)
    for split, subset in zip(("train", "validation"), drawn, strict=True):
        tiles = hidden.of_split(split)
        assert set(subset.ids.tolist()) == set(tiles.ids[tiles.labels >= 0].tolist())


def test_subsets_are_nested_and_differ_by_seed() -> None:
    train, validation, _ = simulate_splits()
    small, large = label_subset(train, validation, 3, 0.1, 1), label_subset(train, validation, 3, 0.4, 1)
    other = label_subset(train, validation, 3, 0.1, 2)
    assert not isinstance(small, str) and not isinstance(large, str) and not isinstance(other, str)
    assert set(small[0].ids.tolist()) < set(large[0].ids.tolist())
    assert set(small[0].ids.tolist()) != set(other[0].ids.tolist())
    assert len(small[1]) <= len(small[0])
    assert set(np.unique(small[0].labels).tolist()) == {0, 1, 2}


def test_share_that_leaves_a_class_empty_has_no_score() -> None:
    train, validation, test = simulate_splits()
    few = train.take((train.labels != 1) | (np.cumsum(train.labels == 1) <= 4))
    assert label_subset(few, validation, 3, 0.05, 0) == "a share of 0.05 leaves no labels of class 1"

    def shot(seen: Features, chosen_on: Features, vectors: np.ndarray, n_classes: int) -> np.ndarray:
        return simple_shot(seen, n_classes).probabilities(vectors)

    points = label_efficiency(few, validation, test, 3, shot, (0.05, 0.5), (0, 1))
    assert [(p.share, p.seed) for p in points] == [(0.05, 0), (0.05, 1), (0.5, 0), (0.5, 1)]
    assert [p.score is None for p in points] == [True, True, False, False]
    assert "no labels of class 1" in points[0].reason


def test_score_is_that_of_the_probe_on_the_subset() -> None:
    train, validation, test = simulate_splits()

    def knn(seen: Features, chosen_on: Features, vectors: np.ndarray, n_classes: int) -> np.ndarray:
        return knn_probabilities(seen, vectors, n_classes, 5)

    points = label_efficiency(train, validation, test, 3, knn, (0.2, 1.0), (3, 4), "accuracy")
    drawn = label_subset(train, validation, 3, 0.2, 3)
    assert not isinstance(drawn, str)
    expected = compute_metrics(test.labels, knn_probabilities(drawn[0], test.vectors, 3, 5))["accuracy"]
    assert points[0].score == expected
    assert (points[0].labels, points[0].validation_labels) == (len(drawn[0]), len(drawn[1]))
    assert points[2].score == points[3].score, "the full set does not depend on the seed"
    assert points[2].labels == 200
    unlabelled = Features(test.ids, test.vectors, np.full(len(test), -1, dtype=np.int64), test.groups)
    assert label_efficiency(train, validation, unlabelled, 3, knn, (1.0,), (0,))[0].reason == "no labelled test tile"
