"""Features of frozen models for studies: the VLM's image tower, the backbone, and the classifier of a finished run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from clipit.config.run import RunConfig
from clipit.errors import DataError
from clipit.evaluation.features import Features
from clipit.models.classifier_spec import read_spec
from clipit.reporting.study_page import PromptColumns
from clipit.runs.feature_stores import (
    FeatureStores,
    backbone_stores,
    classifier_stores,
    read_run_record,
    vlm_stores,
)
from clipit.stores.embed import Store, embed_tiles
from clipit.tiles.tileset import SPLITS, TileSet
from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of all tiles from one frozen model.

    Attributes:
        facts: Provenance of every score: model, fingerprint, preprocessing, pixels, features_saw_labels.
        vectors: Features by split, one row per tile.
    """

    name: str
    facts: dict[str, Any]
    vectors: dict[str, Float32[np.ndarray, "_ d"]]

    def split(self, tiles: TileSet, split: str) -> Features:
        """Return the features of one split, with the labels and patients of `tiles`."""
        selected = tiles.of_split(split)
        return Features(selected.ids, self.vectors[split], selected.labels, selected.patients)


def vlm_features(config: RunConfig, workspace: Workspace) -> list[FrozenFeatures]:
    """Compute features of the VLM in its joint space and, if available, in its raw space (before the projection)."""
    vlm, joint = workspace.vlm, vlm_stores(workspace)
    models = [joint]
    if vlm.raw_dim is not None:
        size = config.vlm.batch_size
        raw = {
            split: embed_tiles(workspace.root, vlm, workspace.all_tiles.of_split(split), batch_size=size, space="raw")
            for split in SPLITS
        }
        models.append(FeatureStores("VLM, raw space", joint.facts, raw))
    return [_load(model, workspace.all_tiles) for model in models]


def joint_features(workspace: Workspace) -> FrozenFeatures:
    """Compute features of the VLM in its joint space."""
    return _load(vlm_stores(workspace), workspace.all_tiles)


def backbone_features(config: RunConfig, workspace: Workspace) -> FrozenFeatures:
    """Compute features of the configured backbone without LoRA or training."""
    return _load(backbone_stores(config, workspace), workspace.all_tiles)


def classifier_features(config: RunConfig, workspace: Workspace, run: Path) -> FrozenFeatures:
    """Compute pooled features of a finished run's classifier: the backbone with the adapter merged, before any head.

    Raises:
        ModelError: The classifier is missing, or its folder cannot be opened as a backbone.
        DataError: The classifier's classes differ from those of the tiles.
    """
    folder = run / "classifier"
    check_classes_match(read_spec(folder).classes, workspace.all_tiles, folder)
    return _load(classifier_stores(config, workspace, run), workspace.all_tiles)


def check_classes_match(classes: tuple[str, ...], tiles: TileSet, folder: Path) -> None:
    """Check that a classifier has the same classes as the tiles, in the same order.

    Raises:
        DataError: The classes differ.
    """
    if classes != tiles.classes:
        raise DataError(
            f"the classifier has the classes {', '.join(classes)}; the tiles have {', '.join(tiles.classes)}",
            where=folder,
            fix="use a run with this configuration",
        )


def run_prompts(run: Path) -> PromptColumns:
    """Return the name and hash of the prompt set that a finished run was evaluated with, as columns."""
    training = read_run_record(run)[1]
    return {"prompts": training.get("prompts"), "prompts_hash": training.get("prompts_hash")}


def _load(model: FeatureStores, tiles: TileSet) -> FrozenFeatures:
    def rows(split: str, store: Store) -> Float32[np.ndarray, "_ d"]:
        return store.rows(store.positions(tiles.of_split(split).ids))

    return FrozenFeatures(model.name, model.facts, {split: rows(split, store) for split, store in model.stores.items()})
