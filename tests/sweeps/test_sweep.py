"""Sweeps without a server: the file is checked first, agents share the trials, validation chooses."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from filelock import FileLock
from logged_lines import capture_log
from run_files import losses

import clipit.sweeps.run as sweep_module
from clipit.errors import ClipitError, ConfigError, LaunchError
from clipit.reporting.sweep_plot import means
from clipit.runs.folder import run_folder
from clipit.sweeps.file import options_of, read_sweep
from clipit.sweeps.report import best_group, label
from clipit.sweeps.run import run_sweep
from clipit.sweeps.trials import Trial, one_trial, trials

ROOT = Path(__file__).parents[2]
WriteConfig = Callable[..., Path]
WriteSweep = Callable[..., Path]


@pytest.fixture
def write_sweep(write_config: WriteConfig, shared_output: Path, tmp_path: Path) -> WriteSweep:
    """A sweep over the small world; keys of the file can be changed."""

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


def all_trials(path: Path, given: dict[str, str] | None = None, **options: Any) -> list[Trial]:
    return trials(read_sweep(path), given or {}, **options)


# The file ---------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_in_order(write_sweep: WriteSweep) -> None:
    found = all_trials(write_sweep())
    assert [(t.config.lora.rank, t.config.seed) for t in found] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert [t.config.name for t in found] == ["ranks-lora.rank_2"] * 2 + ["ranks-lora.rank_4"] * 2
    assert len({run_folder(t.config) for t in found}) == 4
    assert len(all_trials(write_sweep({"run_cap": 3}))) == 3
    twice = write_sweep({"parameters": {"lora.rank": {"values": [2, "2", 4]}}})
    assert [t.config.lora.rank for t in all_trials(twice)] == [2, 4]


def test_options_win_over_the_file_and_trackers_stay_off(write_sweep: WriteSweep) -> None:
    path = write_sweep()
    values = yaml.safe_load(path.read_text())
    values["command"][-1:] = ["--tracking.tracker=wandb", "--training.steps=5", "${args}"]
    values["parameters"]["lora.alpha"] = {"value": 3}
    path.write_text(yaml.safe_dump(values))
    config = all_trials(path)[0].config
    assert (config.training.steps, config.lora.alpha, config.tracking.tracker) == (5, 3.0, "none")
    assert all_trials(path, {"training.steps": "7"})[0].config.training.steps == 7


def test_a_swept_value_wins_over_the_arm(write_sweep: WriteSweep) -> None:
    from clipit.training.arms import resolve_arm

    swept = {"parameters": {"distillation.tiles": {"values": ["labelled", "all"]}}}
    found = all_trials(write_sweep(swept, {"arm": "clip_it_all"}))
    assert [resolve_arm(t.config).distillation.tiles for t in found] == ["labelled", "all"]


def test_keys_that_the_configuration_has_not_are_all_listed(write_sweep: WriteSweep) -> None:
    parameters = {
        "lora.rnak": {"values": [1]}, "training.learning_rat": {"values": [1]}, "qqqq": {"value": 1},
        "lora": {"value": 1}, "seed": {"values": [0]}, "lora.alpha": {"parameters": {"x": {}}},
        "name": {"values": ["a"]},
    }  # fmt: skip
    with pytest.raises(ConfigError) as error:
        read_sweep(write_sweep({"parameters": parameters}))
    text = str(error.value)
    assert "nothing was run; 6 problems" in text
    assert "no key of the configuration is called 'lora.rnak' (did you mean 'lora.rank'" in text
    assert "'training.learning_rat' (did you mean 'training.learning_rate'" in text
    for part in ("'qqqq'", "'lora' is a section", "'lora.alpha' is nested", "'name' cannot be swept"):
        assert part in text


def test_values_that_are_not_valid_are_all_listed_before_anything_runs(write_sweep: WriteSweep, tmp_path: Path) -> None:
    parameters = {"lora.rank": {"values": [2, 0, "many"]}, "training.precision": {"values": ["no", "bf61"]}}
    with pytest.raises(ConfigError) as error:
        all_trials(write_sweep({"parameters": parameters}))
    text = str(error.value)
    assert "3 problems" in text and "'lora.rank'" in text and "many" in text and "bf61" in text
    assert not (tmp_path / "out").exists()


def test_values_that_contradict_the_arm(write_sweep: WriteSweep) -> None:
    parameters = {"bags.weight": {"values": [0.0, 0.5]}, "pairing.k": {"values": [1, 5]}}
    with pytest.raises(
        ConfigError, match=r"1 problem in the sweep(?s:.*)needs as many pairs per tile: pairing\.k is 1"
    ):
        all_trials(write_sweep({"parameters": parameters}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "bayes"}, "wandb's server(?s:.*)method: random"),
        ({"method": "gird"}, "grid or random"),
        ({"metric": {"name": "validation_balanced_accuracy", "goal": "minimize"}}, "maximize"),
        ({"metric": {"name": "accuracy"}}, "log 'validation_balanced_accuracy'"),
        ({"parameters": {}}, "parameters is a mapping"),
        ({"parameters": {"lora.rank": {"min": 1, "max": 9}}}, "a grid needs values"),
        ({"parameters": {"lora.targets": {"values": [["qkv"]]}}}, "quoted string of JSON"),
        ({"parameters": {"lora.rank": [2]}}, "give {values"),
        ({"colour": "red"}, "'colour' is no key of a sweep"),
        ({"run_cap": 0}, "run_cap"),
        ({"command": ["python", "train.py"]}, "holds \\$\\{program\\}"),
        ({"command": ["${program}", "--config=a"]}, "must hold \\$\\{args\\}"),
        ({"command": ["${program}", "${args}"]}, "must hold --config"),
        ({"command": ["${program}", "--config", "a", "${args}"]}, "in one item"),
        ({"method": "random"}, "how many values"),
        ({"method": "random", "parameters": {"lora.rank": {"distribution": "normal"}}}, "'normal' is not known"),
        ({"method": "random", "parameters": {"lora.rank": {"min": 9, "max": 1}}}, "min below max"),
    ],
)  # fmt: skip
def test_files_that_are_refused(write_sweep: WriteSweep, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        all_trials(write_sweep(changes))


def test_draws_are_repeatable_and_the_first_stay_the_same(write_sweep: WriteSweep) -> None:
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
    two = write_sweep({"method": "random", "run_cap": 5, "parameters": {"lora.rank": {"values": [2, 4]}}})
    assert sorted(t.config.lora.rank for t in all_trials(two)) == [2, 4], "no combination twice"


def test_options_of_a_command_line() -> None:
    assert options_of(["--a.b=1", "--c", "2", "--d={}"]) == {"a.b": "1", "c": "2", "d": "{}"}
    with pytest.raises(ConfigError, match="'stray' belongs to no option"):
        options_of(["--a=1", "stray"])


def test_a_trial_needs_its_values(write_sweep: WriteSweep) -> None:
    sweep = read_sweep(write_sweep())
    with pytest.raises(ConfigError, match=r"a value of seed(?s:.*)--seed=\.\.\."):
        one_trial(sweep, {"lora.rank": "2"})
    trial = one_trial(sweep, {"lora.rank": "2", "seed": "1"})
    assert run_folder(trial.config) == run_folder(trials(sweep, {})[1].config)
    with pytest.raises(ConfigError, match="named by their values"):
        trials(sweep, {"name": "mine"})
    with pytest.raises(ConfigError, match=r"lora\.rank cannot be given, it is swept"):
        trials(sweep, {"lora.rank": "2"})


def test_names_with_odd_values_stay_apart(write_sweep: WriteSweep) -> None:
    values = ['["qkv"]', '["mlp"]', '[ "mlp"]']
    found = all_trials(write_sweep({"parameters": {"lora.targets": {"values": values}}}))
    assert len({t.config.name for t in found}) == 3
    assert [t.config.lora.targets for t in found] == [("qkv",), ("mlp",), ("mlp",)]


def test_a_key_that_changes_no_run_is_refused(write_sweep: WriteSweep) -> None:
    frozen = {"backbone.tuning": "frozen"}
    with pytest.raises(ConfigError, match=r"lora\.rank changes none of the runs"):
        all_trials(write_sweep(keys=frozen))
    with pytest.raises(ConfigError, match=r"pairing\.k changes none of the runs"):
        all_trials(write_sweep({"parameters": {"pairing.k": {"values": [1, 5]}}}, {"arm": "image_only"}))
    with pytest.raises(ConfigError, match=r"distillation\.weight changes none of the runs"):
        all_trials(write_sweep({"parameters": {"distillation.weight": {"values": [1, 5]}}}, {"arm": "image_only"}))
    some = {"lora.rank": {"values": [2, 4]}, "backbone.tuning": {"values": ["lora", "frozen"]}}
    assert len(all_trials(write_sweep({"parameters": some}))) == 4
    assert len(all_trials(write_sweep({"parameters": {"bags.weight": {"values": [0.0]}}}))) == 1


# Agents -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trainings that only write what the tables need; their order."""
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


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("confusion_plot", "reliability_plot", "curves_plot"):
        monkeypatch.setattr(f"clipit.runs.evaluate.{name}", lambda *_, **__: None)


