"""Tests of retrieval metrics against torchmetrics and slow loops."""

import numpy as np
import pytest
import torch
from evaluation_worlds import features_of
from torchmetrics.retrieval import RetrievalPrecision, RetrievalRecall

from clipit.errors import DataError
from clipit.evaluation.features import Features
from clipit.evaluation.retrieval import class_match, recall_at


def cosines(queries: Features, gallery: Features) -> np.ndarray:
    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return (unit(queries.vectors.astype(float)) @ unit(gallery.vectors.astype(float)).T).round(6)


def torch_metric(metric: torch.nn.Module, scores: np.ndarray, relevant: np.ndarray) -> float:
    query = np.repeat(np.arange(len(scores))[:, None], scores.shape[1], axis=1)
    return float(metric(torch.tensor(scores).ravel(), torch.tensor(relevant).ravel(), torch.tensor(query).ravel()))


@pytest.mark.parametrize("partners", [1, 3])
def test_recall_matches_torchmetrics(partners: int) -> None:
    rng = np.random.default_rng(partners)
    queries, gallery = features_of(40, 4, seed=1, prefix="q"), features_of(90, 4, seed=2, prefix="i")
    relevant = np.zeros((40, 90), dtype=bool)
    for row in range(40):
        relevant[row, rng.choice(90, partners, replace=False)] = True
    pairs = [(str(queries.ids[q]), str(gallery.ids[i])) for q, i in zip(*np.nonzero(relevant), strict=True)]
    for score in recall_at(queries, gallery, pairs, (1, 10, 50)):
        expected = torch_metric(RetrievalRecall(top_k=score.k), cosines(queries, gallery), relevant)
        assert score.value == pytest.approx(expected, abs=1e-6)
        assert score.random == pytest.approx(score.k / 90)
        assert score.enrichment == pytest.approx(expected / (score.k / 90), rel=1e-5)
    assert [score.value for score in recall_at(queries, gallery, pairs, (90, 200))] == [1.0, 1.0]
    assert [score.random for score in recall_at(queries, gallery, pairs, (90, 200))] == [1.0, 1.0]


def test_recall_of_single_partners_is_the_hit_rate() -> None:
    queries, gallery = features_of(30, 3, seed=1, prefix="q"), features_of(50, 3, seed=2, prefix="i")
    pairs = [(str(queries.ids[q]), str(gallery.ids[(7 * q) % 50])) for q in range(20)]
    score = recall_at(queries, gallery, pairs, (10,))[0]
    scores = cosines(queries, gallery)
    hits = 0
    for q in range(20):
        order = sorted(range(50), key=lambda i: (-scores[q, i], gallery.ids[i]))
        hits += (7 * q) % 50 in order[:10]
    assert score.value == pytest.approx(hits / 20)
    assert score.queries == 20
    without_pairs = recall_at(queries, gallery, [], (10,))[0]
    assert (without_pairs.value, without_pairs.enrichment, without_pairs.reason) == (None, None, "no true pairs")


def test_pairs_with_unknown_or_shared_ids_raise_an_error() -> None:
    queries, gallery = features_of(5, 2, prefix="q"), features_of(5, 2, prefix="i")
    with pytest.raises(DataError, match=r"2 pairs name unknown ids: \(q0000, nobody\), \(ghost, i0000\)"):
        recall_at(queries, gallery, [("q0000", "nobody"), ("ghost", "i0000"), ("q0001", "i0001")], (1,))
    with pytest.raises(DataError, match="share ids"):
        recall_at(queries, queries, [], (1,))


@pytest.mark.parametrize("k", [1, 5, 10])
def test_precision_matches_torchmetrics(k: int) -> None:
    queries, gallery = features_of(40, 4, seed=1, spread=2.0), features_of(90, 4, seed=2, spread=2.0, prefix="i")
    relevant = queries.labels[:, None] == gallery.labels[None, :]
    score = class_match(queries, gallery, 4, (k,))[0]
    expected = torch_metric(RetrievalPrecision(top_k=k), cosines(queries, gallery), relevant)
    assert score.value == pytest.approx(expected, abs=1e-6)
    assert score.random == pytest.approx(relevant.mean())


@pytest.mark.parametrize("exclude_groups", [False, True])
def test_leave_one_out_matches_a_loop(exclude_groups: bool) -> None:
    tiles = features_of(70, 3, seed=4, spread=2.0, groups=6)
    scores = cosines(tiles, tiles)
    precision, votes, chance = [], [], []
    for q in range(70):
        allowed = [i for i in range(70) if i != q and not (exclude_groups and tiles.groups[i] == tiles.groups[q])]
        nearest = sorted(allowed, key=lambda i: (-scores[q, i], tiles.ids[i]))[:5]
        labels = tiles.labels[nearest].tolist()
        precision.append(labels.count(tiles.labels[q]) / 5)
        votes.append(max(range(3), key=lambda c: (labels.count(c), -c)) == tiles.labels[q])
        chance.append(np.mean(tiles.labels[allowed] == tiles.labels[q]))
    score = class_match(tiles, tiles, 3, (5,), (5,), exclude_groups=exclude_groups)
    assert [score.name for score in score] == ["precision", "vote"]
    assert [score.value for score in score] == pytest.approx([np.mean(precision), np.mean(votes)])
    assert score[0].random == pytest.approx(np.mean(chance))
    assert score[0].enrichment == pytest.approx(np.mean(precision) / np.mean(chance))
    assert score[1].random is None


def test_unlabelled_items_are_dropped() -> None:
    tiles = features_of(20, 2, groups=3)
    labels = np.where(np.arange(20) < 15, tiles.labels, -1).astype(np.int64)
    partially_labelled = Features(tiles.ids, tiles.vectors, labels, tiles.groups)
    assert (
        class_match(partially_labelled, partially_labelled, 2, (3,))[0]
        == class_match(partially_labelled.take(labels >= 0), partially_labelled, 2, (3,))[0]
    )
    one_group = Features(tiles.ids, tiles.vectors, tiles.labels, np.full(20, "g"))
    score = class_match(one_group, one_group, 2, (3,), exclude_groups=True)[0]
    assert (score.value, score.reason) == (None, "every gallery item is excluded")
    unlabelled = Features(tiles.ids, tiles.vectors, np.full(20, -1, dtype=np.int64), tiles.groups)
    assert class_match(unlabelled, tiles, 2, (3,))[0].reason == "no labelled queries"


def test_k_is_limited_to_the_size_of_the_gallery() -> None:
    query = Features(np.array(["q"]), np.array([[1.0, 0.0]]), np.array([1]), np.array([""]))
    gallery = Features(np.array(["a", "b"]), np.array([[1.0, 0.1], [1.0, 0.2]]), np.array([1, 0]), np.array(["", ""]))
    assert [score.value for score in class_match(query, gallery, 2, (1, 2, 50))] == [1.0, 0.5, 0.5]
