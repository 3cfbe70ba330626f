"""Pairing browser (`pairs.html`): tiles with their snippets and scores, and filters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Shaped

from clipit.errors import counted, counted_of
from clipit.output_files.whole_files import text_array
from clipit.reporting.html import Include, PageSection, Text, page

MAX_TILES = 3000
"""Default maximum number of tiles on a page."""
ROWS = 100
"""Tiles shown at a time."""
RATING_HELP = (
    "Rate how well the snippet describes what the tile shows: good, partly or wrong. Ratings and comments are kept in "
    "this browser, even after a reload; save them as a CSV file with the columns tile_id, snippet_id, rank, score, "
    "rating and comment. Nothing leaves this computer."
)


def choose_tiles(pairs: pa.Table, max_tiles: int = MAX_TILES) -> list[str]:
    """Return the sorted ids of the tiles to show on a page: all, or a selection of `max_tiles`.

    The selection is spread evenly over the scores of the tiles' first snippets, from the highest to the lowest.

    Args:
        pairs: Table with the columns tile_id, rank, snippet_id, score.
        max_tiles: Maximum number of tiles, at least 2.
    """
    first = pairs.filter(pc.equal(pairs["rank"], 0))
    ids = text_array(first["tile_id"].to_pylist())
    if len(ids) > max_tiles:
        order = np.argsort(ids, kind="stable")
        order = order[np.argsort(-first["score"].to_numpy()[order], kind="stable")]
        ids = ids[order[np.linspace(0, len(order) - 1, max_tiles).round().astype(int)]]
    return sorted(ids.tolist())


def pairing_page(
    title: str,
    note: str,
    pairs: pa.Table,
    texts: Mapping[str, str],
    shown: Sequence[str],
    *,
    classes: Sequence[str],
    labels: Mapping[str, int],
    predictions: Mapping[str, tuple[int, float]] | None = None,
    pictures: Mapping[str, str | None],
    origins: Mapping[str, str] | None = None,
    key: str = "",
    introduction: Sequence[str] = (),
    summary: str = "",
) -> str:
    """Render the pairing browser as HTML.

    Args:
        note: Warning shown at the top of the page; "" for none.
        pairs: Pairs of all tiles, with the columns tile_id, rank, snippet_id, score.
        texts: Text of each snippet by id.
        shown: Ids of the tiles to show, from `choose_tiles`.
        classes: Class names, in the order of the class indices.
        labels: Class index by tile id; -1 or absent if unknown.
        predictions: Index and probability of the predicted class by tile id; None without a run.
        pictures: Base64-encoded JPEG by tile id, shown small and enlarged on click; None or absent for no picture.
        origins: Section and report of each snippet by id, shown next to it.
        key: Fingerprint of the pairing, under which the browser stores ratings.
        introduction: Paragraphs on the origin of pairs, labels and predictions.
        summary: Summary of the pairing, as preformatted lines.
    """
    data = _data(pairs, texts, shown, classes, labels, predictions, pictures)
    data["key"] = f"clipit-ratings-{key}"
    data["snippets"]["origin"] = [(origins or {}).get(name, "") for name in data["snippets"]["id"]]
    total = len(pc.unique(pairs["tile_id"]))
    size = sum(len(text) for text in data["tiles"]["picture"] if text) / 1e6
    sampled = (
        f"All {counted(total, 'paired tile is', 'paired tiles are')} on this page"
        if len(shown) == total
        else f"{counted_of(len(shown), total, 'paired tile is', 'paired tiles are')} on this page, spread evenly over "
        "the scores"
    )
    sections = [
        PageSection(
            "Tiles and their snippets",
            [
                Text(f"{sampled}; their pictures take {size:.1f} MB. Scores are cosine similarities."),
                Text(RATING_HELP),
                *(Text(paragraph) for paragraph in introduction),
                Include("pairs.html"),
            ],
        )
    ]
    if summary:
        sections.append(PageSection("Summary of the pairing", [Text(summary, preformatted=True)]))
    return page(title, note, sections, script="pairs_script.html", data=data)


def _data(
    pairs: pa.Table,
    texts: Mapping[str, str],
    shown: Sequence[str],
    classes: Sequence[str],
    labels: Mapping[str, int],
    predictions: Mapping[str, tuple[int, float]] | None,
    pictures: Mapping[str, str | None],
) -> dict[str, Any]:
    """Build the data for the script, by column so that field names are not repeated."""
    table = pairs.filter(pc.is_in(pairs["tile_id"], pa.array(list(shown), pa.string())))
    tile_ids, snippet_ids = _strings(table["tile_id"]), _strings(table["snippet_id"])
    ranks, scores = table["rank"].to_numpy(), table["score"].to_numpy()
    names, numbers = np.unique(snippet_ids, return_inverse=True)
    counts = pc.value_counts(pairs["snippet_id"])
    used = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    pairs_of_tile: dict[str, list[int | float]] = {tile_id: [] for tile_id in shown}
    for i in np.lexsort((ranks, tile_ids)):
        pairs_of_tile[str(tile_ids[i])] += [int(numbers[i]), round(float(scores[i]), 4)]
    predicted = predictions or {}
    return {
        "page": ROWS,
        "classes": list(classes),
        "predicted": predictions is not None,
        "snippets": {
            "id": names.tolist(),
            "text": [texts[name] for name in names.tolist()],
            "tiles": [used[name] for name in names.tolist()],
        },
        "tiles": {
            "id": list(shown),
            "label": [int(labels.get(tile_id, -1)) for tile_id in shown],
            "predicted": [int(predicted[tile_id][0]) if tile_id in predicted else -1 for tile_id in shown],
            "probability": [round(float(predicted[t][1]), 4) if t in predicted else 0 for t in shown],
            "pairs": [pairs_of_tile[tile_id] for tile_id in shown],
            "picture": [pictures.get(tile_id) for tile_id in shown],
        },
    }


def _strings(column: pa.ChunkedArray) -> Shaped[np.ndarray, " n"]:
    return text_array(column.to_pylist())
