"""Tests of the search grid: equal numbers of trials for all arms, and no values outside the grid."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import MakeFile, with_comparison, with_run

import clipit
from clipit.comparison.plan import plan_comparison
from clipit.comparison.report.table_notes import compose_notes
from clipit.comparison.search_grid import check_grid, grid_points, interpolate_rates, is_tuned
from clipit.comparison.tune import tune
from clipit.config.file import ConfigFile
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ConfigError, DataError, LaunchError
from clipit.runs.folder import run_folder
from clipit.runs.search import SharedSearch
from clipit.workspace.workspace import Workspace

GRID = {"distillation.weight": (1.0, 4.0), "pairing.centring": (True, False)}


@pytest.fixture
def grid(configure_file: MakeFile, tmp_path: Path) -> ConfigFile:
    return configure_file(
        {
            "output": tmp_path,
            "training.steps": 1,
            "training.learning_rate": 0.01,
            "training.evaluate_every": 1,
            "distillation.weight": 4.0,
            "comparison.arms": ["image_only", "clip_it_all"],
            "comparison.seeds": [1],
            "comparison.tuning_seeds": [3],
            "comparison.learning_rates": [0.001, 0.01],
            "comparison.steps": [1],
            "comparison.grid": GRID,
        }
    )


def with_arm(file: ConfigFile, **keys: Any) -> ConfigFile:
    arms = {"clip_it_all": {"base": "clip_it_all", **{key.replace("__", "."): value for key, value in keys.items()}}}
    return with_run(file, arms=arms)


def check_file(file: ConfigFile) -> None:
    check_grid(file.run, file.comparison, file.comparison.arms)


def test_arm_without_the_searched_terms_gets_more_learning_rates(grid: ConfigFile) -> None:
    without_terms = grid_points(grid.run, grid.comparison, "image_only")
    assert all(set(trial) == {"training.learning_rate", "training.steps"} for trial in without_terms)
    rates = [trial["training.learning_rate"] for trial in without_terms]
    assert rates == [0.001, 0.0014, 0.0019, 0.0027, 0.0037, 0.0052, 0.0072, 0.01], (
        "additional rates must lie between the configured ones"
    )
    points = grid_points(grid.run, grid.comparison, "clip_it_all")
    assert len(points) == 8 and len({json.dumps(trial) for trial in points}) == 8
    assert all(set(trial) == {"training.learning_rate", "training.steps", *GRID} for trial in points)
    soft = grid_points(grid.run, grid.comparison, "zero_shot_labels")
    assert len(soft) == 8 and all(len(trial) == 2 for trial in soft), "soft labels have neither distillation nor pairs"


def test_learning_rates_are_interpolated_on_a_logarithmic_scale() -> None:
    assert interpolate_rates((0.001, 0.003, 0.01), 9) == (
        0.001,
        0.0013,
        0.0017,
        0.0023,
        0.003,
        0.0041,
        0.0055,
        0.0074,
        0.01,
    )
    assert interpolate_rates((0.01, 0.001), 2) == (0.01, 0.001) and interpolate_rates((0.01,), 5) == (0.01,)
    assert interpolate_rates((0.001, 0.00105), 4) == (0.001, 0.00102, 0.00103, 0.00105)


def test_all_arms_have_grids_of_the_same_size(grid: ConfigFile) -> None:
    close = with_comparison(grid, grid=GRID, learning_rates=(0.001, 0.00105))
    sizes = {len(grid_points(close.run, close.comparison, arm)) for arm in ("image_only", "clip_it_all")}
    assert sizes == {2 * 4 * len(close.comparison.steps)}
    single = with_comparison(grid, grid=GRID, learning_rates=(0.001,))
    with pytest.raises(ConfigError, match=r"(?s)the arm 'image_only' does not use.*list at least two"):
        grid_points(single.run, single.comparison, "image_only")


def test_keys_that_define_an_arm_are_not_searched(grid: ConfigFile) -> None:
    wide = with_comparison(grid, grid={"pairing.k": (1, 5)})
    assert {trial.get("pairing.k") for trial in grid_points(wide.run, wide.comparison, "consensus")} == {None}
    assert {trial.get("pairing.k") for trial in grid_points(wide.run, wide.comparison, "clip_it_all")} == {1, 5}


def test_built_in_arm_may_only_differ_in_searched_keys(grid: ConfigFile) -> None:
    with pytest.raises(ConfigError, match=r"(?s)clip_it_all \(lora\.rank\).*rename the arm"):
        check_file(with_arm(grid, lora__rank=32))
    renamed = with_run(grid, arms={"rank32": {"base": "clip_it_all", "lora.rank": 32}})
    check_grid(renamed.run, renamed.comparison, ("image_only", "rank32"))
    assert not is_tuned(renamed.run, renamed.comparison, ("image_only", "rank32"))


def test_value_outside_the_grid_raises_an_error(grid: ConfigFile) -> None:
    check_file(grid)
    check_file(with_arm(grid, distillation__weight=1.0))
    with pytest.raises(ConfigError, match=r"clip_it_all \(distillation\.weight 16\)"):
        check_file(with_arm(grid, distillation__weight=16.0))


def test_arms_are_tuned_if_they_differ_in_a_shared_axis(grid: ConfigFile) -> None:
    assert not is_tuned(grid.run, grid.comparison, grid.comparison.arms)
    faster = with_arm(grid, training__learning_rate=0.001)
    assert is_tuned(faster.run, grid.comparison, grid.comparison.arms)
    both = with_arm(grid, distillation__weight=1.0)
    assert is_tuned(both.run, both.comparison, ("image_only", "clip_it_all", "image_embedding"))


def test_invalid_axis_raises_an_error(configure_file: MakeFile, grid: ConfigFile) -> None:
    wrong = with_comparison(grid, grid={"distillation.wieght": (1.0,)})
    with pytest.raises(ConfigError, match=r"comparison\.grid\.distillation\.wieght"):
        grid_points(wrong.run, wrong.comparison, "clip_it_all")
    unused = with_comparison(grid, grid={"soft_labels.own_report.several": ("all",)})
    with pytest.raises(ConfigError, match=r"(?s)it is now called 'own_report'.*comparison\.grid\.soft_labels"):
        check_grid(unused.run, unused.comparison, ("image_only", "clip_it_all"))
    for axis in ({"training.steps": [1]}, {"weight": [1]}, {"distillation.weight": []}, {"lora.rank": [4, 4]}):
        with pytest.raises(ConfigError, match=r"comparison\.grid"):
            configure_file({"comparison.grid": axis})


def test_stopped_search_resumes_without_retraining(
    grid: ConfigFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trained: list[str] = []

    def train(config: RunConfig, workspace: Workspace) -> Path:
        if len(trained) == 3 and not resumed:
            raise LaunchError("stopped")
        trained.append(f"{config.arm} {config.name}")
        folder = run_folder(config)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "training.json").write_text(json.dumps({"score": 0.5 + 0.01 * len(trained)}))
        return folder

    resumed = False
    monkeypatch.setattr("clipit.comparison.tune.train_run", train)
    with pytest.raises(LaunchError, match="stopped"):
        tune(grid.run, grid.comparison)
    first, resumed = trained[:], True
    trained.clear()
    with caplog.at_level(logging.INFO, "clipit"):
        tune(grid.run.model_copy(update={"overrides": ("training.steps", "lora.rank")}), grid.comparison)
    assert "ignoring keys that the search sets: training.steps; change" in caplog.text
    assert ": validation 51.0% (" in caplog.text, "scores must be logged as in sweeps"
    assert "| best validation balanced accuracy % |" in caplog.text
    assert re.search(r"clip_it_all +\| +8 \| +66\.0 \|", caplog.text)
    assert trained[:3] == first and len(trained) == len(set(trained)) == 16, "the finished trials must come first"
    study = SharedSearch(grid.run.output / "tuning" / "searches" / grid.run.name).study
    assert len(study.trials) == 16 and all(trial.state.is_finished() for trial in study.trials)
    assert study.trials[0].params == {
        "arm": "image_only", "training.learning_rate": 0.001, "training.steps": 1, "seed": 3
    }  # fmt: skip


def test_search_without_validation_labels_raises_an_error_before_training(grid: ConfigFile, tmp_path: Path) -> None:
    table = tmp_path / "tiles.csv"
    source = Path(grid.run.tiles.path)
    rows = [line.split(",") for line in source.read_text(encoding="utf-8").splitlines()]
    rows = [[name, "" if split == "validation" else label, split, group] for name, label, split, group in rows]
    table.write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    tiles = grid.run.tiles.model_copy(update={"path": str(table), "images": str(source.parent)})
    with pytest.raises(DataError, match="the validation score is undefined"):
        tune(grid.run.model_copy(update={"tiles": tiles}), grid.comparison)
    assert not (tmp_path / "runs").exists()


def test_notes_name_the_source_of_the_hyperparameters(grid: ConfigFile) -> None:
    small = with_comparison(grid, grid={"distillation.weight": (1.0, 4.0)})
    search = clipit.tune(small)
    record = search.file
    content = json.loads(record.read_text(encoding="utf-8"))
    assert {arm: len(trials) for arm, trials in content["trials"].items()} == {"image_only": 4, "clip_it_all": 4}
    assert content["seeds"] == [3] and content["made_with"]["training"]["steps"] == 1 and content["vlm"]
    trials = search.trials
    assert len(trials) == 8 and set(trials["seed"]) == {3} and trials["score"].between(0, 1).all()
    means = trials.groupby(["arm", "distillation.weight"])["score"].max()
    weight = search.chosen["clip_it_all"]["distillation.weight"]
    assert means["clip_it_all", weight] == means["clip_it_all"].max()
    assert search.arms_file.is_file() and clipit.load_config(small, arms=search.chosen).run.arms == content["arms"]
    other = {**content["arms"], "image_only": {"base": "image_only", "training.learning_rate": 0.001}}
    other["clip_it_all"] = {**other["clip_it_all"], "training.learning_rate": 0.01}
    tuned = with_run(small, arms=other)

    def notes(file: ConfigFile) -> str:
        plans = plan_comparison(file.run, file.comparison)
        return "\n".join(compose_notes(file.run, file.comparison, plans, [], ""))

    assert "overridden in the configuration for " in notes(tuned)
    record_lost = with_run(tuned, output=tuned.run.output / "elsewhere")
    assert "Trials per" not in notes(record_lost), "trials must not be counted without a search record"
    record.write_text(json.dumps(content | {"arms": other}), encoding="utf-8")
    assert "chosen by clipit tune on validation tiles" in notes(tuned)
    assert "Trials per tuned arm: 4, each with 1 seed" in notes(tuned)
    assert "the search was not repeated" not in notes(tuned)
    assert not {"name", "output", "seed", "arms", "tracking", "evaluation"} & set(content["made_with"])
    faster = with_run(tuned, training=tuned.run.training.model_copy(update={"threads": 5}))
    assert "the search was not repeated" not in notes(faster)
    other_terms = with_run(tuned, soft_labels=tuned.run.soft_labels.model_copy(update={"temperature": 2.0}))
    assert "with different values of soft_labels: " in notes(other_terms)
    longer = with_run(tuned, lora=tuned.run.lora.model_copy(update={"rank": 2}))
    assert "with different values of lora: the search was not repeated for this configuration" in notes(longer)
    keys = {"training.learning_rate": 0.001, "training.steps": 1}
    one_rate = {"image_only": {"base": "image_only", **keys}}
    one_rate |= {"clip_it_all": {"base": "clip_it_all", **keys, "distillation.weight": 1.0}}
    record.write_text(json.dumps(content | {"arms": one_rate}), encoding="utf-8")
    earlier = with_comparison(with_run(small, arms=one_rate), learning_rates=(0.001,))
    assert "Trials per tuned arm: 1 for image_only; 2 for clip_it_all" in notes(earlier), (
        "earlier versions allowed unequal numbers of trials"
    )
    with pytest.raises(DataError, match=r"comparison\.searched"):
        notes(with_comparison(tuned, searched=str(record.parent / "none.json")))
    sections = ("tiles", "reports", "prompts", "vlm", "backbone", "lora", "pairing", "distillation", "training")
    earlier = {
        name: json.loads(tuned.run.model_dump_json())[name] for name in sections
    }  # as written by earlier versions
    earlier["training"]["threads"] = 3
    record.write_text(json.dumps(content | {"arms": other, "made_with": earlier}), encoding="utf-8")
    assert "chosen by clipit tune" in notes(tuned) and "the search was not repeated" not in notes(tuned)
    assert "with different values of lora: " in notes(longer)
    for wrong in ({"arms": []}, {"arms": {"image_only": 1}}, {"made_with": 3}):
        record.write_text(json.dumps(content | wrong), encoding="utf-8")
        with pytest.raises(ArtifactError, match=r"(?s)not the record of a hyperparameter search.*tune again"):
            notes(tuned)
