"""Tests that agents share the runs of a comparison or search and give the same results as one process."""

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from launching import Program, start
from logged_lines import capture_log
from tiny_models import SMALL_COMPARISON, MakeFile, with_comparison, with_run

from clipit.comparison import agents
from clipit.comparison.agents import additional_agents, claim_runs, compose_request
from clipit.comparison.compare import compare
from clipit.comparison.tune import tune
from clipit.config.file import ConfigFile
from clipit.distributed import Processes
from clipit.errors import ArtifactError, ConfigError
from clipit.evaluation.predictions import read_run_predictions

pytestmark = pytest.mark.slow

SMALL = {
    **SMALL_COMPARISON,
    "comparison.seeds": [1],
    "comparison.analyses": [],
    "comparison.learning_rates": [0.001],
    "comparison.steps": [1],
}


@pytest.fixture
def small(configure_file: MakeFile, tmp_path: Path) -> ConfigFile:
    return configure_file({**SMALL, "output": tmp_path})


class ForkedAgent(Program):
    """Replacement of `subprocess.Popen` that forks an agent from a process with the libraries imported."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], **_: object) -> None:
        super().__init__(command[1:], env, plots=False)

    def poll(self) -> int | None:
        return self.process.exitcode

    def communicate(self) -> None:
        assert self.wait().returncode == 0


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork agents instead of starting new processes, as only `test_agent_trains_the_same_runs_as_one_process` does."""
    monkeypatch.setattr(agents, "subprocess", SimpleNamespace(Popen=ForkedAgent, PIPE=subprocess.PIPE))


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until a condition holds; fail after a timeout."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def is_locked(folder: Path) -> bool:
    lock = FileLock(folder.with_name(f".{folder.name}.agent.lock"))
    try:
        with lock.acquire(blocking=False):
            return False
    except Timeout:
        return True


def test_agent_trains_the_same_runs_as_one_process(small: ConfigFile, tmp_path: Path) -> None:
    runs = {arm: tmp_path / "runs" / small.run.name / f"{arm}-seed1" for arm in small.comparison.arms}
    with additional_agents(2, "compare", small.run, small.comparison):  # this process trains nothing
        wait_for(lambda: all((folder / "results.json").is_file() for folder in runs.values()))
    lines = capture_log()
    compare(small.run, small.comparison, agents=1)
    assert sum(line.startswith("kept") for line in lines) == 2
    single, single_runs = with_run(small, output=tmp_path / "own"), tmp_path / "own" / "runs" / small.run.name
    compare(single.run, single.comparison)
    for folder in runs.values():
        shared, expected = (read_run_predictions(root) for root in (folder, single_runs / folder.name))
        assert shared.ids.tolist() == expected.ids.tolist()
        np.testing.assert_allclose(shared.probabilities, expected.probabilities, atol=1e-5)  # numbers of threads differ


@pytest.mark.usefixtures("forked")
def test_comparison_with_two_agents_is_complete(small: ConfigFile, tmp_path: Path) -> None:
    file = with_comparison(small, arms=("image_only",), seeds=(1, 2))
    threads = torch.get_num_threads()
    folder = compare(file.run, file.comparison, agents=2)
    assert (folder / "comparison.parquet").is_file() and torch.get_num_threads() == threads


@pytest.mark.usefixtures("forked")
def test_search_trials_are_shared(small: ConfigFile) -> None:
    file = with_comparison(small, arms=("image_only",), learning_rates=(0.001, 0.01))
    trained = small.run.output / "runs"
    with additional_agents(2, "tune", file.run, file.comparison):
        wait_for(lambda: len([*trained.rglob("results.json")]) == 2)
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("results.json")}
    tune(file.run, file.comparison)
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("results.json")}


def test_agent_exits_with_its_parent_process(small: ConfigFile, tmp_path: Path) -> None:
    long = with_run(small, training=small.run.training.model_copy(update={"steps": 1_000_000}))
    agent = start("-m", "clipit.comparison.agent_process")
    agent.stdin.write(compose_request("compare", long.run, long.comparison))
    agent.stdin.flush()
    folder = tmp_path / "runs" / small.run.name / "image_only-seed1"
    wait_for(lambda: folder.exists() and is_locked(folder))
    agent.stdin.close()  # as the operating system does when the parent exits or is killed
    assert agent.wait(timeout=60).returncode == 0
    assert not is_locked(folder) and not (folder / "results.json").exists()


def test_runs_claimed_by_other_agents_come_last(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "third")]
    folders[1].mkdir()
    (folders[1] / "results.json").write_text("{}", encoding="utf-8")
    locked, finish = threading.Event(), threading.Event()

    def train() -> None:
        with FileLock(tmp_path / ".first.agent.lock"):
            locked.set()
            finish.wait()

    other = threading.Thread(target=train)
    other.start()
    locked.wait()
    lines = capture_log(lambda line: finish.set())  # the other agent finishes once this one waits
    turns = claim_runs(folders)
    assert [next(turns), next(turns)] == [1, 2]
    assert next(turns) == 0 and [*turns] == []
    other.join()
    assert lines == ["waiting for other agents, which are training the last 1 run"]


def test_run_that_another_agent_is_scoring_is_claimed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / name for name in ("scored", "finished")]
    for folder in folders:
        folder.mkdir()
        (folder / "results.json").write_text("{}", encoding="utf-8")
    other = FileLock(folders[0].with_name(".scored.agent.lock"))
    with other.acquire(blocking=False):
        turn = claim_runs(folders)
        assert next(turn) == 1
    assert [*turn] == [0]

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", denied)  # another user's folder
    assert [*claim_runs(folders)] == [0, 1]
    with pytest.raises(ArtifactError, match="no permission"):
        next(claim_runs([tmp_path / "new"]))


def test_invalid_numbers_of_agents_raise_errors(small: ConfigFile, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="use at least one"):
        compare(small.run, small.comparison, agents=0)
    assert not (small.run.output / "runs").exists()
    monkeypatch.setattr(agents, "get_processes", lambda: Processes(0, 2, torch.device("cpu")))
    with (
        pytest.raises(ConfigError, match="without accelerate launch"),
        additional_agents(2, "tune", small.run, small.comparison),
    ):
        pass
    monkeypatch.setattr(agents, "get_processes", lambda: Processes(0, 1, torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--agents 1"):
        additional_agents(2, "tune", small.run, small.comparison).__enter__()
