"""Tests of the recorded command line and commit."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipit import versions as module
from clipit.cli import main as cli


def test_recorded_command_can_be_rerun(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []
    monkeypatch.setattr("clipit.cli.doctor.main", lambda: recorded.append(module.command_line()))
    monkeypatch.setattr(sys, "argv", ["/env/bin/clipit", "doctor", "--config", "my file.yaml"])
    cli.main()
    assert recorded == ["clipit doctor --config 'my file.yaml'"]


def test_script_path_with_a_space_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["my scripts/train.py", "--config", "a.yaml"])
    assert module.command_line() == "'my scripts/train.py' --config a.yaml"


def test_installed_package_does_not_record_the_commit_of_the_users_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    package = tmp_path / ".venv" / "site-packages" / "clipit"
    package.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(package / "versions.py"))
    assert module.git_commit.__wrapped__() == ""
    (tmp_path / "clipit").mkdir()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "clipit" / "versions.py"))
    assert len(module.git_commit.__wrapped__()) >= 7


def test_interrupting_git_interrupts_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -signal.SIGINT, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **keywords: killed)
    with pytest.raises(KeyboardInterrupt):
        module.git_commit.__wrapped__()
