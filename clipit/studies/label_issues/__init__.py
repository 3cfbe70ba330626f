"""Suspicious labels: out-of-fold predictions of a probe, ranked by confident learning."""
