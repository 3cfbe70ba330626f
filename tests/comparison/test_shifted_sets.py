"""Tests of shifted test sets: leaks from training are dropped, and predictions belong to one trained model."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logged_lines import capture_log
from PIL import Image
from tiny_models import MakeConfig, MakeFile

from clipit.comparison.compare import compare
from clipit.comparison.plan import plan_comparison
from clipit.comparison.rebuild import rebuild_comparison
from clipit.comparison.rows import model_and_set_notes
from clipit.config.data import TilesConfig
from clipit.errors import ArtifactError, ConfigError, DataError
from clipit.evaluation.predictions import read_predictions, write_predictions
from clipit.runs.evaluate import evaluate_shifted, shifted_predictions
from clipit.runs.folder import run_folder
from clipit.runs.train import train_run
from clipit.studies.robustness.robustness_study import measure_robustness
from clipit.tiles.tileset import TileSet
from clipit.training.arms import resolve_arm
from clipit.workspace import workspace as workspace_module
from clipit.workspace.adapted_patients import TRAINING_TILES
from clipit.workspace.tile_reading import with_kept_size
from clipit.workspace.workspace import Workspace


@pytest.fixture
def shifted_section(world: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """Test tiles with random pixels, except one copy of a training tile and one of a test tile."""
    source = Path(world["tiles"]["path"])
    with source.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    root = tmp_path / "elsewhere"
    (root / "images").mkdir(parents=True)
    for number, row in enumerate(rows):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / row["path"])
        row["group"] = f"elsewhere-{number}"
    shutil.copy(source.parent / "images/train-005.png", root / rows[3]["path"])
    shutil.copy(source.parent / "images/test-000.png", root / rows[4]["path"])
    with (root / "tiles.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {"source": "table", "path": str(root / "tiles.csv")}


@pytest.mark.parametrize("section", [{"source": "table"}, "tiles.csv", None])
def test_section_of_a_wrong_type_raises_an_error(
    configure: MakeConfig, section: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(configure({}))
    monkeypatch.setattr(
        workspace_module, "with_kept_size", with_kept_size.__wrapped__
    )  # without the tests' type checks
    with pytest.raises(ConfigError, match=r"(?s)must be a TilesConfig, not .*TilesConfig\.model_validate"):
        Workspace.shifted_tiles.__wrapped__(workspace, "centre 2", section)


def shifted_tiles(workspace: Workspace, tiles: dict[str, str]) -> TileSet:
    return workspace.shifted_tiles("centre 2", TilesConfig.model_validate(tiles))


def test_copies_of_training_tiles_raise_an_error(
    configure: MakeConfig, shifted_section: dict[str, str], tmp_path: Path
) -> None:
    workspace = Workspace(configure({"output": str(tmp_path)}))
    with pytest.raises(
        DataError, match=r"(?s)1 of 24 shifted tiles has the same image as a training.*test-003.*leaks\.policy=excl"
    ):
        shifted_tiles(workspace, shifted_section)


@pytest.mark.parametrize(("policy", "remaining"), [("exclude", 23), ("note", 24), ("off", 24)])
def test_copies_are_dropped_or_counted_by_policy(
    configure: MakeConfig, shifted_section: dict[str, str], tmp_path: Path, policy: str, remaining: int
) -> None:
    log_lines = capture_log()
    config = configure({"output": str(tmp_path / "out")}, **{"leaks.policy": policy})
    workspace = Workspace(config)
    tiles = shifted_tiles(workspace, shifted_section)
    assert (len(tiles), "images/test-003.png" in tiles.ids.tolist()) == (remaining, remaining == 24)
    assert len(workspace.all_tiles) == 120, "additional test sets must not change the training tiles"
    leak_messages = [line for line in log_lines if "1 of 24 shifted tiles" in line]
    assert len(leak_messages) == (policy != "off") == len(tiles.notes)
    shifted_tiles(workspace, shifted_section)
    assert sum("shifted tiles" in line for line in log_lines) == len(leak_messages), "leaks must be logged once"
    if leak_messages:
        listed = json.loads(Path(leak_messages[0].partition("listed in ")[2]).read_text(encoding="utf-8"))
        assert (listed["set"], listed["policy"]) == ("centre 2", policy)
        (leak,) = listed["leaks"]
        assert (leak["kind"], leak["id"], leak["other_id"]) == ("exact", "images/train-005.png", "images/test-003.png")


def test_notes_on_shifted_sets_and_on_models_of_arms_are_those_of_the_comparison(
    configure_file: MakeFile, shifted_section: dict[str, str], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "output": str(tmp_path / "out"),
        "leaks.policy": "note",
        "arms": {"tuned": {"base": "image_only", "backbone.name": str(tmp_path / "run" / "classifier")}},
        "comparison": {"arms": ["image_only", "tuned"], "baseline": "image_only", "seeds": [0]},
    }
    file = configure_file(changes, **{"comparison.shifted": {"centre 2": shifted_section}})
    (plan,) = plan_comparison(file.run, file.comparison)
    workspace = Workspace(plan.config)
    seen = workspace.all_tiles.of_split("test")
    (tmp_path / "run" / "classifier").mkdir(parents=True)
    table = {"id": seen.ids.tolist(), "split": seen.splits.tolist(), "group": seen.groups.tolist()}
    pq.write_table(pa.table(table), tmp_path / "run" / TRAINING_TILES)
    trained, copies = model_and_set_notes(plan, workspace)
    assert trained.startswith("WARNING: the backbone run/classifier was trained on data of test patients")
    assert copies.startswith("comparison.shifted.centre 2: 1 of 24 shifted tiles has the same image")


def test_shared_patients_of_shifted_sets_are_noted(
    configure: MakeConfig, shifted_section: dict[str, str], tmp_path: Path
) -> None:
    workspace = Workspace(configure({"output": str(tmp_path)}, **{"leaks.policy": "note", "leaks.pixels": "off"}))
    table = Path(shifted_section["path"])
    shared = workspace.all_tiles.of_split("train").groups.tolist()[0]
    table.write_text(table.read_text(encoding="utf-8").replace("elsewhere-7", shared), encoding="utf-8")
    (note,) = shifted_tiles(workspace, shifted_section).notes
    assert note == (
        f"comparison.shifted.centre 2: 1 patient of the shifted set is also in training or validation: {shared}, "
        "kept on request (leaks.policy: note)"
    )


def test_near_duplicates_of_training_tiles_are_found_with_pixels_near(
    configure: MakeConfig, shifted_section: dict[str, str], world: dict[str, Any], tmp_path: Path
) -> None:
    """The near duplicate is rotated and darkened, so that all pixels differ."""
    source, root = Path(world["tiles"]["path"]).parent / "images", Path(shifted_section["path"]).parent / "images"
    image = Image.open(source / "train-009.png").transpose(Image.Transpose.ROTATE_90)
    image.point(lambda value: int(value * 0.9) + 10).save(root / "test-007.png")
    exclude = {"leaks.policy": "exclude"}
    exact = Workspace(configure({"output": str(tmp_path / "exact")}, **exclude))
    assert len(shifted_tiles(exact, shifted_section)) == 23
    log_lines = capture_log()
    workspace = Workspace(configure({"output": str(tmp_path / "near")}, **exclude, **{"leaks.pixels": "near"}))
    kept = shifted_tiles(workspace, shifted_section).ids.tolist()
    assert "images/test-007.png" not in kept and "images/test-003.png" not in kept
    (message,) = [line for line in log_lines if "have the same image as a training or validation tile" in line]
    assert "(1 image is similar, not identical)" in message
    listed = json.loads(Path(message.partition("listed in ")[2]).read_text(encoding="utf-8"))["leaks"]
    assert [(leak["kind"], leak["id"], leak["other_id"]) for leak in listed] == [
        ("exact", "images/train-005.png", "images/test-003.png"),
        ("near", "images/train-009.png", "images/test-007.png"),
    ]
    assert listed[1]["similarity"] > 0.9


def test_pixels_are_not_compared_with_pixels_off(
    configure: MakeConfig, shifted_section: dict[str, str], tmp_path: Path
) -> None:
    workspace = Workspace(configure({"output": str(tmp_path)}, **{"leaks.pixels": "off"}))
    assert len(shifted_tiles(workspace, shifted_section)) == 24


def test_shifted_set_of_copies_only_raises_an_error(
    configure: MakeConfig, world: dict[str, Any], tmp_path: Path
) -> None:
    source = Path(world["tiles"]["path"])
    shutil.copytree(source.parent / "images", tmp_path / "images")
    with (tmp_path / "tiles.csv").open("w", encoding="utf-8") as stream:
        stream.write("path,label,split\n")
        stream.writelines(f"images/train-{n:03d}.png,{('gland', 'stroma', 'tumour')[n % 3]},test\n" for n in range(6))
    tiles = {"source": "table", "path": str(tmp_path / "tiles.csv")}
    workspace = Workspace(configure({"output": str(tmp_path / "out")}, **{"leaks.policy": "exclude"}))
    with pytest.raises(
        DataError,
        match=r"(?s)no tiles remain after dropping leaks; 6 of 6 shifted tiles.*comparison\.shifted\.centre 2",
    ):
        shifted_tiles(workspace, tiles)


@pytest.mark.slow
def test_retrained_run_does_not_reuse_shifted_predictions(
    configure: MakeConfig, shifted_section: dict[str, str], tmp_path: Path
) -> None:
    keys = {"arm": "image_only", "training.steps": 2, "training.evaluate_every": 1, "leaks.policy": "exclude"}

    def predict_shifted(rate: float) -> tuple[Path, np.ndarray]:
        config = configure({"output": str(tmp_path)}, **keys, **{"training.learning_rate": rate})
        workspace, resolved = Workspace(config), resolve_arm(config)
        folder = train_run(config, workspace)
        tiles = shifted_tiles(workspace, shifted_section)
        evaluate_shifted(resolved, workspace, folder, "centre 2", tiles)
        path = shifted_predictions(folder, tiles)
        return path, read_predictions(path).probabilities

    first, old = predict_shifted(0.01)
    stamp = first.stat().st_mtime_ns
    assert predict_shifted(0.01)[0] == first and first.stat().st_mtime_ns == stamp, (
        "predictions of the same model must be reused"
    )
    for part in ("classifier", "checkpoints"):
        shutil.rmtree(first.parent / part)
    (first.parent / "results.json").unlink()
    second, new = predict_shifted(0.05)
    assert second != first and second.parent == first.parent and not np.allclose(old, new)
    shutil.rmtree(second.parent / "classifier")
    shutil.rmtree(second.parent / "checkpoints")
    retrained, _ = predict_shifted(0.05)
    assert retrained != second, "same learning rate, but retrained"
    (retrained.parent / "training.json").write_text("{")
    with pytest.raises(ArtifactError, match="unreadable"):
        predict_shifted(0.05)
    assert run_folder(configure({"output": str(tmp_path), "arm": "image_only"})) == retrained.parent


@pytest.mark.slow
def test_shifted_predictions_of_other_weights_raise_an_error(
    configure: MakeConfig, shifted_section: dict[str, str], tmp_path: Path
) -> None:
    """The replaced predictions are valid and cover the same tiles, as if two files were swapped."""
    keys = {"arm": "image_only", "training.steps": 1, "leaks.policy": "exclude", "output": str(tmp_path)}
    config = configure(keys)
    workspace, resolved = Workspace(config), resolve_arm(config)
    folder = train_run(config, workspace)
    tiles = shifted_tiles(workspace, shifted_section)
    scores = evaluate_shifted(resolved, workspace, folder, "centre 2", tiles)
    assert evaluate_shifted(resolved, workspace, folder, "centre 2", tiles) == scores
    path = shifted_predictions(folder, tiles)
    predictions, content = read_predictions(path), path.read_bytes()
    write_predictions(path, replace(predictions, probabilities=predictions.probabilities[::-1].copy()))
    with pytest.raises(DataError, match=rf"(?s)have changed since.*delete {path.name} and run"):
        evaluate_shifted(resolved, workspace, folder, "centre 2", tiles)
    path.unlink()
    evaluate_shifted(resolved, workspace, folder, "centre 2", tiles)
    assert path.read_bytes() == content


@pytest.mark.slow
def test_non_square_shifted_tiles_are_a_warning(
    configure_file: MakeFile, shifted_section: dict[str, str], tmp_path: Path
) -> None:
    for path in Path(shifted_section["path"]).parent.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((64, 32)).save(path)
    keys = {"comparison.arms": ["image_only"], "comparison.seeds": [0], "comparison.shifted": {"wide": shifted_section}}
    keys |= {"arm": "image_only", "training.steps": 1, "leaks.policy": "off", "evaluation.bootstrap": 20}
    keys |= {"robustness.perturbations": {"jpeg": [20]}, "robustness.adaptation": [], "robustness.vlm": False}
    file, log_lines = configure_file({**keys, "output": tmp_path / "out"}), capture_log()
    folder = compare(file.run, file.comparison)
    note = "16 of 16 sampled images are not square: images of 64 x 32 px are cropped"
    assert sum(f"WARNING: shifted set wide: {note}" in line for line in log_lines) == 1
    assert note in (folder / "comparison.md").read_text()
    rebuild_comparison(file.run)
    assert note in (folder / "comparison.html").read_text()
    study = measure_robustness(file.run, file.robustness, [run_folder(file.run)], file.comparison.shifted)
    assert f"wide: WARNING: {note}" in (study / "robustness.md").read_text()
