"""Input checks that run before loading models, decoding images and embedding texts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from logged_lines import capture_log
from tiny_models import MakeConfig, MakeFile

from clipit.cli import index as index_command
from clipit.comparison.compare import compare
from clipit.comparison.tune import tune
from clipit.errors import ArtifactError, ClipitError, ConfigError, DataError, ModelError
from clipit.runs.evaluate import evaluate_again
from clipit.runs.train import train_run
from clipit.studies.probing.probing_study import probe
from clipit.studies.prompt_wording.prompt_study import prompt_study
from clipit.studies.robustness.robustness_study import measure_robustness
from clipit.training.arms import resolve_arm
from clipit.workspace.preflight import check_inputs, check_output
from clipit.workspace.workspace import Workspace

COMMANDS = ("train", "evaluate", "compare", "tune", "probe", "prompts study", "robustness")


@pytest.fixture
def forbid_heavy_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded or images are hashed."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("too early")

    monkeypatch.setattr("clipit.models.vlm.load_vlm", refuse)
    monkeypatch.setattr("clipit.models.backbones.load_backbone", refuse)
    for module in ("leak_policy", "near_duplicates"):
        monkeypatch.setattr(f"clipit.workspace.{module}.tile_hashes", refuse)
    monkeypatch.setattr("clipit.workspace.leak_policy.tile_digests", refuse)


@pytest.fixture
def run_command(configure_file: MakeFile, tmp_path: Path) -> Callable[..., None]:
    """Return a function that runs a command with changed keys in a separate output folder."""

    def run(command: str, **keys: Any) -> None:
        file = configure_file({"output": tmp_path / "out", "arm": "clip_it_all", **keys})
        config = resolve_arm(file.run)
        calls: dict[str, Callable[[], object]] = {
            "train": lambda: train_run(file.run),
            "evaluate": lambda: evaluate_again(config, Workspace(config)),
            "compare": lambda: compare(file.run, file.comparison),
            "tune": lambda: tune(file.run, file.comparison),
            "probe": lambda: probe(file.run, file.probing),
            "prompts study": lambda: prompt_study(file.run, file.prompt_study, Workspace(file.run)),
            "robustness": lambda: measure_robustness(file.run, file.robustness, []),
        }
        calls[command]()

    return run


@pytest.mark.usefixtures("forbid_heavy_work")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_validates_its_input_before_heavy_work(
    command: str, run_command: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="without prompts: gland"):
        run_command(command, prompts="pcam")
    with pytest.raises(DataError, match=r"tiles\.splits has names that do not occur: nowhere"):
        run_command(command, **{"tiles.splits": {"test": "nowhere"}})
    with pytest.raises(DataError, match="missing columns: nothing"):
        run_command(command, **{"tiles.columns": {"group": "nothing"}})
    with pytest.raises(ModelError, match="unknown VLM"):
        run_command(command, **{"vlm.name": "plipp"})
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="this is a file, not a folder"):
        run_command(command, output=tmp_path / "file")


@pytest.mark.usefixtures("forbid_heavy_work")
@pytest.mark.parametrize("command", ["train", "evaluate", "compare", "tune", "probe"])
def test_the_backbone_name_is_validated_before_heavy_work(command: str, run_command: Callable[..., None]) -> None:
    with pytest.raises(ModelError, match="unknown backbone"):
        run_command(command, **{"backbone.name": "vit_tiny_patch17"})


@pytest.mark.usefixtures("forbid_heavy_work")
def test_independent_problems_are_reported_together(configure: MakeConfig) -> None:
    models = {"vlm.name": "plipp", "backbone.name": "resnet5"}
    for keys, parts in (
        (
            {**models, "reports.path": "no.txt", "prompts": "pcam"},
            ("no such report file or folder", "without prompts: gland"),
        ),
        (models, ("unknown VLM", "unknown backbone")),
    ):
        with pytest.raises(ClipitError) as caught:
            check_inputs(Workspace(configure(keys)), ["vlm", "backbone"], reports=True)
        message = str(caught.value)
        assert message.startswith("2 problems:") and all(part in message for part in parts)
    with pytest.raises(ConfigError, match="needs reports"):
        check_inputs(Workspace(configure(reports=None)), reports=True)


def test_additional_classes_of_a_prompt_set_are_noted_and_ignored(
    configure: MakeConfig, world: dict[str, Any], tmp_path: Path
) -> None:
    prompts = yaml.safe_load(Path(world["prompts"]).read_text(encoding="utf-8"))
    more = {"adipose": ["adipose tissue"], **prompts["classes"], "mucin": ["mucin"]}
    path = tmp_path / "more.yaml"
    path.write_text(yaml.safe_dump({**prompts, "classes": more}, sort_keys=False), encoding="utf-8")
    log_lines = capture_log()
    wide, narrow = Workspace(configure(prompts=str(path))), Workspace(configure())
    check_inputs(wide, ["vlm"])
    check_inputs(wide, ["vlm"])
    assert [line for line in log_lines if "ignoring classes" in line] == [
        "note: ignoring classes of the prompt set small that no tile has: adipose, mucin"
    ]
    actual, expected = wide.class_embeddings(), narrow.class_embeddings()
    assert actual is not None and expected is not None and (actual == expected).all()


def test_the_overview_is_logged_once_before_images_are_read(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure({"output": tmp_path, "tiles.unreadable": "quarantine"})
    log_lines = capture_log()
    workspace = Workspace(config)
    check_inputs(workspace)
    overviews = [line for line in log_lines if line.startswith("tiles: table")]
    assert len(overviews) == 1 and "120 tiles, 3 classes: gland 40, stroma 40, tumour 40" in overviews[0]
    assert "labels used: 4 of each class" in overviews[0]
    assert not tmp_path.joinpath("artefacts").exists()
    _ = workspace.tiles(0), workspace.for_config(config.model_copy(update={"seed": 1})).tiles(1)
    unlabelled = config.tiles.labels.model_copy(update={"kind": "none"})
    unlabelled_config = config.model_copy(update={"tiles": config.tiles.model_copy(update={"labels": unlabelled})})
    _ = workspace.for_config(unlabelled_config).all_tiles
    assert sum(line.startswith("tiles: table") for line in log_lines) == 1


def test_output_folders_are_checked_without_creating_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ArtifactError, match=r"no permission .*folder, in which the output folder .* would be created"):
        check_output(tmp_path / "new" / "folder")
    with pytest.raises(ArtifactError, match=r"no permission to write to this folder\n"):
        check_output(tmp_path)  # an empty folder needs to be written to
    (tmp_path / "run").mkdir()
    check_output(tmp_path)  # the folder may contain finished runs, which only need to be read


def test_building_an_index_needs_no_tiles(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {name: world[name] for name in ("name", "reports", "vlm")}
    path = tmp_path / "reports.yaml"
    path.write_text(yaml.safe_dump({**keys, "output": str(tmp_path / "out")}), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["clipit index", "--config", str(path)])
    index_command.main()
    first = capsys.readouterr().out
    assert "distinct snippets in the index" in first and "without tiles" in first
    assert first.count("reports read") == first.count("reports:") or "with text" in first
    index_command.main()
    second = capsys.readouterr().out
    assert "distinct snippets in the index" in second and "with text" in second, "the summary is printed again"


def test_zero_shot_studies_build_no_index_unless_centred(configure_file: MakeFile, tmp_path: Path) -> None:
    keys = {"output": tmp_path, "probing.probes": [], "probing.shots": [], "probing.shares": []}
    keys |= {
        "prompt_study.draws": 2,
        "prompt_study.candidates": 2,
        "prompt_study.templates": ["{organ}{} {magnification}{stain}"],
    }
    file = configure_file(keys)
    probe(file.run, file.probing)
    prompt_study(file.run, file.prompt_study, Workspace(file.run))
    built = {path.name.partition("-")[0] for path in (tmp_path / "artefacts").iterdir() if path.is_dir()}
    assert built and not built & {"snippets", "text_store", "index"}
