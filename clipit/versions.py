"""Versions of packages and of this checkout, recorded with results."""

import importlib.metadata
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path

DISTRIBUTION = "clipit-pathology"
_RECORDED_PACKAGES = (
    "torch", "timm", "open_clip_torch", "transformers", "peft", "accelerate", "faiss-cpu", "faiss-gpu",
    "numpy", "scikit-learn",
)  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Return the versions of this package and of the packages that can affect results."""
    return installed((DISTRIBUTION, *_RECORDED_PACKAGES))


def installed(names: Collection[str]) -> dict[str, str]:
    """Return the versions of the named distributions; those that are not installed are omitted."""
    versions_of = {}
    for name in names:
        try:
            versions_of[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions_of


def package_version() -> str:
    """Return the version of this package; "" if it is on the path without being installed."""
    return installed([DISTRIBUTION]).get(DISTRIBUTION, "")


@cache
def git_commit() -> str:
    """Return the commit of this package's checkout, with `+` for local changes; "" outside a checkout."""
    package = Path(__file__).resolve().parent
    if not (package.parent / ".git").exists():  # git would describe a repository that contains the environment
        return ""
    command = ["git", "-C", str(package), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if result.returncode == -signal.SIGINT:  # the terminal sends Ctrl-C to git, too
        raise KeyboardInterrupt
    return result.stdout.strip() if result.returncode == 0 else ""


def command_line() -> str:
    """Return the command of this process in shell syntax."""
    program, *arguments = sys.argv
    # clipit's main function adds the subcommand to the program's name, for usage messages.
    words = program.split(" ") if program.startswith("clipit ") else [program]
    return shlex.join([*words, *arguments])
