"""Tests of pages and plots draw the plots of runs."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _no_run_plots() -> None:
    """Override the fixture of all tests."""
