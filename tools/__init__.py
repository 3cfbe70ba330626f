"""Maintenance tools outside the package."""
