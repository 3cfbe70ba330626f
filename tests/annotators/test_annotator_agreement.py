"""Tests of inter-annotator agreement against published and hand-computed values, and of overlap remarks."""

import numpy as np
import pytest
from simulated_annotators import simulate_votes, votes_of
from sklearn.metrics import cohen_kappa_score

from clipit.annotators.agreement import alpha_interval, krippendorff_alpha, overlap_remarks, pair_agreement

# Examples C and A of Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): four observers with missing
# values, and two observers of ten binary units.
_ = 0
FOUR = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]
TWO = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]


def test_alpha_matches_published_examples() -> None:
    four = votes_of(np.asarray(FOUR) - 1, 5)
    assert krippendorff_alpha(four.counts()) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(votes_of(TWO, 2).counts()) == pytest.approx(0.095, abs=5e-4)


def test_alpha_of_extreme_cases() -> None:
    agree = np.array([[2, 0], [0, 2], [2, 0]])
    assert krippendorff_alpha(agree) == pytest.approx(1.0)
    # Two units with one vote per class: o_01 = 4, n = 4, n_c = 2, so alpha = 1 - 3 * 4 / (4 * 3 - 4) = -1/2.
    assert krippendorff_alpha(np.array([[1, 1], [1, 1]])) == pytest.approx(-0.5)
    assert krippendorff_alpha(np.array([[2, 0], [3, 0]])) is None, "a single class"
    assert krippendorff_alpha(np.array([[1, 0], [0, 1]])) is None, "no unit with two labels"


def test_alpha_interval_and_unit_weights() -> None:
    counts = simulate_votes((0.8, 0.8, 0.7), 120, 3)[0].counts()
    alpha, interval = krippendorff_alpha(counts), alpha_interval(counts, np.arange(len(counts)) // 2, 200, seed=0)
    assert alpha is not None and interval is not None and interval[0] < alpha < interval[1] < interval[0] + 0.4
    weights = np.where(np.arange(len(counts)) % 2, 2.0, 0.0)
    assert krippendorff_alpha(counts, weights) == pytest.approx(krippendorff_alpha(np.repeat(counts[1::2], 2, axis=0)))


def test_pairwise_agreement_uses_shared_tiles_only() -> None:
    votes = votes_of([[0, 1, 1, 0, -1], [0, 1, 0, 0, 1], [-1, -1, -1, -1, 1]], 2)
    pairs = pair_agreement(votes)
    assert pairs.shared.tolist() == [[4, 4, 0], [4, 5, 1], [0, 1, 1]]
    assert pairs.agreement[0, 1] == 0.75 and np.isnan(pairs.agreement[0, 2])
    assert pairs.kappa[0, 1] == pytest.approx(cohen_kappa_score([0, 1, 1, 0], [0, 1, 0, 0]))
    assert np.isnan(pairs.kappa[1, 2]), "a single shared tile"


def test_remarks_name_annotators_with_too_little_overlap() -> None:
    disjoint = votes_of([[0, 1, -1, -1], [0, 1, -1, -1], [-1, -1, 0, 1], [-1, -1, 0, 0]], 2)
    remarks = " ".join(overlap_remarks(disjoint))
    assert "2 sets without a common tile (A and B, C and D)" in remarks
    assert "fewer than 5 tiles" in remarks and "A 2" in remarks and "more than two labels" in remarks
    assert overlap_remarks(simulate_votes((0.9, 0.8, 0.7), 50, 2, coverage=1.0)[0]) == []
