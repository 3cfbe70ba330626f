"""Page and summary of a multiple-instance learning study on slide or patient labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from clipit.errors import counted
from clipit.evaluation.slide_arms import SlideComparison
from clipit.evaluation.slide_metrics import CHOSEN_BY, SLIDE_METRICS
from clipit.evaluation.slide_sets import Level
from clipit.reporting.html import Card, Cards, Figure, PageSection, Part, Table, Text, facts_table, page
from clipit.reporting.slide_arms_page import slide_verdict
from clipit.reporting.slide_arms_table import slide_arms_markdown, slide_arms_table
from clipit.reporting.tables import interval, key_value_table, markdown_line, markdown_table, number

_HOW = (
    "All arms are scored on the same test bags. Trained arms keep the epoch with the lowest loss on the validation "
    "bags. Differences are paired by bag and seed; arms without training have one seed. An arm is better or worse than "
    "the reference if both intervals of the difference, over patients and over seeds, are on the same side of 0. "
    "p: paired t-test over seeds, Holm-corrected over the arms in the table except class frequencies (the floor) and "
    "shuffled labels."
)
_SHUFFLED = (
    "An arm is shown to learn from the labels only if it is better than the control with shuffled labels, that is, if "
    "both intervals of the difference are above 0. The floor has a balanced accuracy of 1 / (number of classes with "
    "test bags)."
)
_MAPS = (
    "A map predicts where a slide shows the class of its label, within the area of its tiles. The instance map "
    "contains the tiles whose most probable class is that of the label; the attention map contains the tiles with more "
    "than the mean weight. Dice is computed over the pooled pixels of all slides. AUROC measures how well tiles that "
    "mostly show the class are separated from the others, averaged over the slides that have both. The floor assigns "
    "all tiles to the class; the ceiling uses the majority class of each tile. Scores are means and standard "
    "deviations over seeds; in brackets, the 95% interval of the mean over patients, if there are at least 10. "
    "High attention means that a tile has a large weight in the score, not that it shows the class of the label."
)


@dataclass(frozen=True)
class ShownBag:
    """A bag that is shown on the page with its maps.

    Attributes:
        arm: Arm whose model (of the first seed) is shown.
        tiles: Number of tiles.
        pictures: Title and PNG of each map; empty without slides.
        top: Tiles with the highest attention.
    """

    name: str
    label: str
    arm: str
    scores: Mapping[str, float]
    tiles: int
    pictures: Sequence[tuple[str, bytes]]
    top: Sequence[Card]


@dataclass(frozen=True)
class MilContent:
    """Content of the page.

    Attributes:
        note: Warning shown at the top; "" for none.
        against_control: Comparisons of the trained arms with each control that was trained on shuffled labels.
        level: Whether slides or patients are labelled.
        counts: Number of bags by split and label.
        arms: Description of each arm.
        maps: Bags whose maps are shown.
        map_scores: Table from `clipit.mil.map_scores.score_table`; empty without masks.
    """

    title: str
    note: str
    comparison: SlideComparison
    against_control: Sequence[SlideComparison]
    level: Level
    counts: Mapping[str, Mapping[str, int]]
    arms: Mapping[str, str]
    notes: Sequence[str]
    maps: Sequence[ShownBag]
    map_scores: pd.DataFrame
    facts: Mapping[str, object]
    training: Mapping[str, object]


def mil_page(content: MilContent) -> str:
    """Render the page as HTML."""
    comparison = content.comparison
    levels = _levels(content)
    main: list[Part] = [slide_arms_table(comparison, "test", CHOSEN_BY, level) for level in levels]
    for control in content.against_control:
        main.append(Text(slide_verdict(control, content.level)))
        main += [slide_arms_table(control, "test", CHOSEN_BY, level) for level in levels]
    main += [Text(text) for text in (_SHUFFLED, *content.notes)]
    others = [
        slide_arms_table(comparison, "test", metric, level)
        for level in levels
        for metric in SLIDE_METRICS
        if metric != CHOSEN_BY
    ]
    sections = [PageSection("Comparison", main)]
    if len(content.map_scores):
        sections.append(
            PageSection("Maps compared with masks", [Table(*_map_table(content.map_scores), left=2), Text(_MAPS)])
        )
    if content.maps:
        sections.append(PageSection("Maps", [part for bag in content.maps for part in _bag_parts(bag)]))
    choices = [[arm, content.arms.get(arm, ""), choice.sentence] for arm, choice in comparison.choices.items()]
    sections += [
        PageSection("Arms", [Table(("arm", "description", "chosen on validation bags"), choices, left=3)]),
        PageSection("Bags", [Table(*_counts(content), caption=f"{content.level.capitalize()}s by split and label")]),
        PageSection("Other metrics", others, folded=True),
        PageSection("How arms are compared", [Text(_HOW)]),
        PageSection("Training", [facts_table(content.training)], folded=True),
        PageSection("Provenance", [facts_table(content.facts)], folded=True),
    ]
    return page(content.title, content.note, sections, verdict=slide_verdict(comparison, content.level))


def mil_summary(content: MilContent) -> str:
    """Compose the summary as Markdown."""
    comparison = content.comparison
    parts = [f"# {markdown_line(content.title)}"]
    parts += [f"> **Note.** {markdown_line(content.note)}"] if content.note else []
    parts.append(f"**{markdown_line(slide_verdict(comparison, content.level))}**")
    parts += [slide_arms_markdown(comparison, "test", CHOSEN_BY, level) for level in _levels(content)]
    for control in content.against_control:
        parts.append(f"**{markdown_line(slide_verdict(control, content.level))}**")
        parts += [slide_arms_markdown(control, "test", CHOSEN_BY, level) for level in _levels(content)]
    if len(content.map_scores):
        parts += ["## Maps compared with masks", markdown_table(*_map_table(content.map_scores), left=2), _MAPS]
    arms = [f"{arm}: {text}. {comparison.choices[arm].sentence}" for arm, text in content.arms.items()]
    lines = [*arms, *content.notes, _SHUFFLED, _HOW]
    parts.append("\n".join(f"- {markdown_line(line)}" for line in lines))
    parts += ["## Bags", markdown_table(*_counts(content)), "## Provenance", key_value_table(content.facts)]
    return "\n\n".join(parts) + "\n"


def _levels(content: MilContent) -> list[Level]:
    """Return the levels to show: slides, and also patients if any patient has several slides."""
    if content.level == "patient":
        return ["patient"]
    table = content.comparison.table
    slides = table[table["level"] == "slide"].iloc[0]
    several = int(slides["patients"]) < int(slides["labelled"])
    return ["slide", "patient"] if several else ["slide"]


def _counts(content: MilContent) -> tuple[tuple[str, ...], list[list[object]]]:
    names = list(next(iter(content.counts.values())))
    rows: list[list[object]] = [[split, *counts.values()] for split, counts in content.counts.items()]
    return ("split", *names), rows


def _map_table(map_scores: pd.DataFrame) -> tuple[tuple[str, ...], list[list[object]]]:
    rows: list[list[object]] = []
    for (arm, kind), group in map_scores.groupby(["arm", "map"], sort=False):
        slides, with_auroc = (int(group[name].iloc[0]) for name in ("slides", "auroc_slides"))
        auroc = _spread(group, "auroc")
        auroc += f" ({counted(with_auroc, 'slide')})" if auroc and with_auroc < slides else ""
        rows.append([arm, kind, slides, _spread(group, "dice"), auroc])
    return ("arm", "map", "slides", "Dice", "tile AUROC"), rows


def _spread(group: pd.DataFrame, metric: str) -> str:
    """Format the mean over seeds with its standard deviation and its interval over patients."""
    known = group[metric].dropna().astype(float)
    if not len(known):
        return ""
    first = group.iloc[0]
    spread = f" ± {number(float(known.std()))}" if len(known) > 1 else ""
    low, high = (
        None if pd.isna(first[f"{metric}_{end}"]) else float(first[f"{metric}_{end}"]) for end in ("low", "high")
    )
    return f"{number(float(known.mean()))}{spread} {interval(low, high)}".rstrip()


def _bag_parts(bag: ShownBag) -> list[Part]:
    scores = ", ".join(f"{name} {score:.2f}" for name, score in bag.scores.items())
    parts: list[Part] = [Text(f"{bag.name}: label {bag.label}; arm {bag.arm}: {scores}; {counted(bag.tiles, 'tile')}.")]
    parts += [Figure(png, title, alt=title) for title, png in bag.pictures]
    parts.append(Cards(bag.top, caption=f"Tiles of {bag.name} with the highest attention"))
    return parts
