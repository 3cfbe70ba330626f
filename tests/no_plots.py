"""Runs and comparisons without their plots; drawing these takes longer than training a tiny student."""

import io
from functools import cache
from pathlib import Path

import pytest
from markupsafe import Markup

RUN_PLOTS = {
    "clipit.runs.evaluate": ("plot_confusion", "plot_reliability", "plot_training_curves", "save_plot"),
    "clipit.reporting.run_page": ("plot_reliability", "plot_training_curves", "inline_svg"),
}
"""Functions of drawing by the module that calls them after a run."""
COMPARISON_PLOTS = {
    "clipit.comparison.report.arm_figures": ("plot_lines", "plot_reliability", "inline_svg"),
    "clipit.comparison.report.sections": ("plot_seed_scores", "inline_svg"),
}
"""The same for the page of a comparison."""
MAP_PLOTS = {"clipit.reporting.heat_maps": ("save_plot",)}
"""The same for the maps of slides."""
ROBUSTNESS_PLOTS = {"clipit.studies.robustness.robustness_plots": ("save_plot",)}
"""The same for a study of robustness."""
PROMPT_PLOTS = {"clipit.studies.prompt_wording.prompt_plots": ("save_plot",)}
"""The same for a study of prompts."""
SWEEP_PLOTS = {"clipit.sweeps.sweep_report": ("save_plot",)}
"""The same for a sweep."""


def leave_out_plots(patch: pytest.MonkeyPatch, plots: dict[str, tuple[str, ...]]) -> None:
    """Write empty pictures instead of plots."""
    for module, names in plots.items():
        for name in names:
            patch.setattr(f"{module}.{name}", _REPLACED.get(name, lambda *_, **__: None))


def _save_empty(figure: object, path: Path, compression: int = 6) -> None:
    from clipit.output_files.artifacts import whole_file

    with whole_file(path) as temporary:  # as the plot, with its folder and what happens on a full disk
        temporary.write_bytes(empty_picture())


_REPLACED = {
    "save_plot": _save_empty,
    "inline_svg": lambda _, label: Markup("<svg></svg>"),
}


@cache
def empty_picture() -> bytes:
    """A PNG of one pixel."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "png")
    return stream.getvalue()
