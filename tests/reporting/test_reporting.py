"""Test Markdown tables, summaries of runs and plots."""

import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipit.errors import DataError
from clipit.evaluation.predictions import Predictions, softmax
from clipit.evaluation.run_scores import evaluate_predictions
from clipit.reporting import plots, tables
from clipit.reporting.run_summary import list_undefined, run_summary
from clipit.reporting.training_curves import read_curves

CRC = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")


def example(classes: tuple[str, ...] = CRC) -> Predictions:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, len(classes), 180)
    return Predictions(
        ids=np.array([f"t{i}" for i in range(180)]),
        splits=np.full(180, "test"),
        labels=labels,
        groups=np.full(180, ""),
        classes=classes,
        probabilities=softmax(np.eye(len(classes))[labels] * 2 + generator.normal(size=(180, len(classes)))),
    )


def test_formatting_of_numbers() -> None:
    assert tables.with_interval(0.91234, 0.9, 0.925) == "0.912 [0.900, 0.925]"
    assert tables.with_interval(0.91234, None, None) == "0.912"
    assert tables.with_interval(None, None, None) == "n/a"
    assert tables.mean_sd([0.7, 0.8, 0.9]) == "0.800 ± 0.100"
    assert tables.mean_sd([0.7]) == "0.700"
    assert tables.mean_sd([0.7, None]) == "n/a"
    assert tables.mean_sd([]) == "n/a"
    assert tables.difference(0.0211, (-0.003, 0.039)) == "+0.021 [-0.003, +0.039]"
    assert tables.difference(-0.02, None) == "-0.020"


def test_markdown_table_is_aligned_and_escaped() -> None:
    table = tables.markdown_table(("arm", "score"), [("image | only", 0.5), ("clip_it\nall", 0.75)])
    lines = table.splitlines()
    assert lines[1] == "|---------------|------:|"
    assert lines[2] == "| image \\| only |   0.5 |"
    assert lines[3] == "| clip_it all   |  0.75 |"
    assert len({len(line) for line in lines}) == 1


HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>",
    "![](https://example.org/a.png)",
    "a|b\\|c",
    "[x][y]",
    "</script>",
    "p < 0.05",
)


def find_markup(text: str) -> list[str]:
    """Find HTML tags, and links and images other than those of the run's plots."""
    return re.findall(r"<[A-Za-z/!?]|(?<!\\)(?:\\\\)*\](?:\((?!confusion)|\[|:)", text)


@pytest.mark.parametrize("backslashes", range(4))
def test_a_backslash_before_a_bracket_does_not_undo_its_escape(backslashes: int) -> None:
    link = "![x" + "\\" * backslashes + "](https://example.org/a.png)"
    assert not find_markup(tables.markdown_text(link)) and not find_markup(tables.markdown_table(("name",), [(link,)]))


def test_backslashes_are_escaped_in_linear_time() -> None:
    start = time.process_time()
    tables.markdown_text("\\" * 100_000)
    assert time.process_time() - start < 5  # quadratic time would take 20 seconds


@pytest.mark.parametrize("resamples", [0, 20])
def test_the_interval_of_the_calibration_error_is_explained(resamples: int) -> None:
    results = evaluate_predictions(example(("a", "b")), ["test"], resamples)
    assert ("its interval is shifted upwards" in run_summary("run", results, {})) == bool(resamples)


def test_class_names_and_notes_are_not_markup() -> None:
    predictions = example(HOSTILE_NAMES)
    predictions = dataclasses.replace(predictions, labels=np.where(predictions.labels == 0, -1, predictions.labels))
    results = evaluate_predictions(predictions, ["test"], 0)
    text = run_summary(
        f"run {HOSTILE_NAMES[0]}",
        results,
        {"command": HOSTILE_NAMES[1]},
        note=f"{HOSTILE_NAMES[1]} {HOSTILE_NAMES[3]}\n\n[y]: https://example.org/a.png",
        sections={"Tiles": f"{HOSTILE_NAMES[0]}\n```\n{HOSTILE_NAMES[1]}"},
        plots=["confusion_test.png"],
    )
    outside, inside, after = text.split("````")
    assert find_markup(text) and not find_markup(outside + after) and HOSTILE_NAMES[0] in inside
    assert "&lt;img src=x" in text and "p < 0.05" in text and "[confusion test](confusion_test.png)" in text
    rows = [line for line in text.splitlines() if line.startswith("| a\\|b")]
    assert len(rows) == 2 and all("a\\|b\\&#124;c" in row for row in rows)


