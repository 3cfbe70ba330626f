"""A tiny exported classifier with stored prompts, and the VLM that embedded them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny_models import save_clip, save_timm

CLASSES = ("gland", "stroma", "tumour")


def save_classifier(
    root: Path,
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    mpp: float | None = 1.0,
    backbone_mpp: float | None = None,
) -> Path:
    """Write a classifier to `run/classifier` and its VLM to `clip` below `root`; return `root`."""
    import torch

    from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig, VLMConfig
    from clipit.models.backbones import load_backbone
    from clipit.models.export_classifier import export_classifier
    from clipit.models.student import build_student
    from clipit.models.vlm import load_vlm

    torch.manual_seed(seed)
    vlm = load_vlm(VLMConfig(name=str(save_clip(root / "clip"))))
    backbone = load_backbone(BackboneConfig(name=str(save_timm(root / "timm"))))
    backbone = replace(backbone, expected_mpp=backbone_mpp)
    student = build_student(backbone, StudentConfig(), LoraConfig(rank=2), "lora", n_classes=len(classes), joint_dim=24)
    for weight in student.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    prompts = {"stored": (classes, np.random.default_rng(0).normal(size=(len(classes), 24)).astype(np.float32))}
    export_classifier(
        student.eval(),
        backbone,
        root / "run/classifier",
        classes=classes,
        mpp=mpp,
        tile_pixels=32,
        vlm_info=vlm.describe(),
        prompts=prompts,
    )
    return root