def claim_of(trial: Trial, name: str = "ranks") -> Path:
    folder = run_folder(trial.config)
    return trial.config.output / "sweeps" / name / "claims" / f"{folder.parent.name}-{folder.name}.lock"


def test_validation_chooses_and_the_test_score_does_not(write_sweep: WriteSweep, pretended: list[str]) -> None:
    path = write_sweep({"early_terminate": {"type": "hyperband", "min_iter": 1}})
    folder = run_sweep(read_sweep(path), all_trials(path))
    assert pretended == ["2/0", "2/1", "4/0", "4/1"]
    facts = json.loads((folder / "sweep.json").read_text())
    assert facts["chosen"] == "lora.rank 4", "the best on validation is the worst on the test split here"
    text = (folder / "sweep.md").read_text()
    assert "| lora.rank 4 (chosen)" in text and "77.5 ± 3.5" in text and "test scores chose nothing" in text
    assert "early_terminate has no effect" in text
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [(row["lora.rank"], row["seed"]) for row in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert rows[3]["validation"] == pytest.approx(0.8) and rows[3]["test"] == pytest.approx(0.2)
    with (folder / "trials.csv").open() as stream:
        assert [float(row["validation"]) for row in csv.DictReader(stream)] == [row["validation"] for row in rows]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("*.tmp"))


