"""Embeddings on disk, and the index over them."""
