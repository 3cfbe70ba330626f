"""Tests of the demo: its data set is written atomically and never overwrites other files."""

import hashlib
import json
from pathlib import Path

import pytest
from logged_lines import capture_log

import clipit
import clipit.cli.demo as command
import clipit.comparison.demo as module
from clipit.comparison.demo import write_demo_world
from clipit.config.load import validate
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError
from clipit.synthetic.case_latents import CaseWorldConfig
from clipit.synthetic.tile_world import WorldConfig, write_world

SMALL = WorldConfig(seed=3, train=16, validation=8, test=8, shift=8, reports=4)


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORLD", SMALL)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return validate({"tiles": {"source": "table", "path": str(tmp_path / "world" / "tiles.csv")}}, "test")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_world_is_written_once(config: RunConfig, tmp_path: Path) -> None:
    log_lines = capture_log()
    world = write_demo_world(config)
    assert world == tmp_path / "world" and len(log_lines) == 1
    write_world(tmp_path / "same", SMALL)
    assert digests(world) == digests(tmp_path / "same")
    before = {path: path.stat().st_mtime_ns for path in world.iterdir()}
    assert write_demo_world(config) == world and len(log_lines) == 1
    assert {path: path.stat().st_mtime_ns for path in world.iterdir()} == before


def test_case_world_has_the_files_of_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = CaseWorldConfig(seed=3, train=4, validation=2, test=2, external=2, shift=2)
    monkeypatch.setattr(module, "CASE_WORLD", small)
    monkeypatch.chdir(tmp_path)
    config = clipit.load_config("demo_own_reports").run
    world = write_demo_world(config, cases=True)
    assert Path(config.tiles.path).is_file() and world.samefile(Path(config.tiles.path).parent)
    assert config.reports is not None and Path(config.reports.path).is_file()
    assert Path(str(config.own_report.rules)).is_file()
    with pytest.raises(ArtifactError, match="world"):
        write_demo_world(config)  # a different world: without cases


def test_world_is_written_to_an_empty_folder(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "world").mkdir()
    monkeypatch.chdir(tmp_path / "world")
    config = validate({"tiles": {"source": "table", "path": "tiles.csv"}}, "test")
    write_demo_world(config)
    write_world(tmp_path / "same", SMALL)
    assert digests(Path.cwd()) == digests(tmp_path / "same")


def test_folder_with_user_files_is_not_changed(config: RunConfig, tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    for name in ("tiles.csv", "tiles.zip"):
        (world / name).write_text("my own", encoding="utf-8")
    before = digests(world)
    with pytest.raises(ArtifactError, match=r"contains other files(?s:.*)tiles\.path"):
        write_demo_world(config)
    assert digests(world) == before
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_interrupted_write_leaves_no_world_and_can_be_repeated(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, world: WorldConfig) -> None:
        folder.mkdir(parents=True)
        (folder / "tiles.csv").write_text("half", encoding="utf-8")
        (folder / ".tiles.zip.123.tmp").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("clipit.synthetic.tile_world.write_world", killed)
        write_demo_world(config)
    assert not (tmp_path / "world").exists()
    write_world(tmp_path / "same", SMALL)
    assert digests(write_demo_world(config)) == digests(tmp_path / "same")
    assert not (tmp_path / "world.partial").exists()


@pytest.mark.parametrize(
    "facts",
    [
        json.dumps({"config": SMALL.model_copy(update={"test": 9}).model_dump(mode="json")}),
        json.dumps({"config": {"seed": 3}}),
        "[]",
        "{",
    ],
)
def test_folder_with_a_different_world_raises_an_error(config: RunConfig, tmp_path: Path, facts: str) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "world.json").write_text(facts, encoding="utf-8")
    with pytest.raises(
        ArtifactError,
        match=r"differs from the one that this version writes(?s:.*)world\.json(?s:.*)delete its folder",
    ):
        write_demo_world(config)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], [("demo", False), ("demo_own_reports", True)]),
        (["--cases"], [("demo_own_reports", True)]),
        (["--config", "demo"], [("demo", False)]),
        (["--training.steps=7"], [("demo", False), ("demo_own_reports", True)]),
    ],
)
def test_demo_runs_both_parts_unless_one_is_selected(
    arguments: list[str], parts: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[tuple[str, bool]] = []
    steps: list[int] = []

    def run(config: RunConfig, comparison: object, *, cases: bool, agents: int) -> Path:
        ran.append((config.name, cases))
        steps.append(config.training.steps)
        return tmp_path

    tables: list[list[str]] = []
    monkeypatch.setattr("sys.argv", ["clipit demo", *arguments])
    monkeypatch.setattr(module, "demo", run)
    monkeypatch.setattr(module, "demo_table", lambda named: tables.append([file[0].name for file in named.values()]))
    monkeypatch.setattr(command, "_map_slides", lambda run, out: None)
    command.main()
    assert ran == parts
    assert tables == ([[name for name, _ in parts]] if len(parts) > 1 else [])
    assert steps == [7, 7] or arguments != ["--training.steps=7"]
