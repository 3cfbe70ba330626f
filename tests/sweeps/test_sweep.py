"""Sweeps without wandb's server: validation of the sweep file, trials shared by agents, and selection on validation."""

import csv
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from launching import ROOT, start
from logged_lines import capture_log
from no_plots import SWEEP_PLOTS, leave_out_plots
from run_files import losses
from tiny_models import MakeConfig

import clipit.sweeps.run_sweep as sweep_module
from clipit.errors import ArtifactError, ClipitError, ConfigError, DivergenceError, LaunchError
from clipit.output_files.artifacts import make_folder
from clipit.reporting.plots import save_plot
from clipit.reporting.score_plots import mean_per_value
from clipit.runs.folder import run_folder
from clipit.runs.search import SharedSearch, Trial
from clipit.sweeps.run_sweep import run_sweep
from clipit.sweeps.sweep_file import parse_options, read_sweep
from clipit.sweeps.sweep_page import best_group, format_values
from clipit.sweeps.trials import SweepPlan, make_trial, plan_sweep

WriteConfig = Callable[..., Path]
WriteSweep = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the plots; one test draws them."""
    leave_out_plots(monkeypatch, SWEEP_PLOTS)


@pytest.fixture
def write_sweep(write_config: WriteConfig, shared_output: Path, tmp_path: Path) -> WriteSweep:
    """Return a function that writes a sweep file for the small world, with changed keys."""

    def write(changes: dict[str, Any] | None = None, keys: dict[str, Any] | None = None) -> Path:
        config = write_config(
            {"training.steps": 2, "training.evaluate_every": 2, "evaluation.bootstrap": 0, **(keys or {})}
        )
        values: dict[str, Any] = {
            "program": "scripts/sweep.py",
            "name": "ranks",
            "method": "grid",
            "metric": {"name": "validation_balanced_accuracy", "goal": "maximize"},
            "parameters": {"lora.rank": {"values": [2, 4]}, "seed": {"values": [0, 1]}},
            "command": ["${env}", "python", "${program}", "file", "--trial", f"--config={config}", "${args}"],
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**values, **(changes or {})}), encoding="utf-8")
        return path

    return write


def plan_of(path: Path, options: dict[str, str] | None = None, **keywords: Any) -> SweepPlan:
    return plan_sweep(read_sweep(path), options or {}, **keywords)


def all_trials(path: Path, options: dict[str, str] | None = None, **keywords: Any) -> list[Trial]:
    return list(plan_of(path, options, **keywords).trials)


# Sweep file -------------------------------------------------------------------------------------------------------


def test_a_grid_contains_every_combination_in_order(write_sweep: WriteSweep) -> None:
    trials = all_trials(write_sweep())
    assert [(t.config.lora.rank, t.config.seed) for t in trials] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert [t.config.name for t in trials] == ["ranks-lora.rank_2"] * 2 + ["ranks-lora.rank_4"] * 2
    assert len({run_folder(t.config) for t in trials}) == 4
    assert len(all_trials(write_sweep({"run_cap": 3}))) == 3
    duplicated = write_sweep({"parameters": {"lora.rank": {"values": [2, "2", 4]}}})
    assert [t.config.lora.rank for t in all_trials(duplicated)] == [2, 4]


def test_options_override_the_file_and_trackers_stay_off(write_sweep: WriteSweep) -> None:
    path = write_sweep()
    content = yaml.safe_load(path.read_text())
    content["command"][-1:] = ["--tracking.tracker=wandb", "--training.steps=5", "${args}"]
    content["parameters"]["lora.alpha"] = {"value": 3}
    path.write_text(yaml.safe_dump(content))
    config = all_trials(path)[0].config
    assert (config.training.steps, config.lora.alpha, config.tracking.tracker) == (5, 3.0, "none")
    assert all_trials(path, {"training.steps": "7"})[0].config.training.steps == 7


def test_a_swept_value_overrides_the_arm(write_sweep: WriteSweep) -> None:
    from clipit.training.arms import resolve_arm

    swept = {"parameters": {"distillation.tiles": {"values": ["labelled", "all"]}}}
    trials = all_trials(write_sweep(swept, {"arm": "clip_it_all"}))
    assert [resolve_arm(t.config).distillation.tiles for t in trials] == ["labelled", "all"]


def test_trials_with_different_metrics_are_refused(write_sweep: WriteSweep) -> None:
    swept = {"parameters": {"arm": {"values": ["image_only", "zero_label"]}}, "metric": None}
    with pytest.raises(ConfigError, match="different metrics: agreement, balanced_accuracy") as caught:
        all_trials(write_sweep(swept))
    assert "--training.monitor=balanced_accuracy" in caught.value.fix
    assert len(all_trials(write_sweep(swept), {"training.monitor": "balanced_accuracy"})) == 2


def test_all_unknown_keys_are_listed(write_sweep: WriteSweep) -> None:
    parameters = {
        "lora.rnak": {"values": [1]}, "training.learning_rat": {"values": [1]}, "qqqq": {"value": 1},
        "lora": {"value": 1}, "seed": {"values": [0]}, "lora.alpha": {"parameters": {"x": {}}},
        "name": {"values": ["a"]}, "soft_labels.own_report.labels": {"values": ["text"]},
    }  # fmt: skip
    with pytest.raises(ConfigError) as error:
        read_sweep(write_sweep({"parameters": parameters}))
    text = str(error.value)
    assert "7 problems in the sweep; no trial was run" in text
    assert "unknown key 'lora.rnak' (did you mean 'lora.rank'" in text
    assert "'soft_labels.own_report.labels' (it is now called 'own_report.labels')" in text
    assert "'training.learning_rat' (did you mean 'training.learning_rate'" in text
    for part in ("'qqqq'", "'lora' is a section", "'lora.alpha' is nested", "'name' cannot be swept"):
        assert part in text


def test_all_invalid_values_are_listed_before_any_trial_runs(write_sweep: WriteSweep, tmp_path: Path) -> None:
    parameters = {"lora.rank": {"values": [2, 0, "many"]}, "training.precision": {"values": ["no", "bf61"]}}
    with pytest.raises(ConfigError) as error:
        all_trials(write_sweep({"parameters": parameters}))
    text = str(error.value)
    assert "3 problems" in text and "'lora.rank'" in text and "many" in text and "bf61" in text
    assert not (tmp_path / "out").exists()


def test_values_that_conflict_with_the_arm_are_refused(write_sweep: WriteSweep) -> None:
    parameters = {"bags.weight": {"values": [0.0, 0.5]}, "pairing.k": {"values": [1, 5]}}
    with pytest.raises(ConfigError, match=r"1 problem in the sweep(?s:.*)pairs per tile, but pairing\.k is 1"):
        all_trials(write_sweep({"parameters": parameters}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "bayes"}, "bayes needs a number of trials(?s:.*)run_cap"),
        ({"method": "gird"}, "grid, random or bayes, not 'gird'"),
        ({"metric": {"name": "validation_balanced_accuracy", "goal": "minimize"}}, "maximize"),
        ({"metric": {"nam": "validation_balanced_accuracy"}}, "metric: unknown nam; use name, goal"),
        ({"metric": {"name": "accuracy"}}, "log 'validation_balanced_accuracy'"),
        ({"parameters": {}}, "parameters must map"),
        ({"parameters": {"lora.rank": {"min": 1, "max": 9}}}, "a grid needs values"),
        ({"parameters": {"lora.targets": {"values": [["qkv"]]}}}, "in quotes"),
        ({"parameters": {"lora.rank": [2]}}, "write {values"),
        ({"colour": "red"}, "unknown key in a sweep file: 'colour'"),
        ({"run_cap": 0}, "run_cap"),
        ({"command": ["python", "train.py"]}, "a list with \\$\\{program\\}"),
        ({"command": ["${program}", "--config=a"]}, "must contain \\$\\{args\\}"),
        ({"command": ["${program}", "${args}"]}, "must contain --config"),
        ({"command": ["${program}", "--config", "a", "${args}"]}, "must be one item, written"),
        ({"method": "random"}, "random needs a number of trials(?s:.*)run_cap"),
        ({"method": "random", "parameters": {"lora.rank": {"distribution": "normal"}}}, "distribution 'normal'"),
        ({"method": "random", "parameters": {"lora.rank": {"min": 9, "max": 1}}}, "min below max"),
    ],
)  # fmt: skip
def test_invalid_files_are_refused(write_sweep: WriteSweep, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        all_trials(write_sweep(changes))


def test_random_values_depend_on_the_seed_but_not_on_the_count(write_sweep: WriteSweep) -> None:
    parameters = {
        "lora.rank": {"min": 2, "max": 64},
        "training.learning_rate": {"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"},
        "lora.alpha": {"min": 1.0, "max": 2.0},
        "lora.dropout": {"values": [0.0, 0.1]},
    }
    path = write_sweep({"method": "random", "parameters": parameters})
    few, many, other = (
        [dict(t.values) for t in all_trials(path, count=count, seed=seed)] for count, seed in ((4, 0), (8, 0), (4, 1))
    )
    assert many[:4] == few and other != few and len(many) == 8
    for values in many:
        assert 2 <= values["lora.rank"] <= 64 and isinstance(values["lora.rank"], int)
        assert 1e-4 <= values["training.learning_rate"] <= 1e-2 and 1 <= values["lora.alpha"] <= 2
    exhausted = write_sweep({"method": "random", "run_cap": 5, "parameters": {"lora.rank": {"values": [2, 4]}}})
    assert sorted(t.config.lora.rank for t in all_trials(exhausted)) == [2, 4], "no combination is repeated"


def test_an_out_of_range_seed_is_refused_and_too_few_combinations_are_noted(write_sweep: WriteSweep) -> None:
    path = write_sweep({"method": "random"})
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match=r"--draws-seed"):
            plan_of(path, count=2, seed=seed)
    assert plan_of(path, count=4).sweep.notes == ()
    assert plan_of(path, count=9).sweep.notes == ("only 4 of 9 trials can be run: there are no more combinations",)


def test_limits_in_scientific_notation_are_parsed_as_numbers(write_sweep: WriteSweep) -> None:
    limits = {"min": "1e-4", "max": "1e-2", "distribution": "log_uniform_values"}  # as YAML parses unquoted 1e-4
    parameters = {"training.learning_rate": limits}
    for trial in all_trials(write_sweep({"method": "random", "run_cap": 3, "parameters": parameters})):
        assert 1e-4 <= trial.config.training.learning_rate <= 1e-2
    with pytest.raises(ConfigError, match="min below max"):
        all_trials(write_sweep({"method": "random", "parameters": {"lora.alpha": {"min": "one", "max": 2}}}))


def test_options_are_parsed_with_or_without_an_equals_sign() -> None:
    assert parse_options(["--a.b=1", "--c", "2", "--d={}"]) == {"a.b": "1", "c": "2", "d": "{}"}
    with pytest.raises(ConfigError, match="'stray' does not belong to an option"):
        parse_options(["--a=1", "stray"])


def test_a_trial_with_a_missing_value_or_an_explicit_name_is_refused(write_sweep: WriteSweep) -> None:
    sweep = read_sweep(write_sweep())
    with pytest.raises(ConfigError, match=r"a value for seed(?s:.*)--seed=\.\.\."):
        make_trial(sweep, {"lora.rank": "2"})
    trial = make_trial(sweep, {"lora.rank": "2", "seed": "1"})
    assert run_folder(trial.config) == run_folder(plan_sweep(sweep, {}).trials[1].config)
    with pytest.raises(ConfigError, match="named after their swept values"):
        plan_sweep(sweep, {"name": "mine"})
    with pytest.raises(ConfigError, match=r"swept keys cannot be set on the command line: lora\.rank"):
        plan_sweep(sweep, {"lora.rank": "2"})


def test_values_with_special_characters_give_distinct_names(write_sweep: WriteSweep) -> None:
    values = ['["qkv"]', '["mlp"]', '[ "mlp"]']
    trials = all_trials(write_sweep({"parameters": {"lora.targets": {"values": values}}}))
    assert len({t.config.name for t in trials}) == 3
    assert [t.config.lora.targets for t in trials] == [("qkv",), ("mlp",), ("mlp",)]


def test_a_swept_key_without_effect_is_refused(write_sweep: WriteSweep) -> None:
    frozen = {"backbone.tuning": "frozen"}
    with pytest.raises(ConfigError, match=r"lora\.rank has no effect on any run"):
        all_trials(write_sweep(keys=frozen))
    with pytest.raises(ConfigError, match=r"pairing\.k has no effect on any run"):
        all_trials(write_sweep({"parameters": {"pairing.k": {"values": [1, 5]}}}, {"arm": "image_only"}))
    with pytest.raises(ConfigError, match=r"distillation\.weight has no effect on any run"):
        all_trials(write_sweep({"parameters": {"distillation.weight": {"values": [1, 5]}}}, {"arm": "image_only"}))
    partly_effective = {"lora.rank": {"values": [2, 4]}, "backbone.tuning": {"values": ["lora", "frozen"]}}
    assert len(all_trials(write_sweep({"parameters": partly_effective}))) == 4
    assert len(all_trials(write_sweep({"parameters": {"bags.weight": {"values": [0.0]}}}))) == 1


# Agents -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace training by a stub that only writes what the tables need, and return the order of the runs."""
    order: list[str] = []

    def train(config: Any, workspace: Any) -> Path:
        folder = run_folder(config)
        order.append(f"{config.lora.rank}/{config.seed}")
        folder.mkdir(parents=True, exist_ok=True)
        score = {2: 0.5, 4: 0.75}[config.lora.rank] + 0.05 * config.seed
        facts = {"score": score, "chosen_step": 2, "steps": 2, "seconds": 1.0}
        (folder / "training.json").write_text(json.dumps(facts))
        test = {"balanced_accuracy": {"value": 1 - score}}
        (folder / "results.json").write_text(json.dumps({"splits": {"test": {"metrics": test}}, "provenance": {}}))
        return folder

    monkeypatch.setattr(sweep_module, "train_run", train)
    return order


