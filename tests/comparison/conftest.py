"""What the tests of comparisons share."""

from collections.abc import Iterator

import pytest
from no_plots import COMPARISON_PLOTS, leave_out_plots


@pytest.fixture(autouse=True, scope="module")
def _no_comparison_plots() -> Iterator[None]:
    """Leave out the plots of arms, which test_comparison_page draws; drawing them takes longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_plots(patch, COMPARISON_PLOTS)
        yield
