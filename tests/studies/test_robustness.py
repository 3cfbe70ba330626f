"""The robustness study on a small world: reproducible scores, two processes, and errors."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from launching import ROOT, run_program, run_two
from no_plots import ROBUSTNESS_PLOTS, leave_out_plots
from PIL import Image
from study_records import missing_columns
from tiny_models import MakeConfig, MakeFile, with_run

from clipit.cli.robustness import main as robustness_command
from clipit.config.file import ConfigFile
from clipit.config.load import merge, nested, validate_file
from clipit.errors import ClipitError, DataError
from clipit.evaluation.adaptation_guard import fit_mixture, judge_adaptation
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.perturb import perturb
from clipit.evaluation.predictions import read_predictions
from clipit.evaluation.test_time_adaptation import align_statistics, compute_feature_statistics
from clipit.models.inference import load_classifier
from clipit.runs.train import train_run
from clipit.studies.robustness.adaptation_gain import draw_batches
from clipit.studies.robustness.guard_errors import BATCHES, WHOLE_SETS, GuardErrors, GuardSummary, summarise_guard
from clipit.studies.robustness.measured_models import compute_vectors, load_run_model, sample_tiles
from clipit.studies.robustness.robustness_sections import _guard_benefit
from clipit.studies.robustness.robustness_study import MAX_TRAINING_TILES, _distinct_names, measure_robustness
from clipit.tiles.augment import tile_keys
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow


def small_study(world: dict[str, Any]) -> dict[str, Any]:
    """Configuration keys with few levels, and the test and training tiles as shifted sets.

    The training tiles suffice to draw batches from.
    """
    return {
        "robustness.perturbations": {"macenko": [0.1], "blur": [1.0, 2.0], "jpeg": [20]},
        "robustness.metric": "accuracy",
        "comparison.shifted": {
            "elsewhere": {"source": "table", "path": world["tiles"]["path"]},
            "others": {
                "source": "table",
                "path": world["tiles"]["path"],
                "splits": {"test": "train"},
                "other_parts": "ignore",
            },
        },
        "leaks.policy": "off",
        "tiles.labels": {"kind": "per_class", "value": 8, "seed": 0},
        "evaluation.bootstrap": 20,
        "name": "robust",
    }


def measure(file: ConfigFile, runs: list[Path]) -> Path:
    return measure_robustness(file.run, file.robustness, runs, file.comparison.shifted)


@pytest.fixture(scope="module")
def measured(world: dict[str, Any], shared_output: Path) -> tuple[ConfigFile, list[Path], Path]:
    """Configuration, runs (image only, with text, late fusion) and result folder of a study."""
    file = validate_file(merge({**world, "output": shared_output}, nested(small_study(world))), "test")
    late = {"base": "clip_it_all", "student.head": "late_fusion", "student.projector_layers": 2}
    file = with_run(file, arms={"late": late})
    arms = ("image_only", "clip_it_all", "late")
    runs = [train_run(file.run.model_copy(update={"arm": arm})) for arm in arms]
    return file, runs, measure(file, runs)


@pytest.fixture(autouse=True)
def no_plots(measured: tuple[ConfigFile, list[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing all plots except those of the shared study, which runs first."""
    leave_out_plots(monkeypatch, ROBUSTNESS_PLOTS)


