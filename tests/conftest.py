"""Shared fixtures: a small data set with tiny models, and configurations for it."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import of the Hub's client

import pytest
import yaml
from logged_lines import stop_capturing
from no_plots import RUN_PLOTS, leave_out_plots
from tiny_models import MakeConfig, MakeFile, write_small_world

from clipit.config.file import ConfigFile
from clipit.config.load import merge, nested, validate, validate_file
from clipit.config.run import RunConfig
from clipit.reporting import plots


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Exclude imported modules from garbage collection, which makes collections faster."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that workers finish at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _stop_capturing_log() -> Iterator[None]:
    yield
    stop_capturing()


@pytest.fixture(autouse=True, scope="module")
def _no_run_plots() -> Iterator[None]:
    """Replace the plots of runs by empty images, since plotting takes longer than training a tiny student."""
    if "clipit.runs.evaluate" not in sys.modules:  # this test module trains nothing: avoid importing torch
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        leave_out_plots(patch, RUN_PLOTS)
        yield


@pytest.fixture
def run_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enable the plots of runs."""
    for module, names in RUN_PLOTS.items():
        for name in names:
            monkeypatch.setattr(f"{module}.{name}", getattr(plots, name))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Values of a configuration without an output folder; tests must not modify them or the files."""
    return write_small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def shared_output(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with prebuilt artefacts (stores, index, pairs)."""
    from clipit.workspace.workspace import Workspace

    output = tmp_path_factory.mktemp("output")
    workspace = Workspace(validate({**world, "output": output}, "test"))
    assert workspace.pairs.table.num_rows == 72
    return output


@pytest.fixture
def configure(world: dict[str, Any], shared_output: Path) -> MakeConfig:
    """Factory of run configurations for the small data set, as in `configure(**{"lora.rank": 2})`."""

    def make(changes: dict[str, Any] | None = None, **keys: Any) -> RunConfig:
        return validate(merge({**world, "output": shared_output}, nested({**(changes or {}), **keys})), "test")

    return make


@pytest.fixture
def configure_file(world: dict[str, Any], shared_output: Path) -> MakeFile:
    """Factory of configurations that include the sections of comparisons and studies."""

    def make(changes: dict[str, Any] | None = None, **keys: Any) -> ConfigFile:
        return validate_file(merge({**world, "output": shared_output}, nested({**(changes or {}), **keys})), "test")

    return make


@pytest.fixture
def write_config(world: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Factory of YAML configuration files with a separate output folder."""

    def write(changes: dict[str, Any] | None = None, output: Path | None = None) -> Path:
        values = merge({**world, "output": str(output or tmp_path / "out")}, nested(changes or {}))
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write
