"""Collect the score rows of finished runs, and measure the inference cost of their classifiers."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from clipit.comparison.own_report_arms import resolve_plan_arm
from clipit.comparison.plan import Plan
from clipit.comparison.search_grid import arm_values, grid_axes
from clipit.distributed import get_processes
from clipit.evaluation.predictions import PREDICTIONS
from clipit.evaluation.score_row import Provenance, ScoreRow
from clipit.models.classifier_spec import read_spec
from clipit.output_files.artifacts import file_sha256
from clipit.runs.evaluate import evaluate_shifted, shifted_predictions
from clipit.runs.folder import read_results
from clipit.runs.predict_tiles import open_classifier
from clipit.tiles.pixel_source import PixelSource
from clipit.training.arms import resolve_arm
from clipit.workspace.adapted_patients import adapted_vlm_notes
from clipit.workspace.leak_policy import leak_notes
from clipit.workspace.tile_reading import cropped_sets
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor


CROPPED_SET = "WARNING: shifted set "
"""First words of the notes of `cropped_set_notes`."""
SHIFTED_SET = "comparison.shifted."
"""First words of the notes of `model_and_set_notes` on the tiles of shifted sets."""


def model_and_set_notes(plan: Plan, workspace: Workspace) -> list[str]:
    """Return notes on leaks and models that were trained on test patients, and all notes on shifted sets."""
    notes = list[str]()
    for arm in plan.arms:
        own = workspace.for_config(resolve_plan_arm(plan, arm))
        notes += leak_notes(own.all_tiles.notes)
        for name, section in plan.comparison.shifted.items():
            tiles_notes = own.shifted_tiles(name, section).notes
            models = adapted_vlm_notes(tiles_notes)
            first = f"{SHIFTED_SET}{name}: "
            notes += models + [f"{first}{note.removeprefix(first)}" for note in tiles_notes if note not in models]
    return sorted(dict.fromkeys(notes), key=lambda note: note.startswith(SHIFTED_SET))


def cropped_set_notes(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow]) -> list[str]:
    """Return and log warnings about the shifted sets whose tiles are cropped by the classifiers of these rows."""
    run = next((row.run for row in rows if row.run is not None), None)
    if run is None or not plan.comparison.shifted:
        return []
    sets = {name: workspace.shifted_tiles(name, section) for name, section in plan.comparison.shifted.items()}
    warnings = cropped_sets(sets, workspace.cached, read_spec(run / "classifier").preprocess)
    notes = [f"{CROPPED_SET}{name}: {warning}" for name, warning in warnings.items()]
    for note in notes:
        workspace.log_once(note)
    return notes


def read_run_rows(plan: Plan, workspace: Workspace, folder: Path, arm: str, seed: int) -> list[ScoreRow]:
    """Read the rows of a finished run, one per test set."""
    results = read_results(folder)
    recorded, metric = results["provenance"], plan.comparison.metric
    resolved = resolve_arm(plan.run_config(arm, seed))
    run_workspace = workspace.for_config(resolved)
    predictions_sha256 = results.get("predictions_sha256")  # None in results from earlier versions
    test_sets = {"test": (results["splits"]["test"], folder / PREDICTIONS)}
    for name, section in plan.comparison.shifted.items():
        tiles = run_workspace.shifted_tiles(name, section)
        shifted = evaluate_shifted(resolved, run_workspace, folder, name, tiles)
        test_sets[name] = (shifted, shifted_predictions(folder, tiles))
    searched = json.dumps(arm_values(plan.config, arm, list(grid_axes(plan.config, plan.comparison, arm))))
    rows = []
    for test_set, (scores, predictions) in test_sets.items():
        value, zero_shot = scores["metrics"][metric], scores.get("zero_shot")
        rows.append(
            ScoreRow(
                data_set=plan.data_set,
                backbone=plan.backbone,
                arm=arm,
                seed=seed,
                steps=recorded["steps"],
                chosen_step=recorded["chosen_step"],
                tiles_seen=recorded["tiles_seen"],
                seconds=recorded["seconds"],
                learning_rate=resolved.training.learning_rate,
                run=folder,
                provenance=_provenance(recorded),
                test_set=test_set,
                tiles=scores["labelled"],
                metric=metric,
                score=value["value"],
                reason=value.get("over") or value.get("reason"),
                resampled=scores["resampled"],
                zero_shot=zero_shot["metrics"][metric]["value"] if zero_shot else None,
                predictions=predictions,
                predictions_sha256=predictions_sha256
                if test_set == "test" and predictions_sha256
                else file_sha256(predictions),
                searched=searched,
            )
        )
    return rows


def _provenance(recorded: dict[str, Any]) -> Provenance:
    values = {field.name: recorded.get(field.name) for field in fields(Provenance)}
    values["tiles_fingerprint"] = recorded.get("tiles")
    values["versions"] = json.dumps(recorded.get("versions", {}), sort_keys=True)
    return Provenance(**values)


def add_costs(plan: Plan, rows: Sequence[ScoreRow], workspace: Workspace) -> list[ScoreRow]:
    """Add the parameter count and inference speed in tiles per second to rows, measured once per arm.

    Reference rows get the values of the VLM's image tower.
    """
    costs: dict[str, tuple[int, float]] = {}
    names = ["" if row.run is None else row.arm for row in rows]
    for row, name in zip(rows, names, strict=True):
        if name in costs:
            continue
        if row.run is None:
            source = workspace.pixels("test", workspace.vlm.preprocess)
            costs[name] = workspace.vlm.image_parameters, _tiles_per_second(source, workspace.vlm.encode_images)
        else:
            classifier = open_classifier(plan.config, row.run)
            source, normalise = (
                workspace.pixels("test", classifier.spec.preprocess),
                classifier.spec.preprocess.normalise,
            )
            speed = _tiles_per_second(source, lambda x, c=classifier, n=normalise: c.forward(n(x)))  # type: ignore[misc]
            costs[name] = classifier.parameters, speed
    return [
        replace(row, parameters=costs[name][0], tiles_per_second=costs[name][1])
        for row, name in zip(rows, names, strict=True)
    ]


def _tiles_per_second(source: PixelSource, forward: "Callable[[Tensor], object]") -> float:
    """Measure the speed of forward passes over one batch in memory: median of three after a warm-up pass."""
    import torch

    device = get_processes().device
    rows = np.arange(min(256, len(source.tiles)))
    pixels = torch.from_numpy(source.batch(rows)).to(device)
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            forward(pixels)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return len(rows) / median(seconds[1:])
