"""Nearest snippets of the top tiles on the page of a slide, on request."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from slide_files import picture, write_slide

import clipit
from clipit.errors import ConfigError
from clipit.workspace.workspace import Workspace


def test_nearest_snippets_of_the_top_tiles_are_shown_on_request(
    write_config: Callable[..., Path], shared_output: Path, tmp_path: Path
) -> None:
    config = write_config(output=shared_output)
    workspace = Workspace(clipit.load_config(config).run)
    slide = write_slide(tmp_path / "slide.tiff", picture())
    options: dict[str, Any] = {
        "vlm": workspace.config.vlm.name, "classes": "gland; stroma", "tile_mpp": 1.0, "tile_pixels": 64,
        "maps": True, "top": 1,
    }  # fmt: skip
    pages = []
    for snippets in (None, config):  # in the same folder, so that the page is rewritten
        result = clipit.score_slides(slide, tmp_path / "maps", snippets=snippets, **options)
        pages.append((result.folder / "slides/slide/index.html").read_text(encoding="utf-8"))
    assert "Nearest prompts" in pages[0] and "Nearest snippets" not in pages[0]
    ids = set(workspace.snippet_texts())
    listed = [name for name in re.findall(r"[\w.-]+", pages[1].split("Nearest snippets", 1)[1]) if name in ids]
    assert len(listed) >= 2

    other = write_config({"vlm.name": "embedded"}, shared_output)
    with pytest.raises(ConfigError, match="the VLM that embeds the snippets is not the one that"):
        clipit.score_slides(slide, tmp_path / "other", snippets=other, **options)
