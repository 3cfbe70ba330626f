"""Page of predictions: class fractions, and images with the most and least certain predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from clipit.errors import counted
from clipit.evaluation.predicted_classes import PredictedClasses
from clipit.images.image_set import ImageSet
from clipit.reporting.html import Card, Cards, PageSection, Part, Rows, Table, Text, facts_table, page
from clipit.reporting.tables import number
from clipit.reporting.thumbnails import picture_uri

LEAST = 24
"""Number of least certain images on the page."""
MAX_PER_CLASS = 6
"""Number of most certain images of each class."""
MAX_CLASSES = 20
"""Number of classes, by frequency, whose most certain images are shown."""
MAX_UNREADABLE = 200
"""Maximum number of unreadable images that are listed."""
_SIDE = 112  # pixels of a thumbnail


def prediction_page(
    name: str,
    summary: Mapping[str, Any],
    predicted: PredictedClasses,
    zero_shot: PredictedClasses | None,
    images: ImageSet,
    facts: Mapping[str, object],
    unreadable: Sequence[tuple[str, str, str]],
) -> str:
    """Render the page of a table of predictions.

    Args:
        name: Name of the table of predictions.
        summary: Counts and fractions, as in the summary file.
        predicted: Classes predicted by the classifier's head.
        zero_shot: Classes predicted zero-shot; None if not computed.
        images: Predicted images, which are read again for thumbnails.
        facts: Facts about the classifier.
        unreadable: Id, file and reason of each unreadable image.
    """
    counts = {"images": summary["images"], "predicted": summary["predicted"], "unreadable": summary["unreadable"]}
    sections = [
        PageSection("Classes", [facts_table(counts, name), _shares(summary, "Predicted classes")]),
        PageSection("Least certain", [_least_certain(predicted, images, zero_shot)]),
        PageSection("Most certain", _most_certain(predicted, images, zero_shot)),
    ]
    if zero_shot is not None:
        shares = _shares(summary["zero_shot"], f"Zero-shot classes, prompts: {summary['zero_shot']['prompts']}")
        least = _least_certain(zero_shot, images, None, "zero-shot ")
        sections.append(PageSection("Zero-shot", [shares, least]))
    if unreadable:
        shown = unreadable[:MAX_UNREADABLE]
        total = counted(len(unreadable), "image that could not be read", "images that could not be read")
        caption = total if len(shown) == len(unreadable) else f"{len(shown):,} of {total}"
        sections.append(PageSection("Unreadable images", [Rows(("id", "file", "reason"), shown, caption)]))
    sections.append(PageSection("Classifier", [facts_table(facts)]))
    return page(f"Predictions: {name}", str(summary["note"]), sections)


def shares_rows(summary: Mapping[str, Any]) -> list[tuple[str, int, str, str]]:
    """Tabulate class, number of images, share and mean confidence, the most frequent class first."""
    ordered = sorted(summary["classes"].items(), key=lambda entry: -entry[1]["images"])
    return [
        (name, values["images"], f"{values['share']:.1%}", number(values["mean_confidence"]))
        for name, values in ordered
    ]


SHARES_HEADER = ("class", "images", "share", "mean confidence")


def _shares(summary: Mapping[str, Any], caption: str) -> Table:
    return Table(SHARES_HEADER, shares_rows(summary), caption=caption)


def _least_certain(
    predicted: PredictedClasses, images: ImageSet, zero_shot: PredictedClasses | None, kind: str = ""
) -> Cards:
    rows = predicted.least_certain(LEAST)
    caption = (
        f"{len(rows)} of {counted(len(predicted.best), 'image')}, the least certain first: {kind}class and its "
        "probability"
    )
    return _cards(predicted, rows, images, zero_shot, caption)


def _most_certain(predicted: PredictedClasses, images: ImageSet, zero_shot: PredictedClasses | None) -> list[Part]:
    counts = np.bincount(predicted.best, minlength=len(predicted.classes))
    order = np.argsort(-counts, kind="stable")
    parts: list[Part] = []
    for c in order[:MAX_CLASSES].tolist():
        if counts[c]:
            rows = predicted.most_certain(c, MAX_PER_CLASS)
            caption = (
                f"{predicted.classes[c]}: {len(rows)} of {counted(int(counts[c]), 'image')}, the most certain first"
            )
            parts.append(_cards(predicted, rows, images, zero_shot, caption))
    if (counts > 0).sum() > MAX_CLASSES:
        parts.append(Text(f"Only the {MAX_CLASSES} most frequent classes are shown."))
    return parts


def _cards(
    predicted: PredictedClasses,
    rows: Int64[np.ndarray, " k"],
    images: ImageSet,
    zero_shot: PredictedClasses | None,
    caption: str,
) -> Cards:
    cards = []
    for index in rows.tolist():
        row, name = int(predicted.rows[index]), predicted.classes[int(predicted.best[index])]
        lines = [f"{name} {predicted.confidence[index]:.3f}"]
        if zero_shot is not None:
            other = zero_shot.classes[int(zero_shot.best[index])]
            lines.append(f"zero-shot: {other} {zero_shot.confidence[index]:.3f}")
        picture = picture_uri(images, row, side=_SIDE)
        cards.append(Card(picture, f"image {images.ids[row]}: predicted {name}", lines, f"id {images.ids[row]}"))
    return Cards(cards, caption)
