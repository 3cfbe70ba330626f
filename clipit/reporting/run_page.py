"""The page of one run (`report.html`): scores, classes, calibration, curves, tiles, provenance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from clipit.evaluation.predictions import Predictions
from clipit.reporting.charts import line_chart, reliability_chart
from clipit.reporting.curves import Series
from clipit.reporting.html import Card, Cards, Figure, Part, Section, Table, Text, facts_table, page
from clipit.reporting.summary import protocol_text, undefined
from clipit.reporting.tables import LABELS, interval, number

MOST_TILES = 12
"""Tiles shown of each kind (wrong, right)."""
_LOSSES = ("loss", "cross_entropy", "distillation")


def run_page(
    title: str,
    results: Mapping[str, Any],
    predictions: Predictions,
    *,
    curves: Series | None = None,
    picture: Callable[[str], str | None] = lambda tile_id: None,
    texts: Mapping[str, str] | None = None,
) -> str:
    """The page, from what lies in the run's folder.

    Args:
        title: Heading.
        results: What results.json holds.
        predictions: What predictions.parquet holds.
        curves: What metrics.jsonl holds.
        picture: Tile id -> data URI of its picture, or None.
        texts: Heading -> lines as they are (the tiles, the account of the snippets, the pairing).
    """
    sections = [Section("Scores", _scores(results))]
    for split, of_split in results["splits"].items():
        sections.append(Section(f"Classes: {split}", _classes(results["classes"], split, of_split)))
        sections.append(Section(f"Tiles: {split}", _tiles(predictions.select(split).by_id(), picture)))
    if curves:
        sections.append(Section("Training", _curves(curves)))
    sections += [Section(heading, [Text(text.strip(), fixed=True)]) for heading, text in (texts or {}).items()]
    facts = dict(results["provenance"])
    versions = {f"version of {name}": version for name, version in facts.pop("versions", {}).items()}
    shown = {key: value for key, value in (facts | versions).items() if value not in (None, [], "", {})}
    sections.append(Section("Provenance", [facts_table(shown, "results.json: provenance")]))
    return page(title, str(results.get("note", "")), sections)


def extreme_tiles(
    predictions: Predictions, most: int = MOST_TILES
) -> tuple[Int64[np.ndarray, " w"], Int64[np.ndarray, " r"]]:
    """Rows of the labelled tiles that are wrong and that are right, the most confident first, ties by id."""
    predicted, confidence = predictions.probabilities.argmax(axis=1), predictions.probabilities.max(axis=1)
    order = np.lexsort((predictions.ids, -confidence))
    order = order[predictions.labels[order] >= 0].astype(np.int64)
    right = predicted[order] == predictions.labels[order]
    return order[~right][:most], order[right][:most]


def _scores(results: Mapping[str, Any]) -> list[Part]:
    """One table per split and reading (head, prompts): every score has its key beside it."""
    parts: list[Part] = []
    for split, of_split in results["splits"].items():
        kinds = {"": of_split} | ({"zero_shot.": of_split["zero_shot"]} if "zero_shot" in of_split else {})
        for kind, scores in kinds.items():
            metrics = scores["metrics"]
            rows = [
                (LABELS.get(name, name), number(m["value"]), interval(m["low"], m["high"]))
                for name, m in metrics.items()
            ]
            groups = f" of {of_split['groups']} groups" if of_split["groups"] else ""
            read = ", read through the class prompts (zero-shot)" if kind else ""
            parts.append(
                Table(
                    ("score", "value", "95 % interval"),
                    rows,
                    traces=[f"results.json: splits.{split}.{kind}metrics.{name}" for name in metrics],
                    caption=f"{split}: {of_split['labelled']} labelled tiles{groups}{read}",
                )
            )
    parts.append(Text(protocol_text(results)))
    parts += [Text(f"Not defined: {line}.") for line in undefined(results)]
    return parts


def _classes(names: Sequence[str], split: str, of_split: Mapping[str, Any]) -> list[Part]:
    per_class = [
        (row["class"], *(number(row[key]) for key in ("precision", "recall", "f1")), row["support"])
        for row in of_split["per_class"]
    ]
    counts = of_split["confusion"]
    shades = [[count / max(1, sum(row)) for count in row] for row in counts]
    return [
        Table(
            ("class", "precision", "recall", "F1", "tiles"),
            per_class,
            source=f"results.json: splits.{split}.per_class",
        ),
        Table(
            ("true \\ predicted", *names),
            [(name, *row) for name, row in zip(names, counts, strict=True)],
            caption="Confusion matrix: numbers of tiles; shade: share of the true class (row)",
            source=f"results.json: splits.{split}.confusion",
            shades=shades,
        ),
        Figure(
            reliability_chart(of_split["reliability"], label=f"Reliability diagram of the {split} tiles"),
            "Reliability: bars are the accuracy of the tiles in each bin of confidence, dots stand at the bin's mean "
            "confidence; on the dashed line confidence is what it says. Below: tiles per bin.",
            source=f"results.json: splits.{split}.reliability",
        ),
    ]


def _tiles(predictions: Predictions, picture: Callable[[str], str | None]) -> list[Part]:
    known = int((predictions.labels >= 0).sum())
    predicted = predictions.probabilities.argmax(axis=1)
    wrong = int((predicted != predictions.labels)[predictions.labels >= 0].sum())
    parts: list[Part] = []
    kinds = (("wrong", wrong), ("right", known - wrong))
    for (kind, total), rows in zip(kinds, extreme_tiles(predictions), strict=True):
        if not len(rows):
            parts.append(Text(f"No labelled tile is {kind}."))
            continue
        caption = f"The most confident of the {total} tiles that are {kind}, the surest first."
        cards = [_card(predictions, int(row), picture) for row in rows]
        parts.append(Cards(cards, caption, "predictions.parquet: the row of each id"))
    return parts


def _card(predictions: Predictions, row: int, picture: Callable[[str], str | None]) -> Card:
    tile_id = str(predictions.ids[row])
    probabilities = predictions.probabilities[row]
    predicted, true = (predictions.classes[int(c)] for c in (probabilities.argmax(), predictions.labels[row]))
    lines = [f"{predicted} {probabilities.max():.3f}"]
    if predicted != true:
        lines.append(f"true: {true} {probabilities[int(predictions.labels[row])]:.3f}")
    return Card(picture(tile_id), f"tile {tile_id}: predicted {predicted}, true {true}", lines, f"id {tile_id}")


def _curves(curves: Series) -> list[Part]:
    """Losses, validation scores and the learning rate; speed and memory are not shown."""
    losses = {name: points for name, points in curves.items() if any(term in name for term in _LOSSES)}
    scores = {n: points for n, points in curves.items() if n.startswith("validation") and n not in losses}
    rates = {name: points for name, points in curves.items() if "learning_rate" in name}
    parts: list[Part] = []
    for axis, series in (("loss", losses), ("validation score", scores), ("learning rate", rates)):
        if series:
            label = f"{axis} over training steps"
            named = {name.replace("_", " "): points for name, points in series.items()}
            chart = line_chart(named, label=label, y_label=axis, logarithmic=axis == "loss")
            parts.append(Figure(chart, f"{axis} over steps", source=f"metrics.jsonl: {', '.join(series)}"))
    return parts or [Text("Nothing was logged.")]
