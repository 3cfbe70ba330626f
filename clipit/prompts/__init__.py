"""Prompt sets (class -> names, templates), linter, sensitivity grid, prompt bags and the dictionary (YAML)."""
