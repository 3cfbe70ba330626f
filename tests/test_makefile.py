"""Tests of the Makefile: an environment has exactly one extra."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import torchvision_hook

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    (tmp_path / ".venv").mkdir()
    return tmp_path


def dry_run(checkout: Path, target: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Dry run of make with the given variables, without those that make itself inherits."""
    make_variables = {"EXTRA", "CONSTRAINTS", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in make_variables}
    return subprocess.run(
        ["make", "-n", target], cwd=checkout, env=environment | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("extra", "constrained"), [("cpu", True), ("gpu", False)])
def test_new_environment_has_the_requested_extra(checkout: Path, extra: str, constrained: bool) -> None:
    printed = dry_run(checkout, "demo", EXTRA=extra).stdout
    assert f".[{extra},dev]" in printed and f"touch .venv/.ready-{extra}" in printed
    assert ("PIP_CONSTRAINT=constraints/cpu.txt" in printed) == constrained


def test_default_extra_is_cpu(checkout: Path) -> None:
    assert ".[cpu,dev]" in dry_run(checkout, "test").stdout


def test_environment_keeps_its_extra(checkout: Path) -> None:
    (checkout / ".venv" / ".ready-gpu").touch()
    result = dry_run(checkout, "test")
    assert result.returncode == 0 and "pip install" not in result.stdout
    os.utime(checkout / ".venv" / ".ready-gpu", (0, 0))  # older than pyproject.toml: packages are updated
    result = dry_run(checkout, "test")
    assert ".[gpu,dev]" in result.stdout and "PIP_CONSTRAINT" not in result.stdout


def test_different_extra_raises_an_error(checkout: Path) -> None:
    (checkout / ".venv" / ".ready-gpu").touch()
    result = dry_run(checkout, "test", EXTRA="cpu")
    assert result.returncode != 0 and not result.stdout
    assert ".venv was created with EXTRA=gpu, not cpu" in result.stderr
    assert dry_run(checkout, "clean", EXTRA="cpu").returncode == 0


@pytest.mark.parametrize(
    ("error", "installed"),
    [
        ("RuntimeError: operator torchvision::nms does not exist", True),
        ("ModuleNotFoundError: No module named 'torchvision'", False),
        ("", False),
    ],
)
def test_import_hook_is_installed_only_for_mismatched_builds(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, error: str, installed: bool
) -> None:
    assert "-m tools.torchvision_hook" in dry_run(checkout, "env").stdout
    site, errors = checkout / "site", [error, ""]
    site.mkdir()
    monkeypatch.setattr(torchvision_hook, "_torchvision_error", lambda: errors.pop(0))
    monkeypatch.setattr(torchvision_hook.sysconfig, "get_path", lambda name: str(site))
    assert (torchvision_hook.main() == 0) == (installed or not error)
    assert {path.suffix for path in site.glob("clipit_site_hook.*")} == ({".py", ".pth"} if installed else set())
