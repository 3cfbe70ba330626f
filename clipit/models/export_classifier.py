"""Export a student as a classifier folder, which timm or transformers can also load if head and pooling allow it."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipit.errors import ArtifactError, ModelError, disk_errors, shortlist
from clipit.models.backbones import Backbone
from clipit.models.classifier_spec import (
    ADAPTER,
    CONFIG,
    DESCRIPTION,
    HEADS,
    WEIGHTS,
    ZERO_SHOT,
    ClassifierSpec,
    export_note,
    write_spec,
)
from clipit.models.inference import load_classifier
from clipit.models.loading import public_name
from clipit.models.lora import merge_lora, save_adapter
from clipit.models.student import Student, collapse_linear
from clipit.models.timm_backbones import build_timm
from clipit.models.transformers_backbones import classification_model, save_transformers
from clipit.models.trunks import TimmSpec, TokenPool, inner_model
from clipit.models.weights import check_finite_weights, write_tensors
from clipit.output_files.artifacts import whole_folder, write_json
from clipit.versions import versions

_TOLERANCE = 1e-4  # largest difference allowed, relative to the largest logit (at least 1), in float32
_SOURCE_KEYS = {
    # keys of timm's pretrained_cfg that describe the original weights, or are stated elsewhere in config.json
    "architecture", "url", "hf_hub_id", "hf_hub_filename", "file", "source", "state_dict", "custom_load",
    "num_classes", "label_names", "label_descriptions", "label_offset",
}  # fmt: skip


def export_classifier(
    student: Student,
    backbone: Backbone,
    folder: Path,
    *,
    classes: Sequence[str],
    vlm_info: Mapping[str, Any] | None = None,
    text_mean: Float[np.ndarray, " D"] | None = None,
    prompts: Mapping[str, tuple[Sequence[str], Float[np.ndarray, "K D"]]] | None = None,
    mpp: float | None = None,
    tile_pixels: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a classifier atomically, and check that its logits equal the student's.

    The student is not changed. Report texts and snippet embeddings are not written.

    Args:
        student: Trained student, with unmerged LoRA layers if it has any.
        backbone: Backbone that the student was built on.
        folder: Target folder; an earlier classifier there is replaced.
        classes: Class names, in the order of the logits.
        vlm_info: `VLM.describe()` of the VLM whose text embeddings the projector predicts.
        text_mean: Mean that was subtracted from the unit text embeddings, if they were centred.
        prompts: Prompt sets by name: class names and one embedding per class, in the space of the projector's
            training targets (centred with `text_mean` if given).
        mpp: Micrometres per pixel of the training tiles; None for the value that the backbone expects.
        tile_pixels: Edge length of the training tiles in pixels; None if they differ in size.
        provenance: Run, configuration and versions to record in `clipit.json`.

    Returns:
        Path of the folder.

    Raises:
        ModelError: Classes, prompts or mean do not match the student, or the exported logits differ.
        ArtifactError: The folder contains something other than a classifier, or cannot be written to.
    """
    _check(student, classes, vlm_info, text_mean, prompts)
    diverged = "training may have diverged: lower training.learning_rate, or check the backbone's weights"
    check_finite_weights(student.state_dict(), "the trained student", diverged)
    with disk_errors(folder):
        _check_place(folder)
    with whole_folder(folder) as partial:
        _write(
            partial, student, backbone, classes, vlm_info, text_mean, prompts or {}, mpp, tile_pixels, provenance or {}
        )
        _compare(partial, student, backbone)
    return folder


def _check_place(folder: Path) -> None:
    if folder.exists() and not (folder / DESCRIPTION).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ArtifactError(
            "the folder contains something other than a classifier",
            where=folder,
            fix="delete it, or choose a different folder",
        )


def _write(
    folder: Path,
    student: Student,
    backbone: Backbone,
    classes: Sequence[str],
    vlm_info: Mapping[str, Any] | None,
    text_mean: np.ndarray | None,
    prompts: Mapping[str, tuple[Sequence[str], np.ndarray]],
    mpp: float | None,
    tile_pixels: int | None,
    provenance: Mapping[str, Any],
) -> None:
    copied = copy.deepcopy(student).cpu().eval()
    if hasattr(copied.backbone, "peft_config"):
        save_adapter(copied.backbone, folder / ADAPTER)
    trunk = merge_lora(copied.backbone)
    plain = backbone.plain_head and copied.config.head == "linear"
    opens = plain
    if backbone.timm is None:
        classifier = None
        if copied.config.head == "linear" and isinstance(trunk, TokenPool) and not backbone.remote_code:
            size = backbone.preprocess.size
            classifier = classification_model(trunk, collapse_linear(copied), classes, size)
        opens = classifier is not None
        saved = inner_model(trunk) if classifier is None else classifier
        save_transformers(saved, backbone.preprocess, folder, opens=opens)
    else:
        model = build_timm(backbone.timm, len(classes) if plain else 0)
        _fill(model, inner_model(trunk), collapse_linear(copied) if plain else None)
        write_tensors(folder / WEIGHTS, model.state_dict())
        write_json(folder / CONFIG, _timm_config(model, backbone.timm, classes if plain else ()))

    heads = copied.head_state()
    if not plain:
        if copied.config.head == "linear":
            weight, bias = collapse_linear(copied)
            write_tensors(folder / HEADS, {"image_head.weight": weight, "image_head.bias": bias})
        else:
            write_tensors(
                folder / HEADS, {name: value for name, value in heads.items() if not name.startswith("projector.")}
            )
    if copied.projector is not None:
        tensors = {name: value for name, value in heads.items() if name.startswith("projector.")}
        if text_mean is not None:
            tensors["text_mean"] = torch.from_numpy(np.array(text_mean, dtype=np.float32))
        for name, (_, embeddings) in prompts.items():
            tensors[f"prompts.{name}"] = torch.from_numpy(np.array(embeddings, dtype=np.float32))
        write_tensors(folder / ZERO_SHOT, tensors)
    spec = ClassifierSpec(
        classes=tuple(classes),
        head=copied.config.head,
        projector_layers=copied.config.projector_layers,
        plain=plain,
        dim=backbone.dim,
        preprocess=backbone.preprocess,
        mpp=backbone.expected_mpp if mpp is None else mpp,
        tile_pixels=tile_pixels,
        mpp_assumed=mpp is None and backbone.expected_mpp is not None,
        vlm=None
        if vlm_info is None or copied.projector is None
        else {**vlm_info, "name": public_name(str(vlm_info.get("name")))},
        prompts={name: tuple(names) for name, (names, _) in prompts.items()},
        provenance={
            "backbone": {"name": backbone.public_name, "fingerprint": backbone.fingerprint},
            "versions": versions(),
            **provenance,
        },
        loader=backbone.loader,
        pooling=backbone.pooling,
        remote_code=backbone.remote_code,
        export_note=export_note(
            backbone.loader,
            opens=opens,
            pooling=backbone.pooling,
            head=copied.config.head,
            backbone_class="AutoModel" if backbone.remote_code else type(inner_model(trunk)).__name__,
        ),
    )
    write_spec(folder, spec)


