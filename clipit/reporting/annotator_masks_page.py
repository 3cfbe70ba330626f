"""Page on masks from several annotators: pixel agreement, confusion matrices, Dice scores and disputed tiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from clipit.errors import counted
from clipit.reporting.annotators_section import confusion_tables, page_with_remarks
from clipit.reporting.html import Card, Cards, PageSection, Part, Table, Text, facts_table
from clipit.reporting.tables import number


@dataclass(frozen=True)
class DisputedMask:
    """A tile, its picture as a data URI, and the fraction of its labelled pixels whose consensus is uncertain."""

    tile: str
    picture: str | None
    uncertain: float


def annotator_masks_page(title: str, record: Mapping[str, Any], disputed: Sequence[DisputedMask]) -> str:
    """Render the page as HTML.

    Args:
        record: Content of masks.json.
        disputed: Tiles with the largest fraction of uncertain pixels, in descending order.
    """
    cards = [
        Card(each.picture, f"tile {each.tile}", [f"{each.uncertain:.1%} uncertain pixels"], each.tile)
        for each in disputed
    ]
    sections = [PageSection("Masks", [facts_table(record["facts"], "masks.json: facts")])]
    for index, part in enumerate(record["parts"]):
        parts = _annotators(part, record["classes"], f"masks.json: parts.{index}")
        sections.append(PageSection(f"Annotators: {part['part']}", parts))
    if cards:
        caption = "Tiles with the largest fraction of pixels with an uncertain consensus."
        sections.append(PageSection("Tiles with the least agreement", [Cards(cards, caption)]))
    return page_with_remarks(title, record["notes"], sections)


def _annotators(part: Mapping[str, Any], classes: Sequence[str], source: str) -> list[Part]:
    """Show the agreement and the scores of the annotators on a part of the tiles."""
    dice: list[list[object]] = [
        [each["annotator"], each["tiles"], f"{each['pixels']:,}", number(each["accuracy"])]
        + [number(each["dice"][name]) for name in classes]
        for each in part["annotators"]
    ]
    means = [[each["dice"][name] for each in part["annotators"] if each["dice"][name] is not None] for name in classes]
    dice.append(["mean", "", "", "", *(number(mean(values) if values else None) for values in means)])
    parts: list[Part] = [
        Text(
            f"{counted(part['tiles'], 'tile')}. Krippendorff's alpha over pixels: {number(part['alpha'])} (1: perfect, "
            f"0: chance). {counted(part['patterns'], 'distinct label pattern')}. Consensus: {part['method']}."
        ),
        Table(
            ("annotator", "tiles", "pixels", "accuracy", *(f"Dice of {name}" for name in classes)),
            dice,
            caption="Accuracy: Dawid-Skene estimate. Dice: against the consensus of the others, over all pixels",
            source=source,
        ),
        Text(
            "The Dice scores are the human ceiling: they measure how well annotators agree with one another. They are "
            "too low, especially for tiles with few masks, because the masks of the others contain errors too. The "
            "mean gives every annotator the same weight. "
            "Neighbouring pixels are not independent, so posteriors are overconfident. Dawid-Skene over pixels is "
            "STAPLE (Warfield et al., 2004)."
        ),
    ]
    return [*parts, *confusion_tables(part["annotators"], classes, source)]
