"""What a comparison says, for people: comparison.md, comparison.tex and comparison.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipit.artifacts import whole_file
from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.plan import Plan
from clipit.comparison.published import CAUTION, SOURCE, PublishedScores, collect_published
from clipit.comparison.report.changed_tiles import tile_sections
from clipit.comparison.report.confusion import confusion_sections
from clipit.comparison.report.cost_table import AGAINST, COST_NOTE, costs, holm_family, ones
from clipit.comparison.report.links import link_sections
from clipit.comparison.report.notes import notes_of
from clipit.comparison.report.sections import (
    cost_section,
    finding_sections,
    label_sections,
    row_section,
    score_sections,
)
from clipit.comparison.report.tables import HEADER, latex_table, main_table, shown_columns
from clipit.comparison.report.training_curves import curve_sections
from clipit.comparison.statistics import ArmResult, ComparisonResults
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.reporting.comparison_page import comparison_page
from clipit.reporting.html import write_page
from clipit.reporting.tables import markdown_table
from clipit.tiles.tileset import TileSet


def write_report(
    config: RunConfig,
    comparison: ComparisonConfig,
    plans: Sequence[Plan],
    results: ComparisonResults,
    why: Sequence[AnalysisResult],
    folder: Path,
    tiles: Sequence[TileSet] = (),
) -> list[str]:
    """Write comparison.md, .tex and .html.

    Args:
        config: Configuration that all runs share.
        comparison: Section of the comparison.
        plans: Its data sets and backbones.
        results: Scores and statistics.
        why: Results of the analyses.
        folder: Folder for the three files.
        tiles: Tiles of each plan, for pictures; without them tiles are shown by their ids alone.

    Returns:
        The sentences under the main table.
    """
    c, made, against = comparison, results.arms, results.against
    known, left_out = collect_published(plans, c.metric)
    beside = SOURCE if any(known.values()) else ""
    notes = [*notes_of(config, comparison, plans, made, beside), *left_out]
    with whole_file(folder / "comparison.md") as temporary:
        temporary.write_text(_markdown(config, comparison, made, against, known, notes, why), encoding="utf-8")
    with whole_file(folder / "comparison.tex") as temporary:
        temporary.write_text(_latex(config, comparison, made, known, beside), encoding="utf-8")
    pictured = {(s.data_set, s.backbone): own for s, own in zip(plans, tiles, strict=False)}
    sections = [
        *score_sections(comparison, made, against, known, notes),
        *tile_sections(made, c.arms, c.baseline, pictured),
        *confusion_sections(made),
        *curve_sections(made, c.baseline),
        *label_sections(config, comparison, made, folder),
        cost_section(made),
        *finding_sections(why, folder),
        *link_sections(config, plans, made, folder),
        row_section(results.rows),
    ]
    write_page(folder / "comparison.html", comparison_page(config.name, " ".join(config.note.split()), sections))
    return notes


def _markdown(
    config: RunConfig,
    comparison: ComparisonConfig,
    made: Sequence[ArmResult],
    against: Mapping[str, Sequence[ArmResult]],
    known: PublishedScores,
    notes: Sequence[str],
    why: Sequence[AnalysisResult],
) -> str:
    parts = [f"# {config.name}", main_table(made, known), *notes]
    if config.note:
        parts.append(" ".join(config.note.split()))
    for control, own in against.items():
        parts += [f"## Against {control}", main_table(own), AGAINST]
    for title, header, rows in ones(comparison, made):
        parts += [f"## {title}", markdown_table(header, rows)]
    parts += ["## Costs", markdown_table(*costs(made)), COST_NOTE]
    for finding in why:
        parts += [f"## {finding.heading}", finding.text, markdown_table(finding.header, finding.rows)]
    return "\n\n".join(parts) + "\n"


def _latex(
    config: RunConfig, comparison: ComparisonConfig, made: Sequence[ArmResult], known: PublishedScores, beside: str
) -> str:
    """The main table and that in the form of table 1; captions say what stands in them and where it is from."""
    c = comparison
    seeds = f"{len(c.seeds)} seed{'s' * (len(c.seeds) > 1)}"
    caption = f"{config.name}: {c.metric.replace('_', ' ')} in %, mean and standard deviation over {seeds}."
    told = [caption, f"Differences are paired by seed, against {c.baseline}.", holm_family(made)]
    if beside:
        told.append(f"Published: {beside}. {CAUTION}")
    header, rows = shown_columns(made, known)
    tables = [latex_table(header, rows, " ".join(told), left=sum(name in HEADER[:4] for name in header))]
    for title, one_header, one_rows in ones(comparison, made):
        tables.append(latex_table(one_header, one_rows, f"{title}. {caption} Test split; intervals: t over seeds."))
    return "\n".join(tables)
