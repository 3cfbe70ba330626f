"""Clipit/workspace/pairs_page.py."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, DataError
from clipit.evaluation.predictions import read_predictions
from clipit.progress import progress
from clipit.reporting.html import write_page
from clipit.reporting.pairing_page import MOST_TILES, choose_tiles, pairing_page
from clipit.reporting.thumbnails import thumbnail
from clipit.workspace.workspace import Workspace

Answers = Mapping[str, tuple[int, float]]
"""Tile id -> number of the predicted class, and its probability."""


def write_pairs_page(
    config: RunConfig,
    workspace: Workspace,
    most: int = MOST_TILES,
    run: Path | None = None,
    given: tuple[Answers, str] | None = None,
) -> Path:
    """Write the page of a pairing: `<output>/pairings/<name>/pairs.html`, or `pairs.html` in a run's folder.

    Args:
        config: Its tiles, reports, vlm and pairing say which pairs.
        workspace: Of this configuration.
        most: Tiles on the page.
        run: Folder of a run whose predictions of these tiles are shown, too.
        given: Instead of a run's: what is predicted of the tiles, and a sentence that says by what.

    Raises:
        ConfigError: `most` is too small.
        DataError: A tile's file cannot be opened, or the run's predictions cannot be read.
    """
    if most < 2:
        raise ConfigError(f"a page of {most} tiles", where="--most", fix="ask for 2 or more")
    pairs = workspace.pairs
    shown = choose_tiles(pairs.table, most)
    tiles = workspace.all_tiles.of_split("train")
    rows = {str(tile_id): row for row, tile_id in enumerate(tiles.ids.tolist())}
    pictures: dict[str, str | None] = {}
    with progress("pictures of tiles", len(shown)) as advance:
        for tile_id in shown:
            pictures[tile_id] = thumbnail(tiles, rows[tile_id])
            advance()
    about = [
        f"Pairs: {pairs.artifact.folder.name}/pairs.parquet (VLM {workspace.vlm.name}). "
        "Only training tiles are paired. Labels are those of the data set, also where a run does not get to see them.",
    ]
    predictions: Answers | None = None
    if given is not None:
        predictions, told = given
        about.append(told)
    elif run is not None:
        predictions = _predictions(run, tiles.classes)
        have = sum(tile_id in predictions for tile_id in shown)
        about.append(
            f"Predictions: predictions.parquet of {run.parent.name}/{run.name}, which holds {have} of these tiles."
        )
        if not have:
            predictions = None
            about.append(
                "To see predictions of training tiles, evaluate the run with evaluation.splits that include train, "
                "then make this page again."
            )
    note = config.note.strip()
    if config.vlm.name == "embedded":
        note = f"The embedded VLM has only seen synthetic tiles: pairs of real tiles made by it mean nothing. {note}"
    text = pairing_page(
        f"{config.name}: pairs" + (f", {run.name}" if run else ""),
        note,
        pairs.table,
        workspace.snippet_texts(),
        shown,
        classes=tiles.classes,
        labels=dict(zip(tiles.ids.tolist(), tiles.truth.tolist(), strict=True)),
        predictions=predictions,
        pictures=pictures,
        about=about,
        summary=workspace.pairing_text(),
    )
    path = (run or config.output / "pairings" / config.name) / "pairs.html"
    write_page(path, text)
    return path


def _predictions(run: Path, classes: tuple[str, ...]) -> Answers:
    """What a run predicts of the tiles; classes are numbers of `classes`.

    Raises:
        DataError: The table is damaged, or of other classes.
    """
    found = read_predictions(run / "predictions.parquet")
    if found.classes != classes:
        raise DataError(
            f"the run predicts {', '.join(found.classes)}; the tiles have {', '.join(classes)}",
            where=run / "predictions.parquet",
            fix="give the run that belongs to these tiles",
        )
    predicted, confidence = found.probabilities.argmax(axis=1), found.probabilities.max(axis=1)
    return {str(found.ids[i]): (int(predicted[i]), float(confidence[i])) for i in np.arange(len(found.ids))}
