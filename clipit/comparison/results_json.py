"""What the tables and pictures of a comparison show, as numbers and files: for comparison.json."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import whole_file
from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.statistics import ArmResult, ComparisonResults
from clipit.evaluation.intervals import interval_over_seeds
from clipit.evaluation.score_row import COSTS, ScoreRow
from clipit.evaluation.significance import Significance

_TEXTS = ("heading", "text", "source")


def numbers(results: ComparisonResults, why: Sequence[AnalysisResult]) -> dict[str, Any]:
    """Return everything that a comparison's tables show and that was computed, unrounded; scores in 0..1.

    Args:
        results: Scores and statistics.
        why: Results of the analyses, their points written (`keep_planes`).

    Returns:
        `lines`, `against` and `findings`, ready for JSON.
    """
    return {
        "lines": [_line(arm) for arm in results.arms],
        "against": {control: [_line(arm) for arm in arms] for control, arms in results.against.items()},
        "findings": [_finding(finding) for finding in why],
    }


def _line(line: ArmResult) -> dict[str, Any]:
    data_set, backbone, part, arm = line.key
    defined = [score for score in line.scores.values() if score is not None]
    whole = len(defined) == len(line.scores)
    differences = list(line.differences.values())
    tiles = line.over_tiles
    return {
        "data_set": data_set,
        "backbone": backbone,
        "part": part,
        "arm": arm,
        "reference": line.reference,
        "mean": line.mean,
        "sd": stdev(defined) if whole and len(defined) > 1 else None,
        "difference": fmean(differences) if differences else None,
        "over_seeds": _over_seeds(line),
        "over_tiles": None
        if tiles is None
        else {"value": tiles.value, "low": tiles.interval.low, "high": tiles.interval.high}
        | {"reason": tiles.interval.reason},
        "p": _test(line.p),
        "p_holm": _test(line.p_holm),
        "costs": _costs(line.rows),
        "seeds": [_seed(row, line.differences.get(row.seed)) for row in line.rows],
    }


def _seed(row: ScoreRow, difference: float | None) -> dict[str, Any]:
    record = row.to_record()
    values = {"seed": row.seed, "score": row.score, "difference": difference}
    return values | {name: record[name] for name in ("run", "predictions", "reason")}


def _over_seeds(line: ArmResult) -> dict[str, Any] | None:
    """The t interval of the mean difference; None where there is no difference."""
    if not line.differences:
        return None
    low, high = line.over_seeds or (None, None)
    reason = "" if line.over_seeds else interval_over_seeds(list(line.differences.values())).reason
    return {"low": low, "high": high, "reason": reason}


def _test(test: Significance) -> dict[str, Any]:
    return {"value": test.p, "reason": test.reason}


def _costs(rows: Sequence[ScoreRow]) -> dict[str, float | None]:
    """Means over seeds of what a run cost, and of the score by prompts; None where no row has it."""
    found: dict[str, float | None] = {}
    for name in (*COSTS, "zero_shot"):
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        found[name] = fmean(values) if values else None
    return found


def _finding(finding: AnalysisResult) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in _TEXTS} | {
        "header": list(finding.header),
        "rows": [list(row) for row in finding.rows],
        "values": [dict(row) for row in finding.values],
        "points": finding.points,
    }


def keep_planes(why: Sequence[AnalysisResult], folder: Path) -> list[AnalysisResult]:
    """Write the points of each finding's picture beside it, as plane-<number>.parquet, and name the file in its source.

    Columns: plane (title of the panel), kind (name of the points), id (of the tile or snippet), x, y.
    """
    kept = []
    for number, finding in enumerate(why):
        if not finding.planes:
            kept.append(finding)
            continue
        parts = [
            pa.table(
                {
                    "plane": [title] * len(points),
                    "kind": [kind] * len(points),
                    "id": pa.array(finding.ids[title][kind].tolist(), pa.string()),
                    "x": points[:, 0],
                    "y": points[:, 1],
                }
            )
            for title, kinds in finding.planes.items()
            for kind, points in kinds.items()
        ]
        file = f"plane-{number}.parquet"
        with whole_file(folder / file) as temporary:
            pq.write_table(pa.concat_tables(parts), temporary)
        kept.append(replace(finding, source=f"{finding.source}; {file}: x, y by id", points=file))
    return kept
