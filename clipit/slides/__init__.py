"""Whole-slide images: read them, find their tissue, and lay a grid of tiles over it."""