def test_another_sweep_of_the_same_name_does_not_overwrite_the_tables(
    write_sweep: WriteSweep, pretended: list[str]
) -> None:
    path = write_sweep()
    folder = run_sweep(read_sweep(path), all_trials(path))
    before = (folder / "sweep.md").read_text()
    other = {"lora.alpha": {"values": [1, 2]}, "lora.rank": {"values": [2]}}
    for changes, given, what in (
        ({"parameters": other}, {}, r"lora\.alpha, lora\.rank, seed"),
        ({"parameters": {"lora.rank": {"values": [4]}, "seed": {"values": [0, 1]}}}, {}, r"lora\.rank"),
        ({}, {"training.steps": "3"}, r"training\.steps"),
    ):
        path = write_sweep(changes)
        with pytest.raises(ConfigError, match=rf"another sweep called 'ranks'.* different are: {what}\n"):
            run_sweep(read_sweep(path), all_trials(path, given))
        assert (folder / "sweep.md").read_text() == before
    more = {"lora.rank": {"values": [4, 2]}, "seed": {"values": [0, 1, 2]}}
    path = write_sweep({"parameters": more})
    run_sweep(read_sweep(path), all_trials(path))
    assert (folder / "sweep.md").read_text() != before


def test_trials_that_are_one_run_are_told(write_sweep: WriteSweep, pretended: list[str]) -> None:
    path = write_sweep(
        {"parameters": {"lora.rank": {"values": [2, 4]}, "backbone.tuning": {"values": ["lora", "frozen"]}}}
    )
    said = capture_log()
    run_sweep(read_sweep(path), all_trials(path))
    (note,) = [line for line in said if line.startswith("note")]
    assert note == (
        "note: one and the same run: backbone.tuning frozen, lora.rank 2; backbone.tuning frozen, lora.rank 4"
    )


def test_best_group() -> None:
    assert best_group({"a": [0.5, 0.6], "b": [0.7, None], "c": [0.6, 0.5]}) == "a", "undefined never wins, ties: first"
    assert best_group({"a": [None]}) is None
    assert label({"lora.rank": 2, "seed": 1}, "seed") == "lora.rank 2" and label({"seed": 1}, "seed") == "all seeds"
    assert means([(2.0, 1.0), (1.0, 5.0), (2.0, 3.0)]) == [(1.0, 5.0), (2.0, 2.0)]


