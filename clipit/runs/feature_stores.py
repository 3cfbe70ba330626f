"""Stored features of frozen models: the VLM's image tower, a backbone, or a finished run's classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from clipit.config.load import read_yaml
from clipit.config.run import BackboneConfig, RunConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import ArtifactError, ConfigError, ModelError
from clipit.output_files.artifacts import file_sha256, fingerprint
from clipit.progress import Advance
from clipit.runs.folder import read_training
from clipit.stores.embed import Store, write_shards
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.tileset import SPLITS
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from clipit.models.backbones import Backbone

JOINT = "VLM, joint space"
SAW_LABELS, SAW_NO_LABELS, UNKNOWN = "true", "false", "unknown"
"""Values of the column `features_saw_labels`."""


@dataclass(frozen=True)
class FeatureStores:
    """Stored features of all tiles from one frozen model.

    Attributes:
        name: Name of the model in tables.
        facts: Provenance of every score: model, fingerprint, preprocessing, pixels, features_saw_labels.
        stores: Stores by split.
    """

    name: str
    facts: dict[str, Any]
    stores: dict[str, Store]


def vlm_stores(workspace: Workspace) -> FeatureStores:
    """Return the features of the VLM in its joint space."""
    facts = vlm_facts(workspace) | {"features_saw_labels": SAW_NO_LABELS}
    return FeatureStores(JOINT, facts, {split: workspace.tile_store(split) for split in SPLITS})


def backbone_stores(config: RunConfig, workspace: Workspace) -> FeatureStores:
    """Compute the features of the configured backbone, without LoRA or training."""
    from clipit.models.backbones import load_backbone

    backbone = load_backbone(config.backbone, get_processes().device, seed=config.seed)
    return _embed_with_backbone("backbone, frozen", backbone, config, workspace, {"features_saw_labels": SAW_NO_LABELS})


def classifier_stores(config: RunConfig, workspace: Workspace, run: Path) -> FeatureStores:
    """Compute the pooled features of a finished run's classifier, whose backbone includes the merged adapter.

    Raises:
        ModelError: The classifier is missing, or its folder cannot be opened as a backbone.
    """
    from clipit.models.backbones import load_backbone
    from clipit.models.classifier_spec import read_spec, verify_files

    folder = run / "classifier"
    spec = read_spec(folder)
    verify_files(folder, spec)
    keys = config.backbone.model_dump() | {"name": str(folder), "path": None, "pixels": None, "pretrained": True}
    keys["pooling"] = spec.pooling
    backbone = load_backbone(BackboneConfig(**keys), get_processes().device)
    if backbone.preprocess.hash != spec.preprocess.hash:
        raise ModelError(
            "the preprocessing described in the classifier's folder differs from that used in training",
            where=folder,
            fix="export the classifier again",
        )
    facts = run_facts(run) | {"features_saw_labels": saw_labels(run)}
    return _embed_with_backbone(f"classifier {run.name}", backbone, config, workspace, facts)


def vlm_facts(workspace: Workspace) -> dict[str, Any]:
    """Return the provenance of the VLM's scores."""
    vlm = workspace.vlm
    facts = {"model": vlm.name, "fingerprint": vlm.fingerprint, "vlm": vlm.name, "vlm_fingerprint": vlm.fingerprint}
    return facts | {"preprocess": vlm.preprocess.hash, "pixels": vlm.preprocess.size}


def run_facts(run: Path) -> dict[str, Any]:
    """Return the provenance of a finished run: arm, seed, and the artefacts that it was trained with."""
    config, training = read_run_record(run)
    facts = {"run": config.get("name", run.name), "arm": config.get("arm") or "custom", "run_seed": config.get("seed")}
    inputs = ("backbone", "backbone_fingerprint", "vlm", "vlm_fingerprint", "index", "pairs")
    return facts | {key: training.get(key) for key in inputs}


def classifier_fingerprint(folder: Path) -> str:
    """Compute the fingerprint of all weights in a classifier's folder."""
    return fingerprint([file_sha256(path) for path in sorted(folder.glob("*.safetensors"))])


def saw_labels(run: Path) -> str:
    """Return whether labels influenced the features of a run's classifier: `true`, `false` or `unknown`.

    The value is `true` if the backbone was tuned and the run used any label, even if only to select the checkpoint on
    validation tiles. It is `unknown` if the run's folder does not record this.
    """
    config, training = read_run_record(run)
    tuning = (config.get("backbone") or {}).get("tuning")
    counts = [training.get(key) for key in ("training_labels", "validation_labels")]
    if tuning == "frozen" or counts == [0, 0]:
        return SAW_NO_LABELS
    return UNKNOWN if tuning is None or None in counts else SAW_LABELS


def read_run_record(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read config.yaml and training.json of a run; a missing file gives an empty mapping."""
    config_file, training_file = run / "config.yaml", run / "training.json"
    try:
        config = read_yaml(config_file) if config_file.is_file() else {}
    except ConfigError as error:
        fix = "restore this file from a copy, or delete the run's folder and run training again"
        raise ArtifactError(
            f"the run's configuration is damaged: {str(error).splitlines()[0]}", where=config_file, fix=fix
        ) from error
    return config, read_training(run) if training_file.is_file() else {}


def _embed_with_backbone(
    name: str, backbone: "Backbone", config: RunConfig, workspace: Workspace, facts: dict[str, Any]
) -> FeatureStores:
    import torch
    from torch import Tensor

    def forward(pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[np.ndarray, "b d"]:
        with torch.inference_mode():
            features = backbone.module(backbone.preprocess.normalise(pixels))
        return np.asarray(features.float().cpu().numpy())

    workspace.warn_about_view(backbone.name, backbone.expected_mpp, backbone.preprocess)
    backbone.module.eval()
    stores = {}
    for split in SPLITS:
        source = workspace.pixels(split, backbone.preprocess)
        inputs = {"tiles": source.tiles.fingerprint, "model": backbone.fingerprint, "pooling": backbone.pooling}
        stores[split] = store_features(
            workspace.root, inputs, source, backbone.dim, forward, config.evaluation.batch_size
        )
    facts = facts | {
        "model": backbone.name,
        "fingerprint": backbone.fingerprint,
        "preprocess": backbone.preprocess.hash,
        "pixels": backbone.preprocess.size,
    }
    return FeatureStores(name, facts, stores)


def store_features(
    root: Path,
    inputs: dict[str, Any],
    source: PixelSource,
    dim: int,
    forward: "Callable[[Tensor], Float32[np.ndarray, 'b d']]",
    batch_size: int,
) -> Store:
    """Compute features of all tiles of a source, cached as the artefact `features` (float32 shards and ids).

    Args:
        inputs: Everything that the features depend on, including the tiles and the model.
        forward: Function from uint8 pixels [b, 3, h, w] on this process's device to features.
        root: Folder of the artefacts.
        batch_size: Tiles per forward pass. Batches do not cross shards, so that the stored bytes do not depend on the
            number of processes.
    """
    ids = [str(name) for name in source.tiles.ids]

    def encode(start: int, stop: int, advance: Advance) -> Float32[np.ndarray, "_ d"]:
        batches = [np.arange(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]
        features = []
        for rows, pixels in source.on_device(batches, get_processes().device):
            features.append(forward(pixels))
            advance(len(rows))
        return np.asarray(np.concatenate(features), dtype=np.float32)

    def make(folder: Path) -> dict[str, Any]:
        write_shards(folder, ids, encode, "tile features")
        return {"rows": len(ids), "dim": dim}

    return Store(build_once(root, "features", inputs | {"precision": "float32"}, make))
