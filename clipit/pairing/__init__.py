"""Tiles and snippets brought together."""
