"""Page and summary of arms compared on slide labels, with a verdict and published scores on the same task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipit.errors import counted
from clipit.evaluation.intervals import NO_VARIATION
from clipit.evaluation.slide_arms import SlideArmRow, SlideComparison
from clipit.evaluation.slide_metrics import CHOSEN_BY, SLIDE_METRICS
from clipit.evaluation.slide_sets import (
    ALL_SLIDES,
    LEVELS,
    Level,
    describe_patients,
    of_patients,
    unknown_patients_note,
)
from clipit.reporting.html import Links, PageSection, Part, Table, Text, facts_table, page
from clipit.reporting.slide_arms_table import slide_arms_markdown, slide_arms_table
from clipit.reporting.slide_scores_page import LEVEL_TEXT, MAX_SHOWN, POOLING_TEXT
from clipit.reporting.subtyping_table import CAUTION, published_subtyping
from clipit.reporting.tables import key_value_table, markdown_line, markdown_table, number

TITLE = "Arms compared on slides"
_HOW = (
    "Differences are paired by slide and seed; an arm with one seed, such as a zero-shot VLM, is paired with every "
    "seed of the other arm. An arm is better or worse than the reference if both intervals of the difference, over "
    "patients and over seeds, are on the same side of 0. p: paired t-test over seeds, Holm-corrected over the arms in "
    "the table."
)


@dataclass(frozen=True)
class ComparedRun:
    """Details of one run, as shown on the page.

    Attributes:
        model: Folder of the run, or name of the VLM.
        tiles: Size and resolution of its tiles.
        page: Path of the page with its scores, relative to the page of the comparison.
    """

    arm: str
    seed: int
    model: str
    tiles: str
    page: str

    @property
    def name(self) -> str:
        """Arm and seed."""
        return f"{self.arm}, seed {self.seed}"


def slide_verdict(comparison: SlideComparison, level: Level = "slide") -> str:
    """State in one sentence which arms have a higher balanced accuracy per slide, or per patient, than the reference.

    The verdict is for the test split or, without a test split, for the first compared split. It requires a pooling
    method chosen on validation slides: with several pooling methods, one of them often makes an arm better by chance.
    """
    rows = _main_rows(comparison, level)
    reference = comparison.choices[comparison.reference]
    if not rows:
        return f"Not decided: there are no labelled {level}s to compare."
    if reference.key is None:
        return f"Not decided: {reference.sentence[0].lower()}{reference.sentence[1:]}"
    arms_by_outcome: dict[str, list[str]] = {}
    reference_seeds = max(row.seeds for row in rows if row.arm == comparison.reference)
    for row in rows:
        if row.arm != comparison.reference:
            outcome, reason = _outcome(row, max(row.seeds, reference_seeds))
            arms_by_outcome.setdefault(outcome, []).append(row.arm + (f" ({reason})" if reason else ""))
    first = rows[0]
    parts = [
        f"{start}: {', '.join(arms_by_outcome[outcome])}"
        for outcome, start in (
            ("better", f"better than {comparison.reference}"),
            ("worse", f"worse than {comparison.reference}"),
            ("open", f"no difference from {comparison.reference} shown"),
            ("undecided", "not decided"),
        )
        if outcome in arms_by_outcome
    ]
    split, unknown = first.split, comparison.unknown.get(first.split, 0)
    if level == "slide":
        units = f"{counted(first.labelled, f'{split} slide')} {of_patients(first.patients, unknown)}"
    else:
        units = describe_patients(first.labelled, unknown, f"{split} patient")
    return f"Balanced accuracy on {units}: {'; '.join(parts)}."


def _outcome(row: SlideArmRow, seeds: int) -> tuple[str, str]:
    """Return whether an arm is better, worse, open (inconclusive) or undecided, and the reason for the last two.

    Args:
        seeds: Number of pairs of seeds; an arm with one seed is paired with every seed of the reference.
    """
    low, high = row.low, row.high
    if low is None and str(row.reason).startswith(NO_VARIATION):
        low = high = row.difference  # the difference is the same in all resamples
    if low is None or high is None:
        return "undecided", row.reason or "a score is undefined"
    if row.seeds_low is None or row.seeds_high is None:
        return "undecided", "one seed" if seeds == 1 else f"the difference is the same for all {seeds} seeds"
    if low > 0 and row.seeds_low > 0:
        return "better", ""
    if high < 0 and row.seeds_high < 0:
        return "worse", ""
    return "open", _why_open(low > 0 or high < 0, row.seeds_low > 0 or row.seeds_high < 0, seeds)


def _why_open(over_patients: bool, over_seeds: bool, seeds: int) -> str:
    """Name the interval that includes 0, or both.

    Args:
        over_patients: Whether the interval over patients excludes 0.
        over_seeds: Whether the interval over seeds excludes 0.
    """
    if over_patients and over_seeds:
        return f"the intervals over patients and over {counted(seeds, 'seed')} have opposite signs"
    if over_patients:
        return f"the interval over {counted(seeds, 'seed')} includes 0, but the one over patients does not"
    if over_seeds:
        return f"the interval over patients includes 0, but the one over {counted(seeds, 'seed')} does not"
    return f"the intervals over patients and over {counted(seeds, 'seed')} include 0"


def _main_rows(comparison: SlideComparison, level: Level = "slide") -> list[SlideArmRow]:
    table = comparison.table
    table = table[(table["metric"] == CHOSEN_BY) & (table["level"] == level) & (table["labelled"] > 0)]
    splits = table["split"].unique().tolist()
    if not splits:
        return []
    rows = comparison.rows("test" if "test" in splits else splits[0], CHOSEN_BY, level)
    return [row for row in rows if row.labelled]


def slide_arms_page(
    note: str,
    comparison: SlideComparison,
    classes: Sequence[str],
    runs: Sequence[ComparedRun],
    failed: Sequence[tuple[str, str]],
    facts: Mapping[str, object],
) -> str:
    """Render the page as HTML.

    Args:
        note: Warning shown at the top of the page; "" for none.
        classes: Class names, which identify the published task.
        failed: Dropped slides, each with the reason.
    """
    tables = _tables(comparison)
    main: list[Part] = [slide_arms_table(comparison, split, CHOSEN_BY, level) for split, level in tables]
    main += [Text(remark) for remark in _remarks(comparison, runs)]
    others = [
        slide_arms_table(comparison, split, metric, level)
        for split, level in tables
        for metric in SLIDE_METRICS
        if metric != CHOSEN_BY
    ]
    sections = [
        PageSection("Comparison", main),
        PageSection("Pooling", [Table(("arm", "pooling"), _poolings(comparison), left=2)]),
        PageSection("Other metrics", others, folded=True),
    ]
    published = _published(classes)
    if published:
        sections.append(PageSection("Published scores", [Table(*published, left=3), Text(CAUTION)]))
    links = [(run.name, [("scores", run.page)]) for run in runs]
    sections.append(PageSection("Runs", [Table(*_run_table(runs), left=4), Links(links, "Slide scores of each run")]))
    if failed:
        dropped = Table(("slide", "reason"), failed, caption="Slides that were dropped for all arms", left=2)
        sections.append(PageSection("Failed slides", [dropped]))
    sections.append(PageSection("How arms are compared", [Text(_HOW), Text(POOLING_TEXT), Text(LEVEL_TEXT)]))
    sections.append(PageSection("Provenance", [facts_table(facts)]))
    return page(TITLE, note, sections, verdict=slide_verdict(comparison))


def slide_arms_summary(
    note: str,
    comparison: SlideComparison,
    classes: Sequence[str],
    runs: Sequence[ComparedRun],
    failed: Sequence[tuple[str, str]],
    facts: Mapping[str, object],
) -> str:
    """Compose the summary as Markdown that is readable as plain text; arguments as for `slide_arms_page`."""
    parts = [f"# {TITLE}"]
    parts += [f"> **Note.** {markdown_line(note)}"] if note else []
    parts.append(f"**{markdown_line(slide_verdict(comparison))}**")
    parts += [slide_arms_markdown(comparison, split, CHOSEN_BY, level) for split, level in _tables(comparison)]
    poolings = [f"{arm}: {sentence}" for arm, sentence in _poolings(comparison)]
    parts.append("\n".join(f"- {markdown_line(line)}" for line in [*poolings, *_remarks(comparison, runs), _HOW]))
    published = _published(classes)
    if published:
        parts += ["## Published scores", markdown_table(*published, left=3), CAUTION]
    if failed:
        parts += ["## Failed slides", markdown_table(("slide", "reason"), failed[:MAX_SHOWN], left=2)]
        parts += [f"and {len(failed) - MAX_SHOWN} more"] if len(failed) > MAX_SHOWN else []
    parts += ["## Runs", markdown_table(*_run_table(runs), left=4)]
    parts += ["## Provenance", key_value_table(facts)]
    return "\n\n".join(parts) + "\n"


def _tables(comparison: SlideComparison) -> list[tuple[str, Level]]:
    """Return the splits and levels with labelled slides; patients only if any patient has several slides."""
    shown: list[tuple[str, Level]] = []
    for split, group in comparison.table.groupby("split", sort=False):
        counts = {level: int(group.loc[group["level"] == level, "labelled"].max()) for level in LEVELS}
        slides = group[group["level"] == "slide"]
        if counts["slide"]:
            shown.append((str(split), "slide"))
        if counts["patient"] and int(slides["patients"].iloc[0]) < counts["slide"]:
            shown.append((str(split), "patient"))
    return shown


def _remarks(comparison: SlideComparison, runs: Sequence[ComparedRun]) -> list[str]:
    remarks = unknown_patients_note(sum(comparison.unknown.values()))
    if comparison.crossing:
        remarks.append(f"Patients with slides in several splits, which can inflate scores: {comparison.crossing}.")
    if (comparison.table["split"] == ALL_SLIDES).any():
        remarks.append("The slides have no splits, so the comparison may include slides that the runs were trained on.")
    rows = _main_rows(comparison)
    if rows and rows[0].labelled < 100:
        share = 100 / rows[0].labelled
        remarks.append(f"{rows[0].split}: one slide accounts for {share:.1f} percentage points of accuracy.")
    tiles: dict[str, list[str]] = {}
    for run in runs:
        if run.arm not in tiles.setdefault(run.tiles, []):
            tiles[run.tiles].append(run.arm)
    if len(tiles) > 1:
        listed = "; ".join(f"{', '.join(arms)}: {text}" for text, arms in tiles.items())
        remarks.append(f"The arms use different tiles, so differences may be due to the tiles: {listed}.")
    return remarks


def _poolings(comparison: SlideComparison) -> list[list[object]]:
    return [[arm, choice.sentence] for arm, choice in comparison.choices.items()]


def _run_table(runs: Sequence[ComparedRun]) -> tuple[tuple[str, ...], list[list[object]]]:
    return ("arm", "seed", "model", "tiles"), [[run.arm, run.seed, run.model, run.tiles] for run in runs]


def _published(classes: Sequence[str]) -> tuple[tuple[str, ...], list[list[object]]] | None:
    """Return the header and rows of published zero-shot scores for these classes; None if there are none."""
    rows: list[list[object]] = [
        [entry.model, entry.pooling, f"published: {entry.source}", f"{number(entry.score)} ({entry.metric})"]
        for entry in published_subtyping(classes)
    ]
    return (("model", "pooling", "source", "score"), rows) if rows else None
