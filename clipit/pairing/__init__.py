"""Pairs of tiles and snippets, bags, cases, and leaks between splits."""
