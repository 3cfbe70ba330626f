"""Reference rows of every comparison: the VLM itself, zero-shot and as a linear probe on the same labels."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from clipit.comparison.plan import Plan
from clipit.comparison.statistics import REFERENCE
from clipit.distributed import get_processes
from clipit.errors import DataError
from clipit.evaluation.metrics import compute_metrics, describe_averaging, explain_undefined
from clipit.evaluation.predictions import Predictions, write_predictions
from clipit.evaluation.probes import DEFAULT_GRID, LinearProbe, linear_probe
from clipit.evaluation.score_row import Provenance, ScoreRow
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.output_files.artifacts import file_sha256, fingerprint
from clipit.stores.embed import Store, embed_tiles
from clipit.tiles.tileset import TileSet
from clipit.vectors import centred
from clipit.versions import command_line, git_commit, versions
from clipit.workspace.workspace import Workspace

ZERO_SHOT = f"{REFERENCE}: VLM zero-shot"
CENTRED = f"{REFERENCE}: VLM zero-shot, centred"
PROBE = f"{REFERENCE}: VLM linear probe"
_FILES = {ZERO_SHOT: "vlm-zero-shot", CENTRED: "vlm-zero-shot-centred", PROBE: "vlm-linear-probe"}


def score_vlm(plan: Plan, workspace: Workspace, folder: Path) -> list[ScoreRow]:
    """Score the VLM on the test sets of a plan.

    The VLM is evaluated zero-shot without centring and, if pairing is centred, also with images and prompts centred in
    the same way (with the means of the training tiles and of the snippets, never of test tiles). The probe is a
    logistic regression on the VLM's image embeddings, fitted on the labels that the arms with the same seed may use;
    its regularisation is chosen on their validation labels. Zero-shot rows do not depend on labels, so all seeds share
    one predictions file.
    """
    tests, zero_shot = reference_test_sets(plan, workspace), _zero_shot_classifiers(workspace)
    rows = []
    for seed in plan.comparison.seeds:
        tiles = workspace.tiles(seed)
        provenance = _provenance(workspace, tiles)
        probe, reason = fit_vlm_probe(workspace, tiles)
        for test_set, (test, store) in tests.items():
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
                    test_set=test_set,
                    tiles=0,
                    metric=plan.comparison.metric,
                    score=None,
                    reason=reason,
                )
                file = reference_file(folder, _FILES[arm], seed if arm == PROBE else None, test_set)
                rows.append(row if predicted is None else score_reference(row, test, predicted, file))
    return sorted(rows, key=lambda row: row.arm)


def fit_vlm_probe(
    workspace: Workspace,
    tiles: TileSet,
    training_labels: Int64[np.ndarray, " n"] | None = None,
    grid: Sequence[float] = DEFAULT_GRID,
) -> tuple[LinearProbe | None, str | None]:
    """Fit a logistic regression on the VLM's image embeddings, or return the reason why it cannot be fitted.

    Args:
        tiles: All tiles, with the labels that the run may use.
        training_labels: Class indices of the training tiles, -1 where unknown; those of `tiles` by default.
        grid: Values of C to choose from on the validation labels.
    """
    vectors, labels = {}, {}
    for split in ("train", "validation"):
        store, split_tiles = workspace.tile_store(split), tiles.of_split(split)
        vectors[split], labels[split] = store.rows(store.positions(split_tiles.ids)), split_tiles.labels
    if training_labels is not None:
        labels["train"] = training_labels
    try:
        probe = linear_probe(
            vectors["train"], labels["train"], vectors["validation"], labels["validation"], len(tiles.classes), grid
        )
    except DataError as error:
        return None, str(error).splitlines()[0]
    return probe, None


def score_reference(row: ScoreRow, test: TileSet, probabilities: Float32[np.ndarray, "n c"], file: Path) -> ScoreRow:
    """Write the predictions for a test set and add the score to the row."""
    known = test.labels >= 0
    write_in_main_process(
        file, Predictions(test.ids, test.splits, test.labels, test.groups, test.classes, probabilities)
    )
    labels = test.labels[known]
    score = compute_metrics(labels, probabilities[known])[row.metric]
    explain = explain_undefined if score is None else describe_averaging
    return replace(
        row,
        tiles=int(known.sum()),
        score=score,
        reason=explain(row.metric, labels, test.classes) or None,
        predictions=file,
        predictions_sha256=file_sha256(file) if get_processes().main else None,
    )


def reference_test_sets(plan: Plan, workspace: Workspace) -> dict[str, tuple[TileSet, Store]]:
    """Return the plan's test tiles and shifted sets, by name, with their VLM embeddings."""
    tests = {"test": (workspace.all_tiles.of_split("test"), workspace.tile_store("test"))}
    for name, section in plan.comparison.shifted.items():
        shifted = workspace.shifted_tiles(name, section)
        store = embed_tiles(workspace.root, workspace.vlm, shifted, batch_size=plan.config.vlm.batch_size)
        tests[name] = (shifted, store)
    return tests


def _provenance(workspace: Workspace, tiles: TileSet) -> dict[str, Provenance]:
    """Return the provenance of each reference row, with prompts for zero-shot rows and the index for centred ones."""
    prompts, probe = workspace.prompts, probe_provenance(workspace, tiles)
    if prompts is None:
        return {PROBE: probe}
    zero_shot = replace(probe, prompts=prompts.name, prompts_hash=prompts.hash, training_labels=0)
    provenance = {PROBE: probe, ZERO_SHOT: zero_shot}
    if workspace.text_mean is not None:
        provenance[CENTRED] = replace(zero_shot, index=workspace.index.artifact.fingerprint)
    return provenance


def probe_provenance(workspace: Workspace, tiles: TileSet) -> Provenance:
    """Return the provenance of a probe on the VLM's image embeddings, with the number of tile labels."""
    vlm = workspace.vlm
    return Provenance(
        classes=len(workspace.all_tiles.classes),
        pixels=vlm.preprocess.size,
        preprocess=vlm.preprocess.hash,
        vlm=vlm.name,
        vlm_fingerprint=vlm.fingerprint,
        training_labels=int((tiles.of_split("train").labels >= 0).sum()),
        tiles_fingerprint=tiles.fingerprint,
        commit=git_commit(),
        command=command_line(),
        versions=json.dumps(versions(), sort_keys=True),
    )


def reference_file(folder: Path, name: str, seed: int | None, test_set: str) -> Path:
    """Return the path for the predictions of a classifier that belongs to a comparison rather than to a run.

    Args:
        folder: Folder of one data set and backbone.
        name: Name of the classifier; a hash is appended if it is not valid in file names.
        seed: Seed of the labels; None for a classifier that does not depend on labels.
        test_set: Name of the test set; a hash is appended as for `name`, so that names stay distinct.
    """
    seeds = [] if seed is None else [f"seed{seed}"]
    return folder / "-".join([_file_name(name), *seeds, f"{_file_name(test_set)}.parquet"])


def _file_name(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return text if plain == text else f"{plain}-{fingerprint(text)[:6]}"


def write_in_main_process(path: Path, predictions: Predictions) -> None:
    """Write predictions from the main process."""
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
