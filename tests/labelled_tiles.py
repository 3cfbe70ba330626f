"""Tiles of a configuration with the labels that a seed keeps."""

from clipit.config.run import TilesConfig
from clipit.tiles.hidden_labels import hide_labels
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.tileset import TileSet


def load_tiles(config: TilesConfig, seed: int) -> TileSet:
    """Read the tiles, and hide labels as a run with this seed does."""
    return hide_labels(read_tiles(config), config.labels, seed)
