"""Write examples as images with captions, in the formats of open_clip's trainer."""

import csv
import io
import logging
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np

from clipit.distributed import get_processes
from clipit.errors import ArtifactError
from clipit.input_files.data_files import MISSING_VALUES
from clipit.output_files.artifacts import locked, whole_folder, write_json
from clipit.progress import progress
from clipit.reporting.adapt_facts import fact_label, fact_text, training_counts
from clipit.vlm_training.bag_batches import BagExamples

logger = logging.getLogger(__name__)

PairFormat = Literal["csv", "webdataset"]

_QUALITY = 95  # quality of the JPEG files
_PER_SHARD = 1000  # pairs per tar file
_CHUNK = 64  # images in memory
_README = """Images with captions, written by clipit for open_clip's trainer (open_clip_train):

    python -m open_clip_train.main {arguments}

Images are JPEGs of quality {quality}. The captions may be report text: protect them as you protect the reports.

Training examples, with the images and texts that were not used:

{counts}
"""


def write_pairs(splits: Mapping[str, BagExamples], folder: Path, file_format: PairFormat) -> dict[str, int]:
    """Write examples as image-text pairs, completely or not at all; called by all processes.

    An image with several texts gives one pair per text. For patients with several tiles and a report, each tile is
    paired with as many snippets as a bag contains. Neighbours in tile bags are not written. The order is shuffled. The
    counts of the first split, including dropped images and texts, are logged and written to README.txt.

    `csv` writes `<split>.csv`, separated by tabs, with the columns filepath (absolute) and title, and `images/`.
    `webdataset` writes `<split>-<number>.tar` with members such as 00000012.jpg and 00000012.txt, and `sizes.json`.

    Args:
        splits: Examples of the arm `text` by split, such as train and validation.

    Returns:
        Number of pairs by split.

    Raises:
        ArtifactError: The folder is not empty, is a file, or cannot be written to.
        DataError: An image cannot be read.
    """
    processes = get_processes()
    folder = folder.expanduser().absolute()
    counts: dict[str, int] = {}
    with locked(folder) if processes.main else nullcontext():  # another command may be writing to this folder
        problem = "this is a file, not a folder" if folder.exists() and not folder.is_dir() else ""
        if folder.is_dir() and any(folder.iterdir()):
            problem = "the folder is not empty"
        if problem := processes.broadcast(problem):
            raise ArtifactError(problem, where=folder, fix="name a different folder")
        if processes.main:
            counts = _write(splits, folder, file_format)
    return processes.broadcast(counts)


def _write(splits: Mapping[str, BagExamples], folder: Path, file_format: PairFormat) -> dict[str, int]:
    """Write the pairs of all splits; return the number of pairs by split."""
    counts: dict[str, int] = {}
    with whole_folder(folder) as partial:
        for split, examples in splits.items():
            pairs = _shuffled_pairs(examples)
            counts[split] = len(pairs)
            if file_format == "csv":
                _write_table(examples, pairs, split, partial, folder)
            else:
                _write_shards(examples, pairs, split, partial)
        if file_format == "webdataset":
            sizes = {path.name: _size(path) for path in sorted(partial.glob("*.tar"))}
            write_json(partial / "sizes.json", sizes)
        facts = _count_lines(next(iter(splits.values())))
        arguments = _arguments(counts, folder, file_format)
        text = _README.format(arguments=arguments, quality=_QUALITY, counts="\n".join(f"- {line}" for line in facts))
        (partial / "README.txt").write_text(text, encoding="utf-8")
    for line in facts:
        logger.info(f"  {line}")
    return counts


def _count_lines(examples: BagExamples) -> list[str]:
    """Describe the counts of examples, including dropped images and texts, one per line."""
    counts = training_counts(examples.summary, "text")
    return [f"{fact_label(name)}: {fact_text(value)}" for name, value in counts.items() if value]


def _shuffled_pairs(examples: BagExamples) -> list[tuple[int, int]]:
    """List all pairs as (tile row, text row), in an order that depends on the seed."""
    pairs = [pair for example in range(len(examples)) for pair in examples.captions(example)]
    order = np.random.default_rng(examples.seed).permutation(len(pairs))
    return [pairs[index] for index in order.tolist()]


def _jpegs(examples: BagExamples, tiles: Sequence[int], title: str) -> Iterator[bytes]:
    """Yield the images of tiles as JPEG files, encoded by threads."""

    def encode(row: int) -> bytes:
        stream = io.BytesIO()
        examples.source.tiles.read(row).convert("RGB").save(stream, "JPEG", quality=_QUALITY, subsampling=0)
        return stream.getvalue()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, progress(title, len(tiles)) as advance:
        for start in range(0, len(tiles), _CHUNK):
            for data in pool.map(encode, tiles[start : start + _CHUNK]):
                yield data
                advance(1)


def _write_table(
    examples: BagExamples, pairs: Sequence[tuple[int, int]], split: str, partial: Path, folder: Path
) -> None:
    """Write each image once, and a row for each of its texts."""
    tiles = list(dict.fromkeys(tile for tile, _ in pairs))
    names = {tile: f"images/{split}-{number:08d}.jpg" for number, tile in enumerate(tiles)}
    (partial / "images").mkdir(exist_ok=True)
    for tile, data in zip(tiles, _jpegs(examples, tiles, f"writing {split} images"), strict=True):
        (partial / names[tile]).write_bytes(data)
    with (partial / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(("filepath", "title"))
        for tile, text in pairs:
            title = examples.texts[text]
            # pandas, which open_clip uses to read the table, parses some words as missing values.
            writer.writerow((str(folder / names[tile]), f"{title}." if title in MISSING_VALUES else title))


def _write_shards(examples: BagExamples, pairs: Sequence[tuple[int, int]], split: str, partial: Path) -> None:
    """Write tar files of at most 1,000 samples; an image with several texts is written once per text."""
    images = _jpegs(examples, [tile for tile, _ in pairs], f"writing {split} shards")
    for first in range(0, len(pairs), _PER_SHARD):
        with tarfile.open(partial / f"{split}-{first // _PER_SHARD:06d}.tar", "w") as archive:
            for number, (_, text) in enumerate(pairs[first : first + _PER_SHARD], first):
                for suffix, data in (("jpg", next(images)), ("txt", examples.texts[text].encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def _size(shard: Path) -> int:
    with tarfile.open(shard) as archive:
        return len(archive.getnames()) // 2


def _arguments(counts: Mapping[str, int], folder: Path, file_format: PairFormat) -> str:
    """Return the arguments of open_clip's trainer that name the data."""
    options = {"train": "--train-data", "validation": "--val-data"}
    splits = [split for split in options if counts.get(split)]
    if file_format == "csv":
        return " ".join([f'{options[split]} "{folder / split}.csv"' for split in splits] + ["--dataset-type csv"])
    file_names = []
    for split in splits:
        last = (counts[split] - 1) // _PER_SHARD
        shards = f"{{000000..{last:06d}}}" if last else "000000"
        file_names.append(f'{options[split]} "{folder / split}-{shards}.tar"')
        file_names += [f"--val-num-samples {counts[split]}"] if split == "validation" else []
    return " ".join([*file_names, "--dataset-type webdataset"])
