"""Files of tile worlds: reproducible, with the configured counts, disjoint splits and standard formats."""

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from clipit.synthetic.latents import CLASSES
from clipit.synthetic.tile_draws import VLM_CENTRES, draw_tiles
from clipit.synthetic.tile_world import WorldConfig, add_cases, write_world

SMALL = WorldConfig(seed=3, train=64, validation=16, test=24, shift=16, reports=12)
FILES = {
    "tiles.zip",
    "tiles.csv",
    "tiles_shift.zip",
    "tiles_shift.csv",
    "reports.jsonl",
    "case_reports.jsonl",
    "grade_prompts.yaml",
    "grade_prompts_all_names.yaml",
    "prompts.yaml",
    "morphology.yaml",
    "boilerplate.yaml",
    "world.json",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, SMALL)
    return folder


def rows(world: Path, name: str = "tiles") -> list[dict[str, str]]:
    with (world / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def digests(world: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in world.iterdir()}


def test_the_same_seed_gives_identical_files(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path, SMALL)
    assert digests(tmp_path) == digests(world)
    assert set(digests(world)) == FILES


def test_a_different_seed_gives_different_files(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path, SMALL.model_copy(update={"seed": 4}))
    changed = {name for name, digest in digests(tmp_path).items() if digests(world)[name] != digest}
    assert changed == {name for name in FILES if not name.endswith(".yaml")}


def test_training_tiles_do_not_depend_on_the_number_of_test_tiles(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path, SMALL.model_copy(update={"test": 40}))
    with zipfile.ZipFile(world / "tiles.zip") as first, zipfile.ZipFile(tmp_path / "tiles.zip") as second:
        assert first.read("train/train-00007.png") == second.read("train/train-00007.png")


def test_classes_are_balanced_in_every_split(world: Path) -> None:
    table = rows(world)
    assert [sum(row["split"] == split for row in table) for split in ("train", "validation", "test")] == [64, 16, 24]
    assert len(rows(world, "tiles_shift")) == 16
    for split, count in (("train", 8), ("validation", 2), ("test", 3)):
        labels = [row["label"] for row in table if row["split"] == split]
        assert {label: labels.count(label) for label in CLASSES} == dict.fromkeys(CLASSES, count)
    facts = json.loads((world / "world.json").read_text())
    assert facts["counts"]["train"] == dict.fromkeys(CLASSES, 8)


def test_ids_are_unique_and_images_exist(world: Path) -> None:
    for name in ("tiles", "tiles_shift"):
        table = rows(world, name)
        assert len({row["id"] for row in table}) == len(table)
        with zipfile.ZipFile(world / f"{name}.zip") as archive:
            assert sorted(archive.namelist()) == sorted(row["path"] for row in table)
            image = Image.open(io.BytesIO(archive.read(table[0]["path"])))
            assert (image.mode, image.size) == ("RGB", (64, 64))


def test_tiles_are_unique_and_groups_do_not_cross_splits(world: Path) -> None:
    images = []
    for name in ("tiles", "tiles_shift"):
        with zipfile.ZipFile(world / f"{name}.zip") as archive:
            images += [archive.read(member) for member in archive.namelist()]
    assert len(set(images)) == len(images)
    table = rows(world) + [{**row, "split": "shift"} for row in rows(world, "tiles_shift")]
    splits: dict[str, set[str]] = {}
    centres: dict[str, set[str]] = {}
    for row in table:
        splits.setdefault(row["group"], set()).add(row["split"])
        centres.setdefault(row["group"], set()).add(row["centre"])
    assert all(len(values) == 1 for values in splits.values())
    assert all(len(values) == 1 for values in centres.values())


def test_centres_of_the_shifted_set_and_of_the_bundled_vlm_are_separate(world: Path) -> None:
    assert {row["centre"] for row in rows(world)} <= {"6", "7"}
    assert {row["centre"] for row in rows(world, "tiles_shift")} <= {"8", "9"}
    with pytest.raises(ValidationError, match="must not share"):
        WorldConfig(centres=(6, 7), shift_centres=(7, 8))
    with pytest.raises(ValidationError, match="used to train the bundled VLM"):
        WorldConfig(centres=(VLM_CENTRES[0],))


def test_prompts_have_the_classes_of_the_table(world: Path) -> None:
    prompts = yaml.safe_load((world / "prompts.yaml").read_text())
    assert set(prompts["classes"]) == {row["label"] for row in rows(world)}
    assert all(template.count("{}") == 1 for template in prompts["templates"])
    for bag in ("morphology", "boilerplate"):
        assert set(yaml.safe_load((world / f"{bag}.yaml").read_text())) == {"name", "version", "texts"}


def test_two_prompt_sets_contain_only_the_grades(world: Path) -> None:
    all_classes = yaml.safe_load((world / "prompts.yaml").read_text())
    grades_only, all_names = (
        yaml.safe_load((world / f"grade_prompts{suffix}.yaml").read_text()) for suffix in ("", "_all_names")
    )
    for prompts in (grades_only, all_names):
        assert list(prompts["classes"]) == ["low grade", "high grade"]
        assert prompts["templates"] == all_classes["templates"]
    for grade, label in (("low grade", "tumour_low_grade"), ("high grade", "tumour_high_grade")):
        assert all_names["classes"][grade] == all_classes["classes"][label]
        assert all(name.startswith(grade) for name in grades_only["classes"][grade])
    assert len({grades_only["name"], all_names["name"], all_classes["name"]}) == 3


def test_existing_files_of_a_world_are_not_overwritten(world: Path, tmp_path: Path) -> None:
    (tmp_path / "grade_prompts.yaml").write_text("the user's own\n", encoding="utf-8")
    add_cases(tmp_path, SMALL)
    assert (tmp_path / "grade_prompts.yaml").read_text(encoding="utf-8") == "the user's own\n"
    for name in ("case_reports.jsonl", "grade_prompts_all_names.yaml"):
        assert (tmp_path / name).read_bytes() == (world / name).read_bytes()


def test_classes_are_separable_but_not_trivially() -> None:
    """A nearest-mean classifier on five colour and texture statistics is far above chance and far from perfect."""
    draw = draw_tiles(5, "look", 400, (6, 7))
    pixels = draw.images.astype(np.float64)
    grey = pixels.mean(-1)
    statistics = np.stack(
        [*pixels.mean((1, 2)).T, grey.std((1, 2)), np.abs(np.diff(grey, axis=1)).mean((1, 2))], axis=1
    )
    statistics = (statistics - statistics.mean(0)) / statistics.std(0)
    means = np.stack([statistics[:200][draw.latents.tissue[:200] == k].mean(0) for k in range(len(CLASSES))])
    nearest = ((statistics[200:, None] - means[None]) ** 2).sum(-1).argmin(1)
    assert 0.3 < (nearest == draw.latents.tissue[200:]).mean() < 0.9
