"""Rebuild the tables and the page of a finished comparison from comparison.json and the predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.export_tables import RERUN, export_verdict, read_comparison
from clipit.comparison.headline import judge_comparison
from clipit.comparison.plan import FailedRun, Plan, describe_failed, plan_comparison, without_failed
from clipit.comparison.report.write import write_report
from clipit.comparison.rows import CROPPED_SET, SHIFTED_SET
from clipit.comparison.statistics import compute_statistics
from clipit.config.load import merge, validate_file
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, shortlist
from clipit.evaluation.score_row import ScoreRow
from clipit.output_files.artifacts import file_sha256, locked, write_record
from clipit.tiles.tileset import TileSet
from clipit.workspace.leak_policy import leak_notes
from clipit.workspace.workspace import Workspace


def rebuild_comparison(config: RunConfig) -> list[Path]:
    """Rewrite comparison.md, .tex and .html without training or loading a model.

    Args:
        config: Configuration whose `output` and `name` locate the comparison; all other keys are read from
            comparison.json. The output folder may have been moved.

    Returns:
        Paths of the three files.

    Raises:
        DataError: The comparison is missing or unfinished, or some of its predictions are missing.
        ArtifactError: comparison.json is damaged or was written by an earlier version, or the tiles or predictions have
            changed.
        ConfigError: The recorded configuration is no longer valid.
    """
    folder = config.output / "comparisons" / config.name
    source = folder / "comparison.json"
    saved = read_comparison(folder)
    file = validate_file(merge(saved["config"], {"output": str(config.output)}), source)
    plans = plan_comparison(file.run, file.comparison)
    failed = [FailedRun(**record) for record in saved.get("failed_runs", ())]
    total = len(file.comparison.seeds) * sum(len(plan.arms) for plan in plans)
    plans = without_failed(plans, failed)
    comparison = plans[0].comparison
    rows = [
        _move(_read_row(record, source), Path(saved["config"]["output"]), config.output) for record in saved["rows"]
    ]
    analyses = [_read_analysis(record, folder) for record in saved["findings"]]
    shared: dict[str, Any] = {}
    tiles = [Workspace(plan.config, shared).all_tiles for plan in plans]
    for plan, plan_tiles in zip(plans, tiles, strict=True):
        _check_tiles(plan, plan_tiles, rows, source)
    _check_predictions(rows, source)
    results = compute_statistics(comparison, rows, file.run.evaluation.bootstrap)
    verdict = judge_comparison(plans, results.arms, comparison.metric)
    failure = describe_failed(plans, failed, total)
    # Notes on shifted sets are taken from the comparison's record, because these sets are not read again.
    recorded = saved.get("notes", ())
    warnings = leak_notes([*(note for each in tiles for note in each.notes), *recorded])
    warnings += [note for note in recorded if note.startswith((CROPPED_SET, SHIFTED_SET))]
    with locked(folder):  # another command may be writing the same comparison
        notes = write_report(file.run, comparison, plans, results, analyses, folder, verdict, tiles, warnings, failure)
        texts = export_verdict(verdict) | {"notes": notes}
        if saved != saved | texts:  # because the record of the search is missing, or the wording has changed
            write_record(source, saved | texts)
    return [folder / f"comparison.{kind}" for kind in ("md", "tex", "html")]


def _read_row(record: Mapping[str, Any], source: Path) -> ScoreRow:
    try:
        return ScoreRow.from_record(record)
    except TypeError as error:
        raise ArtifactError(f"a row is incomplete ({error})", where=source, fix=RERUN) from error


def _read_analysis(record: Mapping[str, Any], folder: Path) -> AnalysisResult:
    """Restore the result of an analysis, with the points of its scatter plot from their own file."""
    try:
        return AnalysisResult(
            heading=record["heading"],
            text=record["text"],
            header=tuple(record["header"]),
            rows=tuple(tuple(row) for row in record["rows"]),
            source=record["source"],
            planes=_read_points(folder / record["points"]) if record.get("points") else {},
            values=tuple(record.get("values", ())),
            points=record.get("points", ""),
        )
    except (KeyError, TypeError, OSError, pa.ArrowException) as error:
        problem = f"{record.get('heading', 'an analysis')}: incomplete ({type(error).__name__}: {error})"
        raise ArtifactError(problem, where=folder / "comparison.json", fix=RERUN) from error


def _read_points(path: Path) -> dict[str, dict[str, Any]]:
    """Read coordinates by panel title and name of the points, in the order of the file."""
    planes: dict[str, dict[str, Any]] = {}
    for (plane, kind), points in pd.read_parquet(path, page_checksum_verification=True).groupby(
        ["plane", "kind"], sort=False
    ):
        planes.setdefault(str(plane), {})[str(kind)] = points[["x", "y"]].to_numpy()
    return planes


def _move(row: ScoreRow, old: Path, new: Path) -> ScoreRow:
    """Move the row's paths from the old output folder to the new one."""

    def moved(path: Path | None) -> Path | None:
        return new / path.relative_to(old) if path is not None and path.is_relative_to(old) else path

    return replace(row, run=moved(row.run), predictions=moved(row.predictions))


def _check_predictions(rows: Sequence[ScoreRow], source: Path) -> None:
    """Check that predictions have not changed since they were scored; missing files are reported when they are read.

    A comparison.json written by an earlier version has no hashes, and is accepted.
    """
    hashes = {row.predictions: row.predictions_sha256 for row in rows if row.predictions_sha256}
    changed = [
        str(path)
        for path, digest in hashes.items()
        if path is not None and path.is_file() and file_sha256(path) != digest
    ]
    if changed:
        raise ArtifactError(
            f"predictions have changed since the comparison: {shortlist(changed)}", where=source, fix=RERUN
        )


def _check_tiles(plan: Plan, tiles: TileSet, rows: Sequence[ScoreRow], source: Path) -> None:
    """Check that the tiles have not changed since the comparison."""
    compared = {
        row.provenance.tiles_fingerprint
        for row in rows
        if (row.data_set, row.backbone) == (plan.data_set, plan.backbone)
    }
    others = compared - {None, tiles.fingerprint}
    if others:
        raise ArtifactError(
            f"the tiles of {plan.data_set} have changed since the comparison, from "
            f"{', '.join(sorted(map(str, others)))} to {tiles.fingerprint}",
            where=source,
            fix="restore the tiles, or run clipit compare with a different --name",
        )
