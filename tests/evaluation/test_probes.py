"""eva's AdamW protocol (`linear_probe` is tested in test_zero_shot.py)."""

import numpy as np
import pytest
import torch
from evaluation_worlds import features_of
from sklearn.linear_model import LogisticRegression

from clipit.errors import DataError
from clipit.evaluation.features import Features
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.probes import adamw_probe, linear_probe


def arrays(features: Features) -> tuple[np.ndarray, np.ndarray]:
    return features.vectors, features.labels


def test_adamw_is_as_good_as_logistic_regression() -> None:
    train, valid, test = (features_of(n, 3, seed=n, spread=1.5) for n in (300, 100, 400))
    found = adamw_probe(*arrays(train), *arrays(valid), 3, steps=3000, learning_rate=3e-3, batch_size=64)
    model = LogisticRegression(C=1e4, max_iter=5000).fit(train.vectors, train.labels)
    score = compute_metrics(test.labels, found.probabilities(test.vectors))["accuracy"]
    assert score == pytest.approx(model.score(test.vectors, test.labels), abs=0.02)
    assert score > 0.7


def test_adamw_equals_a_plain_loop_while_it_runs() -> None:
    train, valid = features_of(20, 2, seed=1), features_of(10, 2, seed=2)
    found = adamw_probe(*arrays(train), *arrays(valid), 2, seed=3, steps=1, batch_size=256)
    torch.manual_seed(3)
    layer = torch.nn.Linear(12, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-4, weight_decay=0.01)
    loss = torch.nn.functional.cross_entropy(layer(torch.tensor(train.vectors)), torch.tensor(train.labels))
    loss.backward()
    optimizer.step()
    np.testing.assert_allclose(found.weight, layer.weight.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(found.bias, layer.bias.detach().numpy(), atol=1e-6)


def test_adamw_is_seeded_and_leaves_torchs_generator_alone() -> None:
    train, valid = features_of(40, 3, seed=1), features_of(30, 3, seed=2)
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    runs = [adamw_probe(*arrays(train), *arrays(valid), 3, seed=s, steps=40, batch_size=8) for s in (0, 0, 1)]
    assert torch.rand(1) == expected
    assert (runs[0].weight == runs[1].weight).all()
    assert (runs[0].weight != runs[2].weight).any()


def test_adamw_stops_after_a_fifth_without_gain_and_keeps_the_best_step() -> None:
    train, valid = features_of(32, 2, seed=1, spread=0.1), features_of(30, 2, seed=2, spread=0.1)
    found = adamw_probe(*arrays(train), *arrays(valid), 2, steps=2000, learning_rate=0.01, batch_size=16)
    assert found.validation_score == 1.0
    assert found.steps < 2000
    assert found.steps - found.step == 400
    best = compute_metrics(valid.labels, found.probabilities(valid.vectors))["balanced_accuracy"]
    assert best == found.validation_score


def test_adamw_takes_exactly_the_maximum_number_of_steps() -> None:
    train, valid = features_of(25, 2, seed=1), features_of(30, 2, seed=2)
    found = adamw_probe(*arrays(train), *arrays(valid), 2, steps=7, batch_size=5)
    assert found.steps == 7
    assert 5 <= found.step <= 7


def test_adamw_gives_absent_classes_probability_0_and_refuses_too_few_labels() -> None:
    train, valid = features_of(40, 3, seed=1), features_of(30, 3, seed=2)
    absent = np.where(train.labels == 1, -1, train.labels).astype(np.int64)
    found = adamw_probe(train.vectors, absent, *arrays(valid), 3, steps=20)
    probabilities = found.probabilities(valid.vectors)
    assert (probabilities[:, 1] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    one = np.where(train.labels == 0, 0, -1).astype(np.int64)
    hidden = np.full(30, -1, dtype=np.int64)
    for labels, validation in ((one, valid.labels), (train.labels, hidden)):
        for probe in (adamw_probe, linear_probe):
            with pytest.raises(DataError, match="needs training labels from at least two classes, and validation"):
                probe(train.vectors, labels, valid.vectors, validation, 3)


def test_one_value_of_c_needs_no_validation_labels() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 3)), np.arange(40) % 2
    none = np.full(5, -1)
    probe = linear_probe(x, y, x[:5], none, 2, (1.0,))
    chosen = linear_probe(x, y, x[:5], y[:5], 2, (1.0,))
    assert probe.inverse_penalty == 1.0 and probe.validation_loss == {} and (probe.weight == chosen.weight).all()
    with pytest.raises(DataError, match="0 validation labels"):
        linear_probe(x, y, x[:5], none, 2, (0.1, 1.0))
