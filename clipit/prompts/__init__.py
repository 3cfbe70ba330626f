"""Prompt sets (class -> names, templates) and prompt bags, read from YAML."""
