"""Comparisons of arms over data sets, backbones and seeds, with baselines, controls and statistics."""