def test_the_summary_contains_scores_reasons_and_provenance() -> None:
    predictions = example()
    predictions = dataclasses.replace(predictions, labels=np.where(predictions.labels == 4, -1, predictions.labels))
    results = evaluate_predictions(predictions, ["test"], 100, 7)
    text = run_summary(
        "run a",
        json.loads(json.dumps(results)),
        {"command": "scripts/train.py", "commit": "abc"},
        note="only a proof of the path",
        sections={"Snippets": "400 reports"},
        plots=["confusion_test.png"],
    )
    accuracy = results["splits"]["test"]["metrics"]["accuracy"]
    assert tables.with_interval(accuracy["value"], accuracy["low"], accuracy["high"]) in text
    assert "test, AUROC: no tile of class MUC" in text
    assert "100 resamples, seed 7" in text
    for part in (
        "> **Note.** only a proof",
        "## Snippets\n\n```\n400 reports\n```",
        "![confusion test](confusion_test.png)",
        "abc",
    ):
        assert part in text


def test_a_reason_shared_by_all_intervals_is_listed_once() -> None:
    predictions = example()
    few_groups = dataclasses.replace(predictions, groups=np.array([f"g{i % 3}" for i in range(180)]))
    results = evaluate_predictions(few_groups, ["test"], 20)
    reason = "3 independent units to resample; a 95% interval needs 10"
    assert list_undefined(results) == [f"test, all intervals: {reason}"]
    results["splits"]["test"]["metrics"]["kappa"].pop("reason")
    (line,) = list_undefined(results)
    assert line.startswith("test, interval of accuracy, interval of balanced accuracy, ") and "kappa" not in line


def test_plots_are_reproducible_images(tmp_path: Path) -> None:
    for classes in (CRC, ("no_tumor", "tumor")):
        of_split = evaluate_predictions(example(classes), ["test"], 0)["splits"]["test"]
        for name in ("first", "second"):
            plots.save_plot(plots.plot_confusion(of_split["confusion"], classes), tmp_path / f"{name}_c.png")
            plots.save_plot(plots.plot_reliability(of_split["reliability"]), tmp_path / f"{name}_r.png")
        for kind in "cr":
            first = tmp_path / f"first_{kind}.png"
            assert first.read_bytes() == (tmp_path / f"second_{kind}.png").read_bytes()
            with Image.open(first) as image:
                assert min(image.size) > 300
                assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert not list(tmp_path.glob(".*"))


def test_confusion_plot_of_an_empty_class(tmp_path: Path) -> None:
    plots.save_plot(plots.plot_confusion([[3, 0], [0, 0]], ("a", "b")), tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_curves_of_a_resumed_run_use_the_latest_values(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "loss": 1.0 / (s + 1), "tiles_per_second": 9, "split": "x"} for s in (0, 1, 2, 3)]
    rows += [{"step": 2, "loss": 0.5}, {"step": 3, "validation/accuracy": 0.7, "learning_rate": 1e-3}]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    series = read_curves(log)
    assert series["loss"] == ([0, 1, 2, 3], [1.0, 0.5, 0.5, 0.25])
    assert set(series) == {"loss", "tiles_per_second", "validation/accuracy", "learning_rate"}
    plots.save_plot(plots.plot_training_curves(series, ["loss"], title="a run"), tmp_path / "curves.png")
    panels = plots.training_panels({**series, "soft_labels": ([0], [1.0])}, ["loss", "soft_labels"])
    assert {label: [*lines] for label, lines in panels.items()} == {
        "loss": ["loss", "soft_labels"],
        "validation score": ["validation/accuracy"],
        "learning rate": ["learning_rate"],
    }
    plots.save_plot(plots.plot_training_curves({}, []), tmp_path / "empty.png")
    assert (tmp_path / "curves.png").stat().st_size > (tmp_path / "empty.png").stat().st_size > 1000


def test_a_missing_or_damaged_log_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    with pytest.raises(DataError, match="the training log is missing"):
        read_curves(log)
    with pytest.raises(DataError, match="the training log is missing"):
        read_curves(tmp_path)
    log.write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 2"):
        read_curves(log)


def test_characters_missing_from_the_font_give_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    figure = plots.plot_confusion([[1, 0], [0, 1]], ("\U0001f9a0 cells", "stroma"), title="\U0001f9a0")
    plots.save_plot(figure, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    assert not [str(warning.message) for warning in recwarn]
