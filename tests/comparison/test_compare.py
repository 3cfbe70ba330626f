"""Tests of comparisons and tuning, such as equal treatment of all arms and provenance of all scores."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from logged_lines import capture_log
from tiny_models import CLASSES, SMALL_COMPARISON, MakeFile, with_comparison, with_run

import clipit
from clipit.api.experiments import CompareResult
from clipit.cli.compare import main as compare_command
from clipit.comparison import tune as tuning
from clipit.comparison.compare import compare
from clipit.comparison.demo import demo_table
from clipit.comparison.export_tables import export_csv
from clipit.comparison.rebuild import rebuild_comparison
from clipit.comparison.tune import ScoredPoint, best_point, tune
from clipit.config.file import ConfigFile
from clipit.config.load import merge, nested, validate, validate_file
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ConfigError, DataError, DivergenceError
from clipit.evaluation.predictions import read_run_predictions
from clipit.reporting.csv_export import check_export
from clipit.runs import train as runs_module
from clipit.runs.folder import read_run_config
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow


SMALL = {
    **SMALL_COMPARISON,
    "comparison.seeds": [1, 2],
    "comparison.learning_rates": [0.001, 0.01],
    "comparison.steps": [1, 2],
}


@pytest.fixture
def small(configure_file: MakeFile, tmp_path: Path) -> ConfigFile:
    return configure_file({**SMALL, "output": tmp_path})


@pytest.fixture(scope="module")
def compared(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[ConfigFile, Path]:
    """A finished comparison and its folder; tests must not change them."""
    values = merge({**world, "output": tmp_path_factory.mktemp("compared")}, nested(SMALL))
    file = validate_file(values, "test")
    return file, clipit.compare(file).folder


def test_result_table_equals_the_exported_numbers(compared: tuple[ConfigFile, Path]) -> None:
    result = CompareResult(compared[1])
    saved = json.loads((result.folder / "comparison.json").read_text(encoding="utf-8"))
    table = result.table.set_index(["test_set", "arm"])
    assert {"clip_it_all", "image_only"} < {line["arm"] for line in saved["lines"]}
    for line in saved["lines"]:
        row = table.loc[(line["test_set"], line["arm"])]
        assert row["mean"] == line["mean"] and row["reference"] == line["reference"]
        seeds, tiles = line["over_seeds"] or {}, line["over_tiles"] or {}
        expected = [line["difference"], seeds.get("low"), seeds.get("high"), tiles.get("low"), tiles.get("high")]
        actual = row[["difference", "low", "high", "tiles_low", "tiles_high"]]
        assert [None if np.isnan(value) else value for value in actual] == expected
    assert not np.isnan(table.loc[("test", "clip_it_all"), "difference"])
    assert table.loc[("test", "image_only")].isna()["difference"], "the baseline"
    assert result.verdict == saved.get("verdict", "")
    assert set(result.rows["seed"].dropna()) >= {1, 2} and result.page.is_file() and result.report.is_file()


def test_comparison_has_a_row_for_every_arm_seed_and_reference(compared: tuple[ConfigFile, Path]) -> None:
    _, folder = compared
    rows = pq.read_table(folder / "comparison.parquet").to_pylist()
    assert {(row["arm"], row["seed"]) for row in rows if not row["arm"].startswith("reference")} == {
        ("image_only", 1), ("image_only", 2), ("clip_it_all", 1), ("clip_it_all", 2),
    }  # fmt: skip
    assert sum(row["arm"].startswith("reference") for row in rows) == 6, (
        "two zero-shot references and a probe for each seed"
    )
    for row in rows:
        if row["run"] is not None:
            results = json.loads((Path(row["run"]) / "results.json").read_text(encoding="utf-8"))
            assert row["score"] == results["splits"]["test"]["metrics"]["accuracy"]["value"]
    assert "VLM zero-shot" in (folder / "comparison.md").read_text(encoding="utf-8")


def test_wrong_prompt_set_raises_an_error_before_training(small: ConfigFile, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    known = Path(str(small.run.prompts)).read_text(encoding="utf-8")
    wrong.write_text(known.replace("stroma:", "muscle:"), encoding="utf-8")
    arms = {"clip_it_all": {"base": "clip_it_all", "prompts": str(wrong)}}
    arm_alone = with_comparison(with_run(small, arms={"mine": arms["clip_it_all"]}), arms=("image_only", "mine"))
    for file in (with_run(small, prompts=str(wrong)), arm_alone):
        with pytest.raises(DataError, match=r"without prompts: stroma; without tiles: muscle"):
            compare(file.run, file.comparison)
    assert not (tmp_path / "runs").exists()


def test_finished_runs_are_not_trained_again(compared: tuple[ConfigFile, Path]) -> None:
    small, _ = compared
    stamps = {path: path.stat().st_mtime_ns for path in small.run.output.rglob("results.json")}
    log_lines = capture_log()
    compare(small.run, small.comparison)
    assert stamps == {path: path.stat().st_mtime_ns for path in small.run.output.rglob("results.json")}
    assert sum(line.startswith("kept") for line in log_lines) == 4


def test_demo_table_lists_both_parts(compared: tuple[ConfigFile, Path]) -> None:
    file, folder = compared
    parts = dict.fromkeys(("of other patients", "of the same patients"), (file.run, file.comparison))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in demo_table(parts).splitlines()[2:]]
    table = CompareResult(folder).table.query("test_set == 'test' and not reference")
    expected = [[arm, f"{100 * mean:.1f}"] for arm, mean in zip(table["arm"], table["mean"], strict=True)]
    assert [[line[2], line[3].split(" ± ")[0]] for line in lines] == expected + expected
    assert [line[0] for line in lines] == [part for part in parts for _ in expected]
    gained = table["difference"].dropna().iloc[0]
    assert lines[1][4] == f"{100 * gained:+.1f}" and lines[0][4:] == ["", "", ""]


def test_all_report_formats_have_all_sections(compared: tuple[ConfigFile, Path]) -> None:
    _, folder = compared
    markdown, page, latex = (
        (folder / f"comparison.{kind}").read_text(encoding="utf-8") for kind in ("md", "html", "tex")
    )
    for text in (markdown, page):
        assert "Complementarity: correct where vision is wrong" in text and "Gain by pairing score" in text
        assert "Gain by class" in text and "joint space" in text
        assert "none: 2 of the 5 seeds needed" in text
    assert latex.count(r"\begin{table}") == 2 and r"image\_only" in latex
    assert "comparison.parquet" in page, "the source of the figures"


def test_shorter_arms_get_an_additional_row_at_equal_steps(small: ConfigFile) -> None:
    arms = {"brief": {"base": "image_embedding", "training.steps": 1, "training.learning_rate": 0.01}}
    all_arms = {**arms, "image_only": {"base": "image_only", "training.steps": 2, "training.learning_rate": 0.01}}
    keys = {"arms": ("image_only", "brief"), "seeds": (1,), "analyses": ()}
    file = with_comparison(with_run(small, arms=all_arms), **keys)
    folder = compare(file.run, file.comparison)
    rows = pq.read_table(folder / "comparison.parquet").to_pylist()
    steps = {row["arm"]: row["steps"] for row in rows if row["run"]}
    assert steps == {"image_only": 2, "brief": 1, "brief_at_2_steps": 2}
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "With only one seed" in text and "| only one seed |" in text


def test_arm_outside_the_search_grid_raises_an_error(small: ConfigFile) -> None:
    arms = {"clip_it_all": {"base": "clip_it_all", "training.learning_rate": 0.5}}
    with pytest.raises(ConfigError, match=r"clip_it_all \(learning rate 0\.5\)"):
        compare(with_run(small, arms=arms).run, small.comparison)


def test_each_data_set_uses_its_keys(small: ConfigFile) -> None:
    keys = {"data_sets": {"few": {}, "fewer": {"tiles.labels.value": 2}}, "seeds": (1,), "analyses": ("classes",)}
    folder = compare(small.run, small.comparison.model_copy(update=keys))
    rows = pq.read_table(folder / "comparison.parquet").to_pylist()
    labels = {row["data_set"]: row["training_labels"] for row in rows if row["run"]}
    assert labels == {"few": 12, "fewer": 6}
    wrong = {"data_sets": {"bad": {"tiles.lables.value": 2}}}
    with pytest.raises(ConfigError, match=r"did you mean 'tiles\.labels'"):
        compare(small.run, small.comparison.model_copy(update=wrong))


def test_predictions_have_the_classes_of_their_own_data_set(small: ConfigFile) -> None:
    keys = {
        "data_sets": {"ordered": {}, "reversed": {"tiles.classes": CLASSES[::-1]}},
        "seeds": (1,),
        "analyses": (),
        "arms": ("image_only",),
    }
    folder = compare(small.run, small.comparison.model_copy(update=keys))
    predictions = {
        row["data_set"]: read_run_predictions(Path(row["run"]))
        for row in pq.read_table(folder / "comparison.parquet").to_pylist()
        if row["run"]
    }
    assert (predictions["ordered"].classes, predictions["reversed"].classes) == (CLASSES, CLASSES[::-1])
    names = [[("", *each.classes)[label + 1] for label in each.labels.tolist()] for each in predictions.values()]
    assert names[0] == names[1]


def test_run_that_is_equal_on_several_data_sets_is_trained_once(small: ConfigFile) -> None:
    keys = {"data_sets": {"full": {}, "half": {"vlm.precision": "bf16"}}, "seeds": (1,), "analyses": ()}
    log_lines = capture_log()
    folder = compare(small.run, small.comparison.model_copy(update=keys))
    copied = [line for line in log_lines if line.startswith("copied from")]
    assert len(copied) == 1 and "full/image_only-seed1" in copied[0]
    runs = {
        (row["data_set"], row["arm"]): Path(row["run"])
        for row in pq.read_table(folder / "comparison.parquet").to_pylist()
        if row["run"]
    }
    first, second = runs["full", "image_only"], runs["half", "image_only"]
    assert (first / "run.json").read_bytes() == (second / "run.json").read_bytes()
    assert (first / "predictions.parquet").read_bytes() == (second / "predictions.parquet").read_bytes()
    assert second.parent.name in (second / "summary.md").read_text(encoding="utf-8")
    assert read_run_config(second).vlm.precision == "bf16"
    trained = [(runs[name, "clip_it_all"] / "run.json").read_bytes() for name in ("full", "half")]
    assert trained[0] != trained[1]


def test_copied_run_describes_the_reports_of_its_data_set(small: ConfigFile, tmp_path: Path) -> None:
    """Corpora that differ only in path and empty reports give equal runs, but their summaries differ."""
    first = Path(small.run.reports.path if small.run.reports else "")
    second = tmp_path / "again.jsonl"
    second.write_text(first.read_text(encoding="utf-8") + '{"id": "none", "text": " ", "finding": null}\n')
    sets = {"first": {}, "second": {"reports.path": str(second)}}
    keys = {"data_sets": sets, "seeds": (1,), "analyses": (), "arms": ("image_only", "clip_it_all")}
    log_lines = capture_log()
    folder = compare(small.run, small.comparison.model_copy(update=keys))
    assert len([line for line in log_lines if line.startswith("copied from")]) == 2
    runs = {
        row["data_set"]: Path(row["run"])
        for row in pq.read_table(folder / "comparison.parquet").to_pylist()
        if row["arm"] == "clip_it_all"
    }
    for name, path, empty in (("first", first, 0), ("second", second, 1)):
        text = (runs[name] / "summary.md").read_text(encoding="utf-8")
        assert f"60  with text, {empty} empty; from {path}" in text


def test_csv_export_has_the_provenance_of_every_score(compared: tuple[ConfigFile, Path], tmp_path: Path) -> None:
    file, folder = compared
    export_csv(folder, tmp_path / "record.csv")
    with (tmp_path / "record.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    needed = (
        "test_set",
        "classes",
        "metric",
        "pixels",
        "preprocess",
        "prompts_hash",
        "seed",
        "commit",
        "versions",
        "command",
    )
    for row in rows:
        if row["arm"] == "clip_it_all":
            assert all(row[name] for name in (*needed, "pairs", "index", "score", "tiles"))
    assert len(rows) == 10 and str(file.run.output) not in json.dumps([row["arm"] for row in rows])


def test_tuning_gives_all_arms_the_same_trials_without_test_tiles(small: ConfigFile) -> None:
    record = json.loads(tune(small.run, small.comparison).read_text(encoding="utf-8"))
    grids = {arm: [tuple(t["keys"].values()) for t in trials] for arm, trials in record["trials"].items()}
    assert grids["image_only"] == grids["clip_it_all"] == [(0.001, 1), (0.001, 2), (0.01, 1), (0.01, 2)]
    for path in (small.run.output / "runs").rglob("predictions.parquet"):
        assert set(pq.read_table(path).column("split").to_pylist()) == {"validation"}
    # The tuned arms are valid configuration: a custom arm may extend the built-in arm of the same name.
    chosen = validate(merge(small.run.model_dump(mode="json"), {"arms": record["arms"]}), "tuned")
    assert chosen.arms["clip_it_all"]["base"] == "clip_it_all"


def test_search_reuses_the_artefacts_of_the_comparison(small: ConfigFile) -> None:
    compare(small.run, small.comparison)
    written = {path: path.stat().st_mtime_ns for path in small.run.output.rglob("artefacts/*/*")}
    assert written
    tune(small.run, small.comparison)
    assert {path: path.stat().st_mtime_ns for path in small.run.output.rglob("artefacts/*/*")} == written


def test_ties_prefer_fewer_steps_then_the_lower_learning_rate() -> None:
    scores = [(0.01, 200, 0.8), (0.02, 100, 0.8), (0.01, 100, 0.8), (0.5, 100, 0.7)]
    points = [
        ScoredPoint({"training.learning_rate": rate, "training.steps": steps}, [score]) for rate, steps, score in scores
    ]
    assert best_point(points) == {"training.learning_rate": 0.01, "training.steps": 100}


def make_runs_diverge(monkeypatch: pytest.MonkeyPatch, *runs: tuple[str, int]) -> None:
    """Make the training of the given runs, identified by arm and seed, diverge."""
    module, train_run = sys.modules["clipit.comparison.compare"], runs_module.train_run

    def diverge(config: RunConfig, *arguments: Any) -> Path:
        if (config.arm, config.seed) in runs:
            raise DivergenceError("training diverged: the loss in step 1 is infinite or not a number")
        return train_run(config, *arguments)

    monkeypatch.setattr(module, "train_run", diverge)


def test_diverged_runs_do_not_stop_the_comparison(
    small: ConfigFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = with_comparison(small, seeds=(1, 2, 4))
    path = tmp_path / "diverging.yaml"
    values = file.run.model_dump(mode="json") | {"comparison": file.comparison.model_dump(mode="json")}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    lines = capture_log()
    monkeypatch.setattr(sys, "argv", ["clipit compare", "--config", str(path)])
    with monkeypatch.context() as patch:
        make_runs_diverge(patch, ("clip_it_all", 1))
        with pytest.raises(SystemExit) as raised:
            compare_command()
    assert (
        raised.value.code == 1
        and "error: 1 run failed: clip_it_all on small, seed 1; see the page" in capsys.readouterr().err
    )
    assert any("failed: clip_it_all, seed 1: training diverged: the loss in step 1" in line for line in lines)
    result = CompareResult(file.run.output / "comparisons" / file.run.name)
    (failed,) = result.failed
    assert (failed["arm"], failed["seed"]) == ("clip_it_all", 1)
    assert {*result.rows["seed"]} - {None} == {2, 4}
    (line,) = [each for each in result.numbers["lines"] if (each["arm"], each["test_set"]) == ("clip_it_all", "test")]
    assert [seed["seed"] for seed in line["seeds"]] == [2, 4]
    for page in (result.report, result.page):
        text = page.read_text(encoding="utf-8")
        assert "1 of 6 runs failed and has no score" in text and "use only the seeds 2, 4, which every arm has" in text
    before = [page.read_bytes() for page in (result.report, result.page)]
    rebuild_comparison(file.run)
    assert [page.read_bytes() for page in (result.report, result.page)] == before

    with monkeypatch.context() as patch:
        make_runs_diverge(patch, *(("clip_it_all", seed) for seed in (1, 2, 4)))
        shutil.rmtree(file.run.output / "runs")
        without_arm = clipit.compare(file)
    assert {*without_arm.rows["arm"]} >= {"image_only"} and "clip_it_all" not in {*without_arm.rows["arm"]}
    assert "except clip_it_all, which failed with every seed" in without_arm.report.read_text(encoding="utf-8")
    finished = clipit.compare(file)
    assert not finished.failed and {*finished.rows["seed"]} - {None} == {1, 2, 4}
    with monkeypatch.context() as patch:
        make_runs_diverge(patch, ("clip_it_all", 1), ("image_only", 2), ("image_only", 4))
        with pytest.raises(DivergenceError, match="nothing can be compared, because for every seed, training diverged"):
            clipit.compare(file)
        make_runs_diverge(patch, *(("image_only", seed) for seed in (1, 2, 4)))
        with pytest.raises(DivergenceError, match="in every run of the baseline image_only"):
            clipit.compare(file)


def test_diverged_trials_do_not_stop_the_tuning(small: ConfigFile, monkeypatch: pytest.MonkeyPatch) -> None:
    train, rates = tuning.train_run, {0.01}

    def diverge(config: RunConfig, workspace: Workspace) -> Path:
        if resolve_arm(config).training.learning_rate in rates:
            raise DivergenceError("training diverged: the loss in step 1 is infinite or not a number")
        return train(config, workspace)

    monkeypatch.setattr(tuning, "train_run", diverge)
    file = with_comparison(small, arms=("image_only",))
    record = json.loads(tune(file.run, file.comparison).read_text(encoding="utf-8"))
    failed = [trial["scores"] for trial in record["trials"]["image_only"] if "failed" in trial]
    assert failed == [[None] * len(record["seeds"])] * 2
    assert record["arms"]["image_only"]["training.learning_rate"] == 0.001
    rates.add(0.001)
    file = with_run(file, name="none")
    with pytest.raises(DivergenceError, match=r"the arm image_only diverged at every grid point.*the loss in step 1"):
        tune(file.run, file.comparison)


def test_tuning_without_validation_labels_raises_an_error(small: ConfigFile) -> None:
    tiles = small.run.tiles.model_copy(update={"labels": small.run.tiles.labels.model_copy(update={"kind": "none"})})
    with pytest.raises((DataError, ConfigError), match="label"):
        tune(with_run(small, tiles=tiles).run, small.comparison)


def test_search_and_comparison_must_not_share_seeds(small: ConfigFile) -> None:
    comparison = small.comparison.model_dump(mode="json") | {"tuning_seeds": [2, 3]}
    values = small.run.model_dump(mode="json") | {"comparison": comparison}
    with pytest.raises(ConfigError, match="must not share a seed"):
        validate_file(values, "test")


@pytest.mark.parametrize("place", ["folder", "/dev/null", "/proc/out/rows.csv", "file/rows.csv"])
def test_unwritable_csv_path_raises_an_error_before_the_comparison(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"(?s)not a file|folder cannot be created|Not a directory|File exists"):
        check_export(tmp_path / place)
    assert Path("/dev/null").is_char_device()
    check_export(tmp_path / "new" / "rows.csv")
    assert not (tmp_path / "new").exists(), "checking must not create the folder"
