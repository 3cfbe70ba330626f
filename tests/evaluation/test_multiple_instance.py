"""Choosing the tiles that show the finding of their patient."""

import numpy as np
import pytest

from clipit.errors import DataError
from clipit.evaluation.multiple_instance import assign_instances


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """30 bags of 8 instances, half positive; 3 instances of a positive bag show the finding."""
    rng = np.random.default_rng(seed)
    bags = np.repeat(np.arange(30), 8)
    labels = (np.arange(30) % 2).astype(np.int64)
    shows = (labels[bags] == 1) & (np.tile(np.arange(8), 30) < 3)
    features = rng.normal(size=(240, 5)) + 4.0 * shows[:, None] * np.eye(5)[0]
    return features, bags, labels, shows.astype(np.int64)


def test_the_tiles_with_the_finding_are_found() -> None:
    features, bags, labels, shows = world()
    assigned = assign_instances(features, bags, labels, background=0)
    assert (assigned == shows).mean() > 0.95
    assert all(assigned[bags == bag].any() for bag in np.flatnonzero(labels == 1)), "at least one per patient"
    assert not assigned[np.isin(bags, np.flatnonzero(labels == 0))].any(), "none where there is no finding"


def test_at_least_one_even_without_a_difference() -> None:
    _, bags, labels, _ = world()
    features = np.random.default_rng(1).normal(size=(240, 5))
    assigned = assign_instances(features, bags, labels, background=0)
    assert all(assigned[bags == bag].any() for bag in np.flatnonzero(labels == 1))


def test_several_findings() -> None:
    features, bags, labels, shows = world()
    three = np.where(labels == 1, 1 + (np.arange(30) % 4 == 1), 0).astype(np.int64)
    features = features + 4.0 * ((three[bags] == 2) & (shows == 1))[:, None] * np.eye(5)[1]
    assigned = assign_instances(features, bags, three, background=0)
    assert (assigned == np.where(shows == 1, three[bags], 0)).mean() > 0.95


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone(label: int) -> None:
    features, bags, labels, _ = world()
    with pytest.raises(DataError, match="background"):
        assign_instances(features, bags, np.full_like(labels, label), background=0)
