"""Test errors for Git LFS pointers in place of data files."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from labelled_tiles import load_tiles

from clipit.config.load import read_yaml
from clipit.config.run import ReportsConfig, TilesConfig
from clipit.errors import ClipitError
from clipit.images.decode import decode
from clipit.input_files.git_lfs import find_pointer
from clipit.prompts.prompt_set import load_prompts
from clipit.reports.readers import read_reports
from clipit.slides.opening import open_slide
from clipit.stores.slide_features import open_slide_features

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 12345\n"


def tiles(source: str) -> Callable[[Path], object]:
    return lambda path: load_tiles(TilesConfig.model_validate({"source": source, "path": str(path)}), seed=0)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("t.csv", tiles("table")),
        ("t.parquet", tiles("table")),
        ("tiles.zip", tiles("folders")),
        ("shard-0.tar", tiles("webdataset")),
        ("r.jsonl", lambda path: read_reports(ReportsConfig(path=str(path)))),
        ("r.zip", lambda path: read_reports(ReportsConfig(path=str(path)))),
        ("p.yaml", load_prompts),
        ("c.yaml", read_yaml),
        ("f.h5", open_slide_features),
        ("s.svs", open_slide),
        ("s.tif", open_slide),
        ("a.png", decode),
        ("b.png", lambda path: decode(io.BytesIO(path.read_bytes()))),
    ],
)
def test_all_readers_recognise_git_lfs_pointers(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises((ClipitError, ValueError), match=r"(?s)is a Git LFS pointer, not the .*run git lfs pull"):
        read(tmp_path / name)


def test_files_that_contain_the_text_of_a_pointer_are_not_pointers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"Notes on {POINTER}")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.txt", POINTER)
    assert find_pointer(tmp_path) is None and find_pointer(tmp_path / "absent") is None
    (tmp_path / "c.bin").write_text(POINTER)
    assert find_pointer(tmp_path) == tmp_path / "c.bin"
