"""Inputs of the slide-label study: the configured bags, and zero-shot scores of instances."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from clipit.config.load import names_tiles
from clipit.config.mil import MilConfig
from clipit.config.run import RunConfig, TilesConfig
from clipit.errors import ConfigError
from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.mil.feature_file_bags import HeldOut, bags_of_files
from clipit.mil.mil_bags import MilBags
from clipit.mil.tile_store_bags import bags_of_tiles
from clipit.pairing.leaks import SeenTiles
from clipit.runs.feature_stores import FeatureStores, backbone_stores, classifier_stores, vlm_stores
from clipit.runs.training_tiles import check_test_patients
from clipit.tiles.tileset import TileSet
from clipit.workspace.adapted_patients import adaptation_notes
from clipit.workspace.preflight import Model, check_inputs, check_output
from clipit.workspace.workspace import Workspace

ZERO_SHOT = "zero_shot"
"""Name of the arm that scores with the VLM's class prompts."""
_UNIT_TOLERANCE = 0.02  # tolerance of the norm, for half precision


@dataclass(frozen=True)
class ZeroShot:
    """Instances and class embeddings in the VLM's joint space.

    Attributes:
        bags: Bags of the study, with features in the joint space.
        classes: Unit-norm embedding of each class, one row per class.
        facts: Names and fingerprints of the VLM and the prompts, for the provenance.
    """

    bags: MilBags
    classes: Float32[np.ndarray, "c d"]
    facts: dict[str, Any]

    def scores(self, bag: int) -> Float32[np.ndarray, "n c"]:
        """Compute the cosine similarity of each instance of a bag to each class."""
        return np.asarray(self.bags.features(bag) @ self.classes.T, dtype=np.float32)


@dataclass(frozen=True)
class MilInputs:
    """Inputs of the study.

    Attributes:
        tiles: Tiles of the workspace, for pictures; None for feature files.
        zero_shot: Inputs of the zero-shot arm; None without it.
    """

    workspace: Workspace
    bags: MilBags
    tiles: TileSet | None
    zero_shot: ZeroShot | None
    facts: dict[str, Any]
    notes: tuple[str, ...]


def check_hidden_labels(config: RunConfig, mil: MilConfig) -> None:
    """Check that only `mil.labels_per_class` hides labels.

    Raises:
        ConfigError: `tiles.labels` hides tile labels, which has no effect on bags.
    """
    if config.tiles.labels.kind != "all":
        raise ConfigError(
            f"tiles.labels hides tile labels (kind: {config.tiles.labels.kind}), which has no effect on bag labels",
            where="tiles.labels",
            fix="set tiles.labels.kind: all, and mil.labels_per_class to the number of labelled bags per class",
        )


def read_inputs(config: RunConfig, mil: MilConfig) -> MilInputs:
    """Read the bags of a configuration; features that do not exist yet are computed by all processes.

    Raises:
        ConfigError: No tiles are configured, or the features cannot be compared with prompts.
        DataError: The bags are invalid, or `mil.run` was trained on test patients.
    """
    workspace = Workspace(config)
    with_zero_shot = ZERO_SHOT in mil.arms
    notes = []
    if with_zero_shot and config.prompts is None:
        notes.append("The arm zero_shot was dropped, because no prompts are configured.")
        with_zero_shot = False
    if mil.features == "h5":
        return _read_files(workspace, mil, with_zero_shot, notes)
    if not names_tiles(config):
        raise ConfigError(
            "no tiles are configured",
            where="tiles.path",
            fix="set tiles.path to slides or tiles, or set mil.features: h5",
        )
    models: list[Model] = ["vlm"] if with_zero_shot or mil.features == "vlm" else []
    check_inputs(workspace, [*models, *(["backbone"] if mil.features == "backbone" else [])])  # type: ignore[list-item]
    tiles = workspace.all_tiles
    if mil.features == "run":
        tests = tiles.select(tiles.splits == "test")
        notes += check_test_patients(Path(str(mil.run)), tests, config.leaks)
    features = _stores(config, workspace, mil)
    bags = bags_of_tiles(tiles, features.stores, mil.bags)
    zero_shot = None
    if with_zero_shot:
        joint = bags if mil.features == "vlm" else bags_of_tiles(tiles, vlm_stores(workspace).stores, mil.bags)
        zero_shot = _zero_shot(workspace, joint)
    facts = {"features": features.name, **features.facts, "tiles": tiles.fingerprint}
    return MilInputs(workspace, bags, tiles, zero_shot, facts, (*notes, *bags.notes))


