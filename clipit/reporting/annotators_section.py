"""Page section on the human ceiling: scores of annotators on the tiles used to score a classifier."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipit.evaluation.human_ceiling import METRICS, SOURCE_LABELS
from clipit.reporting.html import PageSection, Part, Table, Text, page
from clipit.reporting.tables import LABELS, number

_INDEPENDENT = {
    "yes": "The test labels are independent of the training labels: they come from other annotators.",
    "no": "The test labels are not independent of the training labels: they come from annotators who also label "
    "training tiles, so the scores of a student that learns their habits are too high.",
}
_UNKNOWN = (
    "It is unknown whether the test labels come from annotators who also label training tiles. If they do, the scores "
    "of a student that learns their habits are too high."
)


def annotator_parts(ceiling: Mapping[str, Any], caption: str, source: str = "") -> list[Part]:
    """Build a table of each annotator's scores and their mean, and a paragraph that explains them.

    Args:
        ceiling: Result of `clipit.evaluation.human_ceiling.human_ceiling`.
    """
    records: Sequence[Mapping[str, Any]] = ceiling["annotators"]
    rows = [
        [r["annotator"], r["tiles"], r["reference"], *(number(r["metrics"][name]) for name in METRICS)] for r in records
    ]
    if len(records) > 1:
        rows.append(["mean", "", "", *(number(ceiling["mean"][name]) for name in METRICS)])
    header = ("annotator", "tiles", "compared with", *(LABELS[name] for name in METRICS))
    return [Table(header, rows, caption=caption, source=source, left=1), Text(explain_ceiling(ceiling))]


def explain_ceiling(ceiling: Mapping[str, Any]) -> str:
    """Explain the annotators' scores, and whether the test labels are independent of the training labels."""
    records, consensus = ceiling["annotators"], ""
    if any(record["reference"] != SOURCE_LABELS for record in records):
        per_tile = ceiling.get("labels_per_tile")  # unknown in results of earlier versions
        average = "" if per_tile is None else f" (here, {per_tile:.1f} per tile on average)"
        consensus = (
            "The labels of the others contain errors too. The scores are therefore too low, especially for tiles with "
            f"few labels{average}. "
        )
    equal_weight = ""
    if len(records) > 1:
        equal_weight = "The mean gives every annotator the same weight, however few tiles that annotator labelled. "
    text = (
        "Each annotator is scored like a classifier, on this annotator's tiles that have a label to compare with. "
        f"{consensus}{equal_weight}A classifier that scores higher than the annotators agrees with the test labels "
        "more often; this does not show that its diagnoses are better."
    )
    return f"{text} {_INDEPENDENT.get(ceiling['independent'], _UNKNOWN)}"


def ceiling_note(ceiling: Mapping[str, Any], metric: str) -> str:
    """Summarise the annotators' scores in one line, with mean and range of a metric; "" if it is undefined."""
    values = [r["metrics"][metric] for r in ceiling["annotators"] if r["metrics"].get(metric) is not None]
    if not values:
        return ""
    reference = {r["reference"] for r in ceiling["annotators"]}
    against = reference.pop() if len(reference) == 1 else "the other annotators"
    spread = f" (mean of {len(values)}; {min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    dependent = {
        "yes": "",
        "no": "; the test labels come from annotators who also label training tiles",
    }.get(ceiling["independent"], "; it is unknown whether these annotators also label training tiles")
    return (
        f"human ceiling ({LABELS[metric]} of annotators against {against}): {sum(values) / len(values):.3f}{spread}"
        f"{dependent}"
    )


def confusion_tables(annotators: Sequence[Mapping[str, Any]], classes: Sequence[str], source: str) -> list[Table]:
    """Build a table of the estimated confusion matrix of each annotator who has one.

    Args:
        annotators: Name (`annotator`) and confusion matrix (`confusion`; None without an estimate) of each annotator.
    """
    return [
        Table(
            ("true \\ given", *classes),
            [[label, *map(number, row)] for label, row in zip(classes, each["confusion"], strict=True)],
            caption=f"{each['annotator']}: probability of each label (columns) by true class (rows)",
            source=source,
            shades=each["confusion"],
        )
        for each in annotators
        if each["confusion"] is not None
    ]


def page_with_remarks(title: str, notes: Sequence[str], sections: Sequence[PageSection]) -> str:
    """Render a page on annotators, with warnings among the notes at the top and all notes in the last section."""
    remarks = PageSection("Remarks", [Text("\n".join(notes) or "None.", preformatted=any(notes))])
    warnings = [note.removeprefix("WARNING: ") for note in notes if note.startswith("WARNING: ")]
    return page(title, " ".join(f"{text[0].upper()}{text[1:]}." for text in warnings), [*sections, remarks])
