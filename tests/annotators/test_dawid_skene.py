"""Tests of the Dawid-Skene model and of consensus labels."""

import numpy as np
import pytest
from simulated_annotators import simulate_votes, votes_of

from clipit.annotators.dawid_skene import dawid_skene
from clipit.annotators.labelling import find_consensus
from clipit.annotators.votes import ANONYMOUS, Votes, majority
from clipit.errors import DataError

SKILLS = (0.9, 0.8, 0.7, 0.6, 0.5)


def test_em_recovers_accuracies_and_beats_the_majority_vote() -> None:
    votes, truth = simulate_votes(SKILLS, 2000, 4)
    result = dawid_skene(votes)
    assert result.converged and np.allclose(result.accuracies, SKILLS, atol=0.04)
    assert np.allclose(result.priors, 0.25, atol=0.04) and np.allclose(result.confusions.sum(axis=2), 1)
    majority_labels = majority(votes.counts(), votes.items).labels
    assert (result.posteriors.argmax(axis=1) == truth).mean() > (majority_labels == truth).mean() + 0.03


def test_em_recovers_the_bias_of_an_annotator() -> None:
    votes, truth = simulate_votes((0.85, 0.8, 0.85, 0.8), 600, 3, coverage=1.0)
    label = votes.label.copy()
    biased = (votes.annotator == 3) & (truth[votes.item] == 1)
    label[biased] = 2  # annotator 3 always labels class 1 as class 2
    result = dawid_skene(
        Votes(votes.items, votes.annotators, votes.classes, votes.item, votes.annotator, label, votes.times)
    )
    assert result.confusions[3, 1, 2] > 0.9 > 0.3 > result.confusions[0, 1, 2]


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 1.0])
def test_objective_never_decreases(smoothing: float) -> None:
    result = dawid_skene(simulate_votes(SKILLS, 100, 3)[0], smoothing=smoothing)
    assert len(result.objective) > 3 and (np.diff(result.objective) > -1e-9).all()
    assert smoothing or result.log_likelihood == pytest.approx(result.objective[-1])


def test_weighted_item_equals_repeated_items() -> None:
    rows = [[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 1]]
    patterns = votes_of(rows, 2)
    repeated = votes_of(
        [[value for value, n in zip(row, (3, 1, 2, 4, 2), strict=True) for _ in range(n)] for row in rows], 2
    )
    weighted = dawid_skene(patterns, np.array([3.0, 1, 2, 4, 2]))
    plain = dawid_skene(repeated)
    assert np.allclose(weighted.confusions, plain.confusions)
    assert np.allclose(weighted.posteriors, plain.posteriors[[0, 3, 4, 6, 10]])
    assert weighted.log_likelihood == pytest.approx(plain.log_likelihood)


def test_anonymous_votes_share_one_confusion_matrix() -> None:
    votes, truth = simulate_votes((0.8,) * 7, 500, 2, coverage=1.0)
    counts = votes.counts()
    item, label = np.nonzero(counts)
    pooled = Votes(
        votes.items, (ANONYMOUS,), votes.classes,
        item.astype(np.int64), np.zeros(len(item), dtype=np.int64), label.astype(np.int64), counts[item, label],
    )  # fmt: skip
    result = dawid_skene(pooled)
    assert not pooled.named and result.confusions.shape == (1, 2, 2)
    assert result.accuracies[0] == pytest.approx(0.8, abs=0.03)
    assert (result.posteriors.argmax(axis=1) == truth).mean() > 0.93


def test_consensus_falls_back_to_the_majority_vote_with_a_reason() -> None:
    one_per_tile = find_consensus(votes_of([[0, 1, -1, -1], [-1, -1, 1, 1]], 2))
    assert (
        one_per_tile.estimates is None
        and "two annotators" in one_per_tile.reason
        and one_per_tile.labels.tolist() == [0, 1, 1, 1]
    )
    one_per_annotator = find_consensus(votes_of([[0], [0], [1]], 2))
    assert one_per_annotator.estimates is None and "more than one tile" in one_per_annotator.reason
    assert one_per_annotator.posteriors.tolist() == [[pytest.approx(2 / 3), pytest.approx(1 / 3)]]
    with pytest.raises(DataError, match="no annotator labels"):
        dawid_skene(votes_of([[0]], 2).of_items(()))


def test_consensus_that_overrules_a_clear_majority_is_listed() -> None:
    few = find_consensus(votes_of([[0, 0, 1], [1, 1, 1], [0, 0, 0]], 2))
    assert few.labels.tolist() == [0, 0, 0] and few.overruled.tolist() == [2]
    warning = few.remarks("test labels")[0]
    assert warning.startswith("WARNING: test labels: the consensus differs from more than half of the labels on 1 tile")
    assert "tile-2 (2 of 3 for class-1, consensus class-0); 3 tiles are too few" in warning
    many = find_consensus(simulate_votes((0.97, 0.97, 0.55, 0.55, 0.55), 200, 2, seed=0)[0])
    assert len(many.overruled) > 5 and many.remarks("x")[0].startswith("x: the consensus differs")
    agreed = find_consensus(votes_of([[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0]], 2))
    assert not len(agreed.overruled) and not any("differs" in remark for remark in agreed.remarks("x"))


def test_ties_are_broken_at_random_by_tile_id() -> None:
    counts = np.tile(np.array([[2, 2, 1]]), (200, 1))
    ids = [f"tile-{row}" for row in range(200)]
    first = majority(counts, ids)
    assert first.tied.all() and set(first.labels.tolist()) == {0, 1}
    assert 60 < (first.labels == 0).sum() < 140
    reordered = majority(counts[::-1], ids[::-1])
    assert (reordered.labels[::-1] == first.labels).all(), "depends on the order of the tiles"
    assert majority(np.zeros((1, 2), dtype=np.int64), ["x"]).labels.tolist() == [-1]


def test_tied_votes_do_not_always_give_the_first_class() -> None:
    counts = np.array([[6, 0], [0, 6]] * 8 + [[3, 3]] * 8)
    item, label = np.nonzero(counts)
    items = tuple(f"tile-{row}" for row in range(len(counts)))
    votes = Votes(items, (ANONYMOUS,), ("a", "b"), item, np.zeros_like(item), label, counts[item, label])
    result = find_consensus(votes)
    assert result.labels[:16].tolist() == [0, 1] * 8
    assert set(result.labels[16:].tolist()) == {0, 1}
    assert any("8 tiles have equally many votes for several classes" in remark for remark in result.remarks("labels"))
