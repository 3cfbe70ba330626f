"""Near-duplicates across splits when the patients of the tiles are unknown."""

import re
import shutil
from pathlib import Path

import numpy as np
from logged_lines import capture_log
from PIL import Image
from tiny_models import MakeConfig

from clipit.config.run import RunConfig
from clipit.workspace.check_leaks import check_leaks
from clipit.workspace.workspace import Workspace


def config_of(configure: MakeConfig, folder: Path, group: str = "", **keys: object) -> RunConfig:
    """Write a table of 12 images and their mirror images, and return a configuration with these tiles."""
    rows = ["path,label,split,group"]
    for number in range(24):
        smooth = np.random.default_rng(number % 12).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(smooth).resize((48, 48), Image.Resampling.BICUBIC)
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number >= 12 else image
        image.save(folder / f"{number:02d}.png")
        split = "train" if number < 18 else "test"
        rows.append(
            f"{number:02d}.png,{'gland' if number % 2 else 'stroma'},{split},{group and f'{group}{split}{number % 3}'}"
        )
    (folder / "tiles.csv").write_text("\n".join(rows))
    tiles = {"source": "table", "path": str(folder / "tiles.csv")}
    return configure({"tiles": tiles, "prompts": None, "output": folder / "out", **keys})


def test_mirror_images_across_splits_are_noted_without_groups(configure: MakeConfig, tmp_path: Path) -> None:
    log_lines = capture_log()
    tiles = Workspace(config_of(configure, tmp_path)).all_tiles
    notes = [line for line in log_lines if "look like a tile in an earlier split" in line]
    assert len(notes) == 1 and "no groups are set, so scores will be too high" in notes[0]
    assert "tiles.columns.group" in notes[0] and "--leaks.pixels=near --leaks.policy=exclude" in notes[0]
    assert re.search(r"\d\d\.png \((train|validation)\) ~ \d\d\.png \((validation|test)\)", notes[0])
    assert len(tiles) == 24 and "look like a tile in an earlier split" in tiles.notes[-1]


def test_tiles_with_groups_are_not_searched_for_near_duplicates(configure: MakeConfig, tmp_path: Path) -> None:
    log_lines = capture_log()
    tiles = Workspace(config_of(configure, tmp_path, group="p")).all_tiles
    assert not any("look like" in line for line in (*log_lines, *tiles.notes))
    assert not list((tmp_path / "out" / "artefacts").glob("tile_hashes*"))


def test_images_are_not_compared_if_disabled(configure: MakeConfig, tmp_path: Path) -> None:
    for keys in ({"leaks.policy": "off"}, {"leaks.pixels": "off"}):
        tiles = Workspace(config_of(configure, tmp_path, **keys)).all_tiles
        assert not any("look like" in note for note in tiles.notes)
    assert not (tmp_path / "out" / "artefacts").exists()


def test_identical_images_with_different_labels_give_a_warning(configure: MakeConfig, tmp_path: Path) -> None:
    config = config_of(configure, tmp_path, group="p")
    for copy, original in (("03", "00"), ("08", "02"), ("21", "20")):  # only 08 has the same label as its original
        shutil.copy(tmp_path / f"{original}.png", tmp_path / f"{copy}.png")
    log_lines = capture_log()
    tiles = Workspace(config).all_tiles
    (note,) = [note for note in tiles.notes if "different label" in note]
    assert note.startswith("WARNING: 4 tiles have the same pixels as a tile of the same split")
    assert "00.png (stroma) = 03.png (gland), 20.png (stroma) = 21.png (gland)" in note
    check_leaks(config)
    assert sum(note in line for line in log_lines) == 2


def test_identical_images_with_the_same_label_give_no_warning(configure: MakeConfig, tmp_path: Path) -> None:
    config = config_of(configure, tmp_path, group="p")
    shutil.copy(tmp_path / "00.png", tmp_path / "06.png")
    assert not any("same pixels" in note for note in Workspace(config).all_tiles.notes)
