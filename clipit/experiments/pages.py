"""Pages of what lies on disk: a run's `report.html` and the browser of a pairing, `pairs.html`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipit.config import Config
from clipit.errors import ArtifactError, ConfigError, DataError, explain
from clipit.evaluation.predictions import Predictions, read_predictions
from clipit.experiments.finished import read_results, read_training
from clipit.experiments.identity import run_folder
from clipit.experiments.materials import Materials
from clipit.progress import progress
from clipit.reporting.curves import read_curves
from clipit.reporting.html import write_page
from clipit.reporting.pairing_page import MOST_TILES, chosen_tiles, pairing_page
from clipit.reporting.run_page import run_page
from clipit.reporting.thumbnails import jpeg_uri, thumbnail
from clipit.tiles.tileset import TileSet

_SIDE, _QUALITY = 150, 80  # pixels and JPEG quality of the few tiles on a run's page


def write_run_page(
    title: str,
    folder: Path,
    results: Mapping[str, Any],
    predictions: Predictions,
    tiles: TileSet,
    told: Mapping[str, str],
) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        title: Heading.
        folder: The run's.
        results: What results.json holds (or will hold).
        predictions: What predictions.parquet holds.
        tiles: All tiles, for the pictures.
        told: Heading -> lines (tiles, snippets, pairing).

    Raises:
        DataError: A tile's file cannot be opened.
    """
    rows = {str(tile_id): row for row, tile_id in enumerate(tiles.ids.tolist())}

    def picture(tile_id: str) -> str | None:
        """The tile as a data URI; None when its image cannot be decoded."""
        encoded = thumbnail(tiles, rows[tile_id], side=_SIDE, quality=_QUALITY) if tile_id in rows else None
        return jpeg_uri(encoded) if encoded else None

    log = folder / "metrics.jsonl"
    curves = read_curves(log) if log.is_file() else None
    path = folder / "report.html"
    write_page(path, run_page(title, results, predictions, curves=curves, picture=picture, texts=told))
    return path


def run_page_again(config: Config, materials: Materials) -> Path:
    """Write the page of a finished run anew, from its files.

    Args:
        config: Of the run, its arm resolved.
        materials: For the pictures of the tiles.

    Raises:
        ArtifactError: The run was made from other tiles.
        DataError: There is no finished run.
    """
    folder = run_folder(config)
    results = _results(folder)
    made_from, tiles = results["provenance"].get("tiles"), materials.tiles(config.seed)
    if made_from not in (None, tiles.fingerprint):
        raise ArtifactError(
            explain(
                f"the run was made from other tiles ({made_from}) than these ({tiles.fingerprint})",
                where=folder / "results.json",
                fix="give the run's own configuration: --config <run folder>/config.yaml",
            )
        )
    told = read_training(folder).get("sections", {}) if (folder / "training.json").is_file() else {}
    predictions = read_predictions(folder / "predictions.parquet")
    title = f"{config.name}: {folder.name}"
    return write_run_page(title, folder, results, predictions, tiles, {"Tiles": tiles.describe()} | told)


Answers = Mapping[str, tuple[int, float]]
"""Tile id -> number of the predicted class, and its probability."""


def write_pairs_page(
    config: Config,
    materials: Materials,
    most: int = MOST_TILES,
    run: Path | None = None,
    given: tuple[Answers, str] | None = None,
) -> Path:
    """Write the page of a pairing: `<output>/pairings/<name>/pairs.html`, or `pairs.html` in a run's folder.

    Args:
        config: Its tiles, reports, vlm and pairing say which pairs.
        materials: Of this configuration.
        most: Tiles on the page.
        run: Folder of a run whose predictions of these tiles are shown, too.
        given: Instead of a run's: what is predicted of the tiles, and a sentence that says by what.

    Raises:
        ConfigError: `most` is too small.
        DataError: A tile's file cannot be opened, or the run's predictions cannot be read.
    """
    if most < 2:
        raise ConfigError(explain(f"a page of {most} tiles", where="--most", fix="ask for 2 or more"))
    pairs = materials.pairs
    shown = chosen_tiles(pairs.table, most)
    tiles = materials.some_tiles.of_split("train")
    rows = {str(tile_id): row for row, tile_id in enumerate(tiles.ids.tolist())}
    pictures: dict[str, str | None] = {}
    with progress("pictures of tiles", len(shown)) as advance:
        for tile_id in shown:
            pictures[tile_id] = thumbnail(tiles, rows[tile_id])
            advance()
    about = [
        f"Pairs: {pairs.artifact.folder.name}/pairs.parquet (VLM {materials.vlm.name}). "
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
        materials.snippet_texts(),
        shown,
        classes=tiles.classes,
        labels=dict(zip(tiles.ids.tolist(), tiles.truth.tolist(), strict=True)),
        predictions=predictions,
        pictures=pictures,
        about=about,
        summary=materials.pairing_text(),
    )
    path = (run or config.output / "pairings" / config.name) / "pairs.html"
    write_page(path, text)
    return path


def write_pages(config: Config, materials: Materials, most: int = MOST_TILES) -> list[Path]:
    """Every page that this configuration has: of its run, if it is finished, and of its pairing, if it has reports.

    Args:
        config: Its arm resolved.
        materials: Of this configuration.
        most: Tiles on the page of the pairing.

    Raises:
        DataError: It has neither.
    """
    folder = run_folder(config)
    finished = (folder / "results.json").is_file()
    if not finished and config.reports is None:
        _results(folder)
    made = [run_page_again(config, materials)] if finished else []
    if config.reports is not None:
        made.append(write_pairs_page(config, materials, most, folder if finished else None))
    return made


def _results(folder: Path) -> dict[str, Any]:
    if not (folder / "results.json").is_file():
        raise DataError(
            explain("no finished run here", where=folder, fix="train it first, or give the --arm and --seed of one")
        )
    return read_results(folder)


def _predictions(run: Path, classes: tuple[str, ...]) -> Answers:
    """What a run predicts of the tiles; classes are numbers of `classes`.

    Raises:
        DataError: The table is damaged, or of other classes.
    """
    found = read_predictions(run / "predictions.parquet")
    if found.classes != classes:
        raise DataError(
            explain(
                f"the run predicts {', '.join(found.classes)}; the tiles have {', '.join(classes)}",
                where=run / "predictions.parquet",
                fix="give the run that belongs to these tiles",
            )
        )
    predicted, confidence = found.probabilities.argmax(axis=1), found.probabilities.max(axis=1)
    return {str(found.ids[i]): (int(predicted[i]), float(confidence[i])) for i in np.arange(len(found.ids))}
