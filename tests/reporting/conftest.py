"""Tests of pages and plots render the plots of runs."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _empty_run_plots() -> None:
    """Override the fixture of all tests."""
