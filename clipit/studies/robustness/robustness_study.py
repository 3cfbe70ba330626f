"""Robustness of finished runs to perturbations and distribution shift, with calibration and test-time adaptation."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from clipit.config.data import TilesConfig
from clipit.config.run import RunConfig
from clipit.config.studies import RobustnessConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, counted, repeats, shortlist
from clipit.evaluation.metrics import describe_coverage
from clipit.evaluation.perturb import PERTURBATIONS
from clipit.output_files.artifacts import locked, write_json
from clipit.reporting.study_page import add_provenance, collect_provenance, prompt_columns, study_note, write_study
from clipit.runs.folder import explaining_differences
from clipit.studies.model_features import run_prompts
from clipit.studies.robustness.adaptation_gain import adaptation_rows, fit_reference
from clipit.studies.robustness.guard_errors import guard_rows, summarise_guard, to_frame
from clipit.studies.robustness.measured_models import (
    ZERO_SHOT_OUTPUT,
    MeasuredModel,
    compute_vectors,
    load_run_model,
    load_vlm_model,
    sample_tiles,
)
from clipit.studies.robustness.perturbation_curves import UNPERTURBED, curve_rows
from clipit.studies.robustness.robustness_plots import plot_calibration, plot_curve
from clipit.studies.robustness.robustness_sections import robustness_sections
from clipit.studies.robustness.scores import (
    RobustnessRow,
    SetVectors,
    calibration_rows,
    embed_for_calibration,
    shifted_rows,
)
from clipit.tiles.tileset import TileSet
from clipit.workspace.preflight import check_inputs
from clipit.workspace.tile_reading import cropped_sets
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

MAX_TRAINING_TILES = 1000
"""Maximum number of training tiles for adaptation and its guard."""


def measure_robustness(
    config: RunConfig,
    robustness: RobustnessConfig,
    runs: Sequence[Path],
    shifted: Mapping[str, TilesConfig] | None = None,
) -> Path:
    """Measure the robustness of finished runs and, with prompts, of the VLM; write tables, a report and plots.

    Args:
        robustness: Configuration of the study, with perturbations and adaptations.
        shifted: Shifted test sets by name (`comparison.shifted`).

    Returns:
        Output folder with robustness.parquet, .md, .html, .json and the plots.

    Raises:
        DataError: There is nothing to evaluate, no test tile has a label, or the classes of a run or shifted set
            differ.
    """
    if not runs and not (robustness.vlm and config.prompts):
        raise DataError(
            "nothing to evaluate",
            where="--run",
            fix="pass the folder of a finished run, or set `prompts` for zero-shot predictions of the VLM",
        )
    workspace = Workspace(config)
    check_inputs(workspace, ["vlm"] if robustness.vlm and config.prompts else [])
    models = _load_models(config, robustness, workspace, runs)
    sets = {"test": workspace.all_tiles.of_split("test")}
    sets |= {name: workspace.shifted_tiles(name, section) for name, section in (shifted or {}).items()}
    test_sets = _select_tiles(robustness, sets)
    training = sample_tiles(workspace.all_tiles.of_split("train"), MAX_TRAINING_TILES, labelled=False)
    vectors: SetVectors = {}
    references = {}
    for model in models:
        if robustness.adaptation:
            references[model.name] = fit_reference(model, compute_vectors(model, training, config, workspace))
        for name, tiles in test_sets.items():
            vectors[model.name, name] = compute_vectors(model, tiles, config, workspace)
    vlm_vectors = {m.name: embed_for_calibration(config, workspace, m) for m in models if m.run is None}
    logger.info(
        f"perturbing {counted(len(test_sets['test']), 'test tile')} for {', '.join(model.name for model in models)}"
    )
    rows = curve_rows(config, robustness, test_sets["test"], models, references)
    folder = config.output / "robustness" / config.name
    if get_processes().main:
        rows += shifted_rows(config, robustness, models, test_sets, vectors)
        if robustness.adaptation:
            rows += adaptation_rows(config, robustness, models, test_sets, vectors, references)
        for model in models:
            rows += calibration_rows(config, workspace, model, vlm_vectors.get(model.name))
        notes = {name: list(tiles.notes) for name, tiles in (sets | {"test": workspace.all_tiles}).items()}
        for model in models:
            for name, warning in cropped_sets(sets, workspace.cached, model.preprocess).items():
                workspace.log_once(f"WARNING: {name} tiles: {warning}")
                if (note := f"WARNING: {warning}") not in notes[name]:
                    notes[name].append(note)
        with locked(folder):  # another command may be writing the same study
            _write(config, robustness, workspace, models, test_sets, notes, rows, folder)
    get_processes().barrier()
    return folder


def _distinct_names(runs: Sequence[Path]) -> list[str]:
    """Name each run after its folder, with as many parent folders as are needed to tell the runs apart."""
    parts = [Path(os.path.realpath(run)).parts for run in runs]  # resolve() fails for a link to itself
    longest = max(map(len, parts), default=1)
    candidates = [["/".join(names[-length:]) for names in parts] for length in range(1, longest + 1)]
    return next((names for names in candidates if len(set(names)) == len(names)), candidates[-1])


def _load_models(
    config: RunConfig, robustness: RobustnessConfig, workspace: Workspace, runs: Sequence[Path]
) -> list[MeasuredModel]:
    if repeated := repeats([os.path.realpath(run) for run in runs], runs.__getitem__):
        raise DataError("a run is listed twice", where=shortlist(repeated), fix="list each run once")
    models = []
    for run, name in zip(runs, _distinct_names(runs), strict=True):
        with explaining_differences(run, config):
            models.append(load_run_model(workspace, run, name))
    vlm = load_vlm_model(config, workspace) if robustness.vlm else None
    if vlm is not None:
        models.append(vlm)
    elif robustness.vlm:
        logger.info("note: the VLM is not evaluated, because zero-shot prediction needs `prompts`")
    return models


def _select_tiles(robustness: RobustnessConfig, sets: Mapping[str, TileSet]) -> dict[str, TileSet]:
    """Sample at most `robustness.tiles` labelled tiles from each set."""
    samples = {name: sample_tiles(tiles, robustness.tiles, labelled=True) for name, tiles in sets.items()}
    for name, tiles in samples.items():
        if not len(tiles):
            where = "tiles.splits" if name == "test" else f"comparison.shifted.{name}"
            raise DataError("no test tile has a label", where=where, fix="add labelled tiles to the test split")
    return samples


def _write(
    config: RunConfig,
    robustness: RobustnessConfig,
    workspace: Workspace,
    models: Sequence[MeasuredModel],
    test_sets: Mapping[str, TileSet],
    notes: Mapping[str, list[str]],
    rows: list[RobustnessRow],
    folder: Path,
) -> None:
    process, tiles = collect_provenance(), workspace.all_tiles
    study = {
        "split": "test",
        "classes": len(tiles.classes),
        "perturbation_seed": robustness.seed,
        "bootstrap": config.evaluation.bootstrap,
        **process,
    }
    facts = {model.name: model.facts for model in models}
    fingerprints = {name: each.fingerprint for name, each in test_sets.items()}
    guard = summarise_guard(to_frame(rows))
    runs = {model.name: model.run for model in models}
    complete = []
    for row in (*rows, *guard_rows(rows)):
        row = _add_prompts(row, workspace, runs[row.subject])
        complete.append(replace(row, tiles_fingerprint=row.tiles or fingerprints[row.test_set or "test"]))
    frame = add_provenance(complete, study, facts)
    provenance = {
        "config": config.model_dump(mode="json") | {"robustness": robustness.model_dump(mode="json")},
        **study,
        **prompt_columns(workspace.prompts),
        "versions": json.loads(process["versions"]),
        "class_names": list(tiles.classes),
        "subjects": facts,
        "tiles": fingerprints,
        "notes": notes,
        "guard": [summary.flatten() for summary in guard],
    }
    write_json(folder / "robustness.json", provenance)
    plots = _write_plots(robustness, frame, folder)
    sections = robustness_sections(robustness, frame, guard, provenance, plots)
    note = study_note(
        config,
        *(describe_coverage(each.labels, each.classes, _set_name(name)) for name, each in test_sets.items()),
    )
    write_study(folder, "robustness", f"{config.name}: robustness", note, sections, frame)


def _add_prompts(row: RobustnessRow, workspace: Workspace, run: Path | None) -> RobustnessRow:
    """Add the prompt set of a zero-shot row: the run's own if its stored predictions were used."""
    if row.output != ZERO_SHOT_OUTPUT:
        return row
    if run is not None and row.analysis == "calibration":
        return replace(row, **run_prompts(run))
    return replace(row, **prompt_columns(workspace.prompts))


def _write_plots(robustness: RobustnessConfig, frame: pd.DataFrame, folder: Path) -> list[str]:
    """Plot all curves with scores, and the calibration; return the file names."""
    plots = []
    curves = frame[frame.analysis == "curve"]
    for name in robustness.perturbations:
        curve = curves[curves.perturbation.isin([name, UNPERTURBED])]
        if (curve.level.notna() & curve.value.notna()).any():
            plots.append(f"curve_{name}.png")
            neutral = None if name == "jpeg" else PERTURBATIONS[name].neutral  # JPEG at quality 100 changes the tile
            plot_curve(curve, name, folder / plots[-1], metric=robustness.metric, neutral=neutral)
    calibrations = frame[(frame.analysis == "calibration") & frame.reliability.notna()]
    if len(calibrations):
        plots.append("calibration.png")
        plot_calibration(calibrations, folder / plots[-1])
    return plots


def _set_name(name: str) -> str:
    return "the test split" if name == "test" else f"the shifted set {name}"