def rows_of(folder: Path, **criteria: object) -> list[dict[str, Any]]:
    rows = pq.read_table(folder / "robustness.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in criteria.items())]


def test_readouts_match_the_stored_predictions(measured: tuple[ConfigFile, list[Path], Path]) -> None:
    file, runs, _ = measured
    config = file.run
    workspace = Workspace(config)
    for run in runs:
        subject, test = load_run_model(workspace, run, run.name), workspace.all_tiles.of_split("test")
        vectors, written = (
            compute_vectors(subject, test, config, workspace),
            read_predictions(run / "predictions.parquet"),
        )
        order = {name: row for row, name in enumerate(written.ids.tolist())}
        rows = [order[name] for name in test.ids.tolist()]
        np.testing.assert_allclose(subject.readouts["head"](vectors["head"]), written.probabilities[rows], atol=1e-4)
        assert ("zero-shot" in subject.readouts) == (written.zero_shot is not None)
        if written.zero_shot is not None:
            probabilities = subject.readouts["zero-shot"](vectors["zero-shot"])
            np.testing.assert_allclose(probabilities, written.zero_shot[rows], atol=1e-3)


def test_a_level_of_a_curve_can_be_reproduced(measured: tuple[ConfigFile, list[Path], Path]) -> None:
    file, runs, folder = measured
    config = file.run
    test = Workspace(config).all_tiles.of_split("test")
    pictures = np.stack([np.asarray(test.read(i)).transpose(2, 0, 1) for i in range(len(test))])
    changed = perturb(pictures, "blur", 2.0, tile_keys(test.ids.tolist()), file.robustness.seed).pixels
    classifier = load_classifier(runs[1] / "classifier", "cpu")
    probabilities = classifier.predict_proba([Image.fromarray(tile.transpose(1, 2, 0)) for tile in changed])
    expected = compute_metrics(test.labels, probabilities)["accuracy"]
    (row,) = rows_of(
        folder, analysis="curve", perturbation="blur", level=2.0, subject="clip_it_all-seed0", output="head"
    )
    assert row["value"] == pytest.approx(expected)
    (clean,) = rows_of(folder, analysis="curve", perturbation="none", subject="clip_it_all-seed0", output="head")
    results = json.loads((runs[1] / "results.json").read_text(encoding="utf-8"))
    assert clean["value"] == pytest.approx(results["splits"]["test"]["metrics"]["accuracy"]["value"])
    assert row["change"] == pytest.approx(row["value"] - clean["value"])
    assert {row["subject"] for row in rows_of(folder, analysis="curve")} == {*(run.name for run in runs), "VLM"}


def test_every_row_has_its_provenance(measured: tuple[ConfigFile, list[Path], Path]) -> None:
    _, runs, folder = measured
    rows = rows_of(folder)
    assert not missing_columns(rows)
    assert all(bool(row["prompts_hash"]) == (row["output"] == "zero-shot") for row in rows)
    texts = rows_of(folder, subject=runs[1].name)
    assert all(row["pairs"] and row["index"] and row["vlm_fingerprint"] for row in texts)
    page = (folder / "robustness.md").read_text(encoding="utf-8")
    assert "transductive, text prior" in page and "feature statistics (transductive)" in page
    for name in ("curve_macenko.png", "curve_blur.png", "curve_jpeg.png", "calibration.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG" and name in page


def test_calibration_is_fitted_on_validation_and_measured_on_test(
    measured: tuple[ConfigFile, list[Path], Path],
) -> None:
    _, runs, folder = measured
    written = read_predictions(runs[0] / "predictions.parquet").select("test")
    before = rows_of(folder, analysis="calibration", subject=runs[0].name, state="before", metric="ece")[0]
    assert before["value"] == pytest.approx(compute_metrics(written.labels, written.probabilities)["ece"], abs=1e-6)
    assert before["labels"] == 24
    after = rows_of(folder, analysis="calibration", subject=runs[0].name, state="after")
    assert {row["metric"] for row in after} == {"ece", "nll", "brier"}
    assert all(row["value"] is not None or "no temperature" in row["reason"] for row in after)


def test_adaptation_rows_have_changes_verdicts_and_reasons(measured: tuple[ConfigFile, list[Path], Path]) -> None:
    _, runs, folder = measured
    rows = rows_of(folder, analysis="adaptation", perturbation=None)
    assert {row["test_set"] for row in rows} == {"test", "elsewhere", "others"}
    late = [row for row in rows if row["subject"] == runs[2].name and row["output"] == "head"]
    assert late and all(row["value"] is None and "not a single linear layer" in row["reason"] for row in late)
    done = [row for row in rows if row["value"] is not None]
    assert all(row["change"] == pytest.approx(row["value"] - row["unadapted"]) for row in done)
    assert all((row["guard"] == "refused") == bool(row["guard_reasons"]) for row in done)
    assert not [row for row in rows if row["method"] == "transductive, text prior" and row["output"] == "head"]
    same = {row["test_set"]: row["value"] for row in rows_of(folder, analysis="shifted", subject="VLM")}
    assert same["test"] == same["elsewhere"]


def test_adaptation_of_perturbed_tiles_can_be_reproduced(measured: tuple[ConfigFile, list[Path], Path]) -> None:
    file, runs, folder = measured
    config = file.run
    workspace = Workspace(config)
    subject, test = load_run_model(workspace, runs[0], runs[0].name), workspace.all_tiles.of_split("test")
    pictures = np.stack([np.asarray(test.read(i)).transpose(2, 0, 1) for i in range(len(test))])
    changed = perturb(pictures, "blur", 2.0, tile_keys(test.ids.tolist()), file.robustness.seed).pixels
    images = [Image.fromarray(tile.transpose(1, 2, 0)) for tile in changed]
    vectors = subject.forward(torch.from_numpy(np.stack([subject.preprocess.pixels(image) for image in images])))[
        "head"
    ]
    training = sample_tiles(workspace.all_tiles.of_split("train"), MAX_TRAINING_TILES, labelled=False)
    training_features = compute_vectors(subject, training, config, workspace)["head"]
    aligned = align_statistics(
        vectors, compute_feature_statistics(vectors), compute_feature_statistics(training_features)
    )
    before, after = (subject.readouts["head"](features) for features in (vectors, aligned))
    scores = [compute_metrics(test.labels, each)["accuracy"] for each in (before, after)]
    (row,) = rows_of(folder, analysis="adaptation", perturbation="blur", level=2.0, subject=runs[0].name, output="head")
    assert (row["unadapted"], row["value"]) == (pytest.approx(scores[0]), pytest.approx(scores[1]))
    verdict = judge_adaptation(fit_mixture(training_features, subject.readouts["head"](training_features)), vectors)
    assert (row["guard"] == "accepted", row["misfit"]) == (verdict.accepted, pytest.approx(verdict.misfit))
    (curve,) = rows_of(folder, analysis="curve", perturbation="blur", level=2.0, subject=runs[0].name, output="head")
    assert curve["value"] == row["unadapted"] and row["bootstrap"] == 20
    assert row["change"] == pytest.approx(row["value"] - row["unadapted"])
    if row["change_low"] is None:  # the change is the same in all resamples
        assert row["change_high"] is None
    else:
        assert row["change_low"] <= row["change"] <= row["change_high"]


def test_errors_of_the_guard_are_counted_by_method_and_setting(
    measured: tuple[ConfigFile, list[Path], Path],
) -> None:
    _, _, folder = measured
    records = json.loads((folder / "robustness.json").read_text(encoding="utf-8"))["guard"]
    rows, batches = (rows_of(folder, analysis=analysis) for analysis in ("adaptation", "batch"))
    measured_rows = pd.DataFrame([*rows, *batches], dtype=object)
    assert records == [summary.flatten() for summary in summarise_guard(measured_rows)]
    settings = {(record["method"], record["settings"]): record for record in records}
    kinds = ("test and shifted sets", "macenko", "blur", "jpeg")
    assert {kind for _, kind in settings} == {*kinds, WHOLE_SETS, BATCHES}
    for method in ("feature statistics (transductive)", "transductive, text prior"):
        drawn = [row for row in batches if row["method"] == method and row["value"] is not None]
        assert settings[method, BATCHES]["cases"] == len(drawn) > 0
        assert {row["metric"] for row in drawn} == {settings[method, BATCHES]["metric"]} == {"accuracy"}
        method_rows = [row for row in rows if row["method"] == method and row["value"] is not None]
        record = settings[method, WHOLE_SETS]
        assert record["cases"] == len(method_rows) > 0
        with_interval = [row for row in method_rows if row["change_low"] is not None]
        lost = [row for row in with_interval if row["change_high"] < 0]
        gained = [row for row in with_interval if row["change_low"] > 0]
        wrong = [row for row in lost if row["guard"] == "accepted"]
        missed = [row for row in gained if row["guard"] == "refused"]
        assert (record["harmful"], record["helpful"]) == (len(lost), len(gained))
        assert (record["let_through"], record["refused"]) == (len(wrong), len(missed))
        assert record["share_let_through"] == (len(wrong) / len(lost) if lost else None)
        assert record["share_refused"] == (len(missed) / len(gained) if gained else None)
        assert record["without_interval"] == len(method_rows) - len(with_interval)
        assert sum(settings[method, kind]["cases"] for kind in kinds) == len(method_rows)
        by_model = rows_of(folder, analysis="guard", method=method, settings=BATCHES)
        for count in ("cases", "accepted", "harmful", "let_through", "helpful", "refused"):
            assert sum(row[count] for row in by_model) == settings[method, BATCHES][count]
    blur = settings["feature statistics (transductive)", "blur"]
    # two levels; two adaptable heads, and the zero-shot outputs of two runs and of the VLM
    assert blur["cases"] == 2 * (2 + 3)
    text = (folder / "robustness.md").read_text(encoding="utf-8")
    benefit = settings["feature statistics (transductive)", WHOLE_SETS]
    gained = benefit["change_guarded"] - benefit["change_always"]
    assert f"{abs(gained):.3f} in score on average, compared with always adapting" in text
    share_refused = "n/a" if blur["share_refused"] is None else f"{blur['share_refused']:.1%}"
    assert "Errors of the guard" in text and f"{blur['refused']} of {blur['helpful']} ({share_refused})" in text


@pytest.mark.parametrize(
    ("always", "guarded", "verdict"),
    [
        (0.014, 0.0, "Always adapting would have been better here."),
        (0.014, -0.01, "Always adapting would have been better here."),
        (0.03, 0.02, "Always adapting would have been better here."),
        (0.02, 0.02, "Always adapting would have been as good here."),
        (-0.02, 0.0, "Never adapting would have been as good or better here."),
        (-0.01, -0.03, "Never adapting would have been as good or better here."),
        (0.01, 0.02, "The guard was useful here."),
    ],
)
def test_the_guard_is_compared_with_the_better_alternative(always: float, guarded: float, verdict: str) -> None:
    errors = GuardErrors(4, 1, 0, 1, 0, 1, 1, 0.0, 1.0, always, guarded)
    (text,) = _guard_benefit([GuardSummary("statistics", WHOLE_SETS, "accuracy", errors)])
    assert text.text.endswith(verdict)


def test_two_processes_write_the_same_rows(
    measured: tuple[ConfigFile, list[Path], Path],
    write_config: Callable[..., Path],
    world: dict[str, Any],
    tmp_path: Path,
) -> None:
    _, runs, folder = measured
    record = tmp_path / "record.csv"
    options = [
        f"--config={write_config(small_study(world))}",
        f"--run={runs[0]}",
        f"--run={runs[1]}",
        f"--record={record}",
    ]
    done = run_two(ROOT / "scripts" / "robustness.py", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tables:") == done.stdout.count("page:") == 1
    keys = (
        "analysis",
        "subject",
        "output",
        "test_set",
        "perturbation",
        "level",
        "method",
        "state",
        "metric",
        "n",
        "guard",
        "concentration",
        "settings",
    )

    def rows_by_key(rows: list[dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
        return {
            tuple(str(row[key]) for key in keys if key != "level" or row["analysis"] != "calibration"): row
            for row in rows
        }

    written = rows_of(tmp_path / "out" / "robustness" / "robust")
    with record.open(encoding="utf-8", newline="") as stream:
        recorded = list(csv.DictReader(stream))
    assert [row["metric"] for row in recorded] == [row["metric"] for row in written if row["analysis"] != "batch"]
    assert str(tmp_path) not in record.read_text(encoding="utf-8")
    two = rows_by_key(written)
    one = rows_by_key([row for row in rows_of(folder) if row["subject"] != runs[2].name])
    assert {row["analysis"] for row in written} == {"curve", "shifted", "adaptation", "batch", "calibration", "guard"}
    assert two.keys() == one.keys()
    for key, row in two.items():
        assert (row["value"] is None) == (one[key]["value"] is None)
        assert row["value"] is None or row["value"] == pytest.approx(one[key]["value"], abs=1e-4)


def test_the_command_requires_a_run_but_no_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["clipit robustness", "--config", "own_table", "--tiles.path=absent.csv"])
    with pytest.raises(SystemExit, match="2"):
        robustness_command()
    error = capsys.readouterr().err
    assert "nothing to evaluate" in error and "--run" in error and "reports" not in error


def test_runs_of_the_same_name_in_different_outputs_are_told_apart() -> None:
    runs = [Path("/a/runs/t/arm-seed0"), Path("/b/runs/t/arm-seed0"), Path("/b/runs/t/arm-seed1")]
    assert _distinct_names(runs) == ["a/runs/t/arm-seed0", "b/runs/t/arm-seed0", "b/runs/t/arm-seed1"]
    assert _distinct_names(runs[1:]) == ["arm-seed0", "arm-seed1"]


def test_invalid_runs_and_shifted_sets_are_errors(
    measured: tuple[ConfigFile, list[Path], Path], configure_file: MakeFile, world: dict[str, Any], tmp_path: Path
) -> None:
    file, runs, _ = measured
    with pytest.raises(DataError, match=r"(?s)a run is listed twice.*where: .* \(.*, .*\)"):
        measure(file, [runs[0], runs[0]])
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ClipitError, match=r"(?s)where: .*loop.*fix: "):
        measure(file, [tmp_path / "loop"])
    with pytest.raises(DataError, match="nothing to evaluate"):
        measure(with_run(file, prompts=None, tiles=file.run.tiles.model_copy(update={"path": "absent.csv"})), [])
    others = {"source": "table", "path": world["tiles"]["path"], "class_map": {"gland": "gland"}}
    fewer = configure_file(small_study(world) | {"comparison.shifted": {"fewer": others}})
    with pytest.raises(DataError, match=r"(?s)the shifted set has the classes gland; .*comparison.shifted.fewer"):
        measure(fewer, runs[:1])
    swapped = configure_file(small_study(world) | {"tiles.classes": ["tumour", "gland", "stroma"]})
    with pytest.raises(DataError, match="the classifier has the classes gland, stroma, tumour"):
        measure(swapped, runs[:1])
    few_labels = configure_file(small_study(world) | {"tiles.labels.value": 4, "arm": "image_only", "name": "few"})
    folder = measure(few_labels, [train_run(few_labels.run)])
    (row,) = rows_of(folder, analysis="calibration", subject="image_only-seed0", state="after", metric="ece")
    assert row["value"] is None and "needs at least 20 validation labels; there are 12" in row["reason"]
    resplit = configure_file(small_study(world) | {"tiles.splits": {"test": "validation", "validation": "test"}})
    with pytest.raises(DataError, match="splits or labels of 48 tiles differ"):
        measure(resplit, runs[:1])
    done = run_program(ROOT / "scripts/robustness.py", "--config", tmp_path / "none.yaml", "--run", runs[0])
    assert done.returncode == 2 and "no such configuration file" in done.stderr


def test_drawn_batches_have_skewed_class_proportions(configure: MakeConfig) -> None:
    tiles = Workspace(configure()).all_tiles
    batches = list(draw_batches(tiles, 2, "test", 0))
    assert batches and all(20 <= len(rows) == len(set(rows.tolist())) <= 200 for _, rows in batches)
    largest = [
        np.bincount(tiles.labels[rows]).max() / len(rows) for concentration, rows in batches if concentration == 0.3
    ]
    assert np.mean(largest) > 0.5, "class proportions should be far from uniform"
    repeated = list(draw_batches(tiles, 2, "test", 0))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(batches, repeated, strict=True))
    assert not list(draw_batches(tiles.select(tiles.labels == 0), 2, "test", 0)), (
        "a single class has only one proportion"
    )
    assert not list(draw_batches(tiles.select(np.arange(19)), 2, "test", 0))


def test_without_adaptation_there_are_no_adaptation_rows(
    configure: MakeConfig, measured: tuple[ConfigFile, list[Path], Path]
) -> None:
    file = with_run(measured[0], name="plain")
    settings = file.robustness.model_copy(update={"adaptation": ()})
    folder = measure(file.model_copy(update={"robustness": settings}), measured[1][:1])
    assert {row["analysis"] for row in rows_of(folder)} == {"curve", "shifted", "calibration"}


def test_sampled_tiles_are_balanced_and_do_not_depend_on_row_order(configure: MakeConfig) -> None:
    tiles = Workspace(configure()).all_tiles.of_split("train")
    few = sample_tiles(tiles, 9, labelled=True)
    assert np.bincount(few.labels).tolist() == [3, 3, 3]
    mixed = tiles.select(np.random.default_rng(0).permutation(len(tiles)))
    assert set(sample_tiles(mixed, 9, labelled=True).ids) == set(few.ids)
    assert len(sample_tiles(tiles, None, labelled=False)) == len(tiles)
    assert len(sample_tiles(tiles, 10, labelled=False)) == 10
