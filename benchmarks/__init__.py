"""Benchmarks of clipit relative to the bare models, measured side by side."""
