"""Examples written for the open_clip trainer, read with open_clip's own code."""

import logging
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from logged_lines import capture_log
from PIL import Image
from tiny_models import MakeConfig

from clipit.errors import ArtifactError
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.tileset import TileSet
from clipit.vlm_training.bag_batches import BagExamples, Members
from clipit.vlm_training.write_pairs import write_pairs
from clipit.workspace.workspace import Workspace

data = pytest.importorskip("open_clip_train.data")


@pytest.fixture
def tiles(configure: MakeConfig) -> TileSet:
    return Workspace(configure({"reports": None})).all_tiles.of_split("validation").select(range(6))


def examples_of(tiles: TileSet, texts: list[str], texts_of: list[list[int]]) -> BagExamples:
    numbers = np.arange(len(texts_of))
    return BagExamples(
        source=PixelSource(tiles, lambda image: np.asarray(image).transpose(2, 0, 1)),
        tile_ids=tiles.ids.tolist(),
        texts=texts,
        tiles_of=Members.of([[number] for number in numbers.tolist()]),
        texts_of=Members.of(texts_of),
        tiles_per_bag=1,
        texts_per_bag=1,
        batch_size=2,
        seed=0,
        groups=numbers,
        partners=numbers,
        pixel_codes=np.arange(len(tiles)),
    )


TEXTS = ['Mild "atypia"\tand é', "Severe, with necrosis", "None", "1.0"]
"""Texts that careless CSV reading or writing would change."""


@pytest.fixture
def parts(tiles: TileSet) -> dict[str, BagExamples]:
    train = examples_of(tiles, TEXTS, [[0, 1], [1], [2], [3]])
    return {"train": train, "validation": examples_of(tiles, TEXTS, [[0]])}


def distance(image: Image.Image, tile: Image.Image) -> float:
    return float(np.abs(np.asarray(image, dtype=np.float32) - np.asarray(tile, dtype=np.float32)).mean())


def test_the_table_is_read_by_open_clip(parts: dict[str, BagExamples], tiles: TileSet, tmp_path: Path) -> None:
    assert write_pairs(parts, tmp_path / "pairs", "csv") == {"train": 5, "validation": 1}
    dataset = data.CsvDataset(
        str(tmp_path / "pairs" / "train.csv"), lambda image: image, "filepath", "title", tokenizer=lambda texts: texts
    )
    samples = [dataset[number] for number in range(len(dataset))]
    tiles_of_text = {TEXTS[0]: [0], TEXTS[1]: [0, 1], "None.": [2], TEXTS[3]: [3]}
    assert Counter(text for _, text in samples) == Counter([*tiles_of_text, TEXTS[1]])
    assert all(min(distance(image, tiles.read(row)) for row in tiles_of_text[text]) < 12 for image, text in samples)
    assert len(list((tmp_path / "pairs" / "images").glob("train-*.jpg"))) == 4
    assert f'--train-data "{tmp_path / "pairs" / "train"}.csv"' in (tmp_path / "pairs" / "README.txt").read_text()


def test_the_shards_are_read_by_open_clip(
    parts: dict[str, BagExamples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("clipit.vlm_training.write_pairs._PER_SHARD", 3)
    folder = tmp_path / "pairs"
    write_pairs(parts, folder, "webdataset")
    shards = str(folder / "train-{000000..000001}.tar")
    assert shards in (folder / "README.txt").read_text()
    assert data.get_dataset_size(shards) == (5, 2)
    args = Namespace(
        train_data=None, val_data=shards, val_num_samples=5, batch_size=2, workers=0, world_size=1,
        train_data_upsampling_factors=None, seed=0, dataset_resampled=False, train_num_samples=None,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        info = data.get_wds_dataset(args, lambda image: np.asarray(image), False, tokenizer=lambda text: [text])
        texts = [text for images, batch in info.dataloader for text in batch]
    assert Counter(texts) == Counter([*TEXTS, TEXTS[1]]) and not caplog.records


def test_captions_depend_on_the_kind_of_examples(tiles: TileSet) -> None:
    single = examples_of(tiles, TEXTS, [[0, 1, 2]])
    assert single.captions(0) == [(0, 0), (0, 1), (0, 2)]
    case = BagExamples(**{**vars(single), "tiles_of": Members.of([[0, 1, 2, 3]]), "texts_per_bag": 2})
    captions = case.captions(0)
    assert Counter(tile for tile, _ in captions) == dict.fromkeys(range(4), 2)
    assert {text for _, text in captions} == {0, 1, 2} and len(set(captions)) == 8
    bag = BagExamples(**{**vars(case), "neighbours": True})
    assert bag.captions(0) == single.captions(0)


def test_a_non_empty_folder_is_not_overwritten(parts: dict[str, BagExamples], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ArtifactError, match="the folder is not empty"):
        write_pairs(parts, tmp_path, "csv")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ArtifactError, match="this is a file, not a folder"):
        write_pairs(parts, tmp_path / "mine.txt", "csv")
    assert (tmp_path / "mine.txt").read_text() == "x"


def test_dropped_images_and_texts_are_logged_and_written(parts: dict[str, BagExamples], tmp_path: Path) -> None:
    messages = capture_log()
    counts = {"tiles_without_text": 4, "unreadable_tiles": 1234, "leaking_tiles": 0, "notes": ["a note of the source"]}
    write_pairs(parts | {"train": replace(parts["train"], summary=counts)}, tmp_path / "pairs", "csv")
    expected = [
        "images without a text, not used: 4",
        "unreadable images, dropped: 1,234",
        "notes: a note of the source",
    ]
    assert [line.strip() for line in messages if ": " in line] == expected
    written = (tmp_path / "pairs" / "README.txt").read_text(encoding="utf-8")
    assert [line.removeprefix("- ") for line in written.splitlines() if line.startswith("- ")] == expected
