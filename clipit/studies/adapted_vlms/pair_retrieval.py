"""Retrieval between held-out images and their texts: recall@k in both directions, as in PLIP's tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from clipit.distributed import build_once, get_processes
from clipit.evaluation.features import Features
from clipit.evaluation.model_comparison import ItemResults
from clipit.evaluation.neighbours import nearest_neighbours
from clipit.output_files.artifacts import fingerprint
from clipit.output_files.whole_files import text_array, write_array
from clipit.studies.adapted_vlms.measure import query_scores
from clipit.tiles.batched import map_batches
from clipit.vectors import unit
from clipit.vlm_training.bag_batches import BagExamples, Members
from clipit.workspace.workspace import Workspace

IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image to text", "text to image"


def measure_pairs(workspace: Workspace, examples: BagExamples, at: Sequence[int]) -> dict[str, ItemResults]:
    """Measure retrieval between the images and texts of held-out examples; called by all processes.

    Recall@k is the fraction of queries with a true match among the k nearest items. The matches of an image are all
    texts of its example (its caption, or the snippets of its patient's reports); the matches of a text are all images
    of the examples that contain it. The group of a text is that of its first image. Values of k that cover the complete
    gallery are dropped. Chance scores are those expected for k items drawn at random without replacement.

    Args:
        at: Values of k.

    Returns:
        Results by direction; empty outside the main process, or if there are fewer than two images or texts.
    """
    tiles, tile_examples = _rows(examples.tiles_of)
    texts, text_examples = _rows(examples.texts_of)
    if len(tiles) < 2 or len(texts) < 2:
        return {}
    images, sentences = _embed(workspace, examples, tiles, texts)
    if not get_processes().main:
        return {}
    groups = examples.source.tiles.patients
    first = [int(examples.tiles_of[each[0]][0]) for each in text_examples]
    queries = {
        IMAGE_TO_TEXT: _features("image", tiles, images, groups[tiles].tolist()),
        TEXT_TO_IMAGE: _features("text", texts, sentences, groups[first].tolist()),
    }
    partners = {
        IMAGE_TO_TEXT: _partners(tile_examples, examples.texts_of, texts),
        TEXT_TO_IMAGE: _partners(text_examples, examples.tiles_of, tiles),
    }
    galleries = {IMAGE_TO_TEXT: queries[TEXT_TO_IMAGE], TEXT_TO_IMAGE: queries[IMAGE_TO_TEXT]}
    return {task: recall(queries[task], galleries[task], partners[task], at) for task in queries}


def recall(
    queries: Features, gallery: Features, partners: Sequence[Int64[np.ndarray, "_"]], at: Sequence[int]
) -> ItemResults:
    """Compute recall@k for each query: whether a true match is among the k nearest items of the gallery.

    Args:
        partners: Rows of the gallery that are true matches of each query.
        at: Values of k; those that cover the complete gallery are dropped.
    """
    at = [k for k in at if k < len(gallery)]
    rows = nearest_neighbours(queries, gallery, max(at, default=0))
    hits = np.stack([np.isin(row, true) for row, true in zip(rows, partners, strict=True)])
    counts = np.array([len(true) for true in partners], dtype=np.int64)
    return query_scores(
        queries.ids,
        queries.groups,
        {f"recall@{k}": hits[:, :k].max(axis=1).astype(np.float64) for k in at},
        {f"recall@{k}": float(_chance(counts, len(gallery), k).mean()) for k in at},
    )


def _chance(counts: Int64[np.ndarray, " q"], gallery: int, k: int) -> Float64[np.ndarray, " q"]:
    """Return the probability that at least one of k items drawn without replacement is a match."""
    missed = np.ones(len(counts))
    for drawn in range(k):
        missed *= np.maximum(gallery - counts - drawn, 0) / (gallery - drawn)
    return 1.0 - missed


def _rows(members: Members) -> tuple[Int64[np.ndarray, " n"], list[list[int]]]:
    """Return the sorted rows of all members, and the examples that contain each row."""
    examples = np.repeat(np.arange(len(members), dtype=np.int64), members.lengths)
    rows = np.unique(members.values)
    positions = np.searchsorted(rows, members.values)
    examples_of_row: list[list[int]] = [[] for _ in rows]
    for position, example in zip(positions.tolist(), examples.tolist(), strict=True):
        examples_of_row[position].append(example)
    return rows, examples_of_row


def _partners(
    examples: Sequence[Sequence[int]], members: Members, rows: Int64[np.ndarray, " n"]
) -> list[Int64[np.ndarray, "_"]]:
    """Return the positions in `rows` of the members of each query's examples."""
    return [
        np.searchsorted(rows, np.unique(np.concatenate([members[example] for example in each]))) for each in examples
    ]


def _features(
    kind: str, rows: Int64[np.ndarray, " n"], vectors: Float32[np.ndarray, "n d"], groups: Sequence[str]
) -> Features:
    ids: Shaped[np.ndarray, " n"] = np.array([f"{kind}:{row:09d}" for row in rows.tolist()], dtype=np.str_)
    return Features(ids, vectors, np.full(len(ids), -1, dtype=np.int64), text_array(groups))


def _embed(
    workspace: Workspace, examples: BagExamples, tiles: Int64[np.ndarray, " n"], texts: Int64[np.ndarray, " m"]
) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "m d"]]:
    """Embed images and texts as unit vectors, or read those that this VLM has already embedded."""
    vlm = workspace.vlm
    sentences = [examples.texts[row] for row in texts.tolist()]
    inputs: dict[str, Any] = {
        "examples": examples.fingerprints,
        "tiles": fingerprint([examples.tile_ids[row] for row in tiles.tolist()]),
        "texts": fingerprint(sentences),
        "vlm": vlm.fingerprint,
        "precision": vlm.precision,
    }

    def make(folder: Path) -> dict[str, Any]:
        batch_size = workspace.config.vlm.batch_size
        images = map_batches(examples.source, tiles, lambda pixels: vlm.encode_images(pixels).cpu().numpy(), batch_size)
        if not get_processes().main:
            return {}
        vectors = unit(np.concatenate(images).astype(np.float32))
        for name, array in (("images", vectors), ("texts", workspace.encode(sentences))):
            write_array(folder / f"{name}.npy", array)
        return {"images": len(tiles), "texts": len(sentences)}

    stored = build_once(workspace.root, "pair_vectors", inputs, make)
    return stored.array("images.npy"), stored.array("texts.npy")
