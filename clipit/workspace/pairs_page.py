"""Write the page that shows the pairs of a configuration, and compare pairing rules."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, counted
from clipit.evaluation.predictions import read_run_predictions
from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.output_files.artifacts import locked
from clipit.output_files.whole_files import write_text
from clipit.pairing.options import compare_options, options_text
from clipit.progress import progress
from clipit.reporting.page_note import compose_note
from clipit.reporting.pairing_page import MAX_TILES, choose_tiles, pairing_page
from clipit.reporting.thumbnails import LARGE, LARGE_BYTES, SMALL, page_pictures
from clipit.stores.approximate import search_settings
from clipit.stores.index import Index, build_index
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

TilePredictions = Mapping[str, tuple[int, float]]
"""Index of the predicted class and its probability, by tile id."""


def write_pairs_page(
    config: RunConfig,
    workspace: Workspace,
    max_tiles: int = MAX_TILES,
    run: Path | None = None,
    given: tuple[TilePredictions, str] | None = None,
) -> Path:
    """Write the pairing page to `<output>/pairings/<name>/pairs.html`, or to `pairs.html` in a run's folder.

    Args:
        max_tiles: Maximum number of tiles on the page.
        run: Folder of a run whose predictions are shown.
        given: Predictions to show instead of those of a run, and a sentence about their origin.

    Raises:
        ConfigError: `max_tiles` is too small.
        DataError: A tile's file cannot be opened, or the run's predictions cannot be read.
    """
    if max_tiles < 2:
        problem = f"a page of {counted(max_tiles, 'tile')} is too small"
        raise ConfigError(problem, where="--max-tiles", fix="use 2 or more")
    pairs = workspace.pairs
    shown = choose_tiles(pairs.table, max_tiles)
    tiles = workspace.all_tiles.of_split("train")
    rows = {str(tile_id): row for row, tile_id in enumerate(tiles.ids.tolist())}
    with progress("encoding thumbnails", len(shown)) as advance:
        encoded = page_pictures(tiles, [rows[tile_id] for tile_id in shown], advance=advance)
        pictures = dict(zip(shown, encoded, strict=True))
    introduction = [
        f"Pairs: {pairs.artifact.folder.name}/pairs.parquet (VLM {workspace.vlm.name}). "
        "Only training tiles are paired. All labels of the data set are shown, including those hidden from runs.",
        f"As many images as fit into {LARGE_BYTES / 1e6:.0f} MB are shown up to {LARGE} pixels wide, the others up to "
        f"{SMALL} pixels.",
        *(f"Reports: {note}." for note in workspace.reports.notes),
    ]
    predictions: TilePredictions | None = None
    if given is not None:
        predictions, origin = given
        introduction.append(origin)
    elif run is not None:
        predictions = _predictions(run, workspace.all_tiles)
        count = sum(tile_id in predictions for tile_id in shown)
        introduction.append(
            f"Predictions: predictions.parquet of {run.parent.name}/{run.name}, which contains {count} of these tiles."
        )
        if not count:
            predictions = None
            introduction.append(
                "To see predictions of training tiles, evaluate the run with evaluation.splits that include train, "
                "then write this page again."
            )
    text = pairing_page(
        f"{config.name}: pairs" + (f", {run.name}" if run else ""),
        compose_note(config.note, backbones=[config.backbone.name] if predictions else [], vlms=[config.vlm.name]),
        pairs.table,
        workspace.snippet_texts(),
        shown,
        classes=tiles.classes,
        labels=dict(zip(tiles.ids.tolist(), tiles.truth.tolist(), strict=True)),
        predictions=predictions,
        pictures=pictures,
        origins=_origins(workspace),
        key=pairs.artifact.folder.name,
        introduction=introduction,
        summary=workspace.pairing_summary(),
    )
    path = (run or config.output / "pairings" / config.name) / "pairs.html"
    with locked(path.parent):  # another command may be writing the same page
        write_text(path, text)
    return path


def _origins(workspace: Workspace) -> dict[str, str]:
    """Return the section and report of each snippet; for several sources, the first and the number of the others."""
    table = workspace.snippets.table("snippet_sources.parquet", ["snippet_id", "section", "report_id"])
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for snippet, section, report in zip(*(column.to_pylist() for column in table.columns), strict=True):
        first.setdefault(snippet, f"{section}, report {report}" if section else f"report {report}")
        counts[snippet] += 1
    return {name: f"{text} and {counts[name] - 1:,} more" if counts[name] > 1 else text for name, text in first.items()}


def _predictions(run: Path, tiles: TileSet) -> TilePredictions:
    """Read the predicted class of each tile, and its probability.

    Raises:
        DataError: The table is damaged, or belongs to other tiles.
    """
    table = read_run_predictions(run, tiles)
    predicted, confidence = table.probabilities.argmax(axis=1), table.probabilities.max(axis=1)
    return dict(zip(table.ids.tolist(), zip(predicted.tolist(), confidence.tolist(), strict=True), strict=True))


def compare_pairing_rules(workspace: Workspace) -> str:
    """Compare pairing rules in a table, on the training tiles and the labels that the configuration keeps.

    No pairs are written, and no validation tiles, test tiles or hidden labels are read.

    Must be called by all processes.
    """
    config = workspace.config
    tiles = workspace.tiles(config.seed).of_split("train")
    has_labels = bool((tiles.labels >= 0).any())
    options = compare_options(
        workspace.index,
        workspace.tile_store("train"),
        config.pairing,
        sources=workspace.snippets.table("snippet_sources.parquet"),
        groups=dict(zip(tiles.ids.tolist(), tiles.groups.tolist(), strict=True)),
        labels=dict(zip(tiles.ids.tolist(), tiles.labels.tolist(), strict=True)) if has_labels else None,
        class_vectors=workspace.class_embeddings() if has_labels else None,
        other=_with_opposite_centring(workspace, has_labels),
    )
    notes = (
        "hubness: fraction of tiles whose snippet is among the most used 1%; skewness: skewness of the number of uses",
        "all statistics but the skewness count only the first snippet of each tile",
        "neighbour accuracy: fraction of tiles whose label is the majority label of other tiles with the same snippet",
        "zero-shot accuracy: fraction of tiles whose label is the class nearest to the snippet's text",
        "both accuracies are computed on training tiles, with the labels that this configuration keeps",
        "cosines with and without centring cannot be compared; margins are in units of the ranking score",
        "to use one of these rules, set pairing.correction, centring, organs, exclude_same_group, threshold, margin "
        "and mutual",
    )
    return "\n".join([options_text(options), "", *notes])


def _with_opposite_centring(
    workspace: Workspace, with_prompts: bool
) -> tuple[Index, Float32[np.ndarray, "classes dim"] | None]:
    """Build an index of the snippets with the opposite centring and, if requested, matching class embeddings."""
    p, prompts = workspace.config.pairing, workspace.prompts
    index = build_index(
        workspace.root,
        workspace.text_store(),
        key=p.index,
        centring=not p.centring,
        backend=p.backend,
        search=search_settings(p),
    )
    if prompts is None or not with_prompts:
        return index, None
    return index, prompt_embeddings(prompts, workspace.encode, index.mean, workspace.all_tiles.classes)
