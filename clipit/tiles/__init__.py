"""Tiles: one contract (`TileSet`) and the sources that fill it."""
