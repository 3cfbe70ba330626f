"""Write the results of a comparison: comparison.md, comparison.tex and comparison.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.headline import ComparisonVerdict
from clipit.comparison.own_report_arms import resolve_plan_arm
from clipit.comparison.plan import Plan
from clipit.comparison.published_scores import CAUTION, SOURCE, PublishedScores, collect_published
from clipit.comparison.report.arm_figures import confusion_sections, curve_sections
from clipit.comparison.report.changed_tiles import tile_sections
from clipit.comparison.report.comparison_tables import (
    CONTROL_NOTE,
    COST_NOTE,
    cost_table,
    count_left,
    describe_holm_family,
    latex_table,
    main_arms,
    main_table,
    paper_tables,
    setting_label,
    shown_columns,
)
from clipit.comparison.report.links import link_sections
from clipit.comparison.report.sections import (
    cost_section,
    finding_sections,
    label_sections,
    row_section,
    score_sections,
)
from clipit.comparison.report.table_notes import compose_notes, own_report_notes
from clipit.comparison.report.verdicts import verdict_markdown, verdict_sections
from clipit.comparison.statistics import ArmResult, ComparisonResults
from clipit.comparison.verdict import ArmVerdict
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.errors import counted
from clipit.evaluation.human_ceiling import human_ceiling
from clipit.output_files.leftovers import delete_leftovers
from clipit.output_files.whole_files import write_text
from clipit.reporting.annotators_section import annotator_parts, ceiling_note
from clipit.reporting.html import PageSection, page
from clipit.reporting.page_note import compose_note
from clipit.reporting.tables import LABELS, console_block, markdown_line, markdown_table, markdown_text
from clipit.tiles.tileset import TileSet
from clipit.training.terms.term_table import uses_vlm


def write_report(
    config: RunConfig,
    comparison: ComparisonConfig,
    plans: Sequence[Plan],
    results: ComparisonResults,
    analyses: Sequence[AnalysisResult],
    folder: Path,
    verdict: ComparisonVerdict,
    tiles: Sequence[TileSet] = (),
    warnings: Sequence[str] = (),
    failure: str = "",
) -> list[str]:
    """Write comparison.md, comparison.tex and comparison.html.

    Args:
        config: Configuration that all runs share.
        comparison: Section `comparison`.
        plans: Plans, one per data set and backbone.
        tiles: Tiles of each plan, for pictures; without them, only tile ids are shown.
        warnings: Warnings about adapted VLMs and their patients, and about shifted sets.
        failure: Description of failed runs; "" if there are none.

    Returns:
        The notes under the main table.
    """
    arms, against = results.arms, results.against
    published_scores, published_notes = collect_published(plans, comparison.metric)
    published_source = SOURCE if any(published_scores.values()) else ""
    notes = [*compose_notes(config, comparison, plans, arms, published_source), *published_notes]
    notes += own_report_notes(plans, arms)
    tiles_by_setting = {(plan.data_set, plan.backbone): tile_set for plan, tile_set in zip(plans, tiles, strict=False)}
    notes += annotator_notes(tiles_by_setting, comparison.metric)
    notes += warnings
    note = " ".join(filter(None, [failure, _models_note(config, plans, arms)]))
    text = _markdown(config, comparison, results, published_scores, notes, analyses, verdict, note)
    write_text(folder / "comparison.md", text)
    write_text(
        folder / "comparison.tex", _latex(config, comparison, arms, published_scores, published_source, verdict.arms)
    )
    sections = [
        *score_sections(comparison, arms, against, published_scores, notes, verdict.arms),
        *annotator_sections(tiles_by_setting),
        *verdict_sections(verdict.arms),
        *tile_sections(arms, main_arms(comparison, verdict.arms), comparison.baseline, tiles_by_setting),
        *confusion_sections(arms),
        *curve_sections(arms, comparison.baseline),
        *label_sections(config, comparison, arms, folder),
        cost_section(arms),
        *finding_sections(analyses, folder),
        *link_sections(config, plans, arms, folder),
        row_section(results.rows),
    ]
    write_text(folder / "comparison.html", page(config.name, note, sections, verdict=verdict.headline))
    for parent in (folder, *folder.glob("predictions/*/")):
        delete_leftovers(parent)
    return notes


def read_head(folder: Path) -> str:
    """Return the beginning of comparison.md (title, verdict and main table) for the console."""
    blocks = (folder / "comparison.md").read_text(encoding="utf-8").split("\n\n")[:3]
    return "\n\n".join(map(console_block, blocks))


def _models_note(config: RunConfig, plans: Sequence[Plan], arms: Sequence[ArmResult]) -> str:
    """Compose the note on the models of the runs and reference rows."""
    vlms = {
        plan.config.vlm.name
        for plan in plans
        if any(result.reference for result in arms) or any(uses_vlm(resolve_plan_arm(plan, arm)) for arm in plan.arms)
    }
    return compose_note(config.note, backbones=[plan.config.backbone.name for plan in plans], vlms=vlms)


def _markdown(
    config: RunConfig,
    comparison: ComparisonConfig,
    results: ComparisonResults,
    published_scores: PublishedScores,
    notes: Sequence[str],
    analyses: Sequence[AnalysisResult],
    verdict: ComparisonVerdict,
    note: str,
) -> str:
    arms = results.arms
    parts = [f"# {config.name}", markdown_line(verdict.headline), main_table(arms, published_scores)]
    parts += [f"> **Note.** {markdown_line(note)}"] if note else []
    parts += map(markdown_line, notes)
    parts += verdict_markdown(verdict.arms)
    for control, arms_against in results.against.items():
        parts += [f"## Comparison with {markdown_line(control)}", main_table(arms_against), CONTROL_NOTE]
    for title, header, rows in paper_tables(comparison, arms, verdict.arms):
        parts += [f"## {markdown_line(title)}", markdown_table(header, rows)]
    parts += ["## Costs", markdown_table(*cost_table(arms)), COST_NOTE]
    for result in analyses:
        parts += [
            f"## {markdown_line(result.heading)}",
            markdown_text(result.text),
            markdown_table(result.header, result.rows),
        ]
    return "\n\n".join(parts) + "\n"


def _latex(
    config: RunConfig,
    comparison: ComparisonConfig,
    results: Sequence[ArmResult],
    published_scores: PublishedScores,
    published_source: str,
    verdicts: Sequence[ArmVerdict],
) -> str:
    """Format the main table, and one in the layout of CLIP-IT's table 1, with descriptive captions."""
    seeds = counted(len(comparison.seeds), "seed")
    title = f"{config.name}: {LABELS[comparison.metric]} in %, mean and standard deviation over {seeds}."
    caption = f"{title} Differences are paired by seed, against {comparison.baseline}. {describe_holm_family(results)}"
    if published_source:
        caption += f" Published: {published_source}. {CAUTION}"
    header, rows = shown_columns(results, published_scores)
    tables = [latex_table(header, rows, caption, left=count_left(header))]
    for name, paper_header, paper_rows in paper_tables(comparison, results, verdicts):
        tables.append(latex_table(paper_header, paper_rows, f"{name}. {title} Test split; intervals: t over seeds."))
    return "\n".join(tables)


