"""Whole slides: reading, tissue, the grid of tiles."""
