"""Reference rows of every comparison: the VLM itself, zero-shot and as a linear probe on the same labels."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipit.artifacts import file_sha256, fingerprint
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import REFERENCE
from clipit.distributed import get_processes
from clipit.errors import DataError
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.predictions import Predictions, write_predictions
from clipit.evaluation.probes import LinearProbe, linear_probe
from clipit.evaluation.score_row import Provenance, ScoreRow
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.stores.embed import Store, centred, embed_tiles
from clipit.tiles.tileset import TileSet
from clipit.versions import git_commit, versions
from clipit.workspace.workspace import Workspace

ZERO_SHOT = f"{REFERENCE}: VLM zero-shot"
CENTRED = f"{REFERENCE}: VLM zero-shot, centred"
PROBE = f"{REFERENCE}: VLM linear probe"
_FILES = {ZERO_SHOT: "vlm-zero-shot", CENTRED: "vlm-zero-shot-centred", PROBE: "vlm-linear-probe"}


def score_vlm(plan: Plan, workspace: Workspace, folder: Path) -> list[ScoreRow]:
    """Score the VLM on the test sets of a plan.

    The VLM is evaluated zero-shot without centring and, if pairing is centred, also with images and prompts centred in
    the same way (by the means of the training tiles and of the snippets, never of test tiles). The probe is a logistic
    regression on the VLM's image embeddings, fitted on the labels that the arms of the same seed see; its
    regularisation is chosen on their validation labels. Zero-shot rows do not depend on labels, so all seeds share one
    predictions file.

    Args:
        plan: Data set and backbone.
        workspace: Workspace of the plan's configuration.
        folder: Output folder for the predictions files.
    """
    tests, zero_shot = _test_sets(plan, workspace), _zero_shot_classifiers(workspace)
    rows = []
    for seed in plan.comparison.seeds:
        tiles = workspace.tiles(seed)
        provenance = _provenance(workspace, tiles)
        probe, reason = _fit_probe(workspace, tiles)
        for part, (test, store) in tests.items():
            vectors = store.rows(store.positions(test.ids))
            probabilities: dict[str, Float32[np.ndarray, "n c"] | None]
            probabilities = {PROBE: None if probe is None else probe.probabilities(vectors)}
            for arm, (mean, classes) in zero_shot.items():
                probabilities[arm] = zero_shot_probabilities(centred(vectors, mean), classes, workspace.vlm.logit_scale)
            for arm, predicted in probabilities.items():
                row = ScoreRow(
                    data_set=plan.data_set,
                    backbone=plan.backbone,
                    arm=arm,
                    seed=seed,
                    provenance=provenance[arm],
                    part=part,
                    tiles=0,
                    metric=plan.comparison.metric,
                    score=None,
                    reason=reason,
                )
                rows.append(row if predicted is None else _scored(row, test, predicted, folder))
    return sorted(rows, key=lambda row: row.arm)


def _fit_probe(workspace: Workspace, tiles: TileSet) -> tuple[LinearProbe | None, str | None]:
    """Fit the probe, or return the reason why it cannot be fitted; too few labels then give a row without a score."""
    vectors, labels = {}, {}
    for split in ("train", "validation"):
        store, part = workspace.tile_store(split), tiles.of_split(split)
        vectors[split], labels[split] = store.rows(store.positions(part.ids)), part.labels
    try:
        probe = linear_probe(
            vectors["train"], labels["train"], vectors["validation"], labels["validation"], len(tiles.classes)
        )
    except DataError as error:
        return None, str(error).splitlines()[0]
    return probe, None


def _scored(row: ScoreRow, test: TileSet, probabilities: Float32[np.ndarray, "n c"], folder: Path) -> ScoreRow:
    """Write the predictions and add the score to the row."""
    known = test.labels >= 0
    file = reference_file(folder, _FILES[row.arm], row.seed if row.arm == PROBE else None, row.part)
    write_once(file, Predictions(test.ids, test.splits, test.labels, test.groups, test.classes, probabilities))
    return replace(
        row,
        tiles=int(known.sum()),
        score=compute_metrics(test.labels[known], probabilities[known])[row.metric],
        reason=None,
        predictions=file,
        predictions_sha256=file_sha256(file) if get_processes().main else None,
    )


def _test_sets(plan: Plan, workspace: Workspace) -> dict[str, tuple[TileSet, Store]]:
    tests = {"test": (workspace.all_tiles.of_split("test"), workspace.tile_store("test"))}
    for name, section in plan.comparison.shifted.items():
        shifted = workspace.shifted_tiles(name, section)
        store = embed_tiles(workspace.root, workspace.vlm, shifted, batch_size=plan.config.vlm.batch_size)
        tests[name] = (shifted, store)
    return tests


def _provenance(workspace: Workspace, tiles: TileSet) -> dict[str, Provenance]:
    """Return the provenance of each reference row: the probe reads no prompts, and only centring reads the snippets."""
    vlm, prompts = workspace.vlm, workspace.prompts
    probe = Provenance(
        classes=len(workspace.all_tiles.classes),
        pixels=vlm.preprocess.size,
        preprocess=vlm.preprocess.hash,
        vlm=vlm.name,
        vlm_fingerprint=vlm.fingerprint,
        training_labels=int((tiles.of_split("train").labels >= 0).sum()),
        tiles_fingerprint=tiles.fingerprint,
        commit=git_commit(),
        command=shlex.join(sys.argv),
        versions=json.dumps(versions(), sort_keys=True),
    )
    if prompts is None:
        return {PROBE: probe}
    zero_shot = replace(probe, prompts=prompts.name, prompts_hash=prompts.hash, training_labels=0)
    provenance = {PROBE: probe, ZERO_SHOT: zero_shot}
    if workspace.text_mean is not None:
        provenance[CENTRED] = replace(zero_shot, index=workspace.index.artifact.fingerprint)
    return provenance


def reference_file(folder: Path, name: str, seed: int | None, part: str) -> Path:
    """Return the path for the predictions of a classifier that belongs to a comparison rather than to a run.

    Args:
        folder: Folder of one data set and backbone.
        name: Name of the classifier, valid as part of a file name.
        seed: Seed of the labels; None for a classifier that does not depend on labels.
        part: Name of the test set; a hash is appended if it is not valid in file names, so that names stay distinct.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", part)
    file = part if plain == part else f"{plain}-{fingerprint(part)[:6]}"
    return folder / "-".join([name, *([] if seed is None else [f"seed{seed}"]), f"{file}.parquet"])


def write_once(path: Path, predictions: Predictions) -> None:
    """Write predictions from the main process only."""
    if get_processes().main:
        write_predictions(path, predictions)


_ZeroShot = tuple[Float32[np.ndarray, "dim"] | None, Float32[np.ndarray, "classes dim"]]
"""Mean to subtract from image embeddings, and the class embeddings to compare them with."""


def _zero_shot_classifiers(workspace: Workspace) -> dict[str, _ZeroShot]:
    if workspace.prompts is None:
        return {}
    names = workspace.all_tiles.classes
    classes = prompt_embeddings(workspace.prompts, workspace.encode, None, names)
    classifiers: dict[str, _ZeroShot] = {ZERO_SHOT: (None, classes)}
    if workspace.text_mean is not None:
        classes = prompt_embeddings(workspace.prompts, workspace.encode, workspace.text_mean, names)
        classifiers[CENTRED] = (workspace.tile_mean, classes)
    return classifiers