def _stores(config: RunConfig, workspace: Workspace, mil: MilConfig) -> FeatureStores:
    if mil.features == "vlm":
        return vlm_stores(workspace)
    if mil.features == "backbone":
        return backbone_stores(config, workspace)
    return classifier_stores(config, workspace, Path(str(mil.run)))


def _read_files(workspace: Workspace, mil: MilConfig, with_zero_shot: bool, notes: list[str]) -> MilInputs:
    config = workspace.config
    check_output(config.output)
    held_out = HeldOut(mil.validation_fraction, mil.test_fraction, mil.split_seed)
    files, table = Path(str(mil.h5)), Path(str(mil.slides))
    exclude = config.leaks.policy == "exclude"
    bags = bags_of_files(files, table, mil.bags, held_out, config.tiles, exclude_leaks=exclude)
    notes += _ignored_keys(config)
    zero_shot = None
    if with_zero_shot:
        _check_joint(bags, workspace)
        if config.leaks.policy != "off":
            tests = np.flatnonzero(bags.splits == "test")
            seen = SeenTiles(bags.names[tests], bags.splits[tests], bags.patients[tests])
            notes += adaptation_notes(seen, [config.vlm], f"test {mil.bags}")
        zero_shot = _zero_shot(workspace, bags)
    facts = {"features": str(files), "slides": str(table), "fingerprint": bags.reader.fingerprint()}
    return MilInputs(workspace, bags, None, zero_shot, facts, (*notes, *bags.notes))


def _ignored_keys(config: RunConfig) -> list[str]:
    """Return a note on keys that hold out tiles, not slides of a table."""
    keys = ("validation_fraction", "test_fraction", "folds")
    given = [f"tiles.{key}" for key in keys if getattr(config.tiles, key) != TilesConfig.model_fields[key].default]
    return [f"{', '.join(given)}: no effect on feature files; use mil.{keys[0]} or mil.{keys[1]}"] if given else []


def _check_joint(bags: MilBags, workspace: Workspace) -> None:
    """Check that features are unit vectors with the dimension of the VLM's joint space."""
    fix = "remove zero_shot from mil.arms, or use features from the VLM's image tower, projected and normalised"
    if bags.dim != workspace.vlm.joint_dim:
        raise ConfigError(
            f"the features have {bags.dim} dimensions; the joint space of {workspace.vlm.name} has "
            f"{workspace.vlm.joint_dim}, so prompts cannot be compared with them",
            where="mil.arms",
            fix=fix,
        )
    lengths = np.linalg.norm(bags.features(0), axis=1)
    if not np.allclose(lengths, 1, atol=_UNIT_TOLERANCE):
        raise ConfigError(
            f"the features have a median norm of {np.median(lengths):.3g} instead of 1, so prompts cannot be compared "
            "with them",
            where="mil.arms",
            fix=fix,
        )


def _zero_shot(workspace: Workspace, bags: MilBags) -> ZeroShot:
    prompts, vlm = workspace.prompts, workspace.vlm
    if prompts is None:
        raise ConfigError("no prompts are configured", where="prompts", fix="set prompts")
    embeddings = prompt_embeddings(prompts, workspace.encode, None, bags.classes)
    facts = {"vlm": vlm.name, "vlm_fingerprint": vlm.fingerprint, "prompts": prompts.name, "prompts_hash": prompts.hash}
    return ZeroShot(replace(bags, notes=()), embeddings, facts)
