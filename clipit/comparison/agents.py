"""Agents: processes that share the runs of a comparison or search; each agent trains whole runs.

Small models use several CPU cores poorly, so several runs side by side take less time than one after the other; with
several GPUs, each agent has its own. An agent locks the run that it trains. The operating system releases the lock with
the process, so that another agent takes over the run of a killed one.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from clipit.artifacts import lock_file, make_folder
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ArtifactError, ConfigError, counted, disk_errors

logger = logging.getLogger(__name__)
_DEMO_AGENTS = 4
Task = Literal["compare", "tune"]


def in_turn(folders: Sequence[Path]) -> Iterator[int]:
    """Yield the index of every run, each locked against other agents until the next is asked for.

    Finished runs and those that nobody trains come first, in order; then those that other agents have finished since.
    A run that another agent has just finished is left to it until it has also scored the additional test sets.

    Args:
        folders: Folders of the runs, which need not exist.
    """
    processes, remaining = get_processes(), list(range(len(folders)))
    while remaining:
        with ExitStack() as held:
            index = processes.broadcast(_claim(folders, remaining, held) if processes.main else 0)
            remaining.remove(index)
            yield index


def _claim(folders: Sequence[Path], remaining: Sequence[int], held: ExitStack) -> int:
    """Return the first run that is finished or could be locked; the lock is released when `held` closes."""
    while True:
        for index in remaining:
            folder = folders[index]
            try:
                with disk_errors(folder):
                    make_folder(folder.parent)
                    held.enter_context(FileLock(_lock(folder)).acquire(blocking=False))
            except Timeout:
                continue
            except ArtifactError:
                if not (folder / "results.json").is_file():
                    raise  # a finished run in a folder that cannot be written is only read
            return index
        logger.info(f"waiting: other agents train the last {counted(len(remaining), 'run')}")
        with FileLock(_lock(folders[remaining[0]])):  # its holder finishes the run, or dies
            pass


def _lock(folder: Path) -> Path:
    return lock_file(folder.with_name(f"{folder.name}.agent"))


def demo_agents() -> int:
    """Return the number of agents of the demo: one per CPU core, at most 4; with a GPU, one."""
    import torch

    return 1 if get_processes().device.type == "cuda" else min(_DEMO_AGENTS, torch.get_num_threads())


@contextmanager
def more_agents(count: int, task: Task, config: RunConfig, comparison: ComparisonConfig) -> Iterator[None]:
    """Share the runs that the body trains with `count - 1` additional agents on this machine, which end with it.

    Without a GPU, the agents share the CPU threads; with GPUs, each agent uses one.

    Args:
        count: Number of agents, this process included.
        task: Whether the runs are those of the comparison or of the search for hyperparameters.
        config: Configuration that all runs share.
        comparison: Arms, seeds, data sets and backbones to compare.

    Raises:
        ConfigError: There are fewer GPUs than agents, or Accelerate has started several processes.
    """
    if count == 1:
        yield
        return
    import torch

    processes, threads = get_processes(), torch.get_num_threads()
    _check_agents(count, processes.count, torch.cuda.device_count() if processes.device.type == "cuda" else count)
    request = compose_request(task, config, comparison)
    share = max(1, threads // count)
    torch.set_num_threads(share)
    # The standard input stays open: its end tells the agents that this process has ended, however it did.
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "clipit.comparison.agent_process"],
            stdin=subprocess.PIPE,
            env=_environment(number, share),
            start_new_session=True,  # Ctrl-C reaches this process alone
        )
        for number in range(1, count)
    ]
    try:
        for agent in started:
            if agent.stdin is not None:
                with suppress(BrokenPipeError):  # it has ended already
                    agent.stdin.write(request)
                    agent.stdin.flush()
        yield
    finally:
        for agent in started:
            failed = agent.poll() not in (None, 0)
            agent.communicate()  # closes its standard input
            if failed:
                logger.warning(f"an agent ended early with status {agent.returncode}; the others trained its runs")
        torch.set_num_threads(threads)


def compose_request(task: Task, config: RunConfig, comparison: ComparisonConfig) -> bytes:
    """Compose the line that tells an agent what to train."""
    values = config.model_dump(mode="json") | {"comparison": comparison.model_dump(mode="json")}
    return json.dumps({"task": task, "values": values, "argv": sys.argv}).encode() + b"\n"


def _check_agents(count: int, processes: int, devices: int) -> None:
    if count < 1 or processes > 1:
        problem = counted(count, "agent") if count < 1 else f"{count} agents in {processes} processes of one run"
        fix = "name at least one" if count < 1 else "start the command without accelerate launch, or without --agents"
        raise ConfigError(f"{problem} cannot share the runs", where="--agents", fix=fix)
    if count > devices:
        raise ConfigError(
            f"{count} agents need a GPU each, but {counted(devices, 'is', 'are')} visible",
            where="--agents",
            fix=f"use --agents {devices}, or hide the GPUs with CUDA_VISIBLE_DEVICES=",
        )


def _environment(number: int, threads: int) -> dict[str, str]:
    """Return the environment of an agent: its share of the CPU threads and its GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else []
    device = devices[number] if number < len(devices) else str(number)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if get_processes().device.type == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = device
    return environment
