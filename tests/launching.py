"""Run programs in processes forked from a server that has already imported the libraries.

Importing torch and the model libraries takes longer than most programs that the tests run. `start` forks a process
that has imported them once and runs the program in the root of the project, with its own arguments, environment, output
and exit status. Nothing is inherited from the test's process (patches, shape checks, threads).
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import pytest
from no_plots import COMPARISON_PLOTS, RUN_PLOTS, leave_out_plots

ROOT = Path(__file__).parents[1]
LAUNCHER = ("-m", "accelerate.commands.launch")
TWO = ("--config_file", str(ROOT / "configs" / "accelerate" / "two_cpu_processes.yaml"))
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([
    "torch.distributed.nn.functional", "torchvision.transforms.v2", "timm", "peft", "accelerate.commands.launch",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.image_processing_clip",
    "transformers.models.auto.modeling_auto", "faiss", "pandas", "matplotlib.pyplot", "scipy.optimize",
    "clipit.api.runs", "clipit.comparison.compare", "clipit.sweeps.run_sweep", "tests.frozen_imports",
])  # fmt: skip


class Program:
    """A program in a forked process: a script, a module after "-m", or code after "-c".

    Args:
        command: The script and its arguments.
        environment: The complete environment of the process.
        plots: Whether runs and comparisons draw their plots.

    Attributes:
        stdin: Write end of the program's standard input; close it to send end-of-file.
    """

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], plots: bool) -> None:
        self.command = [str(part) for part in command]
        self._folder = tempfile.TemporaryDirectory(prefix="program")
        reader, writer = _FORKS.Pipe(duplex=False)
        self.stdin = os.fdopen(os.dup(writer.fileno()), "wb")
        writer.close()
        arguments = (self.command, dict(environment), self._folder.name, plots, reader)
        self.process = _FORKS.Process(target=_run, args=arguments, daemon=True)
        with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # read when the first one imports torch
            self.process.start()
        reader.close()

    def running(self) -> bool:
        """Whether the program is still running."""
        return self.process.is_alive()

    def printed(self, stream: str = "stdout") -> str:
        """Output of the program so far."""
        path = Path(self._folder.name, stream)
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()

    def wait(self, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """Wait for the program to exit; return its exit status and output."""
        self.stdin.close()
        self.process.join(timeout)
        status = self.process.exitcode
        out, errors = self.printed(), self.printed("stderr")
        if status is None:
            self.process.kill()
            raise subprocess.TimeoutExpired(self.command, timeout, out, errors)
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.command, status, out, errors)


def _run(command: list[str], environment: dict[str, str], folder: str, plots: bool, stdin: Connection) -> None:
    """Run the program in the forked process."""
    os.dup2(stdin.fileno(), 0)
    stdin.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder, stream), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    if not plots:
        leave_out_plots(pytest.MonkeyPatch(), RUN_PLOTS | COMPARISON_PLOTS)
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        elif command[0] == "-c":
            sys.argv = ["-c", *command[2:]]
            exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = command
            sys.path.insert(0, str(Path(command[0]).parent))
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips them


def environment(**more: str) -> dict[str, str]:
    """Environment of the test's process, without the variables of a process group."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")}
    return inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def start(*command: str | Path, plots: bool = False, **variables: str) -> Program:
    """Start a program in a forked process."""
    return Program(command, environment(**variables), plots)


def run_program(*command: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a forked process."""
    return start(*command, **variables).wait()


def run_group(command: Sequence[str | Path], variables: Sequence[dict[str, str]]) -> "subprocess.CompletedProcess[str]":
    """Run a program as a group of forked processes, each with its own environment variables.

    Returns:
        The first non-zero exit status, if any, and the concatenated output of all processes.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    # Without a launcher, rank 0 hosts the rendezvous.
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    programs = [start(*command, **{**each, **rendezvous}) for each in variables]
    completed = [program.wait() for program in programs]
    status = next((process.returncode for process in completed if process.returncode), 0)
    out, errors = "".join(process.stdout for process in completed), "".join(process.stderr for process in completed)
    return subprocess.CompletedProcess(completed[0].args, status, out, errors)


def run_two(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a program in two forked processes on the CPU, with the environment variables of Accelerate's launcher."""
    group = {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}
    return run_group(command, [group | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")])
