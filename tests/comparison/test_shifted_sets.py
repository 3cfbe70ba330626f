"""Shifted test sets: predictions belong to one training, and tiles seen in training are dropped."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged_lines import capture_log
from PIL import Image
from tiny_models import MakeConfig, MakeFile

from clipit.comparison.compare import compare
from clipit.comparison.rebuild import rebuild_comparison
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
from clipit.workspace.tile_reading import with_kept_size
from clipit.workspace.workspace import Workspace


@pytest.fixture
def elsewhere(world: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """The test tiles with other pixels; two are copies, of a training tile and of a test tile."""
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
def test_a_section_of_another_type_is_named(
    configure: MakeConfig, section: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Workspace(configure({}))
    monkeypatch.setattr(
        workspace_module, "with_kept_size", with_kept_size.__wrapped__
    )  # without the tests' type checks
    with pytest.raises(ConfigError, match=r"(?s)must be a TilesConfig, not .*TilesConfig\.model_validate"):
        Workspace.shifted_tiles.__wrapped__(made, "centre 2", section)


def shifted_tiles(workspace: Workspace, tiles: dict[str, str]) -> TileSet:
    return workspace.shifted_tiles("centre 2", TilesConfig.model_validate(tiles))


def test_copies_of_training_tiles_are_an_error(
    configure: MakeConfig, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    made = Workspace(configure({"output": str(tmp_path)}))
    with pytest.raises(
        DataError, match=r"(?s)1 of 24 shifted tiles has the same image as a training.*test-003.*leaks\.policy=excl"
    ):
        shifted_tiles(made, elsewhere)


@pytest.mark.parametrize(("policy", "left"), [("exclude", 23), ("note", 24), ("off", 24)])
def test_copies_are_dropped_or_counted_by_policy(
    configure: MakeConfig, elsewhere: dict[str, str], tmp_path: Path, policy: str, left: int
) -> None:
    said = capture_log()
    config = configure({"output": str(tmp_path / "out")}, **{"leaks.policy": policy})
    made = Workspace(config)
    tiles = shifted_tiles(made, elsewhere)
    assert (len(tiles), "images/test-003.png" in tiles.ids.tolist()) == (left, left == 24)
    assert len(made.all_tiles) == 120, "what is learnt from does not depend on additional test sets"
    told = [line for line in said if "1 of 24 shifted tiles" in line]
    assert len(told) == (policy != "off") == len(tiles.notes)
    shifted_tiles(made, elsewhere)
    assert sum("shifted tiles" in line for line in said) == len(told), "said once"
    if told:
        listed = json.loads(Path(told[0].partition("listed in ")[2]).read_text(encoding="utf-8"))
        assert (listed["set"], listed["policy"]) == ("centre 2", policy)
        (leak,) = listed["leaks"]
        assert (leak["kind"], leak["id"], leak["other_id"]) == ("exact", "images/train-005.png", "images/test-003.png")


def test_near_duplicates_of_training_tiles_are_found_with_pixels_near(
    configure: MakeConfig, elsewhere: dict[str, str], world: dict[str, Any], tmp_path: Path
) -> None:
    """The near duplicate is rotated and darkened, so that no pixel is the same."""
    source, root = Path(world["tiles"]["path"]).parent / "images", Path(elsewhere["path"]).parent / "images"
    picture = Image.open(source / "train-009.png").transpose(Image.Transpose.ROTATE_90)
    picture.point(lambda value: int(value * 0.9) + 10).save(root / "test-007.png")
    exclude = {"leaks.policy": "exclude"}
    exact = Workspace(configure({"output": str(tmp_path / "exact")}, **exclude))
    assert len(shifted_tiles(exact, elsewhere)) == 23
    said = capture_log()
    made = Workspace(configure({"output": str(tmp_path / "near")}, **exclude, **{"leaks.pixels": "near"}))
    kept = shifted_tiles(made, elsewhere).ids.tolist()
    assert "images/test-007.png" not in kept and "images/test-003.png" not in kept
    (told,) = [line for line in said if "have the same image as a training or validation tile" in line]
    assert "(1 image is similar, not identical)" in told
    listed = json.loads(Path(told.partition("listed in ")[2]).read_text(encoding="utf-8"))["leaks"]
    assert [(leak["kind"], leak["id"], leak["other_id"]) for leak in listed] == [
        ("exact", "images/train-005.png", "images/test-003.png"),
        ("near", "images/train-009.png", "images/test-007.png"),
    ]
    assert listed[1]["similarity"] > 0.9


def test_pixels_are_not_compared_with_pixels_off(
    configure: MakeConfig, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    made = Workspace(configure({"output": str(tmp_path)}, **{"leaks.pixels": "off"}))
    assert len(shifted_tiles(made, elsewhere)) == 24


def test_shifted_set_of_copies_only_is_an_error(configure: MakeConfig, world: dict[str, Any], tmp_path: Path) -> None:
    source = Path(world["tiles"]["path"])
    shutil.copytree(source.parent / "images", tmp_path / "images")
    with (tmp_path / "tiles.csv").open("w", encoding="utf-8") as stream:
        stream.write("path,label,split\n")
        stream.writelines(f"images/train-{n:03d}.png,{('gland', 'stroma', 'tumour')[n % 3]},test\n" for n in range(6))
    tiles = {"source": "table", "path": str(tmp_path / "tiles.csv")}
    made = Workspace(configure({"output": str(tmp_path / "out")}, **{"leaks.policy": "exclude"}))
    with pytest.raises(
        DataError,
        match=r"(?s)no tiles remain after dropping leaks; 6 of 6 shifted tiles.*comparison\.shifted\.centre 2",
    ):
        shifted_tiles(made, tiles)


@pytest.mark.slow
def test_retrained_run_does_not_reuse_shifted_predictions(
    configure: MakeConfig, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    keys = {"arm": "image_only", "training.steps": 2, "training.evaluate_every": 1, "leaks.policy": "exclude"}

    def predicted(rate: float) -> tuple[Path, np.ndarray]:
        config = configure({"output": str(tmp_path)}, **keys, **{"training.learning_rate": rate})
        workspace, resolved = Workspace(config), resolve_arm(config)
        folder = train_run(config, workspace)
        tiles = shifted_tiles(workspace, elsewhere)
        evaluate_shifted(resolved, workspace, folder, "centre 2", tiles)
        path = shifted_predictions(folder, tiles)
        return path, read_predictions(path).probabilities

    first, old = predicted(0.01)
    stamp = first.stat().st_mtime_ns
    assert predicted(0.01)[0] == first and first.stat().st_mtime_ns == stamp, "kept for the same training"
    for part in ("classifier", "checkpoints"):
        shutil.rmtree(first.parent / part)
    (first.parent / "results.json").unlink()
    second, new = predicted(0.05)
    assert second != first and second.parent == first.parent and not np.allclose(old, new)
    shutil.rmtree(second.parent / "classifier")
    shutil.rmtree(second.parent / "checkpoints")
    again, _ = predicted(0.05)
    assert again != second, "the same mark, but another training"
    (again.parent / "training.json").write_text("{")
    with pytest.raises(ArtifactError, match="unreadable"):
        predicted(0.05)
    assert run_folder(configure({"output": str(tmp_path), "arm": "image_only"})) == again.parent


@pytest.mark.slow
def test_shifted_predictions_of_other_weights_are_an_error(
    configure: MakeConfig, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    """The predictions are valid in themselves and cover the same tiles, as after two files were exchanged."""
    keys = {"arm": "image_only", "training.steps": 1, "leaks.policy": "exclude", "output": str(tmp_path)}
    config = configure(keys)
    workspace, resolved = Workspace(config), resolve_arm(config)
    folder = train_run(config, workspace)
    tiles = shifted_tiles(workspace, elsewhere)
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
def test_shifted_tiles_that_are_not_square_are_noted(
    configure_file: MakeFile, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    for path in Path(elsewhere["path"]).parent.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((64, 32)).save(path)
    keys = {"comparison.arms": ["image_only"], "comparison.seeds": [0], "comparison.shifted": {"wide": elsewhere}}
    keys |= {"arm": "image_only", "training.steps": 1, "leaks.policy": "off", "evaluation.bootstrap": 20}
    keys |= {"robustness.perturbations": {"jpeg": [20]}, "robustness.adaptation": [], "robustness.vlm": False}
    file, said = configure_file({**keys, "output": tmp_path / "out"}), capture_log()
    folder = compare(file.run, file.comparison)
    note = "16 of 16 sampled images are not square: images of 64 x 32 px are cropped"
    assert sum(f"WARNING: shifted set wide: {note}" in line for line in said) == 1
    assert note in (folder / "comparison.md").read_text()
    rebuild_comparison(file.run)
    assert note in (folder / "comparison.html").read_text()
    study = measure_robustness(file.run, file.robustness, [run_folder(file.run)], file.comparison.shifted)
    assert f"wide: WARNING: {note}" in (study / "robustness.md").read_text()
