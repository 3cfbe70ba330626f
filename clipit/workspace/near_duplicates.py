"""Warn about duplicate images: near-duplicates if patients are unknown, and identical images with different labels."""

import logging
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from clipit.config.run import RunConfig
from clipit.errors import counted, counted_of, shortlist
from clipit.pairing.leaks import ImageHashes, digests_of, near_leaks
from clipit.patients import patients
from clipit.tiles.splits import shuffled
from clipit.tiles.tileset import SPLITS, TileSet
from clipit.workspace.tile_hashes import tile_hashes
from clipit.workspace.tile_reading import artefacts_of

logger = logging.getLogger(__name__)

_MAX_TILES = 1000  # maximum number of compared tiles per split


def warn_about_near_duplicates(tiles: TileSet, config: RunConfig) -> TileSet:
    """Warn about near-duplicates in two splits if no tile has a known patient or slide.

    Must be called by all processes.

    At most 1,000 tiles of each split, drawn reproducibly, are compared. Nothing is dropped; the warning is added to the
    notes of the returned tiles. If `leaks.pixels` is near, all tiles have already been compared; if `leaks.pixels` or
    `leaks.policy` is off, no images are compared.

    Args:
        config: Run configuration with the section `leaks`.
    """
    unknown = not (patients(tiles.groups, tiles.ids) != "").any()
    several = np.unique(tiles.splits).size > 1
    if config.leaks.policy == "off" or config.leaks.pixels != "exact" or not unknown or not several:
        return tiles
    sample = tiles.select(np.sort(np.concatenate([_sample(tiles, split) for split in SPLITS])))
    leaks = near_leaks(sample, tile_hashes(artefacts_of(config), sample), config.leaks)
    if not leaks:
        return tiles
    later = sorted({leak.other_id for leak in leaks})
    compared = int((sample.splits != "train").sum())
    examples = [f"{leak.id} ({leak.split}) ~ {leak.other_id} ({leak.other_split})" for leak in leaks]
    note = (
        f"{counted_of(len(later), compared, 'validation or test tile looks', 'validation and test tiles look')} like a "
        "tile in an earlier split "
        f"({shortlist(examples, 2)}), and no groups are set, so scores will be too high"
    )
    logger.warning(
        f"{note}\n  fix: name the patient or slide (tiles.columns.group, tiles.group_pattern), or set "
        "--leaks.pixels=near --leaks.policy=exclude. To list all leaks: clipit check-leaks --config ..."
    )
    return replace(tiles, notes=(*tiles.notes, note))


def conflicting_labels(tiles: TileSet, image_hashes: ImageHashes | None) -> list[str]:
    """Warn, in at most one line, about identical images of one split that have different labels.

    Args:
        image_hashes: Hashes of the images, in the order of the tiles; None if images are not compared.
    """
    if image_hashes is None:
        return []
    digests = digests_of(image_hashes)
    labels_of: dict[tuple[bytes, str], dict[str, list[str]]] = {}
    for row in np.flatnonzero(digests.any(axis=1) & (tiles.truth >= 0)).tolist():
        labels = labels_of.setdefault((digests[row].tobytes(), str(tiles.splits[row])), {})
        labels.setdefault(tiles.classes[tiles.truth[row]], []).append(str(tiles.ids[row]))
    conflicts = [labels for labels in labels_of.values() if len(labels) > 1]
    if not conflicts:
        return []
    count = sum(len(names) for labels in conflicts for names in labels.values())
    examples = sorted(
        " = ".join(sorted(f"{min(names)} ({label})" for label, names in labels.items())) for labels in conflicts
    )
    return [
        f"WARNING: {counted(count, 'tile has', 'tiles have')} the same pixels as a tile of the same split with a "
        f"different label: {shortlist(examples, 3)}; correct the labels, or keep one tile of each image"
    ]


def _sample(tiles: TileSet, split: str) -> Int64[np.ndarray, " n"]:
    rows = np.flatnonzero(tiles.splits == split)
    return np.asarray(rows[shuffled(tiles.ids[rows], 0, "near copies")[:_MAX_TILES]])
