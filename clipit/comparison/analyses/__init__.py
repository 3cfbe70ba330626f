"""Analyses that explain why an arm does or does not help."""
