"""Tests of launch checks, work sharing between processes, and the shuffled sample stream."""

import os
import subprocess
import sys
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import run_two
from torch.distributed import HashStore, distributed_c10d

from clipit import distributed
from clipit.distributed import Processes, check_backend, check_launch, get_processes, stream_positions
from clipit.errors import LaunchError


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def launch_fails(count: int) -> bool:
    try:
        check_launch(count)
    except LaunchError:
        return True
    return False


def test_intended_launch_is_accepted(environment: pytest.MonkeyPatch) -> None:
    assert not launch_fails(1)
    environment.setenv("WORLD_SIZE", "2")
    environment.setenv("RANK", "0")
    environment.setenv("MASTER_ADDR", "127.0.0.1")
    assert not launch_fails(2)
    assert launch_fails(1), "one process in the environment of two"


def test_uncoordinated_processes_raise_an_error(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORLD_SIZE", "2")
    environment.setenv("RANK", "1")
    with pytest.raises(LaunchError, match="ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2"):
        check_launch(1)


def test_single_process_of_a_multi_process_launch_raises_an_error(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(LaunchError, match=r"only one was started(?s:.*)ACCELERATE_USE_CPU=1"):
        check_launch(1)


@pytest.mark.slow
def test_failure_of_one_process_stops_the_other_without_a_traceback(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from clipit.distributed import get_processes\n"
        "from clipit.errors import ClipitError, user_errors\n"
        "with user_errors():\n"
        "    if get_processes().main:\n"
        "        raise ClipitError('the folder cannot be created')\n"
        "    get_processes().broadcast(None)\n",
        encoding="utf-8",
    )
    completed = run_two(script)
    assert completed.returncode == 2, completed.stderr
    assert "error: the folder cannot be created" in completed.stderr
    assert "error: another process of this command has exited" in completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_launch_that_shards_the_model_raises_an_error(environment: pytest.MonkeyPatch, kind: str) -> None:
    check_backend()
    environment.setenv(f"ACCELERATE_USE_{kind}", "false")
    check_backend()
    environment.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(LaunchError, match="which clipit does not support"):
        check_backend()


def test_single_process() -> None:
    processes = get_processes()
    assert processes.main and processes.count == 1
    assert processes.gather({"a": 1}) == [{"a": 1}]
    assert processes.broadcast("x") == "x"
    processes.barrier()


def test_shares_are_disjoint_and_complete() -> None:
    device = get_processes().device
    shares = [list(Processes(rank, 3, device).share(range(10))) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(10))


@pytest.mark.parametrize("count", [1, 3, 7, 10, 25])
def test_stream_visits_each_item_once_per_epoch(count: int) -> None:
    size = 10
    stream = np.concatenate([stream_positions(0, "labelled", s * count, count, size) for s in range(20)])
    for epoch in range(len(stream) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_stream_depends_on_seed_name_and_position_only() -> None:
    whole = stream_positions(1, "labelled", 0, 40, 10)
    assert np.array_equal(stream_positions(1, "labelled", 13, 9, 10), whole[13:22])
    assert not np.array_equal(stream_positions(2, "labelled", 0, 40, 10), whole)
    assert not np.array_equal(stream_positions(1, "unlabelled", 0, 40, 10), whole)
    assert not np.array_equal(whole[:10], whole[10:20])
    assert len(stream_positions(1, "labelled", 5, 0, 10)) == 0


def test_each_item_is_claimed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(distributed, "_claims", repeat(0))  # simulate two processes in one: both make the same call
    slow, fast = (Processes(rank, 2, torch.device("cpu")).claim("abcde") for rank in range(2))
    assert next(slow) == "a"
    assert list(fast) == ["b", "c", "d", "e"]
    assert list(slow) == []
    assert list(Processes(0, 1, torch.device("cpu")).claim("ab")) == ["a", "b"]


_FRESH_PAGES = """
import resource
import torch
from clipit.distributed import get_processes

get_processes()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(4_000_000) for _ in range(6)]  # 96 MB
    del blocks
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the thresholds are specific to glibc")
def test_freed_memory_is_reused_unless_the_user_sets_malloc_thresholds() -> None:
    def pages(**variables: str) -> list[int]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", _FRESH_PAGES]  # not forked: glibc reads the variables at process start
        completed = subprocess.run(
            command, env={**environment, **variables}, capture_output=True, text=True, check=True
        )
        return [int(line) for line in completed.stdout.split()]

    first, *later = pages()
    assert first > 20_000 and sum(later) < first, "in pages of 4 KB"
    assert sum(pages(MALLOC_TRIM_THRESHOLD_="131072")[1:]) > 2 * first
