"""Search for near-duplicates in different splits if the patients are unknown."""

import logging
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from clipit.config.run import RunConfig
from clipit.errors import counted_of, shortlist
from clipit.pairing.leaks import near_leaks
from clipit.patients import patients
from clipit.tiles.splits import shuffled
from clipit.tiles.tileset import SPLITS, TileSet
from clipit.workspace.tile_hashes import tile_hashes
from clipit.workspace.tile_reading import artefacts_of

logger = logging.getLogger(__name__)

_MAX_TILES = 1000  # maximum number of compared tiles per split


def warn_about_near_duplicates(tiles: TileSet, config: RunConfig) -> TileSet:
    """Warn about near-duplicates in two splits if no tile has a known patient or slide. Call it in all processes.

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


def _sample(tiles: TileSet, split: str) -> Int64[np.ndarray, " n"]:
    rows = np.flatnonzero(tiles.splits == split)
    return np.asarray(rows[shuffled(tiles.ids[rows], 0, "near copies")[:_MAX_TILES]])
