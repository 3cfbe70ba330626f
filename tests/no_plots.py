"""Disable plots, since plotting takes longer than training a tiny student."""

import io
from functools import cache
from pathlib import Path

import pytest
from markupsafe import Markup

RUN_PLOTS = {
    "clipit.runs.evaluate": ("plot_confusion", "plot_reliability", "plot_training_curves", "save_plot"),
    "clipit.reporting.run_page": ("plot_reliability", "plot_training_curves", "inline_svg"),
}
"""Plotting functions of runs, by the module that calls them."""
COMPARISON_PLOTS = {
    "clipit.comparison.report.arm_figures": ("plot_lines", "plot_reliability", "inline_svg"),
    "clipit.comparison.report.sections": ("plot_seed_scores", "inline_svg"),
}
"""Plotting functions of the comparison page."""
MAP_PLOTS = {"clipit.reporting.heat_maps": ("save_plot",)}
"""Plotting functions of slide heat maps."""
ROBUSTNESS_PLOTS = {"clipit.studies.robustness.robustness_plots": ("save_plot",)}
"""Plotting functions of the robustness study."""
PROMPT_PLOTS = {"clipit.studies.prompt_wording.prompt_plots": ("save_plot",)}
"""Plotting functions of the prompt study."""
SWEEP_PLOTS = {"clipit.sweeps.sweep_page": ("save_plot",)}
"""Plotting functions of sweeps."""


def leave_out_plots(patch: pytest.MonkeyPatch, plots: dict[str, tuple[str, ...]]) -> None:
    """Replace plots by empty images."""
    for module, names in plots.items():
        for name in names:
            patch.setattr(f"{module}.{name}", _REPLACED.get(name, lambda *_, **__: None))


def _save_empty(figure: object, path: Path, compression: int = 6) -> None:
    from clipit.output_files.artifacts import whole_file

    with whole_file(path) as temporary:  # creates the folder and handles a full disk like the real plot
        temporary.write_bytes(empty_picture())


_REPLACED = {
    "save_plot": _save_empty,
    "inline_svg": lambda _, label: Markup("<svg></svg>"),
}


@cache
def empty_picture() -> bytes:
    """PNG of a single pixel."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "png")
    return stream.getvalue()
