"""Test plots: drawn values, gaps, and names that must not be parsed as formulas."""

from pathlib import Path

import numpy as np
import pytest
from logged_lines import capture_log
from matplotlib.figure import Figure
from PIL import Image

from clipit.errors import ArtifactError
from clipit.reporting.plots import inline_svg, plot_confusion, plot_lines, save_plot
from clipit.reporting.score_plots import (
    plot_label_efficiency,
    plot_planes,
    plot_seed_scores,
    plot_sweep,
    summarise_shares,
)


def test_points_are_means_over_seeds_without_undefined_values() -> None:
    points = [(1.0, 0.9), (0.01, None), (0.1, 0.5), (0.01, 0.4), (0.1, 0.7), (1.0, 0.9)]
    assert summarise_shares(points) == [(0.1, 0.6, 0.5, 0.7), (1.0, 0.9, 0.9, 0.9)]
    assert summarise_shares([(0.5, None)]) == []


def test_equal_scores_give_equal_plots(tmp_path: Path) -> None:
    series = {"arm a": [(0.01, None), (0.1, 0.5), (1.0, 0.8)], "arm b": [(0.01, 0.3), (0.1, 0.4), (1.0, 0.8)]}
    for name, drawn in (("a", series), ("b", series), ("c", {"arm a": series["arm a"]})):
        plot = plot_label_efficiency(drawn, metric="balanced_accuracy", title="labels")
        save_plot(plot, tmp_path / f"{name}.png")
    first, same, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == same != other
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 600


def test_an_arm_without_labels_is_a_horizontal_line() -> None:
    series = {"image_only": [(0.01, 0.6), (1.0, 0.8)], "zero_label": [(0.0, 0.7), (0.0, 0.8)]}
    (axes,) = plot_label_efficiency(series, metric="accuracy").axes
    assert axes.get_xlim()[0] > 0.1 and list(axes.get_xticks()) == [1, 100]
    (horizontal,) = [line for line in axes.get_lines() if line.get_label() == "zero_label (no labels)"]
    assert np.asarray(horizontal.get_ydata())[0] == pytest.approx(0.75)


def test_seed_scores_are_dots_with_a_mean_and_undefined_ones_are_counted() -> None:
    figure = plot_seed_scores({"a": {"0": 1.0, "1": 3.0, "2": None}, "b": {}}, x_label="x", baseline="a")
    (axes,) = figure.axes
    lines = [(line.get_label(), np.asarray(line.get_xdata()).tolist()) for line in axes.get_lines()]
    dots = [x for label, x in lines if label != "mean"]
    assert [x for label, x in lines if label == "mean"] == [[2.0, 2.0]], "b should have no mean"
    assert dots == [[1.0], [3.0], [2.0, 2.0]], "should be two dots and the dashed baseline"
    assert [text.get_text() for text in axes.texts] == ["1 n/a"]
    assert "<title>a, 1: 3</title>" in inline_svg(figure, "label")


def test_lines_have_gaps_where_a_value_is_not_finite() -> None:
    (axes,) = plot_lines({"loss": ([1, 2, 3, 4], [1.0, float("nan"), 2.0, 3.0])}, y_label="y").axes
    line, dot = axes.get_lines()
    assert np.isnan(np.asarray(line.get_ydata())).tolist() == [False, True, False, False]
    assert np.asarray(dot.get_xdata()).tolist() == [1.0], "an isolated value should be a dot"
    (axes,) = plot_lines({"loss": ([1], [float("nan")])}, y_label="y").axes
    assert axes.texts[0].get_text() == "no finite values were logged"


def test_long_lines_are_thinned_and_losses_can_be_logarithmic() -> None:
    steps = list(range(5000))
    (axes,) = plot_lines({"loss": (steps, [float(i) for i in steps])}, y_label="y").axes
    x = np.asarray(axes.get_lines()[0].get_xdata())
    assert len(x) == 500 and x[0] == 0 and x[-1] == 4999
    figure = plot_lines({"loss": ([1, 2, 3], [0.1, 1.0, 10.0])}, y_label="y", logarithmic=True)
    assert figure.axes[0].get_yscale() == "log"
    svg = inline_svg(figure, "label")
    assert all(f">{tick}</text>" in svg for tick in ("0.1", "0.5", "1", "5", "10")), "ticks should be plain numbers"
    for values in ([0.0, 1.0, 2.0], [2.0, 2.0, 2.0]):
        (axes,) = plot_lines({"loss": ([1, 2, 3], values)}, y_label="y", logarithmic=True).axes
        assert axes.get_yscale() == "linear"


def test_a_name_with_dollar_signs_is_not_a_formula(tmp_path: Path) -> None:
    name = "50$ \\frac{ 60$"
    figures = [
        plot_confusion([[1, 0], [0, 1]], (name, "b"), title=name),
        plot_lines({name: ([1, 2], [1.0, 2.0])}, y_label=name),
        plot_seed_scores({name: {"0": 1.0}}, x_label=name),
        plot_label_efficiency({name: [(0.1, 0.5), (1.0, 0.7)]}, metric=name, title=name),
        plot_planes({name: {name: np.zeros((2, 2))}}, title=name),
        plot_sweep({name: [("a", 0.5, None), (name, 0.6, None)]}, metric=name, test_metric="", title=name),
    ]
    for figure in figures:
        save_plot(figure, tmp_path / "plot.png")
        assert f">{name}</text>" in inline_svg(figure, name)


def test_a_name_with_a_leading_underscore_is_in_the_legend() -> None:
    figure = plot_lines({"_own": ([1, 2], [0.1, float("nan")]), "b": ([1, 2], [0.3, 0.4])}, y_label="loss")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["_own", "b"]


def test_a_plot_that_cannot_be_drawn_is_replaced_by_a_note(tmp_path: Path) -> None:
    log = capture_log()
    figure = plot_confusion([[1, 0], [0, 1]], ["a", "b"])
    figure.text(0.5, 0.5, "$\\frac{$", parse_math=True)  # a formula that matplotlib cannot parse
    save_plot(figure, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.width > 100
    svg = inline_svg(figure, "confusion of a run")
    assert svg.count("<svg") == 1 and "confusion of a run cannot be drawn" in svg
    assert len(log) == 2 and "confusion.png cannot be drawn: ValueError" in log[0]
    with pytest.raises(ArtifactError, match="a full disk"):
        save_plot(_OnFullDisk(), tmp_path / "other.png")


class _OnFullDisk(Figure):
    def savefig(self, *_: object, **__: object) -> None:
        raise ArtifactError("a full disk")
