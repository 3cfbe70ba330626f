"""Whole jobs: from a configuration to a finished run, a demo, a tuning."""