def hold(trial: Trial, search: SharedSearch) -> ExitStack:
    """Claim a trial as another agent would."""
    held = ExitStack()
    assert search._claim(lambda study: [trial], set(), held) is not None
    return held


def test_selection_uses_the_validation_score_and_not_the_test_score(
    write_sweep: WriteSweep, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipit.sweeps.sweep_page.save_plot", save_plot)
    path = write_sweep({"early_terminate": {"type": "hyperband", "min_iter": 1}})
    folder = run_sweep(plan_of(path))
    assert trained == ["2/0", "2/1", "4/0", "4/1"]
    facts = json.loads((folder / "sweep.json").read_text())
    assert facts["chosen"] == "lora.rank 4", "the best value on validation is the worst on the test split"
    text = (folder / "sweep.md").read_text()
    assert "| lora.rank 4 (chosen)" in text and "77.5 ± 3.5" in text and "nothing was selected on test scores" in text
    assert "early_terminate has no effect" in text
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [(row["lora.rank"], row["seed"]) for row in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert rows[3]["validation"] == pytest.approx(0.8) and rows[3]["test"] == pytest.approx(0.2)
    with (folder / "trials.csv").open() as stream:
        assert [float(row["validation"]) for row in csv.DictReader(stream)] == [row["validation"] for row in rows]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("*.tmp"))


def test_a_trial_that_diverges_does_not_stop_the_sweep(
    write_sweep: WriteSweep, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipit.sweeps.sweep_page.save_plot", save_plot)
    train = sweep_module.train_run

    def diverge(config: Any, workspace: Any) -> Path:
        if (config.lora.rank, config.seed) == (4, 0):
            raise DivergenceError("training diverged: the loss in step 1 is infinite or not a number")
        return train(config, workspace)

    monkeypatch.setattr(sweep_module, "train_run", diverge)
    path = write_sweep()
    log_lines = capture_log()
    folder = run_sweep(plan_of(path))
    assert any("lora.rank 4, seed 0: training diverged" in line for line in log_lines)
    assert trained == ["2/0", "2/1", "4/1"]
    text = (folder / "sweep.md").read_text()
    assert "lora.rank 2 (chosen)" in text and "Training diverged for at least one seed of: lora.rank 4." in text
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [row["validation"] is None for row in rows] == [False, False, True, False]
    reason = "training diverged: the loss in step 1 is infinite or not a number"
    assert json.loads((folder / "sweep.json").read_text())["failed"] == {"lora.rank 4, seed 0": reason}
    run_sweep(plan_of(path))


@pytest.mark.parametrize("launch", [None, "launcher"])
def test_a_sweep_with_only_diverging_trials_raises_an_error(
    write_sweep: WriteSweep, trained: list[str], monkeypatch: pytest.MonkeyPatch, launch: str | None
) -> None:
    """With --launch, trials run in other processes; this test runs them in its own."""
    monkeypatch.setattr("clipit.sweeps.sweep_page.save_plot", save_plot)
    started_ranks: list[str] = []

    def diverge(config: Any, workspace: Any = None) -> Path:
        started_ranks.append(str(config.lora.rank))
        make_folder(run_folder(config))
        raise DivergenceError("training diverged: the loss in step 1 is infinite or not a number")

    def run(command: list[str], check: bool) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", command[3:])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "scripts" / "sweep.py"), run_name="__main__")
        return SimpleNamespace(returncode=stop.value.code)

    monkeypatch.setattr(sweep_module, "train_run", diverge)
    monkeypatch.setattr(sweep_module.subprocess, "run", run)
    path = write_sweep({"parameters": {"lora.rank": {"values": [2, 4]}}})
    with pytest.raises(DivergenceError, match=r"every trial failed; reason for .*: .* the loss in step 1") as error:
        run_sweep(plan_of(path), launch)
    assert started_ranks == ["2", "4"]
    text = Path(str(error.value).split("where: ")[1].splitlines()[0]).read_text()
    assert "Nothing was chosen, because training diverged for at least one seed of every value." in text


def test_a_single_value_is_not_marked_as_chosen(write_sweep: WriteSweep, trained: list[str]) -> None:
    path = write_sweep({"parameters": {"lora.rank": {"values": [2]}, "seed": {"values": [0, 1]}}})
    text = (run_sweep(plan_of(path)) / "sweep.md").read_text()
    assert "| lora.rank 2 " in text and "(chosen)" not in text and "Nothing was chosen: only lora.rank 2" in text


def test_a_sweep_with_unusable_inputs_leaves_no_folder(write_sweep: WriteSweep, tmp_path: Path) -> None:
    plan = plan_of(write_sweep(keys={"reports.path": str(tmp_path / "absent.txt")}))
    with pytest.raises(ClipitError, match="no such report file or folder"):
        run_sweep(plan)
    assert not (plan.trials[0].config.output / "sweeps").exists()


def test_another_sweep_of_the_same_name_does_not_overwrite_the_tables(
    write_sweep: WriteSweep, trained: list[str]
) -> None:
    path = write_sweep()
    folder = run_sweep(plan_of(path))
    before = (folder / "sweep.md").read_text()
    other = {"lora.alpha": {"values": [1, 2]}, "lora.rank": {"values": [2]}}
    for changes, options, difference in (
        ({"parameters": other}, {}, r"lora\.alpha: \(absent\) in the folder, 1, 2 now\n +lora\.rank: .*\n +seed: .*"),
        (
            {"parameters": {"lora.rank": {"values": [4]}, "seed": {"values": [0, 1]}}},
            {},
            r"lora\.rank: 2, 4 in the folder, 4 now",
        ),
        ({}, {"training.steps": "3"}, r"training\.steps: .* in the folder, 3 now"),
    ):
        path = write_sweep(changes)
        with pytest.raises(ConfigError, match=rf"a different sweep named 'ranks'.*; differences:\n +{difference}\n"):
            run_sweep(plan_of(path, options))
        assert (folder / "sweep.md").read_text() == before
    more = {"lora.rank": {"values": [4, 2]}, "seed": {"values": [0, 1, 2]}}
    path = write_sweep({"parameters": more})
    run_sweep(plan_of(path))
    assert (folder / "sweep.md").read_text() != before


def test_a_sweep_does_not_depend_on_the_path_to_its_configuration(
    write_sweep: WriteSweep, trained: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = plan_of(write_sweep())
    folder, config = run_sweep(plan), Path(plan.sweep.options["config"])
    monkeypatch.chdir(config.parent)
    copy = tmp_path / "copy.yaml"
    copy.write_bytes(config.read_bytes())
    for name in (str(copy), config.name, f"../{config.parent.name}/{config.name}"):
        assert run_sweep(plan_of(plan.sweep.path, {"config": name})) == folder
    copy.write_bytes(config.read_bytes() + b"# another study\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"a different sweep(?s:.*)config: .*copy\.yaml now"):
        run_sweep(plan_of(plan.sweep.path, {"config": copy.name}))


def test_a_sweep_does_not_read_its_configuration_from_a_pipe(write_sweep: WriteSweep, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(
        ConfigError, match=r"--config is a pipe, but each trial reads it(?s:.*)save its content to a file"
    ):
        plan_of(write_sweep(), {"config": str(tmp_path / "pipe.yaml")})


def test_the_command_suggested_for_a_missing_one_is_valid(write_sweep: WriteSweep) -> None:
    path = write_sweep()
    values = yaml.safe_load(path.read_text())
    del values["command"]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"clipit init sweeps/lora_rank") as error:
        read_sweep(path)
    (line,) = [line for line in str(error.value).splitlines() if line.strip().startswith("command:")]
    path.write_text(f"{path.read_text()}{line.strip()}\n")
    assert read_sweep(path).options["config"] == "study.yaml"


def test_trials_that_share_a_run_are_logged(write_sweep: WriteSweep, trained: list[str]) -> None:
    path = write_sweep(
        {"parameters": {"lora.rank": {"values": [2, 4]}, "backbone.tuning": {"values": ["lora", "frozen"]}}}
    )
    log_lines = capture_log()
    run_sweep(plan_of(path))
    (note,) = [line for line in log_lines if line.startswith("note")]
    assert note == (
        "note: these trials are the same run: backbone.tuning frozen, lora.rank 2; backbone.tuning frozen, lora.rank 4"
    )


def test_the_best_group_has_the_highest_mean_over_all_seeds() -> None:
    assert best_group({"a": [0.5, 0.6], "b": [0.7, None], "c": [0.6, 0.5]}) == "a", (
        "undefined scores never win, and the first of equal scores does"
    )
    assert best_group({"a": [None]}) is None
    assert (
        format_values({"lora.rank": 2, "seed": 1}, without="seed") == "lora.rank 2"
        and format_values({"seed": 1}, without="seed") == "all seeds"
    )
    assert mean_per_value([(2.0, 1.0), (1.0, 5.0), (2.0, 3.0)]) == [(1.0, 5.0), (2.0, 2.0)]


def test_a_trial_claimed_by_another_agent_comes_last(write_sweep: WriteSweep, trained: list[str]) -> None:
    plan = plan_of(write_sweep())
    other = hold(plan.trials[0], SharedSearch(plan.trials[0].config.output / "sweeps" / "ranks" / "search"))

    def release(line: str) -> None:
        """Let the other agent end once this one waits."""
        if line.startswith("waiting"):
            other.close()

    log_lines = capture_log(release)
    run_sweep(plan)
    assert trained == ["2/1", "4/0", "4/1", "2/0"]
    waiting = [line for line in log_lines if line.startswith("waiting")]
    assert waiting == ["waiting: other agents are running the last 1 trial"]


def test_the_trial_of_a_killed_agent_is_taken_over(write_sweep: WriteSweep, trained: list[str]) -> None:
    path = write_sweep()
    plan = plan_of(path)
    code = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from clipit.runs.search import SharedSearch
from clipit.sweeps.sweep_file import read_sweep
from clipit.sweeps.trials import plan_sweep
plan = plan_sweep(read_sweep(Path(sys.argv[1])), {})
search = SharedSearch(Path(sys.argv[2]))
with ExitStack() as held:
    search._claim(lambda study: plan.trials, set(), held)
    print("held", flush=True)
    time.sleep(60)
"""
    folder = plan.trials[0].config.output / "sweeps" / "ranks" / "search"
    (path.parent / "agent.py").write_text(code, encoding="utf-8")
    agent = start(path.parent / "agent.py", path, folder)
    while agent.running() and agent.printed() != "held\n":
        time.sleep(0.02)
    assert agent.running(), agent.printed("stderr")
    started = time.monotonic()

    def kill(line: str) -> None:
        if line.startswith("waiting"):
            agent.kill()

    capture_log(kill)
    run_sweep(plan)
    assert agent.wait().returncode == -signal.SIGKILL
    assert trained[-1] == "2/0" and len(trained) == 4 and time.monotonic() - started < 30


def test_finished_trials_are_verified_and_an_interrupted_one_is_resumed(
    write_sweep: WriteSweep, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(write_sweep())
    train_run = sweep_module.train_run

    def stop(config: Any, workspace: Any) -> Path:
        if (config.lora.rank, config.seed) == (4, 0):
            raise LaunchError("stopped")
        return train_run(config, workspace)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "train_run", stop)
        with pytest.raises(LaunchError, match="stopped"):
            run_sweep(plan)
    assert trained == ["2/0", "2/1"]
    run_sweep(plan)
    assert trained[2:] == ["2/0", "2/1", "4/0", "4/1"]


def test_a_damaged_journal_is_refused(write_sweep: WriteSweep, trained: list[str]) -> None:
    plan = plan_of(write_sweep())
    journal = run_sweep(plan) / "search" / "trials.journal"
    for damage in ("not JSON\n", "{}\n", "[1]\n"):
        journal.write_text(damage * 2)
        with pytest.raises(ArtifactError, match=r"search journal is damaged(?s:.*)finished runs are kept"):
            run_sweep(plan)
    journal.unlink()
    run_sweep(plan)


def test_bayes_proposes_from_earlier_scores(write_sweep: WriteSweep, trained: list[str]) -> None:
    parameters = {"lora.rank": {"values": [2, 4]}, "training.learning_rate": {"min": 0.001, "max": 0.1}}
    path = write_sweep({"method": "bayes", "run_cap": 24, "parameters": parameters})
    plan = plan_of(path)
    assert plan.count == 24
    assert [tuple(trial.values.values()) for trial in plan.trials] == [(2, 0.001), (4, 0.001), (2, 0.1)]
    table = pd.read_parquet(run_sweep(plan_of(path, count=7)) / "trials.parquet")
    assert len(table) == 7 and len(trained) == 7
    table = pd.read_parquet(run_sweep(plan) / "trials.parquet")
    assert len(table) == 24 and table["training.learning_rate"].between(0.001, 0.1).all()
    assert (table["lora.rank"].tail(10) == 4).sum() >= 8, "rank 4 scores higher"
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        plan_of(write_sweep({"method": "bayes", "run_cap": 1, "parameters": {"lora.rank": {"values": [2, 0]}}}))


def test_bayes_skips_conflicting_values(write_sweep: WriteSweep, trained: list[str]) -> None:
    parameters = {"bags.weight": {"values": [0.0, 0.5]}, "pairing.k": {"values": [5, 1]}}
    path = write_sweep({"method": "bayes", "run_cap": 20, "parameters": parameters}, {"lora.rank": 2})
    log_lines = capture_log()
    table = pd.read_parquet(run_sweep(plan_of(path)) / "trials.parquet")
    assert {*zip(table["bags.weight"], table["pairing.k"], strict=True)} == {(0.0, 5), (0.0, 1), (0.5, 5)}
    assert any(line.startswith("note: skipped {'bags.weight': 0.5, 'pairing.k': 1}") for line in log_lines)


def test_sweeping_the_precision_requires_launched_trials(write_sweep: WriteSweep, trained: list[str]) -> None:
    path = write_sweep({"parameters": {"training.precision": {"values": ["no", "bf16"]}}})
    with pytest.raises(ConfigError, match="--launch"):
        run_sweep(plan_of(path))
    assert trained == []


@pytest.mark.slow
def test_launched_trials_get_their_options_and_are_not_repeated(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the commands of --launch in this process; a second start skips all of them."""
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        commands.append(command)
        monkeypatch.setattr(sys, "argv", command[5:])
        runpy.run_path(str(ROOT / "scripts" / "sweep.py"), run_name="__main__")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(sweep_module.subprocess, "run", run)
    path = write_sweep({"parameters": {"lora.rank": {"values": [2, 4]}}})
    launch = "ACCELERATE_USE_CPU=1 launcher"
    folder = run_sweep(plan_of(path, {"lora.alpha": "4"}), launch)
    assert [command[:6] for command in commands] == [
        ["env", "ACCELERATE_USE_CPU=1", "launcher", "-m", "clipit", "sweep"]
    ] * 2
    assert all("--trial" in command and "--lora.alpha=4" in command for command in commands)
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    ranks = []
    for row in rows:
        trial_folder = folder.parents[1] / row["run"]
        config = yaml.safe_load((trial_folder / "config.yaml").read_text())
        ranks.append((row["lora.rank"], config["lora"]["rank"], config["lora"]["alpha"], len(losses(trial_folder))))
    assert ranks == [(2, 2, 4.0, 2), (4, 4, 4.0, 2)]
    run_sweep(plan_of(path, {"lora.alpha": "4"}), launch)
    assert len(commands) == 2
    assert capsys.readouterr().err == ""


def test_a_failing_launch_stops_the_sweep(write_sweep: WriteSweep) -> None:
    path = write_sweep()
    with pytest.raises(LaunchError, match=r"exit status 1(?s:.*)--lora\.rank=2"):
        run_sweep(plan_of(path), "false")
    with pytest.raises(LaunchError, match="cannot be started"):
        run_sweep(plan_of(path), "no-such-launcher")
    with pytest.raises(LaunchError, match=r"did not train its run(?s:.*)correct --launch"):
        run_sweep(plan_of(path), "true")


@pytest.mark.slow
def test_two_agents_share_the_trials(write_sweep: WriteSweep) -> None:
    path = write_sweep({"parameters": {"lora.rank": {"values": [2, 4]}}}, {"arm": "image_only"})
    other = start(ROOT / "scripts" / "sweep.py", path)
    folder = run_sweep(plan_of(path))
    summary = (folder / "sweep.md").read_text()
    result = other.wait()
    assert result.returncode == 0, result.stderr
    table = summary[: summary.index("One seed per row")].strip()
    assert table in result.stdout and "| lora.rank 4" in table and "![scores]" not in result.stdout
    for trial in all_trials(path):
        assert len(losses(run_folder(trial.config))) == 2, "each run is trained once"


def test_the_script_prints_errors_without_a_traceback(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(write_sweep({"method": "gird"}))])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / "sweep.py"), run_name="__main__")
    assert stop.value.code == 2 and "method must be grid, random or bayes" in capsys.readouterr().err
    assert issubclass(ConfigError, ClipitError)


def test_a_search_opens_without_delay_after_a_kill_during_a_write(tmp_path: Path) -> None:
    SharedSearch(tmp_path).study.add_trial(optuna.trial.create_trial(value=0.5))
    journal = tmp_path / "trials.journal"
    (tmp_path / "trials.journal.lock").touch()  # Optuna's lock file, which a killed process leaves behind
    with journal.open("a", encoding="utf-8") as stream:
        stream.write('{"op_code": 4, "worker')
    started = time.monotonic()
    for number in (1, 2):
        study = SharedSearch(tmp_path).study
        assert [trial.value for trial in study.trials] == [0.5] * number
        study.add_trial(optuna.trial.create_trial(value=0.5))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"intermediate_values":{}', '"intermediate_values":true'),
        ('"op_code":4', '"op_code":[]'),
        ('"params":{', '"params":1,"x":{'),
        ('{"op_code":4', '[{"op_code":4'),
    ],
)
def test_the_error_for_a_damaged_journal_names_the_file(
    old: str, new: str, configure: MakeConfig, tmp_path: Path
) -> None:
    SharedSearch(tmp_path)._start(Trial({"lora.rank": 2}, configure()))
    journal = tmp_path / "trials.journal"
    content = journal.read_text(encoding="utf-8")
    assert old in content
    journal.write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"the search journal is damaged[\s\S]*trials\.journal"):
        SharedSearch(tmp_path)


