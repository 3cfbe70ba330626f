"""Scores with intervals from predictions, zero-shot predictions, and reference rows."""
