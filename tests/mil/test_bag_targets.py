"""Test targets of bags: the loss, training with and without targets, and prediction without them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mil_bags import ArrayReader

from clipit.config.mil import MilTrainingConfig
from clipit.mil.mil_bags import MilBags
from clipit.mil.network import MilNetwork, MilOutput
from clipit.mil.privileged import image_embeddings, predicted_labels
from clipit.mil.targets import BagTargets, join_targets, label_targets, select_targeted, target_loss, vector_targets
from clipit.mil.train_network import MilModel, train_bag_network

OPTIONS = MilTrainingConfig(hidden=8, attention=4, dropout=0.0, epochs=8, patience=8, learning_rate=0.02)
TRUTH = np.arange(60, dtype=np.int64) % 2


def draw_bags() -> MilBags:
    """Draw 40 training (4 labelled), 8 validation and 12 test bags; one of 6 instances shows the class."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((6, 5)).astype(np.float32) for _ in TRUTH]
    for array, label in zip(arrays, TRUTH.tolist(), strict=True):
        array[2, 0] += 4 if label else -4
    names = np.array([f"s{number:02d}" for number in range(len(TRUTH))], dtype=object)
    splits = np.array(["train"] * 40 + ["validation"] * 8 + ["test"] * 12, dtype=object)
    labels = np.where((np.arange(60) >= 4) & (splits == "train"), -1, TRUTH)
    reader = ArrayReader(arrays, [[f"{name}-{i}" for i in range(6)] for name in names])
    return MilBags(names, labels, names.copy(), splits, ("a", "b"), reader, np.arange(60, dtype=np.int64))


BAGS = draw_bags()


def correct_targets(flipped: bool = False) -> BagTargets:
    train = BAGS.of_split("train")
    probabilities = np.eye(2, dtype=np.float32)[1 - TRUTH[:40] if flipped else TRUTH[:40]]
    return label_targets(train.names, probabilities, (train.labels < 0).astype(np.float32))


def loss_on_test(model: MilModel) -> float:
    return float(-np.log(model.predict(BAGS.of_split("test"))[np.arange(12), TRUTH[48:]]).mean())


@pytest.fixture(scope="module")
def plain() -> MilModel:
    return train_bag_network(BAGS, OPTIONS, seed=0)


def have_equal_weights(first: MilModel, second: MilModel) -> bool:
    states = first.network.state_dict(), second.network.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def test_the_loss_is_the_weighted_cross_entropy_plus_the_cosine_distance() -> None:
    network = MilNetwork(5, 2, OPTIONS)
    network.target_head = torch.nn.Linear(8, 2)
    output: MilOutput = network(torch.from_numpy(BAGS.features(0)))
    targets = BagTargets(
        BAGS.names[:2],
        np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32),
        np.array([0.5, 0.0], dtype=np.float32),
        np.array([[0.6, 0.8], [0.0, 0.0]], dtype=np.float32),
        np.array([True, False]),
        label_weight=3.0,
        vector_weight=2.0,
    )
    targeted = select_targeted(BAGS, targets)
    assert targeted is not None and targeted.bags.names.tolist() == ["s00"], "the second bag has no target"
    logits = output.logits.detach().double().numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum())
    projected = network.target_head(output.representation).detach().double().numpy()
    cosine = projected @ [0.6, 0.8] / np.linalg.norm(projected)
    expected = 3 * 0.5 * -(0.25 * log_probabilities[0] + 0.75 * log_probabilities[1]) + 2 * (1 - cosine)
    assert target_loss(network, output, targeted, 0).item() == pytest.approx(expected, rel=1e-5)


def test_target_labels_of_unlabelled_bags_help_if_correct_and_harm_if_wrong(plain: MilModel) -> None:
    taught = train_bag_network(BAGS, OPTIONS, 0, correct_targets())
    misled = train_bag_network(BAGS, OPTIONS, 0, correct_targets(flipped=True))
    assert loss_on_test(taught) < 0.5 * loss_on_test(plain)
    assert loss_on_test(misled) > loss_on_test(plain)


def test_targets_without_a_matching_training_bag_are_ignored(plain: MilModel) -> None:
    targets = correct_targets()
    for other in (
        replace(targets, weights=np.zeros(40, dtype=np.float32)),
        replace(targets, names=np.array([f"other-{n}" for n in range(40)], dtype=object)),
        replace(targets, names=BAGS.of_split("test").names[np.arange(40) % 12]),
    ):
        assert select_targeted(BAGS, other) is None
    assert have_equal_weights(
        plain, train_bag_network(BAGS, OPTIONS, 0, replace(targets, weights=np.zeros(40, dtype=np.float32)))
    )


def test_a_model_trained_with_vector_targets_keeps_no_target_head(plain: MilModel, tmp_path: Path) -> None:
    targets = join_targets(correct_targets(), image_embeddings(BAGS))
    model = train_bag_network(BAGS, OPTIONS, 0, targets, root=tmp_path)
    assert model.network.target_head is None
    assert model.network.state_dict().keys() == plain.network.state_dict().keys()
    assert not have_equal_weights(model, plain)
    again = train_bag_network(BAGS, OPTIONS, 0, targets, root=tmp_path)
    assert have_equal_weights(model, again)
    train_bag_network(BAGS, OPTIONS, 0, replace(targets, vector_weight=2.0), root=tmp_path)
    assert len([path for path in tmp_path.glob("mil_model-*") if path.is_dir()]) == 2


def test_image_targets_are_the_centred_means_of_the_features() -> None:
    targets = image_embeddings(BAGS)
    means = np.stack([BAGS.features(bag).mean(axis=0) for bag in range(40)])
    centred = means - means.mean(axis=0)
    assert np.allclose(targets.vectors, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-5)
    assert targets.distilled.all() and not targets.weights.any() and targets.dim == 5


def test_image_targets_are_limited_to_bags_with_reports() -> None:
    train = BAGS.of_split("train")
    distilled = np.arange(40) % 4 == 0
    reported = vector_targets(train.names, np.ones((40, 3), dtype=np.float32), distilled, 2)
    targets = image_embeddings(BAGS, reported)
    means = np.stack([BAGS.features(bag).mean(axis=0) for bag in range(0, 40, 4)])
    centred = means - means.mean(axis=0)
    assert np.array_equal(targets.distilled, distilled) and not targets.vectors[~distilled].any()
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert np.allclose(targets.vectors[distilled], expected, atol=1e-5)
    assert targets.notes[0].startswith("10 of 40 training bags")


def test_predicted_labels_are_targets_of_unlabelled_training_bags_only(plain: MilModel) -> None:
    targets = predicted_labels(plain.predict, BAGS)
    assert targets.weights.tolist() == [0.0] * 4 + [1.0] * 36
    assert np.array_equal(targets.probabilities[4:], plain.predict(BAGS.select(np.arange(4, 40))))
    assert targets.dim == 0


def test_targets_of_different_bags_and_zero_weights_are_rejected() -> None:
    with pytest.raises(ValueError, match="same bags"):
        join_targets(correct_targets(), image_embeddings(BAGS.select(np.arange(30))))
    with pytest.raises(ValueError, match="positive"):
        replace(correct_targets(), label_weight=0.0)
    vectors = np.eye(2, dtype=np.float32)
    first = vector_targets(BAGS.names[:2], vectors, np.ones(2, dtype=bool), 2)
    assert first.fingerprint != replace(first, vectors=vectors[::-1].copy()).fingerprint
