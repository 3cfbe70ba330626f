"""How finished runs stand changes that training did not show them: curves, shifts, calibration, adaptation."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import git_commit, versions, whole_file, write_json
from clipit.config import Config
from clipit.distributed import processes
from clipit.errors import DataError, explain, shortlist
from clipit.evaluation.adaptation_guard import GuardErrors, guard_errors
from clipit.experiments.materials import Materials
from clipit.experiments.robustness_curves import curve_rows
from clipit.experiments.robustness_rows import (
    Found,
    Row,
    adaptation_rows,
    calibration_rows,
    shifted_rows,
    vlm_calibration_vectors,
)
from clipit.experiments.robustness_subjects import Subject, run_subject, spread, vectors_of, vlm_subject
from clipit.reporting.robustness_plots import calibration_plot, curve_plot
from clipit.reporting.robustness_tables import robustness_text
from clipit.tiles.tileset import TileSet


def robustness(config: Config, runs: Sequence[Path], say: Callable[[str], None] = print) -> Path:
    """Measure finished runs and, with prompts, the VLM; write robustness.parquet, robustness.md, .json and plots.

    Args:
        config: Of these runs; its `robustness` section says what is measured, `comparison.shifted` on which other sets.
        runs: Folders of finished runs.
        say: Takes lines for the user.

    Returns:
        The folder with the tables.

    Raises:
        DataError: There is nothing to measure, no test tile has a label, or a run or a shifted set has other classes.
    """
    materials = Materials(config, say)
    subjects = _subjects(config, materials, runs)
    parts = _parts(config, materials)
    training = spread(materials.some_tiles.of_split("train"), config.robustness.tiles, labelled=False)
    vectors: Found = {}
    seen = {}
    for subject in subjects:
        seen[subject.name] = vectors_of(subject, training, config, materials)
        for part, tiles in parts.items():
            vectors[subject.name, part] = vectors_of(subject, tiles, config, materials)
    of_vlm = {s.name: vlm_calibration_vectors(config, materials, s) for s in subjects if s.run is None}
    materials.say(f"perturbing {len(parts['test'])} test tiles for {', '.join(s.name for s in subjects)}")
    rows = curve_rows(config, parts["test"], subjects)
    folder = config.output / "robustness" / config.name
    if processes().main:
        rows += shifted_rows(config, subjects, parts, vectors)
        rows += adaptation_rows(config, subjects, parts, vectors, seen)
        for subject in subjects:
            rows += calibration_rows(config, materials, subject, of_vlm.get(subject.name))
        _write(config, materials, subjects, parts, rows, folder)
    processes().wait()
    return folder


def guard_study(rows: Sequence[Row]) -> GuardErrors:
    """How often the guard was wrong over the adaptations of some rows (all subjects and sets whose change is known)."""
    cases = [row for row in rows if row["what"] == "adaptation" and row.get("guard") and row.get("change") is not None]
    return guard_errors([(row["guard"] == "accepted", float(row["change"])) for row in cases])


def _subjects(config: Config, materials: Materials, runs: Sequence[Path]) -> list[Subject]:
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):  # arms of two comparisons
        names = [f"{run.resolve().parent.name}/{run.resolve().name}" for run in runs]
    if len(set(names)) < len(names):
        raise DataError(
            explain("a run is given twice", where=shortlist([str(run) for run in runs]), fix="give each run once")
        )
    found = [run_subject(materials, run, name) for run, name in zip(runs, names, strict=True)]
    vlm = vlm_subject(config, materials) if config.robustness.vlm else None
    if config.robustness.vlm and vlm is None:
        materials.say("note: without `prompts` the VLM answers no question; it is not measured")
    found += [] if vlm is None else [vlm]
    if not found:
        raise DataError(
            explain(
                "nothing to measure",
                where="--run",
                fix="give the folder of a finished run, or `prompts` for the VLM's zero-shot answers",
            )
        )
    return found


def _parts(config: Config, materials: Materials) -> dict[str, TileSet]:
    """The test tiles and each shifted set, with labels, at most `robustness.tiles` of each."""
    every = {"test": materials.some_tiles.of_split("test")}
    every |= {name: materials.shifted_tiles(name) for name in config.comparison.shifted}
    found = {}
    for name, tiles in every.items():
        found[name] = spread(tiles, config.robustness.tiles, labelled=True)
        if not len(found[name]):
            where = "tiles.splits" if name == "test" else f"comparison.shifted.{name}"
            raise DataError(explain("no test tile has a label", where=where, fix="give labelled tiles of split test"))
    return found


def _write(
    config: Config,
    materials: Materials,
    subjects: Sequence[Subject],
    parts: dict[str, TileSet],
    rows: list[Row],
    folder: Path,
) -> None:
    prompts = materials.prompts
    common: dict[str, Any] = {
        "split": "test",
        "classes": len(materials.some_tiles.classes),
        "prompts": None if prompts is None else prompts.name,
        "prompts_hash": None if prompts is None else prompts.hash,
        "perturbation_seed": config.robustness.seed,
        "bootstrap": config.evaluation.bootstrap,
        "commit": git_commit(),
        "command": shlex.join(sys.argv),
        "versions": json.dumps(versions()),
    }
    facts = {subject.name: {**subject.facts, "fingerprint": subject.fingerprint} for subject in subjects}
    prints = {name: tiles.fingerprint for name, tiles in parts.items()}
    whole = [{**common, **facts[row["subject"]], "tiles": prints[row["part"]], **row} for row in rows]
    columns = list(dict.fromkeys(key for row in whole for key in row))
    with whole_file(folder / "robustness.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in whole]), temporary)
    errors = guard_study(rows)
    provenance = {
        "config": config.model_dump(mode="json"),
        **{key: value for key, value in common.items() if key != "versions"},
        "versions": versions(),
        "class_names": list(materials.some_tiles.classes),
        "subjects": facts,
        "tiles": prints,
        "notes": {name: list(_notes(config, materials, name)) for name in parts},
        "guard": asdict(errors),
    }
    write_json(folder / "robustness.json", provenance)
    plots = []
    for name in config.robustness.perturbations:
        of_name = [row for row in rows if row["what"] == "curve" and row["perturbation"] in (name, "none")]
        if any(row["level"] is not None and row["value"] is not None for row in of_name):
            plots.append(f"curve_{name}.png")
            curve_plot(of_name, name, folder / plots[-1], metric=config.robustness.metric)
    calibrated = [row for row in rows if row["what"] == "calibration" and row.get("reliability")]
    if calibrated:
        plots.append("calibration.png")
        calibration_plot(calibrated, folder / plots[-1])
    with whole_file(folder / "robustness.md") as temporary:
        temporary.write_text(robustness_text(config, rows, provenance, plots), encoding="utf-8")


def _notes(config: Config, materials: Materials, name: str) -> tuple[str, ...]:
    return (materials.some_tiles if name == "test" else materials.shifted_tiles(name)).notes
