"""HTML page of one run (`report.html`): scores, classes, calibration, curves, tiles, provenance."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from clipit.errors import counted
from clipit.evaluation.predictions import Predictions
from clipit.reporting.annotators_section import annotator_parts
from clipit.reporting.html import Card, Cards, Figure, PageSection, Part, Table, Text, facts_table, page
from clipit.reporting.plots import inline_svg, plot_reliability, plot_training_curves, training_panels
from clipit.reporting.run_summary import describe_protocol, list_undefined
from clipit.reporting.tables import LABELS, MAX_CLASSES, from_groups, number, with_interval
from clipit.reporting.training_curves import Series

MAX_TILES = 12
"""Maximum number of tiles shown for each outcome (misclassified, correctly classified)."""


def run_page(
    title: str,
    results: Mapping[str, Any],
    predictions: Predictions,
    *,
    curves: Series | None = None,
    losses: Collection[str] = (),
    picture: Callable[[str], str | None] = lambda tile_id: None,
    texts: Mapping[str, str] | None = None,
    more: Sequence[PageSection] = (),
) -> str:
    """Render the page of a run from the files in its folder.

    Args:
        results: Content of results.json.
        predictions: Content of predictions.parquet.
        curves: Training curves; None without a training log.
        losses: Names of the curves that are losses.
        picture: Function from a tile id to the data URI of the tile's picture, or None.
        texts: Preformatted text by heading, such as tiles, snippets and pairing.
        more: Further sections, placed after the scores.
    """
    splits = dict(sorted(results["splits"].items(), key=lambda item: item[0] != "test"))  # test first
    sections = [PageSection("Scores", _scores(splits, results)), *more]
    for split, split_results in splits.items():
        if "annotators" in split_results:
            source = f"results.json: splits.{split}.annotators"
            parts = annotator_parts(split_results["annotators"], f"Annotators on the {split} tiles", source)
            sections.append(PageSection(f"Annotators: {split}", parts))
        sections.append(PageSection(f"Classes: {split}", _classes(results["classes"], split, split_results)))
        sections.append(PageSection(f"Tiles: {split}", _tiles(predictions.select(split).by_id(), picture)))
    if curves:
        sections.append(PageSection("Training", _curves(curves, losses)))
    sections += [
        PageSection(heading, [Text(text.strip(), preformatted=True)]) for heading, text in (texts or {}).items()
    ]
    facts = dict(results["provenance"])
    versions = {f"version of {name}": version for name, version in facts.pop("versions", {}).items()}
    shown = {key: value for key, value in (facts | versions).items() if value not in (None, [], "", {})}
    sections.append(PageSection("Provenance", [facts_table(shown, "results.json: provenance")], folded=True))
    return page(title, str(results.get("note", "")), sections)


def extreme_tiles(
    predictions: Predictions, max_tiles: int = MAX_TILES
) -> tuple[Int64[np.ndarray, " w"], Int64[np.ndarray, " r"]]:
    """Return the rows of the most confident misclassified and correctly classified tiles, with ties sorted by id."""
    predicted, confidence = predictions.probabilities.argmax(axis=1), predictions.probabilities.max(axis=1)
    order = np.lexsort((predictions.ids, -confidence))
    order = order[predictions.labels[order] >= 0].astype(np.int64)
    correct = predicted[order] == predictions.labels[order]
    return order[~correct][:max_tiles], order[correct][:max_tiles]


def _scores(splits: Mapping[str, Any], results: Mapping[str, Any]) -> list[Part]:
    """Build one table with a row per score and a column per split and predictor (head, class prompts)."""
    columns: dict[str, tuple[str, Mapping[str, Any]]] = {}
    labelled = []
    for split, split_results in splits.items():
        columns[split] = (f"splits.{split}.metrics", split_results["metrics"])
        if "zero_shot" in split_results:
            columns[f"{split}, zero-shot"] = (
                f"splits.{split}.zero_shot.metrics",
                split_results["zero_shot"]["metrics"],
            )
        if "annotators" in split_results:
            means = {name: {"value": value} for name, value in split_results["annotators"]["mean"].items()}
            columns[f"{split}, mean annotator"] = (f"splits.{split}.annotators.mean", means)
        labelled.append(f"{split}: {counted(split_results['labelled'], 'labelled tile')}{from_groups(split_results)}")
    names = dict.fromkeys(name for split_results in splits.values() for name in split_results["metrics"])
    rows = [(LABELS.get(name, name), *(_score(scores.get(name)) for _, scores in columns.values())) for name in names]
    zero_shot = "; zero-shot: with the class prompts" if any(", zero-shot" in column for column in columns) else ""
    table = Table(
        ("score", *columns),
        rows,
        traces=[
            f"results.json: {', '.join(f'{key}.{name}' for key, scores in columns.values() if name in scores)}"
            for name in names
        ],
        caption=f"Scores with 95% intervals ({'; '.join(labelled)}{zero_shot})",
    )
    undefined = [Text(f"Undefined, or averaged over only some classes: {line}.") for line in list_undefined(results)]
    return [table, Text(describe_protocol(results)), *undefined]


def _score(score: Mapping[str, Any] | None) -> str:
    """Format a score and, if there is one, its interval; empty if the predictor does not have the score."""
    return "" if score is None else with_interval(score["value"], score.get("low"), score.get("high"))


def _classes(names: Sequence[str], split: str, split_results: Mapping[str, Any]) -> list[Part]:
    per_class = [
        (row["class"], *(number(row[key]) for key in ("precision", "recall", "f1")), row["support"])
        for row in split_results["per_class"]
    ]
    counts = split_results["confusion"]
    matrix: Part
    if len(names) > MAX_CLASSES:
        matrix = Text(f"The confusion matrix of {len(names)} classes is in results.json: splits.{split}.confusion.")
    else:
        totals = [max(1, sum(row)) for row in counts]
        matrix = Table(
            ("true \\ predicted", *names),
            [(name, *row) for name, row in zip(names, counts, strict=True)],
            caption="Confusion matrix: number of tiles, shaded by the fraction of the true class (row)",
            source=f"results.json: splits.{split}.confusion",
            shades=[[count / total for count in row] for row, total in zip(counts, totals, strict=True)],
        )
    return [
        Table(
            ("class", "precision", "recall", "F1", "tiles"),
            per_class,
            source=f"results.json: splits.{split}.per_class",
        ),
        matrix,
        Figure(
            inline_svg(plot_reliability(split_results["reliability"]), f"Reliability diagram of the {split} tiles"),
            "Reliability: bars show the accuracy in each confidence bin, dots the mean confidence. For a perfectly "
            "calibrated classifier, all dots lie on the dashed line. Below: number of tiles per bin.",
            source=f"results.json: splits.{split}.reliability",
        ),
    ]


def _tiles(predictions: Predictions, picture: Callable[[str], str | None]) -> list[Part]:
    known = int((predictions.labels >= 0).sum())
    predicted = predictions.probabilities.argmax(axis=1)
    wrong = int((predicted != predictions.labels)[predictions.labels >= 0].sum())
    parts: list[Part] = []
    outcomes = (("misclassified", wrong), ("correctly classified", known - wrong))
    for (outcome, total), rows in zip(outcomes, extreme_tiles(predictions), strict=True):
        if not len(rows):
            parts.append(Text(f"No labelled tile is {outcome}."))
            continue
        shown = "" if len(rows) == total else f"{len(rows)} of "
        caption = f"{shown}{counted(total, f'{outcome} tile')}, the most confident first."
        cards = [_card(predictions, int(row), picture) for row in rows]
        parts.append(Cards(cards, caption, "predictions.parquet: row with the id of each tile"))
    return parts


def _card(predictions: Predictions, row: int, picture: Callable[[str], str | None]) -> Card:
    tile_id = str(predictions.ids[row])
    probabilities = predictions.probabilities[row]
    predicted, true = (predictions.classes[int(c)] for c in (probabilities.argmax(), predictions.labels[row]))
    lines = [f"{predicted} {probabilities.max():.3f}"]
    if predicted != true:
        lines.append(f"true: {true} {probabilities[int(predictions.labels[row])]:.3f}")
    return Card(picture(tile_id), f"tile {tile_id}: predicted {predicted}, true {true}", lines, f"id {tile_id}")


def _curves(curves: Series, losses: Collection[str]) -> list[Part]:
    panels = training_panels(curves, losses)
    if not panels:
        return [Text("Nothing was logged.")]
    names = [name for series in panels.values() for name in series]
    label = f"{', '.join(panels)} over steps"
    svg = inline_svg(plot_training_curves(curves, losses), label)
    return [Figure(svg, f"{label[0].upper()}{label[1:]}", source=f"metrics.jsonl: {', '.join(names)}")]
