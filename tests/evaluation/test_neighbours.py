"""Tests of nearest neighbours, votes and SimpleShot against scikit-learn and slow loops."""

import numpy as np
import pytest
from evaluation_worlds import features_of
from sklearn.neighbors import KNeighborsClassifier

from clipit.errors import DataError
from clipit.evaluation.features import Features
from clipit.evaluation.neighbours import class_votes, knn_probabilities, nearest_neighbours, simple_shot


def slow_nearest(queries: Features, gallery: Features, k: int, exclude_groups: bool) -> list[list[int]]:
    neighbours = []
    for name, vector, group in zip(queries.ids, queries.vectors.astype(float), queries.groups, strict=True):
        scored = []
        for row in range(len(gallery)):
            if gallery.ids[row] == name or (exclude_groups and group and gallery.groups[row] == group):
                continue
            other = gallery.vectors[row].astype(float)
            cosine = vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
            scored.append((-round(cosine, 6), gallery.ids[row], row))
        rows = [row for _, _, row in sorted(scored)[:k]]
        neighbours.append(rows + [-1] * (k - len(rows)))
    return neighbours


@pytest.mark.parametrize("exclude_groups", [False, True])
@pytest.mark.parametrize("cells", [1, 300, 10_000])
def test_nearest_neighbours_match_a_loop_for_all_block_sizes(cells: int, exclude_groups: bool) -> None:
    tiles = features_of(60, 3, groups=5)
    assert nearest_neighbours(tiles, tiles, 7, exclude_groups=exclude_groups, cells=cells).tolist() == slow_nearest(
        tiles, tiles, 7, exclude_groups
    )


def test_ties_prefer_the_lowest_id_and_missing_neighbours_are_minus_one() -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(2, 8)), 10, axis=0).astype(np.float32)  # two groups of equal vectors
    names = np.array([f"n{i:02d}" for i in rng.permutation(20)])
    gallery = Features(names, vectors, np.zeros(20, dtype=np.int64), np.full(20, "g"))
    query = Features(np.array(["q"]), 3 * vectors[:1], np.zeros(1, dtype=np.int64), np.array(["g"]))
    nearest = nearest_neighbours(query, gallery, 4)[0]
    assert names[nearest].tolist() == sorted(names[:10].tolist())[:4]
    assert (nearest_neighbours(query, gallery, 4, exclude_groups=True) == -1).all()
    assert (nearest_neighbours(query, gallery, 25)[0] == -1).sum() == 5


def test_tile_without_a_group_excludes_only_itself() -> None:
    tiles = features_of(12, 2)
    assert (tiles.groups == "").all()
    assert (nearest_neighbours(tiles, tiles, 11, exclude_groups=True) >= 0).all()


def test_knn_matches_scikit_learn() -> None:
    train, test = features_of(200, 4, seed=1, spread=2.0), features_of(80, 4, seed=2, spread=2.0, prefix="u")
    model = KNeighborsClassifier(20, metric="cosine", algorithm="brute").fit(train.vectors, train.labels)
    probabilities = knn_probabilities(train, test.vectors, 4)
    np.testing.assert_allclose(probabilities, model.predict_proba(test.vectors), atol=1e-6)
    assert (probabilities.argmax(axis=1) == model.predict(test.vectors)).all(), (
        "both must break ties by the lowest class"
    )


def test_tied_votes_prefer_the_lowest_class() -> None:
    votes = class_votes(np.array([[0, 1, 2, 3], [2, -1, -1, -1], [-1, -1, -1, -1]]), np.array([2, 1, 1, 2]), 3)
    assert votes.argmax(axis=1)[0] == 1
    assert votes[1].tolist() == [0, 1, 0]
    assert votes[2].sum() == 0
    train = features_of(6, 3)
    assert knn_probabilities(train, train.vectors[:2], 3, k=20) == pytest.approx(
        np.tile(np.bincount(train.labels, minlength=3) / 6, (2, 1))
    )


def test_simple_shot_matches_the_published_algorithm() -> None:
    train, test = features_of(60, 3, seed=1), features_of(40, 3, seed=2, spread=1.5, prefix="u")
    mean = train.vectors.astype(float).mean(axis=0)

    def cl2n(vectors: np.ndarray) -> np.ndarray:
        centred = vectors.astype(float) - mean
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)

    prototypes = np.stack([cl2n(train.vectors[train.labels == c]).mean(axis=0) for c in range(3)])
    squared = ((cl2n(test.vectors)[:, None] - prototypes) ** 2).sum(axis=2)
    expected = np.exp(-squared) / np.exp(-squared).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(simple_shot(train, 3).probabilities(test.vectors), expected, atol=1e-6)


def test_class_without_tiles_has_probability_zero() -> None:
    train = features_of(20, 2)
    assert (simple_shot(train, 4).probabilities(train.vectors)[:, 2:] == 0).all()
    assert (knn_probabilities(train, train.vectors, 4)[:, 2:] == 0).all()
    unlabelled = Features(train.ids, train.vectors, np.full(20, -1, dtype=np.int64), train.groups)
    for fit in (lambda: simple_shot(unlabelled, 2), lambda: knn_probabilities(unlabelled, train.vectors, 2)):
        with pytest.raises(DataError, match="no training tile has a label"):
            fit()


def test_invalid_features_raise_an_error() -> None:
    tiles = features_of(4, 2)
    broken = tiles.vectors.copy()
    broken[2, 0] = np.inf
    with pytest.raises(DataError, match=f"not finite: {tiles.ids[2]}"):
        Features(tiles.ids, broken, tiles.labels, tiles.groups)
    with pytest.raises(DataError, match=r"duplicate ids among features: .* \(row \d+, row \d+\)"):
        Features(np.array(["a", "a", "b", "c"]), tiles.vectors, tiles.labels, tiles.groups)