def test_what_another_agent_works_on_comes_last(write_sweep: WriteSweep, pretended: list[str]) -> None:
    path = write_sweep()
    found = all_trials(path)
    claim_of(found[0]).parent.mkdir(parents=True)
    other = FileLock(claim_of(found[0]))
    other.acquire()

    def release(line: str) -> None:
        """The other agent ends when this one has begun to wait."""
        if line.startswith("waiting"):
            other.release()

    said = capture_log(release)
    run_sweep(read_sweep(path), found)
    assert pretended == ["2/1", "4/0", "4/1", "2/0"]
    assert [line for line in said if line.startswith("waiting")] == ["waiting: other agents work on the last 1 trials"]


def test_the_trial_of_a_killed_agent_is_taken_over(write_sweep: WriteSweep, pretended: list[str]) -> None:
    path = write_sweep()
    found = all_trials(path)
    claim_of(found[0]).parent.mkdir(parents=True)
    code = (
        "import sys, time\nfrom filelock import FileLock\nlock = FileLock(sys.argv[1])\nlock.acquire()\n"
        "print('held', flush=True)\ntime.sleep(60)\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", code, str(claim_of(found[0]))], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None and agent.stdout.readline() == "held\n"
    begun = time.monotonic()

    def kill(line: str) -> None:
        if line.startswith("waiting"):
            agent.send_signal(signal.SIGKILL)

    capture_log(kill)
    run_sweep(read_sweep(path), found)
    agent.wait()
    agent.stdout.close()
    assert pretended[-1] == "2/0" and len(pretended) == 4 and time.monotonic() - begun < 30


def test_one_program_has_one_precision(write_sweep: WriteSweep, pretended: list[str]) -> None:
    path = write_sweep({"parameters": {"training.precision": {"values": ["no", "bf16"]}}})
    with pytest.raises(ConfigError, match="--launch"):
        run_sweep(read_sweep(path), all_trials(path))
    assert pretended == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_a_sweep_started_trial_by_trial(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The very commands that --launch gives, run here instead of by a launcher; the second start skips all."""
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        commands.append(command)
        monkeypatch.setattr(sys, "argv", command[3:])
        runpy.run_path(str(ROOT / "scripts" / "sweep.py"), run_name="__main__")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(sweep_module.subprocess, "run", run)
    path = write_sweep({"parameters": {"lora.rank": {"values": [2, 4]}}})
    launch = "ACCELERATE_USE_CPU=1 launcher"
    folder = run_sweep(read_sweep(path), all_trials(path, {"lora.alpha": "4"}), launch)
    assert [command[:4] for command in commands] == [
        ["env", "ACCELERATE_USE_CPU=1", "launcher", "scripts/sweep.py"]
    ] * 2
    assert all("--trial" in command and "--lora.alpha=4" in command for command in commands)
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    ranks = []
    for row in rows:
        run_of = folder.parents[1] / row["run"]
        config = yaml.safe_load((run_of / "config.yaml").read_text())
        ranks.append((row["lora.rank"], config["lora"]["rank"], config["lora"]["alpha"], len(losses(run_of))))
    assert ranks == [(2, 2, 4.0, 2), (4, 4, 4.0, 2)]
    run_sweep(read_sweep(path), all_trials(path, {"lora.alpha": "4"}), launch)
    assert len(commands) == 2
    assert capsys.readouterr().err == ""


def test_a_trial_that_fails_stops_the_sweep(write_sweep: WriteSweep) -> None:
    path = write_sweep()
    with pytest.raises(LaunchError, match=r"exit status 1(?s:.*)--lora\.rank=2"):
        run_sweep(read_sweep(path), all_trials(path), "false")
    with pytest.raises(LaunchError, match="cannot be started"):
        run_sweep(read_sweep(path), all_trials(path), "no-such-launcher")


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_two_agents_at_once(write_sweep: WriteSweep) -> None:
    path = write_sweep({"parameters": {"lora.rank": {"values": [2, 4]}}}, {"arm": "image_only"})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), str(path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    folder = run_sweep(read_sweep(path), all_trials(path))
    summary = (folder / "sweep.md").read_text()
    out, error = other.communicate(timeout=120)
    assert other.returncode == 0, error
    assert summary.strip() in out and "| lora.rank 4" in summary
    for trial in all_trials(path):
        assert len(losses(run_folder(trial.config))) == 2, "trained once"


def test_the_script_shows_a_user_s_mistake(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(write_sweep({"method": "bayes"}))])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / "sweep.py"), run_name="__main__")
    assert stop.value.code == 2 and "error: method bayes asks wandb's server" in capsys.readouterr().err
    assert issubclass(ConfigError, ClipitError)
