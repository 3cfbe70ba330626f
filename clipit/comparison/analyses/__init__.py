"""Analyses that explain why an arm helps or not."""
