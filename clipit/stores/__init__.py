"""Embeddings on disk, and the FAISS index over them."""
