"""Cached inputs of a configuration."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from clipit.config.run import RunConfig
from clipit.workspace.workspace import Workspace

MakeConfig = Callable[..., RunConfig]


def test_the_account_belongs_to_the_reports_that_were_read(configure: MakeConfig, tmp_path: Path) -> None:
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


def test_classes_about_as_many_as_tiles_are_noted(configure: MakeConfig, tmp_path: Path) -> None:
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
