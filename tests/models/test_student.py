from pathlib import Path

import pytest
import torch

from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
from clipit.errors import ModelError
from clipit.models.backbones import load_backbone
from clipit.models.student import Student, build_student, collapse_linear

HEADS = [
    StudentConfig(projector_layers=0),
    StudentConfig(projector_layers=1),
    StudentConfig(head="late_fusion", projector_layers=1),
    StudentConfig(head="late_fusion", projector_layers=2),
]


def make_student(
    folder: Path | str, config: StudentConfig, tuning: str = "lora", *, pretrained: bool = True
) -> Student:
    torch.manual_seed(5)
    backbone = load_backbone(BackboneConfig(name=str(folder), pretrained=pretrained))
    torch.manual_seed(5)
    return build_student(backbone, config, LoraConfig(rank=2), tuning, n_classes=3, joint_dim=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", HEADS)
def test_output_shapes(timm_folder: Path, config: StudentConfig) -> None:
    output = make_student(timm_folder, config)(torch.randn(2, 3, 32, 32))
    assert output.logits.shape == (2, 3) and output.features.shape == (2, 32)
    assert (output.projected is None) == (config.projector_layers == 0)
    if output.projected is not None:
        assert output.projected.shape == (2, 7)


def test_the_linear_head_matches_its_formula(timm_folder: Path) -> None:
    student = make_student(timm_folder, HEADS[1])
    output = student(torch.randn(2, 3, 32, 32))
    z, p, h, t = output.features, student.projector, student.image_head, student.text_head
    expected = z @ h.weight.T + h.bias + (z @ p.weight.T + p.bias) @ t.weight.T
    torch.testing.assert_close(output.logits, expected)
    weight, bias = collapse_linear(student)
    torch.testing.assert_close(z @ weight.T + bias, output.logits, atol=1e-5, rtol=1e-5)


def test_late_fusion_matches_its_formula(timm_folder: Path) -> None:
    student = make_student(timm_folder, HEADS[2])
    output = student(torch.randn(2, 3, 32, 32))
    first, _, last = student.text_head
    hidden = first(student.projector(output.features))
    text = last(torch.where(hidden > 0, hidden, 0.1 * hidden))
    expected = student.fusion(torch.cat([student.image_head(output.features), text], dim=1))
    torch.testing.assert_close(output.logits, expected)
    with pytest.raises(ModelError, match="cannot be collapsed"):
        collapse_linear(student)


def test_arms_with_the_same_seed_have_equal_initial_weights(timm_folder: Path) -> None:
    image_only, with_text = make_student(timm_folder, HEADS[0]), make_student(timm_folder, HEADS[1])
    assert torch.equal(image_only.image_head.weight, with_text.image_head.weight)
    first, second = image_only.backbone.state_dict(), with_text.backbone.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("tuning", "trainable"), [("lora", "lora_"), ("frozen", None), ("full", "")])
def test_trainable_parameters_of_each_tuning(timm_folder: Path, tuning: str, trainable: str | None) -> None:
    student = make_student(timm_folder, HEADS[1], tuning)
    for name, weight in student.named_parameters():
        in_trunk = name.startswith("backbone.")
        assert weight.requires_grad == (not in_trunk or (trainable is not None and trainable in name)), name


def test_batch_norm_statistics_are_not_updated() -> None:
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name="test_resnet", pretrained=False))
    student = build_student(backbone, HEADS[0], LoraConfig(), "full", n_classes=3, joint_dim=None)
    before = {name: value.clone() for name, value in student.named_buffers()}
    assert before
    student.train()
    student(torch.randn(2, 3, 64, 64) * 9)
    assert all(torch.equal(value, before[name]) for name, value in student.named_buffers())
    assert student.training and student.image_head.training


def test_a_frozen_backbone_stays_in_evaluation_mode(timm_folder: Path) -> None:
    assert not make_student(timm_folder, HEADS[1], "frozen").train().backbone.training
    assert make_student(timm_folder, HEADS[1], "lora").train().backbone.training


def test_invalid_students_are_errors(timm_folder: Path) -> None:
    backbone = load_backbone(BackboneConfig(name=str(timm_folder)))
    with pytest.raises(ModelError, match="dimension of the VLM's joint space"):
        build_student(backbone, HEADS[1], LoraConfig(), "frozen", n_classes=3, joint_dim=None)
    with pytest.raises(ModelError, match="need at least 2 classes, got 1"):
        build_student(backbone, HEADS[0], LoraConfig(), "frozen", n_classes=1, joint_dim=None)
