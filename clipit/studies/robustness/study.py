"""How finished runs stand changes that training did not show them: curves, shifts, calibration, adaptation."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipit.artifacts import write_json
from clipit.config.data import TilesConfig
from clipit.config.run import RunConfig
from clipit.config.studies import RobustnessConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, explain, shortlist
from clipit.evaluation.adaptation_guard import Case, guard_errors
from clipit.evaluation.perturb import PERTURBATIONS
from clipit.studies.features import run_prompts
from clipit.studies.report import asked_with, made_by, recorded, study_note, write_study
from clipit.studies.robustness.adaptation import adaptation_rows, known_of
from clipit.studies.robustness.curves import curve_rows
from clipit.studies.robustness.plots import calibration_plot, curve_plot
from clipit.studies.robustness.scores import Found, Row, calibration_rows, shifted_rows, vlm_calibration_vectors
from clipit.studies.robustness.subjects import ZERO, Subject, run_subject, spread, vectors_of, vlm_subject
from clipit.studies.robustness.tables import BATCH, WHOLE, robustness_chapters
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

LEARNT = 1000
"""Training tiles that adaptation and its guard see, at most."""


def robustness(
    config: RunConfig,
    settings: RobustnessConfig,
    runs: Sequence[Path],
    shifted: Mapping[str, TilesConfig] | None = None,
) -> Path:
    """Measure finished runs and, with prompts, the VLM; write robustness.parquet, .md, .html, .json and plots.

    Args:
        config: Configuration of these runs.
        settings: Perturbations and adaptations to measure.
        runs: Folders of finished runs.
        shifted: Further test sets by name (`comparison.shifted`).

    Returns:
        The folder with the tables.

    Raises:
        DataError: There is nothing to measure, no test tile has a label, or a run or a shifted set has other classes.
    """
    workspace = Workspace(config)
    subjects = _subjects(config, settings, workspace, runs)
    sets = {"test": workspace.all_tiles.of_split("test")}
    sets |= {name: workspace.shifted_tiles(name, section) for name, section in (shifted or {}).items()}
    parts = _parts(settings, sets)
    training = spread(workspace.all_tiles.of_split("train"), LEARNT, labelled=False)
    vectors: Found = {}
    known = {}
    for subject in subjects:
        if settings.adaptation:
            known[subject.name] = known_of(subject, vectors_of(subject, training, config, workspace))
        for part, tiles in parts.items():
            vectors[subject.name, part] = vectors_of(subject, tiles, config, workspace)
    of_vlm = {s.name: vlm_calibration_vectors(config, workspace, s) for s in subjects if s.run is None}
    logger.info(f"perturbing {len(parts['test'])} test tiles for {', '.join(s.name for s in subjects)}")
    rows = curve_rows(config, settings, parts["test"], subjects, known)
    folder = config.output / "robustness" / config.name
    if get_processes().main:
        rows += shifted_rows(config, settings, subjects, parts, vectors)
        if settings.adaptation:
            rows += adaptation_rows(config, settings, subjects, parts, vectors, known)
        for subject in subjects:
            rows += calibration_rows(config, workspace, subject, of_vlm.get(subject.name))
        notes = {name: list(tiles.notes) for name, tiles in (sets | {"test": workspace.all_tiles}).items()}
        _write(config, settings, workspace, subjects, parts, notes, rows, folder)
    get_processes().barrier()
    return folder


def guard_study(rows: Sequence[Row]) -> list[Row]:
    """How often the guard was wrong, per adaptation and kind of setting.

    A setting is a model (with its seed), its way to answer, and some tiles: a whole set (the test tiles, a shifted set,
    or the test tiles at one level of a perturbation), or a batch of one with other shares of the classes. Settings
    whose true change is not known do not count; one is lost or gained by the interval of its change.

    Args:
        rows: Of the study.

    Returns:
        One per method and kind (`test and shifted sets`, each perturbation, `all whole sets`, and `batches, other
        shares of classes`): method, settings, metric, and the fields of `GuardErrors`.
    """
    known = [row for row in rows if row.get("guard") and row.get("change") is not None]
    found = []
    for method in dict.fromkeys(row["method"] for row in known):
        kinds: dict[str, list[Case]] = {}
        for row in (row for row in known if row["method"] == method):
            case = Case(row["guard"] == "accepted", float(row["change"]), row["change_low"], row["change_high"])
            own = row.get("perturbation") or "test and shifted sets"
            for kind in (BATCH,) if row["what"] == "batch" else (own, WHOLE):
                kinds.setdefault(kind, []).append(case)
        last = {kind: kinds.pop(kind) for kind in (WHOLE, BATCH) if kind in kinds}
        metrics = {row["what"]: row["metric"] for row in known if row["method"] == method}
        for kind, cases in (*sorted(kinds.items()), *last.items()):
            of = {"method": method, "settings": kind, "metric": metrics["batch" if kind == BATCH else "adaptation"]}
            found.append(of | asdict(guard_errors(cases)))
    return found


def _guard_rows(rows: Sequence[Row]) -> list[Row]:
    """The same for each model and its way to answer: what a total is the sum of."""
    whose = dict.fromkeys((row["subject"], row["reading"]) for row in rows if row.get("guard"))
    found = []
    for subject, reading in whose:
        own = [row for row in rows if (row["subject"], row["reading"]) == (subject, reading)]
        base = {"what": "guard", "subject": subject, "reading": reading, "part": "test"}
        found += [base | counted for counted in guard_study(own)]
    return found


def _subjects(
    config: RunConfig, settings: RobustnessConfig, workspace: Workspace, runs: Sequence[Path]
) -> list[Subject]:
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):  # arms of two comparisons
        names = [f"{run.resolve().parent.name}/{run.resolve().name}" for run in runs]
    if len(set(names)) < len(names):
        raise DataError(
            explain("a run is given twice", where=shortlist([str(run) for run in runs]), fix="give each run once")
        )
    found = [run_subject(workspace, run, name) for run, name in zip(runs, names, strict=True)]
    vlm = vlm_subject(config, workspace) if settings.vlm else None
    if settings.vlm and vlm is None:
        logger.info("note: without `prompts` the VLM answers no question; it is not measured")
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


def _parts(settings: RobustnessConfig, sets: Mapping[str, TileSet]) -> dict[str, TileSet]:
    """The test tiles and each shifted set, with labels, at most `robustness.tiles` of each."""
    found = {}
    for name, tiles in sets.items():
        found[name] = spread(tiles, settings.tiles, labelled=True)
        if not len(found[name]):
            where = "tiles.splits" if name == "test" else f"comparison.shifted.{name}"
            raise DataError(explain("no test tile has a label", where=where, fix="give labelled tiles of split test"))
    return found


def _write(
    config: RunConfig,
    settings: RobustnessConfig,
    workspace: Workspace,
    subjects: Sequence[Subject],
    parts: dict[str, TileSet],
    notes: dict[str, list[str]],
    rows: list[Row],
    folder: Path,
) -> None:
    made, tiles = made_by(), workspace.all_tiles
    common: dict[str, Any] = {
        "split": "test",
        "classes": len(tiles.classes),
        "perturbation_seed": settings.seed,
        "bootstrap": config.evaluation.bootstrap,
        **made,
    }
    facts = {subject.name: {**subject.facts, "fingerprint": subject.fingerprint} for subject in subjects}
    prints = {name: part.fingerprint for name, part in parts.items()}
    whole_test = tiles.of_split("test").fingerprint
    told = []
    for row in (*rows, *_guard_rows(rows)):
        mark = whole_test if row["what"] == "calibration" else prints[row["part"]]
        told.append({"tiles_fingerprint": mark, **_asked(row, workspace, subjects), **row})
    whole = recorded(told, common, facts)
    provenance = {
        "config": config.model_dump(mode="json") | {"robustness": settings.model_dump(mode="json")},
        **common,
        **asked_with(workspace.prompts),
        "versions": json.loads(made["versions"]),
        "class_names": list(tiles.classes),
        "subjects": facts,
        "tiles": prints,
        "notes": notes,
        "guard": guard_study(rows),
    }
    write_json(folder / "robustness.json", provenance)
    plots = []
    for name in settings.perturbations:
        of_name = [row for row in rows if row["what"] == "curve" and row["perturbation"] in (name, "none")]
        if any(row["level"] is not None and row["value"] is not None for row in of_name):
            plots.append(f"curve_{name}.png")
            neutral = None if name == "jpeg" else PERTURBATIONS[name].neutral  # a JPEG of 100 is not the stored tile
            curve_plot(of_name, name, folder / plots[-1], metric=settings.metric, neutral=neutral)
    calibrated = [row for row in rows if row["what"] == "calibration" and row.get("reliability")]
    if calibrated:
        plots.append("calibration.png")
        calibration_plot(calibrated, folder / plots[-1])
    chapters = robustness_chapters(settings, whole, provenance, plots)
    write_study(folder, "robustness", f"{config.name}: robustness", study_note(config), chapters, whole)


def _asked(row: Row, workspace: Workspace, subjects: Sequence[Subject]) -> Row:
    """The prompt set that a row's answers are of: none for a head; a run's own where its predictions were read."""
    if row["reading"] != ZERO:
        return {}
    run = next(subject.run for subject in subjects if subject.name == row["subject"])
    return run_prompts(run) if run is not None and row["what"] == "calibration" else asked_with(workspace.prompts)
