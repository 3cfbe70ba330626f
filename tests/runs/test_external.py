"""External evaluation of finished runs on new tiles or with new prompts."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from logged_lines import capture_log
from PIL import Image
from tiny_models import CLASSES

import clipit
from clipit.api.runs import RunResult
from clipit.cli.main import main
from clipit.config.data import TilesConfig
from clipit.config.load import merge, validate
from clipit.config.new_inputs import read_new_inputs
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ConfigError, DataError, ModelError
from clipit.evaluation.predictions import read_predictions
from clipit.output_files.artifacts import write_record
from clipit.prompts.prompt_set import load_prompts
from clipit.runs.external import _check_prompts, evaluate_external
from clipit.runs.external_tiles import read_external
from clipit.runs.folder import read_run_config
from clipit.runs.train import train_run
from clipit.workspace.adapted_patients import TRAINING_TILES

pytestmark = pytest.mark.slow
MakeSet = Callable[..., TilesConfig]


@pytest.fixture(scope="module")
def training_folder(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a copy of the small world's tiles, which tests may remove, and a run trained on them."""
    root = tmp_path_factory.mktemp("home")
    source = Path(world["tiles"]["path"]).parent
    shutil.copytree(source / "images", root / "images")
    shutil.copy(source / "tiles.csv", root / "tiles.csv")
    changes = {"output": str(root / "out"), "arm": "clip_it_all", "tiles": {"path": str(root / "tiles.csv")}}
    changes |= {"training": {"steps": 2, "evaluate_every": 2}, "name": "home"}
    train_run(validate(merge(world, changes), "test"))
    return root


@pytest.fixture
def run(training_folder: Path) -> Path:
    return training_folder / "out" / "runs" / "home" / "clip_it_all-seed0"


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """Function that writes a table of new tiles with the given counts per class and copies of existing files."""

    def make(counts: dict[str, int], copies: dict[str, Path] | None = None, **keys: Any) -> TilesConfig:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        rows = []
        for label, count in counts.items():
            for number in range(count):
                name = f"{label}-{number}.png"
                pixels = np.random.default_rng(len(rows)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name)
                rows.append(f"{name},{label},elsewhere-{len(rows) // 2}")
        for name, original in (copies or {}).items():
            shutil.copy(original, folder / name)
            rows.append(f"{name},{CLASSES[0]},elsewhere-copy")
        (folder / "tiles.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")
        return TilesConfig.model_validate({"source": "table", "path": str(folder / "tiles.csv"), **keys})

    return make


def with_policy(run: Path, policy: str) -> RunConfig:
    config = read_run_config(run)
    return config.model_copy(update={"leaks": config.leaks.model_copy(update={"policy": policy})})


def run_files(run: Path) -> dict[str, bytes]:
    """Contents of the run's files, without those of external evaluations."""
    files = [path for path in run.rglob("*") if path.is_file() and "external" not in path.parts]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_evaluation_of_a_new_set_leaves_the_run_unchanged(run: Path, make_set: MakeSet) -> None:
    before = run_files(run)
    class_map = {"gland": "gland", "cancer": "tumour", "fat": "fat"}
    tiles = make_set({"gland": 6, "cancer": 8, "fat": 3}, class_map=class_map)
    folder, results = evaluate_external(run, tiles)
    assert folder == run / "external" / "elsewhere-tiles"
    after, card = run_files(run), "classifier/README.md"
    text = after.pop(card).decode()
    assert after == {name: data for name, data in before.items() if name != card}
    assert "set 1 (n = 14)" in text and "set 1: 14 tiles from 7 patients" in text and "elsewhere" not in text
    assert {path.name for path in folder.iterdir()} == {
        "results.json", "predictions.parquet", "summary.md", "report.html"
    }  # fmt: skip
    scores = results["splits"]["elsewhere-tiles"]
    assert (scores["labelled"], scores["resampled"], results["external"]["excluded"]) == (14, "7 groups", {"fat": 3})
    assert results["external"]["absent"] == ["stroma"]
    for name in ("balanced_accuracy", "macro_f1", "auroc"):
        assert scores["metrics"][name]["over"] == "over 2 of 3 classes; no tile of stroma"
        assert scores["metrics"][name]["value"] is not None
    assert "zero_shot" in scores, "the prompts of the run are used"
    assert results["own"] == json.loads(before["results.json"])["splits"]["test"]
    assert set(results["calibration"]["measures"]) == {"ece", "nll", "brier"}
    written = read_predictions(folder / "predictions.parquet", results["predictions_sha256"])
    assert written.classes == CLASSES and set(written.labels.tolist()) == {0, 2}
    summary = (folder / "summary.md").read_text()
    for text in ("excluded 3 tiles of classes that the classifier lacks (fat: 3)", "own test tiles (n = 24)"):
        assert text in summary
    assert "own test tiles" in (folder / "report.html").read_text()
    evaluate_external(run, tiles)
    assert read_predictions(folder / "predictions.parquet", results["predictions_sha256"]).classes == CLASSES


