"""Adapters of VLMs: folders with only the trained weights, which are merged into the VLM when it is loaded."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipit.errors import ArtifactError, ModelError, shortlist
from clipit.input_files.nearby_files import similar_names
from clipit.models.adapted_towers import AdaptedTowers, log_scale
from clipit.models.loading import foreign_errors
from clipit.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_lora, save_adapter
from clipit.models.towers import Towers
from clipit.models.weights import read_tensors, write_tensors
from clipit.output_files.artifacts import file_sha256, read_json
from clipit.output_files.run_files import RUN_FINGERPRINT, check_same_run, write_run_json

RECORD = "clipit_adapter.json"
_OTHER_WEIGHTS = "weights.safetensors"
_SCHEMA = 1
_SCALE = "logit_scale"
_COPY = "copy the adapter's folder again, with all its files"


def save_vlm_adapter(adapted: AdaptedTowers, base: Mapping[str, str], folder: Path) -> None:
    """Write the trained weights into an existing folder, before they are merged.

    Low-rank updates are written in peft's format, all other trained weights and the learnt scale in a separate file.

    Args:
        adapted: Trained towers.
        base: `name` and `fingerprint` of the VLM that was adapted.
        folder: Existing folder, in the folder of the adaptation.
    """
    if adapted.tuning == "lora":
        save_adapter(adapted.network, folder)
    others = {
        name.removeprefix("network."): weight for name, weight in adapted.trainable().items() if "lora_" not in name
    }
    write_tensors(folder / _OTHER_WEIGHTS, {**others, _SCALE: adapted.logit_scale})
    files = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, _OTHER_WEIGHTS) if (folder / name).is_file()]
    record = {
        "schema": _SCHEMA,
        "base": dict(base),
        "tuning": adapted.tuning,
        "towers": list(adapted.trained_towers),
        "files": {name: file_sha256(folder / name) for name in files},
    }
    write_run_json(folder / RECORD, record, folder.parent)


def read_vlm_adapter(folder: Path) -> dict[str, Any]:
    """Read the description of an adapter: its base VLM, tuning, towers and the checksums of its files.

    Raises:
        ModelError: The folder does not exist, or contains no complete adapter written by `clipit adapt`.
        ArtifactError: The adapter belongs to a different adaptation than the folder that contains it.
    """
    if not (folder / RECORD).is_file():
        raise ModelError(
            "vlm.adapter does not exist" if not folder.exists() else f"no adapter in this folder: {RECORD} is missing",
            where=folder,
            fix="use the adapter/ folder written by clipit adapt"
            + ("" if folder.exists() else f"; {similar_names(str(folder))}"),
        )
    try:
        record = read_json(folder / RECORD, _COPY)
    except ArtifactError as error:
        raise ModelError(f"the adapter's description is damaged: {error}", where=folder / RECORD, fix=_COPY) from error
    fix = "restore the adapter's folder from a copy, or delete the folder of the adaptation and run clipit adapt again"
    check_same_run(folder / RECORD, record.pop(RUN_FINGERPRINT, None), folder.parent, fix)
    files, base = record.get("files"), record.get("base")
    if record.get("schema") != _SCHEMA or not isinstance(files, dict) or not isinstance(base, dict):
        raise ModelError(
            f"the adapter was written by a different version of clipit (schema {record.get('schema')})",
            where=folder / RECORD,
            fix=f"use the version of clipit that wrote it; this one reads schema {_SCHEMA}",
        )
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise ModelError(f"files of the adapter are missing: {shortlist(absent)}", where=folder, fix=_COPY)
    return record


def merge_vlm_adapter(towers: Towers, fingerprint: str, folder: Path) -> Towers:
    """Merge the trained weights of an adapter into a VLM, in place, and return its towers with the learnt scale.

    Raises:
        ModelError: The adapter is missing or damaged, or belongs to a different VLM.
    """
    record = read_vlm_adapter(folder)
    base = record["base"]
    if base.get("fingerprint") != fingerprint:
        raise ModelError(
            f"the adapter belongs to a different VLM: {base.get('name')}, fingerprint {base.get('fingerprint')}; "
            f"this one has {fingerprint}",
            where=f"vlm.adapter: {folder}",
            fix="set vlm.name (and vlm.path) to the VLM that was adapted, with the same weights and preprocessing",
        )
    if changed := [name for name, digest in record["files"].items() if file_sha256(folder / name) != digest]:
        raise ModelError(f"files of the adapter are damaged: {shortlist(changed)}", where=folder, fix=_COPY)
    if ADAPTER_CONFIG in record["files"]:
        load_lora(towers.module, folder)
    with foreign_errors("adapter", where=folder):
        others = read_tensors(folder / _OTHER_WEIGHTS)
    _copy_weights(towers, others, folder)
    towers.module.requires_grad_(False)
    return replace(towers, logit_scale=math.exp(float(others[_SCALE])))


def _copy_weights(towers: Towers, others: Mapping[str, Tensor], folder: Path) -> None:
    weights = dict(towers.module.named_parameters())
    scale = log_scale(towers)
    mismatched = [
        name
        for name, value in others.items()
        if name != _SCALE and (name not in weights or weights[name].shape != value.shape)
    ]
    if mismatched or _SCALE not in others:
        raise ModelError(
            f"weights of the adapter do not match the VLM: {shortlist(mismatched or [f'{_SCALE} is missing'])}",
            where=folder / _OTHER_WEIGHTS,
            fix="use the adapter with the VLM that it was trained on",
        )
    with torch.no_grad():
        for name, value in others.items():
            target = scale if name == _SCALE else weights[name]
            target.copy_(value.reshape(target.shape))
