"""Tests of assigning the findings of patients to their tiles."""

import numpy as np
import pytest

from clipit.errors import DataError
from clipit.evaluation.multiple_instance import assign_instances


def simulate_bags(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, bags, bag labels and instance labels of 30 bags of 8; each positive bag has 3 positive instances."""
    rng = np.random.default_rng(seed)
    bags = np.repeat(np.arange(30), 8)
    labels = (np.arange(30) % 2).astype(np.int64)
    shows = (labels[bags] == 1) & (np.tile(np.arange(8), 30) < 3)
    features = rng.normal(size=(240, 5)) + 4.0 * shows[:, None] * np.eye(5)[0]
    return features, bags, labels, shows.astype(np.int64)


def test_positive_tiles_are_found() -> None:
    features, bags, labels, shows = simulate_bags()
    assigned = assign_instances(features, bags, labels, background=0)
    assert (assigned == shows).mean() > 0.95
    assert all(assigned[bags == bag].any() for bag in np.flatnonzero(labels == 1)), (
        "a positive patient without a positive tile"
    )
    assert not assigned[np.isin(bags, np.flatnonzero(labels == 0))].any(), "a negative patient with a positive tile"


def test_positive_bags_have_a_positive_tile_even_without_signal() -> None:
    _, bags, labels, _ = simulate_bags()
    features = np.random.default_rng(1).normal(size=(240, 5))
    assigned = assign_instances(features, bags, labels, background=0)
    assert all(assigned[bags == bag].any() for bag in np.flatnonzero(labels == 1))


def test_tiles_of_several_findings_are_found() -> None:
    features, bags, labels, shows = simulate_bags()
    three = np.where(labels == 1, 1 + (np.arange(30) % 4 == 1), 0).astype(np.int64)
    features = features + 4.0 * ((three[bags] == 2) & (shows == 1))[:, None] * np.eye(5)[1]
    assigned = assign_instances(features, bags, three, background=0)
    assert (assigned == np.where(shows == 1, three[bags], 0)).mean() > 0.95


@pytest.mark.parametrize("label", [0, 1])
def test_single_class_raises_an_error(label: int) -> None:
    features, bags, labels, _ = simulate_bags()
    with pytest.raises(DataError, match="background"):
        assign_instances(features, bags, np.full_like(labels, label), background=0)