def test_a_name_that_is_taken_by_another_set_is_an_error(run: Path, make_set: MakeSet) -> None:
    evaluate_external(run, make_set({"gland": 2, "tumour": 2}), name="twice")
    mapped = make_set({"gland": 2, "tumour": 2}, class_map={"gland": "stroma"})
    with pytest.raises(ArtifactError, match=r"(?s)tiles\.class_map: \{\} in the folder, .*stroma.* now.*--name"):
        evaluate_external(run, mapped, name="twice")


def test_evaluations_of_another_run_are_an_error(run: Path, make_set: MakeSet) -> None:
    folder, results = evaluate_external(run, make_set({"gland": 2}), name="copied")
    write_record(folder / "results.json", results | {"run_fingerprint": "0123456789abcdef"})
    for name in ("copied", "another"):  # the card lists all evaluations
        with pytest.raises(ArtifactError, match=r"(?s)belongs to a different run.*copied/results\.json"):
            evaluate_external(run, make_set({"gland": 2}), name=name)
    shutil.rmtree(folder)


def test_classes_without_a_counterpart_are_an_error(run: Path, make_set: MakeSet) -> None:
    with pytest.raises(DataError, match=r"(?s)fat.*gland, stroma, tumour.*--tiles\.class_map='\{\"fat\": \"CLASS\"\}'"):
        evaluate_external(run, make_set({"fat": 2}), name="classes")
    with pytest.raises(DataError, match="'Tumour' and 'tumour'"):
        evaluate_external(run, make_set({"gland": 2, "Tumour": 2}), name="classes")
    with pytest.raises(DataError, match=r"(?s)no tile .* has a label.*use clipit predict"):
        evaluate_external(run, make_set({"": 2}), name="classes")


def test_training_tiles_among_new_tiles_are_an_error_dropped_or_noted(
    run: Path, training_folder: Path, make_set: MakeSet
) -> None:
    copies = {"copy.png": training_folder / "images" / "train-005.png"}
    tiles = make_set({"gland": 4, "tumour": 4}, copies)
    table = Path(tiles.path)
    table.write_text(table.read_text().replace("elsewhere-0", "train-3"))
    message = (
        "3 of 9 new tiles leak from training or validation: 2 from 1 shared patient or slide, 1 with the same pixels"
    )
    with pytest.raises(DataError, match=rf"(?s){message}.*gland-0.*--leaks\.policy=exclude"):
        evaluate_external(run, tiles, name="leaks")
    for policy, left in (("exclude", 6), ("note", 9)):
        lines = capture_log()
        results = evaluate_external(run, tiles, name=f"leaks-{policy}", config=with_policy(run, policy))[1]
        assert results["splits"][f"leaks-{policy}"]["labelled"] == left
        leaks = [(leak["kind"], leak["id"], leak["other_id"]) for leak in results["external"]["leaks"]]
        assert leaks[0] == ("exact", "images/train-005.png", "copy.png") and len(leaks) == 3
        assert any(message in line for line in lines)


def test_patients_used_to_adapt_the_vlm_trigger_a_warning(run: Path, make_set: MakeSet, tmp_path: Path) -> None:
    adapter = tmp_path / "text-seed0" / "adapter"
    adapter.mkdir(parents=True)
    (adapter.parent / "adapted_patients.json").write_text('{"patients": ["elsewhere-1"], "problem": ""}')
    config = with_policy(run, "error")
    config = config.model_copy(update={"vlm": config.vlm.model_copy(update={"adapter": str(adapter)})})
    results = evaluate_external(run, make_set({"gland": 4, "tumour": 4}), name="adapted", config=config)[1]
    (note,) = [note for note in results["external"]["notes"] if "WARNING: the VLM text-seed0/adapter was" in note]
    assert "too high: 2 of 8 new tiles belong to 1 such patient (elsewhere-1)" in note


