"""Tests of eva's AdamW probe (see test_zero_shot.py for `linear_probe`)."""

import numpy as np
import pytest
import torch
from evaluation_worlds import features_of
from sklearn.linear_model import LogisticRegression

from clipit.errors import DataError
from clipit.evaluation.features import Features
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.probes import adamw_probe, linear_probe


def to_arrays(features: Features) -> tuple[np.ndarray, np.ndarray]:
    return features.vectors, features.labels


def test_adamw_matches_the_accuracy_of_logistic_regression() -> None:
    train, valid, test = (features_of(n, 3, seed=n, spread=1.5) for n in (300, 100, 400))
    probe = adamw_probe(*to_arrays(train), *to_arrays(valid), 3, steps=3000, learning_rate=3e-3, batch_size=64)
    model = LogisticRegression(C=1e4, max_iter=5000).fit(train.vectors, train.labels)
    score = compute_metrics(test.labels, probe.probabilities(test.vectors))["accuracy"]
    assert score == pytest.approx(model.score(test.vectors, test.labels), abs=0.02)
    assert score > 0.7


def test_adamw_matches_a_plain_training_step() -> None:
    train, valid = features_of(20, 2, seed=1), features_of(10, 2, seed=2)
    probe = adamw_probe(*to_arrays(train), *to_arrays(valid), 2, seed=3, steps=1, batch_size=256)
    torch.manual_seed(3)
    layer = torch.nn.Linear(12, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-4, weight_decay=0.01)
    loss = torch.nn.functional.cross_entropy(layer(torch.tensor(train.vectors)), torch.tensor(train.labels))
    loss.backward()
    optimizer.step()
    np.testing.assert_allclose(probe.weight, layer.weight.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(probe.bias, layer.bias.detach().numpy(), atol=1e-6)


def test_adamw_is_seeded_and_does_not_change_the_state_of_torch() -> None:
    train, valid = features_of(40, 3, seed=1), features_of(30, 3, seed=2)
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    runs = [adamw_probe(*to_arrays(train), *to_arrays(valid), 3, seed=s, steps=40, batch_size=8) for s in (0, 0, 1)]
    assert torch.rand(1) == expected
    assert (runs[0].weight == runs[1].weight).all()
    assert (runs[0].weight != runs[2].weight).any()


def test_adamw_stops_early_and_keeps_the_best_step() -> None:
    train, valid = features_of(32, 2, seed=1, spread=0.1), features_of(30, 2, seed=2, spread=0.1)
    probe = adamw_probe(*to_arrays(train), *to_arrays(valid), 2, steps=2000, learning_rate=0.01, batch_size=16)
    assert probe.validation_score == 1.0
    assert probe.steps < 2000
    assert probe.steps - probe.step == 400
    best = compute_metrics(valid.labels, probe.probabilities(valid.vectors))["balanced_accuracy"]
    assert best == probe.validation_score


def test_adamw_runs_the_maximum_number_of_steps() -> None:
    train, valid = features_of(25, 2, seed=1), features_of(30, 2, seed=2)
    probe = adamw_probe(*to_arrays(train), *to_arrays(valid), 2, steps=7, batch_size=5)
    assert probe.steps == 7
    assert 5 <= probe.step <= 7


def test_adamw_with_absent_classes_and_too_few_labels() -> None:
    train, valid = features_of(40, 3, seed=1), features_of(30, 3, seed=2)
    absent = np.where(train.labels == 1, -1, train.labels).astype(np.int64)
    probe = adamw_probe(train.vectors, absent, *to_arrays(valid), 3, steps=20)
    probabilities = probe.probabilities(valid.vectors)
    assert (probabilities[:, 1] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    one = np.where(train.labels == 0, 0, -1).astype(np.int64)
    hidden = np.full(30, -1, dtype=np.int64)
    for labels, validation in ((one, valid.labels), (train.labels, hidden)):
        for probe in (adamw_probe, linear_probe):
            with pytest.raises(DataError, match="needs training labels from at least two classes, and validation"):
                probe(train.vectors, labels, valid.vectors, validation, 3)


def test_single_value_of_c_needs_no_validation_labels() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 3)), np.arange(40) % 2
    unlabelled = np.full(5, -1)
    probe = linear_probe(x, y, x[:5], unlabelled, 2, (1.0,))
    chosen = linear_probe(x, y, x[:5], y[:5], 2, (1.0,))
    assert probe.inverse_penalty == 1.0 and probe.validation_loss == {} and (probe.weight == chosen.weight).all()
    with pytest.raises(DataError, match="0 validation labels"):
        linear_probe(x, y, x[:5], unlabelled, 2, (0.1, 1.0))
