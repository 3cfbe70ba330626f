"""Hyperparameter sweeps, resumable and shared by several agents."""
