"""Agents: processes that share the runs of a comparison or search; each agent trains whole runs.

Small models make poor use of several CPU cores, so runs finish sooner in parallel than one after the other. With
several GPUs, each agent uses one. An agent locks the run that it trains. If the agent is killed, the operating system
releases the lock, and another agent takes over the run.
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

from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ArtifactError, ConfigError, counted, disk_errors
from clipit.output_files.artifacts import lock_file, make_folder

logger = logging.getLogger(__name__)
_DEMO_AGENTS = 4
Task = Literal["compare", "tune"]


def claim_runs(folders: Sequence[Path]) -> Iterator[int]:
    """Yield the index of every run, locked against other agents until the next index is requested.

    Runs that are finished or not locked by another agent come first, in order. The others follow as their locks are
    released. The lock also covers the scoring of the run's additional test sets.

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
                    raise  # a finished run in a read-only folder needs no lock
            return index
        logger.info(f"waiting for other agents, which are training the last {counted(len(remaining), 'run')}")
        with FileLock(_lock(folders[remaining[0]])):  # until its holder finishes the run or is killed
            pass


def _lock(folder: Path) -> Path:
    return lock_file(folder.with_name(f"{folder.name}.agent"))


def demo_agents() -> int:
    """Return the default number of agents for the demo: one with a GPU, otherwise one per CPU core, at most 4."""
    import torch

    return 1 if get_processes().device.type == "cuda" else min(_DEMO_AGENTS, torch.get_num_threads())


@contextmanager
def additional_agents(count: int, task: Task, config: RunConfig, comparison: ComparisonConfig) -> Iterator[None]:
    """Start `count - 1` agents that train runs alongside the body of the `with` statement, and stop them after it.

    Without a GPU, the agents share the CPU threads; with GPUs, each agent uses one.

    Args:
        count: Number of agents, including this process.
        task: Whether to train the runs of the comparison or of the hyperparameter search.
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
    # An agent exits when its standard input closes, which happens no matter how this process exits.
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "clipit.comparison.agent_process"],
            stdin=subprocess.PIPE,
            env=_environment(number, share),
            start_new_session=True,  # so that Ctrl-C reaches only this process
        )
        for number in range(1, count)
    ]
    try:
        for agent in started:
            if agent.stdin is not None:
                with suppress(BrokenPipeError):  # the agent has already exited
                    agent.stdin.write(request)
                    agent.stdin.flush()
        yield
    finally:
        for agent in started:
            failed = agent.poll() not in (None, 0)
            agent.communicate()  # closes its standard input
            if failed:
                logger.warning(f"an agent exited early with status {agent.returncode}; the others trained its runs")
        torch.set_num_threads(threads)


def compose_request(task: Task, config: RunConfig, comparison: ComparisonConfig) -> bytes:
    """Encode the request that an agent reads from standard input."""
    values = config.model_dump(mode="json") | {"comparison": comparison.model_dump(mode="json")}
    return json.dumps({"task": task, "values": values, "argv": sys.argv}).encode() + b"\n"


def _check_agents(count: int, processes: int, devices: int) -> None:
    if count < 1 or processes > 1:
        problem = f"the number of agents is {count}"
        fix = "use at least one"
        if count >= 1:
            problem = f"{count} agents cannot share runs when Accelerate has started {processes} processes"
            fix = "start the command without accelerate launch, or without --agents"
        raise ConfigError(problem, where="--agents", fix=fix)
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
