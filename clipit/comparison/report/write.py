"""What a comparison says, for people: comparison.md, comparison.tex and comparison.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipit.artifacts import whole_file
from clipit.comparison.analyses.finding import Finding
from clipit.comparison.plan import Plan
from clipit.comparison.published import CAUTION, SOURCE, fits, published, published_metric
from clipit.comparison.report.changed_tiles import tile_sections
from clipit.comparison.report.confusion import confusion_sections
from clipit.comparison.report.cost_table import AGAINST, COST_NOTE, Published, Row, costs, holm_family, ones
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
from clipit.comparison.statistics import Line, lines
from clipit.config.run import RunConfig
from clipit.evaluation.intervals import Difference
from clipit.evaluation.predictions import read_predictions
from clipit.evaluation.significance import paired_bootstrap_over_tiles
from clipit.reporting.comparison_page import comparison_page
from clipit.reporting.html import write_page
from clipit.reporting.tables import markdown_table
from clipit.tiles.tileset import TileSet


def write_report(
    config: RunConfig,
    plans: Sequence[Plan],
    rows: Sequence[Row],
    why: Sequence[Finding],
    folder: Path,
    tiles: Sequence[TileSet] = (),
) -> tuple[Sequence[Line], dict[str, Sequence[Line]], list[str]]:
    """Write all three files; what they show is computed from the rows and from the runs' predictions.

    Args:
        config: Of the comparison.
        plans: Its data sets and backbones.
        rows: Of `comparison.json`.
        why: The analyses.
        folder: Where the files go.
        tiles: Of each plan, for pictures; without them tiles are shown by their ids alone.

    Returns:
        The lines against the baseline, those against each control, and the sentences under the main table.
    """
    c = config.comparison
    resamples = config.evaluation.bootstrap

    def over_tiles(base: Sequence[Row], arm: Sequence[Row]) -> Difference | None:
        """Paired bootstrap over the test tiles of these runs."""
        if any(row["score"] is None for row in (*base, *arm)):
            return None
        tables = [[read_predictions(Path(row["predictions"])).select("test") for row in side] for side in (base, arm)]
        return paired_bootstrap_over_tiles(list(zip(*tables, strict=True)), c.metric, resamples)

    made = lines(rows, c.baseline, over_tiles)
    students = [row for row in rows if row.get("run")]
    against: dict[str, Sequence[Line]] = {control: lines(students, control, over_tiles) for control in c.controls}
    known, left_out = _published(config, plans)
    beside = SOURCE if any(known.values()) else ""
    notes = [*notes_of(config, plans, made, beside), *left_out]
    with whole_file(folder / "comparison.md") as temporary:
        temporary.write_text(_markdown(config, made, against, known, notes, why), encoding="utf-8")
    with whole_file(folder / "comparison.tex") as temporary:
        temporary.write_text(_latex(config, made, known, beside), encoding="utf-8")
    pictured = {(s.data_set, s.backbone): own for s, own in zip(plans, tiles, strict=False)}
    sections = [
        *score_sections(config, made, against, known, notes),
        *tile_sections(made, c.arms, c.baseline, pictured),
        *confusion_sections(made),
        *curve_sections(made, c.baseline),
        *label_sections(config, made, folder),
        cost_section(made),
        *finding_sections(why, folder),
        *link_sections(config, plans, made, folder),
        row_section(rows),
    ]
    write_page(folder / "comparison.html", comparison_page(config.name, " ".join(config.note.split()), sections))
    return made, against, notes


def _published(config: RunConfig, plans: Sequence[Plan]) -> tuple[Published, list[str]]:
    """Published figures in the comparison's metric, and a sentence for those that are in another one."""
    metric, known, other = config.comparison.metric, dict[tuple[str, str, str], str](), list[str]()
    for plan in plans:
        source = plan.config.tiles.source
        if plan.config.tiles.labels.kind != "all":  # the published figures used all labels
            continue
        for arm in plan.arms:
            figure = published(source, plan.backbone, arm)
            if figure and not fits(source, metric):
                other.append(
                    f"Published figures of {source} are {published_metric(source)}, not {metric.replace('_', ' ')}: "
                    "they are left out."
                )
            elif figure:
                known[(plan.data_set, plan.backbone, arm)] = figure
    return known, list(dict.fromkeys(other))


def _markdown(
    config: RunConfig,
    made: Sequence[Line],
    against: Mapping[str, Sequence[Line]],
    known: Published,
    notes: Sequence[str],
    why: Sequence[Finding],
) -> str:
    parts = [f"# {config.name}", main_table(made, known), *notes]
    if config.note:
        parts.append(" ".join(config.note.split()))
    for control, own in against.items():
        parts += [f"## Against {control}", main_table(own), AGAINST]
    for title, header, rows in ones(config, made):
        parts += [f"## {title}", markdown_table(header, rows)]
    parts += ["## Costs", markdown_table(*costs(made)), COST_NOTE]
    for finding in why:
        parts += [f"## {finding.heading}", finding.text, markdown_table(finding.header, finding.rows)]
    return "\n\n".join(parts) + "\n"


def _latex(config: RunConfig, made: Sequence[Line], known: Published, beside: str) -> str:
    """The main table and that in the form of table 1; captions say what stands in them and where it is from."""
    c = config.comparison
    seeds = f"{len(c.seeds)} seed{'s' * (len(c.seeds) > 1)}"
    caption = f"{config.name}: {c.metric.replace('_', ' ')} in %, mean and standard deviation over {seeds}."
    told = [caption, f"Differences are paired by seed, against {c.baseline}.", holm_family(made)]
    if beside:
        told.append(f"Published: {beside}. {CAUTION}")
    header, rows = shown_columns(made, known)
    tables = [latex_table(header, rows, " ".join(told), left=sum(name in HEADER[:4] for name in header))]
    for title, one_header, one_rows in ones(config, made):
        tables.append(latex_table(one_header, one_rows, f"{title}. {caption} Test split; intervals: t over seeds."))
    return "\n".join(tables)
