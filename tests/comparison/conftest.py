"""What the tests of comparisons share."""

from collections.abc import Iterator

import pytest
from markupsafe import Markup


@pytest.fixture(autouse=True, scope="module")
def _no_comparison_plots() -> Iterator[None]:
    """Leave out the plots of arms, which test_comparison_page draws; drawing them takes longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        for module, names in {
            "clipit.comparison.report.arm_figures": ("plot_lines", "plot_reliability"),
            "clipit.comparison.report.sections": ("plot_seed_scores",),
        }.items():
            patch.setattr(f"{module}.inline_svg", lambda _, label: Markup("<svg></svg>"))
            for name in names:
                patch.setattr(f"{module}.{name}", lambda *_, **__: None)
        yield
