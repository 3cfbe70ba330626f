"""Cached inputs of a configuration."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from logged_lines import capture_log
from PIL import Image
from slide_files import picture, write_slide

from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, DataError
from clipit.workspace.workspace import Workspace

MakeConfig = Callable[..., RunConfig]


def test_the_snippet_summary_describes_the_configured_reports(configure: MakeConfig, tmp_path: Path) -> None:
    texts = ["Glands invade the muscularis.", "Margins are free of tumor."]
    (tmp_path / "first.jsonl").write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)))
    (tmp_path / "second.jsonl").write_text((tmp_path / "first.jsonl").read_text() + '{"id": 2, "text": " "}\n')
    first, second = (
        Workspace(
            configure(
                {
                    "reports.path": str(tmp_path / f"{name}.jsonl"),
                    "reports.id_column": "id",
                    "reports.label_column": None,
                }
            )
        )
        for name in ("first", "second")
    )
    assert "0 empty; from" in first.snippet_summary() and "first.jsonl" in first.snippet_summary()
    assert second.snippets.folder == first.snippets.folder
    summary = second.snippet_summary()
    assert "2  with text, 1 empty; from" in summary and "second.jsonl, line 3: empty report" in summary
    assert "first.jsonl" not in summary


def test_unreadable_reports_fail_before_tiles_are_embedded(configure: MakeConfig, tmp_path: Path) -> None:
    reports = tmp_path / "reports.jsonl"
    reports.write_bytes(b'{"id": "a", "text": "45 \xb5m of mucosa."}\n')
    workspace = Workspace(configure({"reports": {"path": str(reports)}, "output": str(tmp_path / "out")}))
    with pytest.raises(DataError, match="not valid utf-8"):
        _ = workspace.pairs
    assert not list(tmp_path.glob("out/artefacts/tile_store*"))


def test_the_error_for_a_flipped_bit_in_an_artefact_names_the_file(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure({"output": str(tmp_path / "out")})
    first = Workspace(config)

    def read_again() -> Workspace:
        workspace = Workspace(config)
        workspace.vlm = first.vlm
        assert len(workspace.pairs.table) == len(first.pairs.table) and workspace.snippet_summary()
        return workspace

    read_again()
    folders = list((tmp_path / "out" / "artefacts").iterdir())
    kinds = {folder.name.rpartition("-")[0]: folder for folder in folders if folder.is_dir()}
    assert {*kinds} == {"index", "pairs", "snippets", "text_store", "tile_digests", "tile_store"}
    for folder in kinds.values():
        largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        content = largest.read_bytes()
        middle = len(content) // 2
        largest.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(ArtifactError, match=rf"(?s)changed.*{largest.name}.*delete the folder"):
            read_again()
        largest.write_bytes(content)


def test_almost_as_many_classes_as_tiles_are_noted(configure: MakeConfig, tmp_path: Path) -> None:
    def workspace(tiles_per_class: int) -> Workspace:
        folder = tmp_path / str(tiles_per_class)
        for number in range(24 * tiles_per_class):
            split = "validation" if number % 3 == 2 else "train"
            path = folder / split / f"case-{number % 24:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(path)
        tiles = {"source": "folders", "path": str(folder)}
        return Workspace(configure({"tiles": tiles, "prompts": None, "leaks.policy": "off"}))

    assert workspace(1).all_tiles.notes[-1].startswith("24 classes for 24 labelled tiles")
    assert not any("labelled tiles" in note for note in workspace(3).all_tiles.notes)


def test_tiles_of_slides_are_embedded_and_paired(configure: MakeConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for name, split in (("a", "train"), ("b", "validation"), ("c", "test")):
        pixels = np.clip(picture(240, 240).astype(int) + rng.integers(-30, 30, (240, 240, 3)), 0, 255)
        write_slide(tmp_path / f"{name}.tiff", pixels.astype(np.uint8), levels=2)
        rows.append({"slide": name, "label": "gland", "split": split, "group": f"P-{name}"})
    pd.DataFrame(rows).to_csv(tmp_path / "slides.csv", index=False)
    slides = {"mpp": 1.0, "pixels": 32, "grids": str(tmp_path / "grids")}
    tiles = {"source": "slides", "path": str(tmp_path / "slides.csv"), "images": None, "slides": slides}
    workspace = Workspace(configure(**{f"tiles.{key}": value for key, value in tiles.items()}, output=tmp_path))
    all_tiles = workspace.all_tiles
    train = all_tiles.of_split("train")
    assert {name.split("@")[0] for name in train.ids} == {"a"} and set(all_tiles.groups) == {"P-a", "P-b", "P-c"}
    assert workspace.tile_store("train").ids.tolist() == train.ids.tolist()
    assert set(workspace.pairs.table["tile_id"].to_pylist()) == set(train.ids)


def test_tiles_of_every_configuration_with_the_same_vlm_are_checked(configure: MakeConfig) -> None:
    first = Workspace(configure({"vlm.name": "embedded", "tiles.mpp": 0.5}))
    expected = first.vlm.expected_mpp
    assert expected is not None
    lines = capture_log()
    coarse = first.for_config(configure({"vlm.name": "embedded", "tiles.mpp": 20 * expected}))
    assert coarse.vlm is first.vlm
    assert sum("features may be worse than published" in line for line in lines) == 1
