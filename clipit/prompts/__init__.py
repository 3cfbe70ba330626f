"""Prompt sets (class -> names, templates), their linter and sensitivity grid, prompt bags and the prompt dictionary."""