def annotator_notes(tiles_by_setting: Mapping[tuple[str, str], TileSet], metric: str) -> list[str]:
    """Summarise the annotators' scores on the test tiles of each data set; no note without annotators.

    Args:
        metric: Metric of the comparison; if it is undefined for annotators, like AUROC, accuracy is used.
    """
    notes = []
    for setting, tiles in tiles_by_setting.items():
        ceiling = human_ceiling(tiles.of_split("test"))
        text = ceiling and (ceiling_note(ceiling, metric) or ceiling_note(ceiling, "accuracy"))
        if text:
            name = setting_label(setting, list(tiles_by_setting))[2:-1]
            notes.append(f"{name}: {text}." if name else f"{text[0].upper()}{text[1:]}.")
    return list(dict.fromkeys(notes))


def annotator_sections(tiles_by_setting: Mapping[tuple[str, str], TileSet]) -> list[PageSection]:
    """Build a section with the scores of each annotator on the test tiles of each data set; none without annotators."""
    parts = []
    for data_set in dict.fromkeys(data_set for data_set, _ in tiles_by_setting):
        tiles = next(each for (name, _), each in tiles_by_setting.items() if name == data_set)
        ceiling = human_ceiling(tiles.of_split("test"))
        if ceiling is not None:
            source = "results.json of each run: splits.test.annotators"
            parts += annotator_parts(ceiling, f"Annotators on the test tiles of {data_set}", source)
    return [PageSection("Annotators", parts)] if parts else []
