"""Test MIL networks and their training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mil_bags import ArrayReader, bags_with_signal

from clipit.config.mil import MilTrainingConfig
from clipit.errors import ArtifactError, DataError
from clipit.mil import train_network
from clipit.mil.mil_arms import ARMS, class_frequencies
from clipit.mil.mil_bags import keep_labels, label_budget_note, shuffle_labels, unchanged_shares
from clipit.mil.network import MilNetwork
from clipit.mil.train_network import train_bag_network

OPTIONS = MilTrainingConfig(hidden=16, attention=8, epochs=12, learning_rate=1e-2)


def test_gated_attention_equals_torchmil_with_the_same_weights() -> None:
    models = pytest.importorskip("torchmil.models")
    torch.manual_seed(0)
    network = MilNetwork(6, 2, OPTIONS).eval()
    embed = torch.nn.Sequential(torch.nn.Linear(6, OPTIONS.hidden), torch.nn.ReLU())
    reference = models.ABMIL((6,), att_dim=OPTIONS.attention, gated=True, feat_ext=embed).eval()
    with torch.no_grad():
        embed[0].load_state_dict(network.embed.state_dict())
        reference.pool.fc1.module.load_state_dict(network.attention_tanh.state_dict())
        reference.pool.fc_gated.module.load_state_dict(network.attention_gate.state_dict())
        reference.pool.fc2.load_state_dict(network.attention_weight.state_dict())
        # torchmil's single logit is the difference of clipit's two
        reference.classifier.module.weight.copy_(network.classifier.weight[1:] - network.classifier.weight[:1])
        reference.classifier.module.bias.copy_(network.classifier.bias[1:] - network.classifier.bias[:1])
        bag = torch.randn(11, 6)
        output = network(bag)
        logit, attention = reference(bag[None], return_att=True)
    assert torch.allclose(output.logits[1] - output.logits[0], logit[0], atol=1e-6)
    assert torch.allclose(output.attention, attention[0].softmax(0), atol=1e-6)


@pytest.mark.parametrize("pooling", ["attention", "mean", "max"])
def test_logits_of_a_bag_are_the_pooled_logits_of_its_instances(pooling: str) -> None:
    torch.manual_seed(1)
    network = MilNetwork(4, 3, OPTIONS.model_copy(update={"pooling": pooling})).eval()
    network.standardise(torch.full((4,), 0.5), torch.full((4,), 2.0))
    with torch.no_grad():
        output = network(torch.randn(7, 4))
        single = network(torch.ones(1, 4))
    pooled = {
        "attention": output.attention @ output.instance_logits,
        "mean": output.instance_logits.mean(0),
        "max": output.instance_logits.amax(0),
    }[pooling]
    assert torch.allclose(output.logits, pooled, atol=1e-6)
    assert output.attention.sum() == pytest.approx(1, abs=1e-6) and output.attention.min() >= 0
    assert torch.allclose(single.logits, single.instance_logits[0], atol=1e-6)
    hidden = torch.relu(network.embed((torch.ones(1, 4) - 0.5) / 2))
    assert torch.allclose(single.representation, hidden[0], atol=1e-6)


def test_attention_is_highest_for_the_instances_that_show_the_class() -> None:
    bags = bags_with_signal()
    model = train_bag_network(bags, OPTIONS, 0)
    test = bags.of_split("test")
    assert (model.predict(test).argmax(axis=1) == test.labels).mean() > 0.9
    assert model.epoch == 1 + int(np.argmin([validation for _, validation in model.losses]))
    attention = np.stack([model.explain(test.features(bag)).attention.numpy() for bag in range(len(test))])
    assert attention[:, :3].mean() > 2 * attention[:, 3:].mean()  # 3 of 20 instances show the class
    logits = model.explain(test.features(0)).instance_logits.numpy()
    label = int(test.labels[0])
    assert (logits[:3, label] - logits[:3, 1 - label]).min() > (logits[3:, label] - logits[3:, 1 - label]).mean()


def test_test_labels_do_not_affect_training() -> None:
    bags = bags_with_signal(24)
    labels = np.where(bags.splits == "test", 1 - bags.labels, bags.labels)
    one, other = train_bag_network(bags, OPTIONS, 3), train_bag_network(replace(bags, labels=labels), OPTIONS, 3)
    assert np.array_equal(one.predict(bags), other.predict(bags))
    assert one.losses == other.losses


def test_an_interrupted_training_resumes_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bags = bags_with_signal(24)
    uninterrupted = train_bag_network(bags, OPTIONS, 0)
    monkeypatch.setattr(train_network, "_CHECKPOINT_SECONDS", 0.0)
    original, epochs = train_network.train_epoch, []

    def interrupted(*arguments: object) -> float:
        epochs.append(arguments[-1])
        if len(epochs) == 8:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train_network, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_bag_network(bags, OPTIONS, 0, root=tmp_path)
    resumed = train_bag_network(bags, OPTIONS, 0, root=tmp_path)
    assert epochs[:9] == [*range(8), 7]
    assert resumed.losses == uninterrupted.losses and resumed.epoch == uninterrupted.epoch
    assert np.array_equal(resumed.predict(bags), uninterrupted.predict(bags))
    before = len(epochs)
    cached = train_bag_network(bags, OPTIONS, 0, root=tmp_path)
    assert len(epochs) == before and np.array_equal(cached.predict(bags), uninterrupted.predict(bags))
    files = sorted(path.name for path in next(tmp_path.glob("mil_model-*")).iterdir() if path.suffix != ".lock")
    assert files == ["manifest.json", "model.json", "model.safetensors"]


def test_checkpoints_of_a_different_network_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bags = bags_with_signal(24)
    monkeypatch.setattr(train_network, "_CHECKPOINT_SECONDS", 0.0)
    original = train_network.train_epoch

    def interrupted(*arguments: object) -> float:
        if arguments[-1] == 2:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(train_network, "train_epoch", interrupted)
        for seed in (0, 1):
            with pytest.raises(KeyboardInterrupt):
                train_bag_network(bags, OPTIONS, seed, root=tmp_path)
    first, second = (path / "checkpoints" for path in tmp_path.glob("mil_model-*.partial"))
    for folder, source in ((first, tmp_path / "kept"), (second, first), (tmp_path / "kept", second)):
        folder.rename(source)  # swap the two folders
    for seed in (0, 1):
        with pytest.raises(ArtifactError, match=r"(?s)belongs to a different run: its fing.*delete the folder"):
            train_bag_network(bags, OPTIONS, seed, root=tmp_path)


def test_bags_without_enough_labels_are_rejected_with_all_reasons() -> None:
    bags = bags_with_signal(24)
    one_class = replace(bags, labels=np.where(bags.labels == 1, -1, 0))
    with pytest.raises(DataError, match=r"no training bag is labelled malignant\n.*one class, benign"):
        train_bag_network(one_class, OPTIONS, 0)
    unvalidated = replace(bags, labels=np.where(bags.splits == "validation", -1, bags.labels))
    with pytest.raises(DataError, match="no validation bag has a label"):
        train_bag_network(unvalidated, OPTIONS, 0)
    with pytest.raises(DataError, match="no training bag has a label"):
        train_bag_network(bags.of_split("validation"), OPTIONS, 0)


def test_features_of_a_different_dimension_are_rejected() -> None:
    bags = bags_with_signal(24)
    model = train_bag_network(bags, OPTIONS.model_copy(update={"epochs": 1}), 0)
    with pytest.raises(DataError, match="5 dimensions; the model was trained on 8"):
        model.predict(bags_with_signal(24, dim=5))


def test_invalid_bags_are_rejected_with_all_problems() -> None:
    bags = bags_with_signal(6)
    with pytest.raises(DataError, match=r"1 bag occurs more than once: bag000(.|\n)*label is out of(.|\n)*a \(test"):
        replace(
            bags,
            names=np.array(["bag000", *bags.names[:-1].tolist()]),
            labels=np.full(6, 2),
            patients=np.array(["a"] * 6),
            splits=np.array(["train"] * 5 + ["test"]),
        )
    arrays = [np.full((2, 3), np.nan, dtype=np.float32), np.empty((0, 3), dtype=np.float32)]
    broken = replace(bags.select(np.arange(2)), reader=ArrayReader(arrays, [["a", "b"], []]))
    with pytest.raises(DataError, match="bag000 has 2 feature vectors with values that are not finite: a, b"):
        broken.features(0)
    with pytest.raises(DataError, match="bag001 has no instances"):
        broken.features(1)


def test_kept_labels_are_nested_and_test_labels_unchanged() -> None:
    bags = bags_with_signal(36)
    few, more = keep_labels(bags, 2, 5), keep_labels(bags, 4, 5)
    assert few.counts()["train"] == {"benign": 2, "malignant": 2, "(no label)": 8}
    assert few.counts()["test"] == bags.counts()["test"]
    assert set(few.names[few.labels >= 0]) <= set(more.names[more.labels >= 0])
    assert label_budget_note(bags, None) == ()
    (note,) = label_budget_note(bags, 4)
    assert note == "labels used: 4 training and 4 validation bags per class, drawn for each seed"
    (note,) = label_budget_note(bags, 7)
    assert "; there are fewer of benign (train 6), malignant (train 6), benign (validation 6), malignant" in note
    assert set(few.names[few.labels >= 0]) != set(keep_labels(bags, 2, 6).names[keep_labels(bags, 2, 6).labels >= 0])


def test_shuffling_keeps_class_frequencies_and_test_labels() -> None:
    bags = bags_with_signal(60)
    shuffled = shuffle_labels(bags, 0)
    assert shuffled.counts() == bags.counts()
    test = bags.splits == "test"
    assert np.array_equal(shuffled.labels[test], bags.labels[test])
    assert not np.array_equal(shuffled.labels, bags.labels)


@pytest.mark.parametrize(("per_class", "share"), [(1, 0.0), (2, 0.5), (4, 0.5), (5, 0.4), (None, 0.5)])
def test_shuffled_labels_agree_with_the_originals_as_often_as_by_chance(per_class: int | None, share: float) -> None:
    """With five labels per class, 4 or 6 of 10 can stay unchanged; the smaller number is used."""
    bags = bags_with_signal(60)
    for seed in range(8):
        kept = keep_labels(bags, per_class, seed)
        shares = unchanged_shares(kept, shuffle_labels(kept, seed))
        assert shares == {"train": (share, 0.5), "validation": (share, 0.5)}
    drawn = {tuple(shuffle_labels(bags, seed).labels.tolist()) for seed in range(8)}
    assert len(drawn) == 8


def test_rare_classes_are_shuffled_as_well() -> None:
    bags = bags_with_signal(60)
    labels = np.where(np.arange(60) % 10 == 0, 1, 0)
    rare = replace(bags, labels=labels)
    train = rare.splits == "train"
    shuffled = shuffle_labels(rare, 0)
    assert ((shuffled.labels != labels) & train).sum() == 4  # both bags of the rare class are swapped with two others
    assert unchanged_shares(rare, shuffled)["train"] == (0.8, pytest.approx(0.82))


def test_the_shuffled_control_notes_unchanged_labels_and_small_classes() -> None:
    bags = bags_with_signal(60)
    assert ARMS["attention"].notes(bags, 1, 0) == []
    notes = ARMS["shuffled_labels"].notes(bags, 1, 0)
    assert "train 0% (by chance 50%); validation 0% (by chance 50%)" in notes[0]
    assert "a class has only 1 label in train or validation" in notes[1]
    assert len(ARMS["shuffled_labels"].notes(bags, 4, 0)) == 1


def test_class_frequencies_are_those_of_the_kept_labels() -> None:
    bags = bags_with_signal(60)
    uneven = replace(bags, labels=np.where(np.arange(60) % 10 == 0, 1, 0))
    assert np.allclose(class_frequencies(uneven, None, 0), [[0.9, 0.1]] * 60)
    assert np.allclose(class_frequencies(uneven, 1, 0), [[0.5, 0.5]] * 60)
