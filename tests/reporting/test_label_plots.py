"""Label-efficiency curves: what is drawn, and what is left out."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipit.reporting import label_plots
from clipit.reporting.label_plots import curve_points, label_curves_plot


def test_points_are_means_over_seeds_and_undefined_shares_have_none() -> None:
    points = [(1.0, 0.9), (0.01, None), (0.1, 0.5), (0.01, 0.4), (0.1, 0.7), (1.0, 0.9)]
    assert curve_points(points) == [(0.1, 0.6, 0.5, 0.7), (1.0, 0.9, 0.9, 0.9)]
    assert curve_points([(0.5, None)]) == []


def test_the_plot_is_the_same_for_the_same_scores_and_other_for_others(tmp_path: Path) -> None:
    series = {"arm a": [(0.01, None), (0.1, 0.5), (1.0, 0.8)], "arm b": [(0.01, 0.3), (0.1, 0.4), (1.0, 0.8)]}
    for name, drawn in (("a", series), ("b", series), ("c", {"arm a": series["arm a"]})):
        label_curves_plot(drawn, tmp_path / f"{name}.png", metric="balanced_accuracy", title="labels")
    first, same, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == same != other
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 600


def test_an_arm_without_labels_is_a_level_line_and_not_on_the_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(label_plots, "save_png", lambda figure, path: drawn.append(figure))
    series = {"image_only": [(0.01, 0.6), (1.0, 0.8)], "zero_label": [(0.0, 0.7), (0.0, 0.8)]}
    label_curves_plot(series, Path("unused.png"), metric="accuracy")
    (axes,) = drawn[0].axes
    assert axes.get_xlim()[0] > 0.1 and list(axes.get_xticks()) == [1, 100]
    (level,) = [line for line in axes.get_lines() if line.get_label() == "zero_label (no label)"]
    assert level.get_ydata()[0] == pytest.approx(0.75)
