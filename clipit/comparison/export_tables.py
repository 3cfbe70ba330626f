"""Export a comparison: its rows as Parquet and CSV, and all numbers in its tables as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa

from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.contrasts import Contrast
from clipit.comparison.headline import ComparisonVerdict
from clipit.comparison.plan import FailedRun
from clipit.comparison.statistics import ArmResult, ComparisonResults
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, DataError
from clipit.evaluation.intervals import Estimate
from clipit.evaluation.score_row import COSTS, CSV_COLUMNS, ScoreRow
from clipit.evaluation.significance import Significance
from clipit.output_files.artifacts import read_json, write_record
from clipit.output_files.whole_files import write_parquet
from clipit.reporting.csv_export import write_csv
from clipit.versions import git_commit

RERUN = "run clipit compare again with the comparison's configuration: finished runs are kept"


def export_comparison(
    config: RunConfig,
    comparison: ComparisonConfig,
    results: ComparisonResults,
    analyses: Sequence[AnalysisResult],
    notes: Sequence[str],
    folder: Path,
    verdict: ComparisonVerdict,
    failed: Sequence[FailedRun] = (),
) -> None:
    """Write comparison.parquet (the rows) and comparison.json (the rows and all numbers in the tables).

    Args:
        config: Configuration that all runs share.
        analyses: Results of the analyses, as returned by `write_points`.
        failed: Runs without scores.
    """
    records = [row.to_record() for row in results.rows]
    write_parquet(folder / "comparison.parquet", pa.Table.from_pylist(records), checksums=True)
    settings = config.model_dump(mode="json") | {"comparison": comparison.model_dump(mode="json")}
    provenance = {"config": settings, "commit": git_commit(), "rows": records}
    numbers = export_numbers(results, analyses) | export_verdict(verdict)
    numbers |= {"notes": list(notes)} | ({"failed_runs": [asdict(run) for run in failed]} if failed else {})
    write_record(folder / "comparison.json", provenance | numbers)


def export_csv(folder: Path, path: Path) -> None:
    """Write the rows of a finished comparison as CSV, to keep under version control (`results/*.csv`).

    Raises:
        DataError: The folder does not contain a comparison.
        ArtifactError: comparison.json is damaged, or the CSV file cannot be written.
    """
    write_csv(path, CSV_COLUMNS, read_comparison(folder)["rows"])


def read_comparison(folder: Path) -> dict[str, Any]:
    """Read comparison.json.

    Raises:
        DataError: The folder does not contain a comparison.
        ArtifactError: The file is damaged, or was written by an earlier version.
    """
    source = folder / "comparison.json"
    if not source.is_file():
        raise DataError("no finished comparison in this folder", where=folder, fix="run clipit compare first")
    saved = read_json(source, RERUN)
    kinds = {"config": dict, "rows": list, "findings": list}
    missing = [name for name, kind in kinds.items() if not isinstance(saved.get(name), kind)]
    if missing:
        raise ArtifactError(
            f"entries that the page needs are missing or invalid: {', '.join(missing)}", where=source, fix=RERUN
        )
    return saved


def export_numbers(results: ComparisonResults, analyses: Sequence[AnalysisResult]) -> dict[str, Any]:
    """Return every computed number in a comparison's tables, unrounded; scores in 0..1.

    Args:
        analyses: Results of the analyses, as returned by `write_points`.

    Returns:
        `lines`, `against` and `findings`, as JSON values.
    """
    return {
        "lines": [_arm(arm) for arm in results.arms],
        "against": {control: [_arm(arm) for arm in arms] for control, arms in results.against.items()},
        "findings": [_analysis(analysis) for analysis in analyses],
    }


def export_verdict(verdict: ComparisonVerdict) -> dict[str, Any]:
    """Return the headline (`verdict`), and the verdict on each arm with its contrasts (`verdicts`)."""
    records = [
        {
            **arm.key._asdict(),
            "outcome": arm.outcome,
            "verdict": arm.verdict,
            "contrasts": [_contrast(contrast) for contrast in arm.contrasts],
        }
        for arm in verdict.arms
    ]
    return {"verdict": verdict.headline, "verdicts": records}


def write_points(analyses: Sequence[AnalysisResult], folder: Path) -> list[AnalysisResult]:
    """Write the points of each scatter plot as plane-<number>.parquet, and add the file to the result's source.

    Columns: plane (title of the panel), kind (name of the points), id (of the tile or snippet), x, y.
    """
    written = []
    for number, analysis in enumerate(analyses):
        if not analysis.planes:
            written.append(analysis)
            continue
        parts = [
            pa.table(
                {
                    "plane": [title] * len(points),
                    "kind": [kind] * len(points),
                    "id": pa.array(analysis.ids[title][kind].tolist(), pa.string()),
                    "x": points[:, 0],
                    "y": points[:, 1],
                }
            )
            for title, kinds in analysis.planes.items()
            for kind, points in kinds.items()
        ]
        file = f"plane-{number}.parquet"
        write_parquet(folder / file, pa.concat_tables(parts), checksums=True)
        written.append(replace(analysis, source=f"{analysis.source}; {file}: x, y by id", points=file))
    return written


def _arm(arm: ArmResult) -> dict[str, Any]:
    scores = [score for score in arm.scores.values() if score is not None]
    differences = list(arm.differences.values())
    return {
        **arm.key._asdict(),
        "reference": arm.reference,
        "mean": arm.mean,
        "sd": stdev(scores) if len(scores) == len(arm.scores) > 1 else None,
        "difference": fmean(differences) if differences else None,
        "over_seeds": None if arm.over_seeds is None else asdict(arm.over_seeds),
        "over_tiles": None if arm.over_tiles is None else _difference(arm.over_tiles),
        "p": _test(arm.p),
        "p_holm": _test(arm.p_holm),
        "costs": {name: _mean_of(arm.rows, name) for name in (*COSTS, "zero_shot")},
        "seeds": [_seed(row, arm.differences.get(row.seed)) for row in arm.rows],
    }


def _contrast(contrast: Contrast) -> dict[str, Any]:
    return {
        "role": contrast.role,
        "control": contrast.control,
        "difference": contrast.difference,
        "over_seeds": asdict(contrast.interval),
        "p": _test(contrast.p),
        "p_holm": _test(contrast.p_holm),
        "seeds": [{"seed": seed, "difference": value} for seed, value in contrast.differences.items()],
    }


def _difference(difference: Estimate) -> dict[str, Any]:
    return {"value": difference.value} | asdict(difference.interval)


def _test(test: Significance) -> dict[str, Any]:
    return {"value": test.p, "reason": test.reason}


def _mean_of(rows: Sequence[ScoreRow], column: str) -> float | None:
    """Compute the mean over seeds; None if no row has a value."""
    values = [value for row in rows if (value := getattr(row, column)) is not None]
    return fmean(values) if values else None


def _seed(row: ScoreRow, difference: float | None) -> dict[str, Any]:
    record = row.to_record()
    scores = {"seed": row.seed, "score": row.score, "difference": difference}
    return scores | {name: record[name] for name in ("run", "predictions", "reason")}


def _analysis(analysis: AnalysisResult) -> dict[str, Any]:
    return {
        "heading": analysis.heading,
        "text": analysis.text,
        "source": analysis.source,
        "header": list(analysis.header),
        "rows": [list(row) for row in analysis.rows],
        "values": [dict(record) for record in analysis.values],
        "points": analysis.points,
    }