def test_leaks_are_found_without_the_training_images(
    run: Path, training_folder: Path, make_set: MakeSet, tmp_path: Path
) -> None:
    tiles = make_set({"gland": 4, "tumour": 4}, {"copy.png": training_folder / "images" / "train-005.png"})
    hidden = tmp_path / "hidden"
    (training_folder / "images").rename(hidden)
    try:
        results = evaluate_external(run, tiles, name="gone", config=with_policy(run, "exclude"))[1]
        assert (results["splits"]["gone"]["labelled"], results["external"]["not_checked"]) == (8, [])
        record = (run / TRAINING_TILES).read_bytes()
        (run / TRAINING_TILES).unlink()
        try:
            earlier = evaluate_external(run, tiles, name="earlier", config=with_policy(run, "exclude"))[1]
            assert earlier["splits"]["earlier"]["labelled"] == 8
            assert "WARNING: not checked against training: patients" in earlier["external"]["not_checked"][0]
            artefacts = training_folder / "out" / "artefacts"
            artefacts.rename(tmp_path / "artefacts")
            lines = capture_log()
            try:
                nothing = evaluate_external(run, tiles, name="nothing", config=with_policy(run, "exclude"))[1]
            finally:
                shutil.rmtree(artefacts, ignore_errors=True)
                (tmp_path / "artefacts").rename(artefacts)
            assert nothing["splits"]["nothing"]["labelled"] == 9
            assert sum("WARNING: not checked" in line for line in lines) == 2
        finally:
            (run / TRAINING_TILES).write_bytes(record)
    finally:
        hidden.rename(training_folder / "images")


def test_an_incomplete_record_of_training_tiles_is_an_error(
    run: Path, training_folder: Path, make_set: MakeSet
) -> None:
    tiles = make_set({"gland": 4, "tumour": 4}, {"copy.png": training_folder / "images" / "train-005.png"})
    record = (run / TRAINING_TILES).read_bytes()
    table = pq.read_table(run / TRAINING_TILES)
    try:
        pq.write_table(table, run / TRAINING_TILES, compression="zstd", row_group_size=5)
        packed = evaluate_external(run, tiles, name="packed", config=with_policy(run, "exclude"))[1]
        assert packed["splits"]["packed"]["labelled"] == 8
        pq.write_table(table.filter(pc.field("id") != "images/train-005.png"), run / TRAINING_TILES)
        with pytest.raises(ArtifactError, match=r"71 training tiles instead of 72: the file has changed"):
            evaluate_external(run, tiles, name="fewer", config=with_policy(run, "exclude"))
    finally:
        (run / TRAINING_TILES).write_bytes(record)


def test_new_prompts_are_evaluated_on_the_test_tiles_of_the_run(
    run: Path, world: dict[str, Any], tmp_path: Path
) -> None:
    values = yaml.safe_load(Path(world["prompts"]).read_text())
    values |= {"name": "other", "templates": ["a large {}."]}
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(values | {"classes": values["classes"] | {"fat": ["adipose tissue"]}}))
    folder, results = evaluate_external(run, prompts=str(path))
    assert folder.name == "other"
    scores = results["splits"]["other"]
    assert scores["metrics"]["accuracy"] == results["own"]["metrics"]["accuracy"], (
        "the classification head does not depend on prompts"
    )
    new = read_predictions(folder / "predictions.parquet").zero_shot
    own = read_predictions(run / "predictions.parquet").select("test").zero_shot
    assert new is not None and own is not None and not np.allclose(new, own)
    assert results["external"]["notes"] == ["prompts for fat are not used: the classifier lacks these classes"]
    del values["classes"]["stroma"]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(DataError, match="no prompts for stroma"):
        evaluate_external(run, prompts=str(path), name="incomplete")
    without_text: Any = SimpleNamespace(spec=SimpleNamespace(vlm=None, projector_layers=0))
    with pytest.raises(ModelError, match="trained without text"):
        _check_prompts(load_prompts(world["prompts"]), without_text, run)


