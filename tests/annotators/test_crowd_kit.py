"""Comparison of Dawid-Skene with crowd-kit; a separate file because crowd-kit is slow to import."""

import numpy as np
import pytest
from simulated_annotators import simulate_votes

from clipit.annotators.dawid_skene import dawid_skene

pandas = pytest.importorskip("pandas")
aggregation = pytest.importorskip("crowdkit.aggregation", reason="crowd-kit is not installed")


@pytest.mark.filterwarnings("ignore")  # crowd-kit uses deprecated pandas functions
def test_dawid_skene_matches_crowd_kit() -> None:
    votes, _ = simulate_votes((0.9, 0.85, 0.8, 0.7), 60, 3, coverage=0.9, seed=3)
    table = pandas.DataFrame(
        {
            "task": [votes.items[i] for i in votes.item],
            "worker": [votes.annotators[a] for a in votes.annotator],
            "label": [votes.classes[c] for c in votes.label],
        }
    )
    expected = aggregation.DawidSkene(n_iter=100, tol=1e-9).fit(table)
    ours = dawid_skene(votes, smoothing=0.0, tolerance=1e-12)
    posteriors = expected.probas_.loc[list(votes.items), list(votes.classes)].to_numpy()
    assert np.abs(ours.posteriors - posteriors).max() < 0.01
    assert (ours.posteriors.argmax(axis=1) == posteriors.argmax(axis=1)).all()
    assert np.abs(ours.priors - expected.priors_[list(votes.classes)].to_numpy()).max() < 1e-3
    for number, name in enumerate(votes.annotators):
        # crowd-kit's matrices have labels as rows and true classes as columns, without labels that do not occur
        errors = expected.errors_.loc[name].reindex(list(votes.classes))[list(votes.classes)].fillna(0).to_numpy()
        assert np.abs(ours.confusions[number].T - errors).max() < 0.01, name
