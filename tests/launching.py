"""Programs in processes of their own, forked from one that has imported the libraries.

Importing torch and the model libraries takes longer than most programs of the tests. `start` runs a program in a fork
of a process that has imported them once: in the root of the project, with arguments, environment, output and exit
status of its own, and with nothing of the test's process (patches, shape checks, threads).
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
    """A script, a module after "-m", or code after "-c", that runs in a forked process.

    Args:
        command: The script and its arguments.
        environment: All variables of its environment.
        plots: Whether runs and comparisons draw their plots.

    Attributes:
        stdin: Its standard input, which ends when this end is closed.
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
        """Whether the program has not ended."""
        return self.process.is_alive()

    def printed(self, stream: str = "stdout") -> str:
        """What the program has printed until now."""
        path = Path(self._folder.name, stream)
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()

    def wait(self, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """Wait for the end; return the exit status and what was printed."""
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
    """Become the program."""
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
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def environment(**more: str) -> dict[str, str]:
    """The test's environment for a program that is launched on its own."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")}
    return inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def start(*command: str | Path, plots: bool = False, **variables: str) -> Program:
    """Start a program in a forked process."""
    return Program(command, environment(**variables), plots)


def run_program(*command: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a forked process."""
    return start(*command, **variables).wait()


def run_group(command: Sequence[str | Path], variables: Sequence[dict[str, str]]) -> "subprocess.CompletedProcess[str]":
    """Run a program in forked processes that can form a group, each with variables of its own.

    The exit status is the first that is not 0; the output is that of all, one after another.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    # Rank 0 offers the place where the group meets, since there is no launcher that does.
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    programs = [start(*command, **{**own, **meeting}) for own in variables]
    done = [program.wait() for program in programs]
    status = next((one.returncode for one in done if one.returncode), 0)
    out, errors = "".join(one.stdout for one in done), "".join(one.stderr for one in done)
    return subprocess.CompletedProcess(done[0].args, status, out, errors)


def run_two(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a program in two forked processes on the CPU, with the variables that Accelerate's launcher sets."""
    group = {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}
    return run_group(command, [group | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")])
