"""Page on several annotators: agreement, confusion matrices, human ceiling, and the most disputed tiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipit.errors import counted
from clipit.reporting.annotators_section import annotator_parts, confusion_tables, page_with_remarks
from clipit.reporting.html import Card, Cards, PageSection, Part, Table, Text, facts_table
from clipit.reporting.tables import MAX_CLASSES, interval, number

_MAX_PAIRED = 20  # maximum number of annotators in the pairwise table


@dataclass(frozen=True)
class DisputedTile:
    """A tile whose annotators disagree.

    Attributes:
        picture: Data URI of its picture; None if it cannot be decoded.
        votes: Label of each annotator, or number of votes per class.
        consensus: Consensus class and its posterior.
    """

    tile: str
    split: str
    picture: str | None
    votes: str
    consensus: str


def annotators_page(title: str, record: Mapping[str, Any], disputed: Sequence[DisputedTile]) -> str:
    """Render the page as HTML.

    Args:
        record: Content of annotators.json.
        disputed: Tiles with the least agreement, the most disputed first.
    """
    sections = [
        PageSection("Labels", [facts_table(record["facts"], "annotators.json: facts")]),
        PageSection("Agreement", _agreement(record)),
    ]
    for name, heading in (("training", "Training and validation tiles"), ("test", "Test tiles")):
        if record[name] is not None:
            sections.append(PageSection(f"Annotators: {heading.lower()}", _estimates(record, name)))
    if record["human_ceiling"] is not None:
        parts = annotator_parts(
            record["human_ceiling"], "Annotators on the test tiles", "annotators.json: human_ceiling"
        )
        sections.append(PageSection("Human ceiling", parts))
    if disputed:
        cards = [
            Card(each.picture, f"tile {each.tile}: {each.votes}", [each.consensus, each.votes, each.split], each.tile)
            for each in disputed
        ]
        caption = "Tiles with the least certain consensus, in ascending order of the posterior of the consensus class."
        sections.append(
            PageSection("Tiles with the least agreement", [Cards(cards, caption, "annotators.csv: row of each tile")])
        )
    return page_with_remarks(title, record["notes"], sections)


def _agreement(record: Mapping[str, Any]) -> list[Part]:
    alpha = record["agreement"]
    rows = [["Krippendorff's alpha (nominal)", number(alpha["alpha"]), interval(alpha["low"], alpha["high"])]]
    parts: list[Part] = [
        Table(
            ("measure", "value", "95% interval"),
            rows,
            caption=f"{counted(alpha['tiles'], 'tile')} with at least two labels; bootstrap interval over "
            f"{alpha['units']}",
            source="annotators.json: agreement",
        ),
        Text(
            "1 is perfect agreement, 0 is agreement by chance. Krippendorff considers labels reliable above 0.8, and "
            "allows tentative conclusions above 0.667."
        ),
    ]
    pairs = record["pairs"]
    if pairs is None:
        return parts
    names = [row["annotator"] for row in pairs]
    if len(names) > _MAX_PAIRED:
        return [
            *parts,
            Text(f"For the pairwise agreement of all {len(names):,} annotators, see annotators.json: pairs."),
        ]
    header = ("annotator", *names)
    cells = [
        [
            row["annotator"],
            *(
                "" if value is None else f"{value:.3f} ({n})"
                for value, n in zip(row["agreement"], row["shared"], strict=True)
            ),
        ]
        for row in pairs
    ]
    shades = [[0.0 if value is None else value for value in row["agreement"]] for row in pairs]
    caption = "Fraction of identical labels for each pair of annotators (number of tiles that both labelled)"
    return [*parts, Table(header, cells, caption=caption, source="annotators.json: pairs", shades=shades)]


def _estimates(record: Mapping[str, Any], name: str) -> list[Part]:
    """Show the Dawid-Skene estimates, or the reason why there are none."""
    estimates, classes = record[name], record["classes"]
    source = f"annotators.json: {name}"
    if estimates["reason"]:
        return [Text(f"{estimates['reason'][0].upper()}{estimates['reason'][1:]}. The consensus is the majority vote.")]
    shares = Table(
        ("class", "estimated fraction"),
        [[label, number(value)] for label, value in zip(classes, estimates["priors"], strict=True)],
        source=source,
    )
    reason = "when the likelihood had almost stopped increasing" if estimates["converged"] else "before it converged"
    parts: list[Part] = [
        Table(
            ("annotator", "tiles", "accuracy", "balanced accuracy", "agrees with consensus"),
            [
                [
                    each["annotator"],
                    each["tiles"],
                    number(each["accuracy"]),
                    number(each["balanced_accuracy"]),
                    number(each["agreement"]),
                ]
                for each in estimates["annotators"]
            ],
            caption=f"Dawid-Skene estimates on {counted(estimates['tiles'], 'tile')}",
            source=source,
        ),
        Text(
            f"EM stopped after {counted(estimates['iterations'], 'iteration')}, {reason}, at a log-likelihood of "
            f"{estimates['log_likelihood']:.1f}. Probabilities that the labels barely constrain may be inaccurate. "
            f"The consensus differs from the majority vote on {counted(estimates['differs'], 'tile')}, and from more "
            f"than half of the labels on {counted(len(estimates['overruled']), 'tile')}. The vote is tied on "
            f"{counted(estimates['tied'], 'tile')}. Accuracy is the estimated probability that a label is the true "
            "class. It is not measured against true labels: the model assumes that, given the true class, annotators "
            "err independently."
        ),
        shares,
    ]
    if len(classes) > MAX_CLASSES:
        return [*parts, Text(f"For the confusion matrices of all {len(classes)} classes, see {source}.")]
    return [*parts, *confusion_tables(estimates["annotators"], classes, source)]
