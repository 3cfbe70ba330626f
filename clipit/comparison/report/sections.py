"""What stands on a comparison's page, section by section."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.published import PublishedScores
from clipit.comparison.report.cost_table import AGAINST, COST_NOTE, costs, ones
from clipit.comparison.report.tables import HEADER, shown_columns
from clipit.comparison.statistics import PERCENT, ArmResult
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.evaluation.score_row import CSV_COLUMNS, ScoreRow
from clipit.reporting.comparison_page import raw_parts, seed_figure
from clipit.reporting.html import Figure, Part, Section, Table, Text
from clipit.reporting.label_plots import label_curves_plot
from clipit.reporting.plane_plot import plane_plot

_LONG = 12  # rows of a table from which on a section beside the main one is folded


def score_sections(
    c: ComparisonConfig,
    made: Sequence[ArmResult],
    against: Mapping[str, Sequence[ArmResult]],
    known: PublishedScores,
    notes: Sequence[str],
) -> list[Section]:
    """The scores against the baseline and each control, in the form of table 1, and seed by seed."""
    sections = [Section("Scores", [_scores(made, known, "lines"), *(Text(note) for note in notes)])]
    for control, own in against.items():
        parts: list[Part] = [_scores(own, {}, f"against.{control}"), Text(AGAINST)]
        sections.append(Section(f"Against {control}", parts, folded=len(own) > _LONG))
    for title, header, rows in ones(c, made):
        source = "comparison.json: lines, mean, sd and difference of the part test"
        sections.append(Section(title, [Table(header, rows, source=source)]))
    figures = []
    places = dict.fromkeys(line.key[:3] for line in made)
    told = {i for i in range(3) if i == 2 or len({place[i] for place in places}) > 1}  # what tells them apart
    for place in places:
        scores = {
            line.key.arm: {str(s): None if v is None else PERCENT * v for s, v in line.scores.items()}
            for line in made
            if line.key[:3] == place
        }
        what = f"{' / '.join(part for i, part in enumerate(place) if i in told)}: {c.metric.replace('_', ' ')} %"
        source = "comparison.parquet: column score; comparison.json: lines, seeds"
        figures.append(seed_figure(scores, what=what, baseline=c.baseline, source=source))
    return [*sections, Section("Seed by seed", figures)]


def _scores(made: Sequence[ArmResult], known: PublishedScores, key: str) -> Table:
    """The main table, with its rows and the key of comparison.json that holds its figures unrounded."""
    header, cells = shown_columns(made, known)
    alone = [
        f"{column} = {made[0].key[i]!r}"
        for i, column in enumerate(("data_set", "backbone", "part"))
        if HEADER[i] not in header and made
    ]
    rows = "comparison.parquet: column score of the rows of a line's data_set, backbone, part and arm"
    source = f"comparison.json: {key}, made from {rows}"
    told = f"{source} ({', '.join(alone)})" if alone else source
    return Table(header, cells, source=told, left=sum(name in HEADER[:4] for name in header))


def label_sections(
    config: RunConfig, comparison: ComparisonConfig, made: Sequence[ArmResult], folder: Path
) -> list[Section]:
    """Score over the share of labelled training tiles, where the same tiles and backbone had several; one line per arm.

    Other data sets have other tiles: their points never stand on one line.
    """
    figures: list[Figure] = []
    tested = [line for line in made if line.key.part == "test" and not line.reference]
    same = {line.key: (line.key.backbone, line.rows[0].provenance.tiles_fingerprint) for line in tested}
    for backbone, tiles in dict.fromkeys(same.values()):
        series: dict[str, list[tuple[float, float | None]]] = {}
        for line in tested:
            if same[line.key] == (backbone, tiles):
                shares = [(row.provenance.labelled_share, row.score) for row in line.rows]
                points = [(share, score) for share, score in shares if share is not None]
                series.setdefault(line.key.arm, []).extend(points)
        if any(len({share for share, _ in points}) > 1 for points in series.values()):
            path = folder / f"labels-{len(figures)}.png"
            label_curves_plot(series, path, metric=comparison.metric, title=f"{config.name}: {backbone}")
            caption = (
                "Test score over the share of labelled training tiles; bands: lowest to highest seed (up to 7 arms)."
            )
            source = "comparison.parquet: score over training_labels / training_tiles"
            figures.append(Figure(path.read_bytes(), caption, alt=caption, source=source))
    return [Section("Label efficiency", figures)] if figures else []


def cost_section(made: Sequence[ArmResult]) -> Section:
    """What each arm costs."""
    source = "comparison.json: lines, costs, made from comparison.parquet"
    return Section("Costs", [Table(*costs(made), source=source), Text(COST_NOTE)])


def finding_sections(why: Sequence[AnalysisResult], folder: Path) -> list[Section]:
    """One section per analysis.

    Args:
        why: The analyses.
        folder: Where their pictures are kept, too.
    """
    sections = []
    for i, finding in enumerate(why):
        source = f"comparison.json: findings[{i}].values, made from {finding.source}"
        parts: list[Part] = [Text(finding.text), Table(finding.header, finding.rows, source=source)]
        if finding.planes:
            path = folder / f"plane-{i}.png"
            plane_plot(finding.planes, path, title=finding.heading)
            parts.append(Figure(path.read_bytes(), finding.heading, alt=finding.text, source=finding.source))
        sections.append(Section(finding.heading, parts))
    return sections


def row_section(rows: Sequence[ScoreRow]) -> Section:
    """Every row of `comparison.parquet`; columns that hold the same in all of them are told once."""
    columns = (*CSV_COLUMNS, "run", "predictions")
    records = [row.to_record() for row in rows]
    shown: list[dict[str, Any]] = [{key: record[key] for key in columns} for record in records]
    return Section("All rows", raw_parts(shown, "One row per run and test set", "comparison.parquet"))
