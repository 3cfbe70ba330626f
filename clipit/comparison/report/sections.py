"""Sections of a comparison's page: scores, label efficiency, costs, analyses, and all rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.published_scores import PublishedScores
from clipit.comparison.report.comparison_tables import (
    CONTROL_NOTE,
    COST_NOTE,
    HEADER,
    cost_table,
    count_left,
    paper_tables,
    shown_columns,
)
from clipit.comparison.statistics import PERCENT, ArmResult
from clipit.comparison.verdict import ArmVerdict
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.errors import counted
from clipit.evaluation.score_row import CSV_COLUMNS, ScoreRow
from clipit.reporting.html import Figure, Folded, PageSection, Part, Rows, Table, Text, facts_table
from clipit.reporting.plots import inline_svg, save_plot
from clipit.reporting.score_plots import plot_label_efficiency, plot_planes, plot_seed_scores
from clipit.reporting.tables import LABELS

_LONG = 12  # rows; sections with longer tables are collapsed, except the main section


def score_sections(
    comparison: ComparisonConfig,
    results: Sequence[ArmResult],
    against: Mapping[str, Sequence[ArmResult]],
    published: PublishedScores,
    notes: Sequence[str],
    verdicts: Sequence[ArmVerdict],
) -> list[PageSection]:
    """Build the score sections: main table, comparison with each control, tables as in CLIP-IT, and plots by seed."""
    sections = [PageSection("Scores", [_score_table(results, published, "lines"), *(Text(note) for note in notes)])]
    for control, arms in against.items():
        parts: list[Part] = [_score_table(arms, {}, f"against.{control}"), Text(CONTROL_NOTE)]
        sections.append(PageSection(f"Comparison with {control}", parts, folded=len(arms) > _LONG))
    for title, header, rows in paper_tables(comparison, results, verdicts):
        source = "comparison.json: lines, mean, sd and difference where test_set is test"
        sections.append(PageSection(title, [Table(header, rows, source=source)]))
    figures = []
    keys = dict.fromkeys(result.key[:3] for result in results)
    differing = [i for i in range(3) if i == 2 or len({key[i] for key in keys}) > 1]
    for key in keys:
        scores = {
            result.key.arm: {str(s): None if v is None else PERCENT * v for s, v in result.scores.items()}
            for result in results
            if result.key[:3] == key
        }
        label = f"{' / '.join(key[i] for i in differing)}: {LABELS[comparison.metric]} %"
        source = "comparison.parquet: column score; comparison.json: lines, seeds"
        figures.append(seed_figure(scores, label=label, baseline=comparison.baseline, source=source))
    return [*sections, PageSection("Scores by seed", figures)]


def seed_figure(
    scores: Mapping[str, Mapping[str, float | None]], *, label: str, baseline: str | None = None, source: str = ""
) -> Figure:
    """Plot the scores of each arm, one dot per seed.

    Args:
        scores: Score by arm and seed (as text); None where undefined.
        label: Axis label with test set, metric and unit, such as `test: accuracy %`.
        baseline: Arm whose mean is drawn as a dashed line.
    """
    line = f" The dashed line is the mean of {baseline}." if baseline in scores else ""
    svg = inline_svg(plot_seed_scores(scores, x_label=label, baseline=baseline), f"{label}, per arm and seed")
    stroke = "; the solid line is their mean" if any(len(by_seed) > 1 for by_seed in scores.values()) else ""
    return Figure(svg, f"{label}. One dot per seed{stroke}.{line}", source=source)


def _score_table(results: Sequence[ArmResult], published: PublishedScores, key: str) -> Table:
    """Build the main table; `key` names the unrounded figures in comparison.json."""
    header, cells = shown_columns(results, published)
    constant = [
        f"{column} = {results[0].key[i]!r}"
        for i, column in enumerate(("data_set", "backbone", "test_set"))
        if HEADER[i] not in header and results
    ]
    rows = "column score of comparison.parquet, in the rows with the same data_set, backbone, test_set and arm"
    source = f"comparison.json: {key}, computed from {rows}"
    if constant:
        source += f" ({', '.join(constant)})"
    return Table(header, cells, source=source, left=count_left(header))


def label_sections(
    config: RunConfig, comparison: ComparisonConfig, results: Sequence[ArmResult], folder: Path
) -> list[PageSection]:
    """Plot scores against the fraction of labelled training tiles, if it varies between runs on the same tiles.

    Only scores on the same tiles are connected by a line.
    """
    figures: list[Figure] = []
    tested = [result for result in results if result.key.test_set == "test" and not result.reference]
    same = {result.key: (result.key.backbone, result.rows[0].provenance.tiles_fingerprint) for result in tested}
    for backbone, tiles in dict.fromkeys(same.values()):
        series: dict[str, list[tuple[float, float | None]]] = {}
        for result in tested:
            if same[result.key] == (backbone, tiles):
                shares = [(row.provenance.labelled_share, row.score) for row in result.rows]
                points = [(share, score) for share, score in shares if share is not None]
                series.setdefault(result.key.arm, []).extend(points)
        if any(len({share for share, _ in points}) > 1 for points in series.values()):
            plot = plot_label_efficiency(series, metric=comparison.metric, title=f"{config.name}: {backbone}")
            save_plot(plot, folder / f"labels-{len(figures)}.png")
            caption = (
                "Test score against the fraction of labelled training tiles. Bands show the range over seeds, and are "
                "drawn only for 7 arms or fewer."
            )
            source = "comparison.parquet: score over training_labels / training_tiles"
            figures.append(Figure(inline_svg(plot, f"{backbone}: {caption}"), caption, source=source))
    return [PageSection("Label efficiency", figures)] if figures else []


def cost_section(results: Sequence[ArmResult]) -> PageSection:
    """Build the section of each arm's costs."""
    source = "comparison.json: lines, costs, computed from comparison.parquet"
    return PageSection("Costs", [Table(*cost_table(results), source=source), Text(COST_NOTE)])


def finding_sections(analyses: Sequence[AnalysisResult], folder: Path) -> list[PageSection]:
    """Build one section per analysis.

    Args:
        folder: Folder of the comparison; the plots are also written there.
    """
    sections = []
    for i, analysis in enumerate(analyses):
        source = f"comparison.json: findings[{i}].values, computed from {analysis.source}"
        parts: list[Part] = [Text(analysis.text), Table(analysis.header, analysis.rows, source=source)]
        if analysis.planes:
            path = folder / f"plane-{i}.png"
            save_plot(plot_planes(analysis.planes, title=analysis.heading), path)
            parts.append(Figure(path.read_bytes(), analysis.heading, alt=analysis.text, source=analysis.source))
        sections.append(PageSection(analysis.heading, parts))
    return sections


def row_section(rows: Sequence[ScoreRow]) -> PageSection:
    """Build the section of all rows of `comparison.parquet`; constant columns are listed once, above the table."""
    columns = (*CSV_COLUMNS, "run", "predictions")
    caption, source = "One row per run and test set", "comparison.parquet"
    records = [row.to_record() for row in rows]
    several = len(rows) > 1
    constant = {
        key: records[0][key] for key in columns if several and len({str(record[key]) for record in records}) == 1
    }
    varying = [key for key in columns if key not in constant]
    table = Rows(varying, [[record[key] for key in varying] for record in records], caption, source)
    if not constant:
        return PageSection("All rows", [table])
    facts = facts_table({key: value for key, value in constant.items() if value is not None}, source)
    shared = Folded(f"Columns with the same value in all {counted(len(rows), 'row')} ({len(facts.rows)})", [facts])
    return PageSection("All rows", [shared, table])
