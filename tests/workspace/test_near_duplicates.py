"""Near-duplicates between the splits of tiles whose patients are unknown."""

import re
from pathlib import Path

import numpy as np
from logged_lines import capture_log
from PIL import Image
from tiny_models import MakeConfig

from clipit.config.run import RunConfig
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
