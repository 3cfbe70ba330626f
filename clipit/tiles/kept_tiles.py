"""Kept tiles: images of a streamed data set, copied once to tar shards in the workspace, with large images resized."""

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipit.crash_watch import noted
from clipit.distributed import build_once, get_processes
from clipit.errors import counted
from clipit.images.decode import decode
from clipit.images.read_ahead import read_ahead, reading_threads
from clipit.output_files.artifacts import Artifact, whole_file
from clipit.output_files.whole_files import read_parquet, write_parquet
from clipit.progress import Advance, progress
from clipit.tiles.tar_shards import TarReader

_SHARD = 4096  # tiles per shard; an interrupted copy resumes after the last complete shard
_BATCH = 32  # tiles resized together; three batches of original images are in memory
_ROWS = "rows.parquet"
FIELD = "field."
"""Prefix of the columns that contain fields."""


@dataclass(frozen=True)
class KeptSize:
    """Size and quality of kept images.

    Attributes:
        pixels: Maximum length of the shorter edge, in pixels; None to disable resizing.
        quality: JPEG quality of resized images; None for lossless PNG.
    """

    pixels: int | None
    quality: int | None


@dataclass(frozen=True)
class SourceTile:
    """A tile read from a stream.

    Attributes:
        data: Bytes of the image file; empty if the row has none.
        fields: Cells of the row by column, as `stored_cell` writes them.
    """

    data: bytes
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Block:
    """Part of a data set that one process reads in order, such as a file.

    Attributes:
        read: Function that skips a number of rows and returns an iterator over the following tiles.
    """

    title: str
    read: Callable[[int], Iterator[SourceTile]]


