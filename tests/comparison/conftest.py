"""Fixtures shared by the comparison tests."""

from collections.abc import Iterator

import pytest
from no_plots import COMPARISON_PLOTS, leave_out_plots


@pytest.fixture(autouse=True, scope="module")
def _no_comparison_plots() -> Iterator[None]:
    """Disable the slow plots of arms; only test_comparison_page draws them."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_plots(patch, COMPARISON_PLOTS)
        yield