def test_a_changed_score_in_the_journal_is_warned_about(configure: MakeConfig, tmp_path: Path) -> None:
    """The reported scores come from the runs, but the sampler uses the scores in the journal."""
    trials = [Trial({"lora.rank": rank}, configure()) for rank in (2, 4)]
    log_lines = capture_log()
    SharedSearch(tmp_path).run(lambda study: trials, lambda trial: 0.25 * trial.values["lora.rank"])
    SharedSearch(tmp_path).run(lambda study: trials, lambda trial: 0.25 * trial.values["lora.rank"])
    SharedSearch(tmp_path).run(lambda study: trials, lambda trial: 0.25 * trial.values["lora.rank"] - 1e-12)
    assert not log_lines, "equal scores, up to rounding"
    journal = tmp_path / "trials.journal"
    content = journal.read_text(encoding="utf-8")
    journal.write_text(content.replace('"values":[0.5]', '"values":[0.75]'), encoding="utf-8")
    SharedSearch(tmp_path).run(lambda study: trials, lambda trial: 0.25 * trial.values["lora.rank"])
    assert len(log_lines) == 1 and "the score of trial 0 is 0.75, but the score of its run is 0.5" in log_lines[0]


def test_the_configuration_may_precede_the_sweep_file(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--config", "absent.yaml", str(write_sweep({}))])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "scripts" / "sweep.py"), run_name="__main__")
    errors = capsys.readouterr().err
    assert "no such configuration file" in errors and "absent.yaml" in errors
