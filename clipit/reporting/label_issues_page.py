"""Page of suspicious labels: tiles with their given and suggested labels, and their nearest tiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipit.errors import counted
from clipit.evaluation.intervals import Estimate
from clipit.reporting.html import Include, PageSection, Part, Table, Text, facts_table, page
from clipit.reporting.tables import with_interval

_ABOUT = (
    "The label of each tile is predicted by a linear probe on frozen features, trained on tiles of other patients or "
    "slides. A label is suspicious if the probe prefers a different class so clearly that confident learning counts "
    "the label as wrong. The probe can also be wrong: rare appearances and classes that look alike are flagged more "
    "often than others. Look at the tile before you change its label, and do not correct test labels on the basis of "
    "these suggestions alone."
)


@dataclass(frozen=True)
class LabelledTile:
    """A tile and its given label.

    Attributes:
        group: Patient or slide; "" where unknown.
        picture: Data URI of its picture; None for no picture.
    """

    id: str
    label: str
    group: str
    picture: str | None


@dataclass(frozen=True)
class SuspiciousTile:
    """A tile with a suspicious label.

    Attributes:
        label_probability: Out-of-fold probability of the given label.
        suggested: Most probable class.
        nearest: Nearest tiles of other patients or slides, nearest first.
    """

    tile: LabelledTile
    split: str
    label_probability: float
    suggested: str
    suggested_probability: float
    nearest: Sequence[LabelledTile]


def label_issues_page(
    title: str,
    note: str,
    facts: Mapping[str, object],
    by_class: Sequence[Mapping[str, Any]],
    tiles: Sequence[SuspiciousTile],
    scores: Mapping[str, Estimate] | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """Render the page as HTML.

    Args:
        note: Warning shown at the top of the page; "" for none.
        facts: Settings and results of the check, with the number of suspicious labels under `suspicious labels`.
        by_class: Records with the keys class, checked, suspicious, estimated_wrong and suggested_most.
        tiles: Tiles to review, the most suspicious first.
        scores: Scores against verified labels, by name; None or empty without verified labels.
        remarks: Lines for the section "Remarks".
    """
    total = int(str(facts.get("suspicious labels", len(tiles))))
    counts = Table(
        ("given label", "checked", "suspicious", "estimated fraction of wrong labels, %", "most frequent suggestion"),
        [
            [
                row["class"],
                row["checked"],
                row["suspicious"],
                None if row["estimated_wrong"] is None else f"{100 * row['estimated_wrong']:.1f}",
                row["suggested_most"] or "",
            ]
            for row in by_class
        ],
        caption="Labels by class. Fractions of wrong labels are estimated by confident learning from the probe's "
        "predictions.",
        source="label_issues.json, classes",
    )
    sections = [PageSection("Summary", [Text(_ABOUT), facts_table(facts), counts])]
    if scores:
        sections.append(PageSection("Comparison with verified labels", _verified(scores)))
    parts: list[Part] = [Text("No label is suspicious.")]
    if tiles:
        caption = (
            f"{len(tiles):,} of {counted(total, 'suspicious label')}, sorted by the probability of the given label, "
            "lowest first; label_issues.csv lists all tiles. The nearest tiles are those of other patients or slides "
            "with the highest cosine similarity; a label in bold is the suggested one."
        )
        parts = [Text(caption), Include("label_issues.html", {"tiles": tiles})]
    sections.append(PageSection("Tiles to review", parts))
    if remarks:
        sections.append(PageSection("Remarks", [Text("\n".join(remarks), preformatted=True)]))
    return page(title, note, sections)


def _verified(scores: Mapping[str, Estimate]) -> list[Part]:
    rows = [[name, with_interval(s.value, s.interval.low, s.interval.high)] for name, s in scores.items()]
    introduction = (
        "The ranking is by the probability of the given label alone; label_issues.csv lists flagged labels first. For "
        "comparison: flagging tiles at random has a precision equal to the fraction of wrong labels, and a random "
        "order has an AUROC of 0.5."
    )
    return [Text(introduction), Table(("score", "value [95% interval]"), rows, source="label_issues.json, verified")]