def _fill(model: Any, trunk: nn.Module, linear: tuple[Tensor, Tensor] | None) -> None:
    """Load the merged backbone and the collapsed head into a new timm model."""
    head = model.get_classifier()
    head_names = {
        f"{name}.{part}" for name, module in model.named_modules() if module is head for part in ("weight", "bias")
    }
    missing, unexpected = model.load_state_dict(trunk.state_dict(), strict=False)
    unmatched = set(missing) - (head_names if linear else set())
    if unmatched or unexpected:
        raise ModelError(
            "timm builds an architecture that differs from the backbone's; unmatched weights: "
            f"{shortlist(sorted(unmatched | set(unexpected)))}",
            where="export",
            fix="report this problem with the name of the backbone, which cannot be exported",
        )
    if linear is not None:
        with torch.no_grad():
            head.weight.copy_(linear[0])
            head.bias.copy_(linear[1])


def _timm_config(model: Any, spec: TimmSpec, classes: Sequence[str]) -> dict[str, Any]:
    """Build the configuration in timm's Hub format; `model_args` omits num_classes, which transformers passes."""
    config: dict[str, Any] = {
        "architecture": spec.architecture,
        "num_classes": len(classes),
        "num_features": int(model.num_features),
    }
    if isinstance(getattr(model, "global_pool", None), str):
        config["global_pool"] = model.global_pool
    if classes:
        config["label_names"] = list(classes)
    if spec.model_args:
        config["model_args"] = spec.model_args
    kept = {key: v for key, v in spec.pretrained_cfg.items() if v is not None and key not in _SOURCE_KEYS}
    config["pretrained_cfg"] = {**kept, "num_classes": len(classes)}
    return config


def _compare(folder: Path, student: Student, backbone: Backbone) -> None:
    size = backbone.preprocess.size
    classifier = load_classifier(folder, device="cpu", trust_remote_code=backbone.remote_code)
    pixels = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    device = next(student.parameters()).device
    was_training = student.training
    student.eval()
    with torch.no_grad():
        output = student(pixels.to(device))
    student.train(was_training)
    logits, projected = classifier.forward(pixels)
    pairs = [(output.logits.cpu(), logits)]
    if output.projected is not None and projected is not None:
        pairs.append((output.projected.cpu(), projected))
    for expected, exported in pairs:
        allowed = _TOLERANCE * max(1.0, float(expected.abs().max()))
        difference = float((expected - exported).abs().max())
        if not difference <= allowed:  # also true for NaN
            raise ModelError(
                f"the exported classifier differs from the student by {difference:.2g} (allowed {allowed:.2g})",
                where=folder,
                fix="check the student for non-finite values; if it has none, report this problem with the name of "
                "the backbone",
            )


def _check(
    student: Student,
    classes: Sequence[str],
    vlm_info: Mapping[str, Any] | None,
    text_mean: np.ndarray | None,
    prompts: Mapping[str, tuple[Sequence[str], np.ndarray]] | None,
) -> None:
    def mismatch(problem: str) -> ModelError:
        return ModelError(
            problem, where="export", fix="pass the classes, prompts and mean that the student was trained with"
        )

    expected = student.image_head.out_features
    if len(set(classes)) != expected or len(classes) != expected:
        raise mismatch(
            f"{len(classes)} class names ({len(set(classes))} distinct) for a student with {expected} classes"
        )
    if student.projector is None:
        if prompts or text_mean is not None:
            raise mismatch("a student without a projector takes no prompts and no text mean")
        return
    last = student.projector if isinstance(student.projector, nn.Linear) else student.projector[-1]
    dim = last.out_features
    if vlm_info is not None and vlm_info.get("joint_dim") != dim:
        raise mismatch(
            f"the VLM's joint space has {vlm_info.get('joint_dim')} dimensions, but the projector has {dim} outputs"
        )
    if text_mean is not None and text_mean.shape != (dim,):
        raise mismatch(f"the text mean has the shape {text_mean.shape}, but the joint space has {dim} dimensions")
    for name, (names, embeddings) in (prompts or {}).items():
        if embeddings.shape != (len(names), dim):
            raise mismatch(
                f"the embeddings of prompt set {name} have the shape {embeddings.shape}, not {(len(names), dim)}"
            )