def test_command_with_and_without_new_tiles(
    run: Path, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = (run / "predictions.parquet").read_bytes()
    monkeypatch.setattr(sys, "argv", ["clipit", "evaluate", "--run", str(run), "--evaluation.bootstrap=0"])
    main()
    assert "test (n = 24)" in capsys.readouterr().out
    assert (run / "predictions.parquet").read_bytes() == before
    path = make_set({"gland": 2, "tumour": 2}).path
    monkeypatch.setattr(sys, "argv", ["clipit", "evaluate", f"--run={run}", f"--tiles.path={path}", "--name=centre2"])
    main()
    output = capsys.readouterr().out
    assert "centre2 (n = 4)" in output
    assert "new set centre2: table" in output and "4 tiles, 2 classes: gland 2, tumour 2" in output
    assert (run / "external" / "centre2" / "results.json").is_file()
    monkeypatch.setattr(sys, "argv", ["clipit", "evaluate", "--run", str(run.parent)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "does not contain a trained run" in capsys.readouterr().err


def test_python_function_returns_scores_and_predictions_of_new_tiles(run: Path, make_set: MakeSet) -> None:
    path = make_set({"gland": 2, "tumour": 2}).path
    result = clipit.evaluate_external(run, path, name="in_python", keys={"evaluation.bootstrap": 0})
    assert result.folder == run / "external" / "in_python" and result.page.is_file() and result.summary.is_file()
    (row,) = result.scores.query("output == 'classifier' and metric == 'accuracy'").to_dict("records")
    assert (row["split"], row["tiles"]) == ("in_python", 4) and 0 <= row["value"] <= 1
    assert result.predictions["label"].tolist() == ["gland", "gland", "tumour", "tumour"]
    repeated = clipit.evaluate_external(RunResult(run), {"path": path, "source": "table"}, name="in_python")
    assert repeated.predictions["predicted"].tolist() == result.predictions["predicted"].tolist()
    with pytest.raises(ConfigError, match=r"(?s)cannot be changed: lora\.rank.*use only the keys and sections"):
        clipit.evaluate_external(run, path, keys={"lora.rank": 2})
    with pytest.raises(ConfigError, match=r"unknown key 'tiles\.pth' \(did you mean 'tiles\.path'"):
        clipit.evaluate_external(run, {"pth": path})
    for invalid in ("site/A", "../elsewhere", ".hidden", "site A", " "):
        with pytest.raises(ConfigError, match=r"(?s)'name': .*where: clipit\.evaluate_external"):
            clipit.evaluate_external(run, path, name=invalid)


@pytest.mark.parametrize("keys", [{"test_fraction": 0.5}, {"folds": 2, "fold": 0}])
def test_a_held_out_test_split_needs_no_validation_tiles(run: Path, make_set: MakeSet, keys: dict[str, Any]) -> None:
    tiles = read_external(make_set({"gland": 4, "tumour": 4}, **keys), read_run_config(run))
    assert tiles.splits.tolist() == ["test"] * 4 and len(set(tiles.groups)) == 2
    assert not any("validation" in note for note in tiles.notes)


def test_options_that_would_change_a_finished_run_are_errors(tmp_path: Path) -> None:
    run = ["--run", "folder"]
    with pytest.raises(ConfigError, match=r"(?s)cannot be changed: lora\.rank.*only --tiles keys"):
        read_new_inputs("", OPTIONS, [*run, "--lora.rank=2", "--leaks.policy=note"])
    new_inputs = read_new_inputs("", OPTIONS, [*run, f"--tiles.path={tmp_path}", "--leaks.pixels=near"])
    assert new_inputs.tiles is not None and new_inputs.tiles.source == "folders"
    assert (new_inputs.name, new_inputs.prompts, new_inputs.changes) == ("", None, {"leaks": {"pixels": "near"}})
    file = tmp_path / "new.yaml"
    file.write_text("tiles: {source: table, path: a.csv}\nlora: {rank: 3}\nevaluation: {bootstrap: 30}\n")
    lines = capture_log()
    new_inputs = read_new_inputs("", OPTIONS, [*run, "--config", str(file), "--tiles.images=b.zip", "--name=b"])
    assert new_inputs.tiles is not None and new_inputs.name == "b"
    assert (new_inputs.tiles.path, new_inputs.tiles.images) == ("a.csv", "b.zip")
    assert new_inputs.changes == {"evaluation": {"bootstrap": 30}}
    assert any("not lora" in line for line in lines)
    assert read_new_inputs("", OPTIONS, run).tiles is None


OPTIONS = {"--run": {"type": Path}}
