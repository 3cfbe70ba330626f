"""Write pages from saved files: a run's `report.html`, and the pairing browser `pairs.html`."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, DataError
from clipit.evaluation.predictions import Predictions, read_run_predictions
from clipit.output_files.differences import difference_lines
from clipit.output_files.whole_files import write_text
from clipit.reporting.html import PageSection
from clipit.reporting.pairing_page import MAX_TILES
from clipit.reporting.run_page import run_page
from clipit.reporting.thumbnails import picture_uri
from clipit.reporting.training_curves import read_curves
from clipit.runs.folder import config_differences, read_results, read_training, run_folder, run_lock
from clipit.tiles.tileset import TileSet
from clipit.training.terms.term_table import loss_columns
from clipit.workspace.pairs_page import write_pairs_page
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_FIND = "set --arm, --seed, --name and --output to those of a finished run"
_SIDE, _QUALITY = 150, 80  # edge length in pixels, and JPEG quality, of the tiles on a run's page


def write_run_page(
    title: str,
    folder: Path,
    results: Mapping[str, Any],
    predictions: Predictions,
    tiles: TileSet,
    texts: Mapping[str, str],
    more: Sequence[PageSection] = (),
    losses: Collection[str] = (),
) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        title: Heading of the page.
        folder: The run's folder.
        results: Content of results.json.
        predictions: Content of predictions.parquet.
        tiles: All tiles, for the thumbnails.
        texts: Text by heading, such as tiles, snippets and pairing.
        more: Further sections, shown after the scores.
        losses: Columns of the training log that are losses.

    Raises:
        DataError: A tile's file cannot be opened.
    """
    rows = {str(tile_id): row for row, tile_id in enumerate(tiles.ids.tolist())}

    def picture(tile_id: str) -> str | None:
        return picture_uri(tiles, rows[tile_id], side=_SIDE, quality=_QUALITY) if tile_id in rows else None

    log = folder / "metrics.jsonl"
    curves = read_curves(log) if log.is_file() else None
    path = folder / "report.html"
    write_text(
        path,
        run_page(title, results, predictions, curves=curves, losses=losses, picture=picture, texts=texts, more=more),
    )
    return path


def rewrite_run_page(config: RunConfig, workspace: Workspace) -> Path:
    """Rewrite the page of a finished run from its saved files.

    Args:
        config: Run configuration, with its arm resolved.
        workspace: Workspace with the tiles, for the thumbnails.

    Raises:
        ArtifactError: The run was trained on different tiles.
        DataError: The run is not finished.
    """
    folder = run_folder(config)
    results = _read_finished(folder)
    trained_on, tiles = results["provenance"].get("tiles"), workspace.tiles(config.seed)
    if trained_on not in (None, tiles.fingerprint):
        changes = config_differences(folder, config, sections=("tiles", "leaks"))
        differing = f"; differences:\n    {difference_lines(changes)}" if changes else ""
        raise ArtifactError(
            f"the run was trained on tiles with the fingerprint {trained_on}, but the configured tiles have the "
            f"fingerprint {tiles.fingerprint}{differing}",
            where=folder / "results.json",
            fix="use the run's own configuration: --config <run folder>/config.yaml",
        )
    texts = read_training(folder).get("sections", {}) if (folder / "training.json").is_file() else {}
    predictions = read_run_predictions(folder, tiles)
    title = f"{config.name}: {folder.name}"
    texts = {"Tiles": tiles.describe()} | texts
    with run_lock(folder):  # another command may be writing the same page
        return write_run_page(title, folder, results, predictions, tiles, texts, losses=loss_columns(config))


def write_pages(config: RunConfig, workspace: Workspace, max_tiles: int = MAX_TILES) -> list[Path]:
    """Write the page of a finished run, and the pairing browser of a configuration with reports.

    If the run's folder is read-only, for example because it belongs to another user, the existing pages are returned.

    Args:
        config: Run configuration, with its arm resolved.
        workspace: Workspace of this configuration.
        max_tiles: Maximum number of tiles in the pairing browser.

    Raises:
        DataError: The run is not finished and there is no pairing.
    """
    folder = run_folder(config)
    finished = (folder / "results.json").is_file()
    if not finished and config.reports is None:
        _read_finished(folder)
    if finished and not os.access(folder, os.W_OK):
        pages = [path for path in (folder / "report.html", folder / "pairs.html") if path.is_file()]
        logger.info(f"note: {folder} is read-only; its pages are those of the last evaluation")
        return pages
    pages = [rewrite_run_page(config, workspace)] if finished else []
    if not finished:
        logger.info(f"note: no finished run in {folder}, so only the page of pairs is written; {_FIND}")
    if config.reports is not None:
        pages.append(write_pairs_page(config, workspace, max_tiles, folder if finished else None))
    return pages


def _read_finished(folder: Path) -> dict[str, Any]:
    if not (folder / "results.json").is_file():
        raise DataError(
            "no finished run in this folder",
            where=folder,
            fix=f"run training first; {_FIND}",
        )
    return read_results(folder)
