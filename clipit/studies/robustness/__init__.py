"""Robustness of finished runs to perturbations and distribution shift."""
