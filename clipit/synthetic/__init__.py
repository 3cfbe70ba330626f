"""Synthetic data sets ("worlds"): tables of tiles, reports and prompt sets in the usual formats, drawn from latents."""
