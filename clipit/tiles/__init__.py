"""Tiles: one interface (`TileSet`) and the sources that provide it."""
