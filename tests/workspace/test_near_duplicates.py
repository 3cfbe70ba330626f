"""Near-duplicates between the splits of tiles whose patients are unknown."""

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
    """A table of 12 images and their mirror images, half of which are test tiles."""
    rows = ["path,label,split,group"]
    for number in range(24):
        smooth = np.random.default_rng(number % 12).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(smooth).resize((48, 48), Image.Resampling.BICUBIC)
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number >= 12 else picture
        picture.save(folder / f"{number:02d}.png")
        split = "train" if number < 18 else "test"
        rows.append(
            f"{number:02d}.png,{'gland' if number % 2 else 'stroma'},{split},{group and f'{group}{split}{number % 3}'}"
        )
    (folder / "tiles.csv").write_text("\n".join(rows))
    tiles = {"source": "table", "path": str(folder / "tiles.csv")}
    return configure({"tiles": tiles, "prompts": None, "output": folder / "out", **keys})


def test_mirror_images_across_splits_are_a_loud_note_without_groups(configure: MakeConfig, tmp_path: Path) -> None:
    said = capture_log()
    tiles = Workspace(config_of(configure, tmp_path)).all_tiles
    found = [line for line in said if "look like a tile in an earlier split" in line]
    assert len(found) == 1 and "no groups are set, so scores will be too high" in found[0]
    assert "tiles.columns.group" in found[0] and "--leaks.pixels=near --leaks.policy=exclude" in found[0]
    assert re.search(r"\d\d\.png \((train|validation)\) ~ \d\d\.png \((validation|test)\)", found[0])
    assert len(tiles) == 24 and "look like a tile in an earlier split" in tiles.notes[-1]


def test_tiles_with_groups_are_not_searched(configure: MakeConfig, tmp_path: Path) -> None:
    said = capture_log()
    tiles = Workspace(config_of(configure, tmp_path, group="p")).all_tiles
    assert not any("look like" in line for line in (*said, *tiles.notes))
    assert not list((tmp_path / "out" / "artefacts").glob("tile_hashes*"))


def test_no_image_is_compared_where_the_configuration_says_so(configure: MakeConfig, tmp_path: Path) -> None:
    for keys in ({"leaks.policy": "off"}, {"leaks.pixels": "off"}):
        tiles = Workspace(config_of(configure, tmp_path, **keys)).all_tiles
        assert not any("look like" in note for note in tiles.notes)
    assert not (tmp_path / "out" / "artefacts").exists()


def test_identical_images_with_different_labels_in_a_split(configure: MakeConfig, tmp_path: Path) -> None:
    config = config_of(configure, tmp_path, group="p")
    for copy, original in (("03", "00"), ("08", "02"), ("21", "20")):  # 08 has the label of its original
        shutil.copy(tmp_path / f"{original}.png", tmp_path / f"{copy}.png")
    said = capture_log()
    tiles = Workspace(config).all_tiles
    (note,) = [note for note in tiles.notes if "different label" in note]
    assert note.startswith("WARNING: 4 tiles have the same pixels as a tile of the same split")
    assert "00.png (stroma) = 03.png (gland), 20.png (stroma) = 21.png (gland)" in note
    check_leaks(config)
    assert sum(note in line for line in said) == 2


def test_a_repeated_image_with_one_label_needs_no_note(configure: MakeConfig, tmp_path: Path) -> None:
    config = config_of(configure, tmp_path, group="p")
    shutil.copy(tmp_path / "00.png", tmp_path / "06.png")
    assert not any("same pixels" in note for note in Workspace(config).all_tiles.notes)