@dataclass(frozen=True)
class KeptTiles:
    """Kept tiles, in the order of the data set.

    Attributes:
        artifact: Tar files, and a table with one row per tile.
    """

    artifact: Artifact

    def __len__(self) -> int:
        """Return the number of tiles."""
        return int(self.artifact.manifest.facts["tiles"])

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Read columns of the table: the location of each image, `scale` (original / kept edge length), and fields."""
        return self.artifact.table(_ROWS, list(columns))

    def stamps(self) -> list[str]:
        """Return the size and CRC-32 of each kept image."""
        table = self.rows(["size", "crc"])
        pairs = zip(table.column("size").to_pylist(), table.column("crc").to_pylist(), strict=True)
        return [f"{size}:{crc:08x}" for size, crc in pairs]

    def scales(self) -> np.ndarray:
        """Return the ratio of the original to the kept edge length for each image; 1 for images not resized."""
        return np.asarray(self.rows(["scale"]).column("scale"), dtype=np.float64)

    def reader(self, prefix: str = "") -> TarReader:
        """Return a reader that verifies the checksums of the images."""
        table = self.rows(["shard", "name", "offset", "size", "crc"])
        shard, offset, size, crc = (
            np.asarray(table.column(name), dtype=dtype)
            for name, dtype in (("shard", np.int32), ("offset", np.int64), ("size", np.int64), ("crc", np.uint32))
        )
        files = sorted(name for name in self.artifact.manifest.files if name.endswith(".tar"))
        names = [f"{prefix}{name}" for name in table.column("name").to_pylist()]
        return TarReader([self.artifact.folder / file for file in files], names, shard, offset, size, crc)


def keep_tiles(
    root: Path,
    inputs: dict[str, Any],
    blocks: Callable[[], Sequence[Block]],
    columns: Sequence[str],
    size: KeptSize,
    title: str,
) -> KeptTiles:
    """Read a data set once and store its tiles, or open those stored earlier; must be called by all processes.

    The blocks are distributed over processes. An image that is not larger than the kept size, or cannot be decoded, is
    copied byte for byte, so that it yields the same pixels or the same error as in the set.

    Args:
        root: Artefact folder.
        inputs: JSON-serialisable description of the data set.
        blocks: Function that opens the data set; called only if its tiles have not been stored.
        columns: Names of the fields to store.
        size: Size and quality of the stored images.
        title: Name of the data set, for the progress bar.

    Raises:
        DataError: The set cannot be read; the next attempt resumes after the tiles stored so far.
    """

    def make(folder: Path) -> dict[str, Any]:
        processes = get_processes()
        opened = blocks()
        with (
            progress(f"caching tiles of {title}", len(opened), shown=processes.main) as advance,
            reading_threads() as pool,
        ):
            for number in processes.share(range(len(opened))):
                _keep_block(folder, number, opened[number], columns, size, pool, advance)
                advance(processes.count)
        processes.barrier()
        return _merge(folder, len(opened), columns) if processes.main else {}

    return KeptTiles(build_once(root, "kept_tiles", {**inputs, "pixels": size.pixels, "quality": size.quality}, make))


def _keep_block(
    folder: Path,
    number: int,
    block: Block,
    columns: Sequence[str],
    size: KeptSize,
    pool: ThreadPoolExecutor,
    advance: Advance,
) -> None:
    done = folder / f".done-{number:06d}"
    if done.is_file():
        return
    shard = 0
    while _rows_file(folder, number, shard).is_file():
        shard += 1
    kept = shard * _SHARD

    def batches() -> Iterator[list[SourceTile]]:
        stream = block.read(kept)
        while batch := list(islice(stream, _BATCH)):
            yield batch

    def keep(tile: SourceTile) -> KeptImage:
        with noted(block.title):
            return keep_image(tile.data, size)

    shrunk = read_ahead(batches(), keep, pool, depth=2)
    tiles = ((tile, image) for batch, images in shrunk for tile, image in zip(batch, images, strict=True))
    for first in tiles:
        _write_shard(folder, number, shard, chain([first], islice(tiles, _SHARD - 1)), columns)
        shard += 1
        advance(0, f"{block.title}, {counted(shard * _SHARD, 'tile')}")
    done.touch()


def _write_shard(
    folder: Path, number: int, shard: int, tiles: "Iterator[tuple[SourceTile, KeptImage]]", columns: Sequence[str]
) -> None:
    """Write a tar file and the table of its rows."""
    values: dict[str, list[Any]] = {name: [] for name in _schema(columns).names}
    with (
        whole_file(folder / f"tiles-{number:06d}-{shard:06d}.tar") as temporary,
        tarfile.open(temporary, "w:", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for row, (tile, image) in enumerate(tiles):
            info = tarfile.TarInfo(f"{number:06d}/{shard * _SHARD + row:09d}.{image.suffix}")
            info.size = len(image.data)
            cells: dict[str, Any] = {
                "shard": 0,
                "name": info.name,
                "offset": archive.offset + tarfile.BLOCKSIZE,
                "size": info.size,
                "crc": zlib.crc32(image.data),
                "scale": image.scale,
                **{f"{FIELD}{name}": tile.fields.get(name, "") for name in columns},
            }
            archive.addfile(info, io.BytesIO(image.data))
            for name, value in cells.items():
                values[name].append(value)
    write_parquet(_rows_file(folder, number, shard), pa.table(values, schema=_schema(columns)), checksums=True)


def _rows_file(folder: Path, number: int, shard: int) -> Path:
    return folder / f".rows-{number:06d}-{shard:06d}.parquet"


def _schema(columns: Sequence[str]) -> pa.Schema:
    location = {
        "shard": pa.int32(),
        "name": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "crc": pa.uint32(),
        "scale": pa.float64(),
    }
    return pa.schema([*location.items(), *((f"{FIELD}{name}", pa.string()) for name in columns)])


def _merge(folder: Path, blocks: int, columns: Sequence[str]) -> dict[str, Any]:
    """Join the tables of all shards, in the order of the data set, and number the shards."""
    files = sorted(folder.glob(".rows-*.parquet"))
    tiles, resized = 0, 0
    with whole_file(folder / _ROWS) as temporary, pq.ParquetWriter(temporary, _schema(columns)) as writer:
        for number, file in enumerate(files):
            table = read_parquet(file, "delete this file and run the command again")
            tiles += table.num_rows
            resized += int((np.asarray(table.column("scale")) > 1).sum())
            writer.write_table(table.set_column(0, "shard", pa.array([number] * table.num_rows, pa.int32())))
    shards = {file.name.replace(".rows", "tiles").replace(".parquet", ".tar") for file in files}
    leftover = [shard for shard in folder.glob("tiles-*.tar") if shard.name not in shards]
    # Delete the markers of finished blocks first: after an interruption, blocks are read again, and no row is lost.
    for file in (*(folder / f".done-{number:06d}" for number in range(blocks)), *files, *leftover):
        file.unlink(missing_ok=True)
    return {"tiles": tiles, "resized": resized, "blocks": blocks}


@dataclass(frozen=True)
class KeptImage:
    """Kept image file.

    Attributes:
        scale: Ratio of the original to the kept edge length.
    """

    data: bytes
    suffix: str
    scale: float


def keep_image(data: bytes, size: KeptSize) -> KeptImage:
    """Resize an image if its shorter edge is longer than the kept size; keep its bytes otherwise.

    Images are resized with Pillow's bicubic filter, as model inputs are. A model with this filter and input size
    therefore receives the same pixels as from the original image, except for JPEG compression.
    """
    if not data:
        return KeptImage(data, "none", 1.0)
    try:
        with Image.open(io.BytesIO(data)) as header:
            shorter, suffix = min(header.size), (header.format or "image").lower()
        if size.pixels is None or shorter <= size.pixels:
            return KeptImage(data, suffix, 1.0)
        image, stream = _resize(decode(io.BytesIO(data)), size.pixels), io.BytesIO()
        if size.quality is None:
            image.save(stream, "PNG")
        else:
            image.save(stream, "JPEG", quality=size.quality, subsampling=0)
    except MemoryError:
        raise
    except Exception:  # raised again when the tile is read
        return KeptImage(data, "image", 1.0)
    return KeptImage(stream.getvalue(), "png" if size.quality is None else "jpeg", shorter / size.pixels)


def _resize(image: Image.Image, pixels: int) -> Image.Image:
    width, height = image.size
    if width <= height:
        return image.resize((pixels, int(pixels * height / width)), Image.Resampling.BICUBIC)
    return image.resize((int(pixels * width / height), pixels), Image.Resampling.BICUBIC)
