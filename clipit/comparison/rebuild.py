"""A finished comparison's tables and page, made again from comparison.json and the predictions, without any model."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from clipit.artifacts import file_sha256, read_json, write_json
from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.plan import Plan, plan_comparison
from clipit.comparison.report.write import write_report
from clipit.comparison.statistics import compute_statistics
from clipit.config.load import merge, validate_file
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, DataError, explain, shortlist
from clipit.evaluation.score_row import ScoreRow
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

_AGAIN = "start scripts/compare.py again with the comparison's configuration: finished runs are kept"


def comparison_again(config: RunConfig) -> list[Path]:
    """Write comparison.md, .tex and .html anew; what is compared is read from comparison.json, not from `config`.

    Args:
        config: Its `output` and `name` say where the comparison lies; the output folder may have been moved since.

    Returns:
        The three files.

    Raises:
        DataError: There is no finished comparison, or predictions of it are missing.
        ArtifactError: comparison.json is damaged or of an earlier version, or the tiles or predictions are others by
            now.
        ConfigError: The configuration that it records does not fit any more.
    """
    folder = config.output / "comparisons" / config.name
    source = folder / "comparison.json"
    if not source.is_file():
        raise DataError(explain("no finished comparison here", where=folder, fix="run scripts/compare.py first"))
    found = read_json(source, _AGAIN)
    if not {"config", "rows", "findings"} <= found.keys():
        lacking = ", ".join(sorted({"config", "rows", "findings"} - found.keys()))
        raise ArtifactError(explain(f"it does not hold {lacking}, which its page needs", where=source, fix=_AGAIN))
    file = validate_file(merge(found["config"], {"output": str(config.output)}), source)
    recorded, comparison = file.run, file.comparison
    plans = plan_comparison(recorded, comparison)
    rows = [_moved(ScoreRow.from_record(row), Path(found["config"]["output"]), config.output) for row in found["rows"]]
    why = [finding_from(entry, folder) for entry in found["findings"]]
    shared: dict[str, Any] = {}
    tiles = [Workspace(plan.config, shared).all_tiles for plan in plans]
    for plan, own in zip(plans, tiles, strict=True):
        _check_tiles(plan, own, rows, source)
    _check_predictions(rows, source)
    results = compute_statistics(comparison, rows, recorded.evaluation.bootstrap)
    notes = write_report(recorded, comparison, plans, results, why, folder, tiles)
    if notes != found.get("notes"):  # the record of the search may be gone by now, or words have changed
        write_json(source, found | {"notes": notes})
    return [folder / f"comparison.{kind}" for kind in ("md", "tex", "html")]


def finding_from(entry: Mapping[str, Any], folder: Path) -> AnalysisResult:
    """An analysis as comparison.json keeps it, with the points of its picture, which have a file of their own.

    Raises:
        ArtifactError: A part of it is missing or damaged.
    """
    kept = {field.name: entry[field.name] for field in fields(AnalysisResult) if field.name in entry}
    try:
        table = {"header": tuple(entry["header"]), "rows": tuple(tuple(row) for row in entry["rows"])}
        points = _points(folder / entry["points"]) if entry.get("points") else {}
        return AnalysisResult(**{**kept, **table, "values": tuple(entry.get("values", ())), "planes": points})
    except (KeyError, TypeError, OSError, pa.ArrowException) as error:
        told = f"{entry.get('heading', 'an analysis')}: incomplete ({type(error).__name__}: {error})"
        raise ArtifactError(explain(told, where=folder / "comparison.json", fix=_AGAIN)) from error


def _points(path: Path) -> dict[str, dict[str, Float[np.ndarray, "_ 2"]]]:
    """Title of a panel -> name of the points -> coordinates, in the order of the file."""
    table = pq.read_table(path)
    places = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    keys = list(zip(table["plane"].to_pylist(), table["kind"].to_pylist(), strict=True))
    rows: dict[str, dict[str, list[int]]] = {}
    for row, (plane, kind) in enumerate(keys):
        rows.setdefault(plane, {}).setdefault(kind, []).append(row)
    return {plane: {kind: places[own] for kind, own in kinds.items()} for plane, kinds in rows.items()}


def _moved(row: ScoreRow, old: Path, new: Path) -> ScoreRow:
    """Move the row's paths from the old output folder to the new one."""

    def moved(path: Path | None) -> Path | None:
        return new / path.relative_to(old) if path is not None and path.is_relative_to(old) else path

    return replace(row, run=moved(row.run), predictions=moved(row.predictions))


def _check_predictions(rows: Sequence[ScoreRow], source: Path) -> None:
    """Refuse predictions that are not those that the rows' scores come from; a missing file is told when it is read.

    A comparison.json of an earlier version says nothing of its predictions' content, and passes.
    """
    recorded = {row.predictions_file(): row.predictions_sha256 for row in rows if row.predictions_sha256}
    files = {path: digest for path, digest in recorded.items() if path.is_file()}
    changed = [str(path) for path, digest in files.items() if file_sha256(path) != digest]
    if changed:
        raise ArtifactError(
            explain(
                f"predictions are no longer those that were compared: {shortlist(changed)}",
                where=source,
                fix=_AGAIN,
            )
        )


def _check_tiles(plan: Plan, tiles: TileSet, rows: Sequence[ScoreRow], source: Path) -> None:
    """Refuse pictures of other tiles than those that were compared."""
    plan_rows = [row for row in rows if (row.data_set, row.backbone) == (plan.data_set, plan.backbone)]
    made_from = {row.provenance.tiles_fingerprint for row in plan_rows} - {None, tiles.fingerprint}
    if made_from:
        raise ArtifactError(
            explain(
                f"{plan.data_set} was compared on other tiles ({', '.join(sorted(map(str, made_from)))}) than those "
                f"that lie there now ({tiles.fingerprint})",
                where=source,
                fix="put the tiles back, or start scripts/compare.py with another --name",
            )
        )
