"""Analyses of why an arm helps or does not."""
