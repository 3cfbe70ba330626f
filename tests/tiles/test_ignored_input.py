"""Input that would otherwise be ignored or misread silently: columns, shards, damaged images and masks."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.images import fax
from clipit.images.decode import ImageError, decode, to_rgb
from clipit.images.deflate import find_deflate_damage
from clipit.images.image_set import open_images
from clipit.images.tiff_parts import find_damaged_part
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.mask_files import MaskClasses, decode_mask, decode_values

from .conftest import paint, write_table

ROWS = [
    {
        "path": f"{position}.png",
        "label": "ab"[position % 2],
        "split": "train" if position < 8 else "test",
        "group": f"p{position}",
    }
    for position in range(12)
]
NOISE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def table(folder: Path, rows: "list[dict[str, str]]") -> TilesConfig:
    for position, row in enumerate(rows):
        paint(folder / row["path"], position)
    return TilesConfig(source="table", path=str(write_table(folder / "tiles.csv", rows)))


def renamed(rows: "list[dict[str, str]]", old: str, new: str) -> "list[dict[str, str]]":
    return [{new if name == old else name: value for name, value in row.items()} for row in rows]


@pytest.mark.parametrize(("old", "new"), [("split", "Split"), ("group", "GROUP"), ("split", "\u200bsplit")])
def test_a_misspelt_column_is_an_error(tmp_path: Path, old: str, new: str) -> None:
    config = table(tmp_path, renamed(ROWS, old, new))
    with pytest.raises(DataError, match=rf"no column {old}; (.|\n)*tiles\.columns\.{old}"):
        read_tiles(config)
    tiles = read_tiles(config.model_copy(update={"columns": {old: new}}))
    assert (tiles.splits == "test").sum() == 4 and "p3" in tiles.groups


def test_a_misspelt_column_next_to_the_correct_one_is_accepted(tmp_path: Path) -> None:
    tiles = read_tiles(table(tmp_path, [{**row, "Split": "test"} for row in ROWS]))
    assert (tiles.splits == "test").sum() == 4


def test_an_unread_column_of_splits_is_noted(tmp_path: Path) -> None:
    tiles = read_tiles(table(tmp_path, renamed(ROWS, "split", "partition")))
    assert any("column partition contains splits but is not read" in note for note in tiles.notes)
    assert not any("contains splits" in note for note in read_tiles(table(tmp_path, ROWS)).notes)


def test_an_unread_column_may_contain_invalid_dates(tmp_path: Path) -> None:
    config = table(tmp_path, renamed(ROWS, "split", "partition"))
    columns: dict[str, Any] = {name: [row[name] for row in ROWS] for name in ("path", "label", "group")}
    columns["set_date"] = pa.array([10_000_000] * len(ROWS), pa.int32()).cast(pa.date32())
    pq.write_table(pa.table(columns), tmp_path / "tiles.parquet")
    assert len(read_tiles(config.model_copy(update={"path": str(tmp_path / "tiles.parquet")}))) == len(ROWS)


@pytest.mark.parametrize("other", ["a\u200b", "a\u200f", "\u2060a"])
def test_classes_that_differ_only_in_an_invisible_character_are_errors(tmp_path: Path, other: str) -> None:
    rows = [*ROWS[:-1], {**ROWS[-1], "label": f"b{other}b"}, {"path": "x.png", "label": "bab", "split": "test"}]
    config = table(tmp_path, [{"group": "", **row} for row in rows])
    with pytest.raises(DataError, match="classes with almost the same name"):
        read_tiles(config)


def test_direction_marks_around_a_cell_are_stripped(tmp_path: Path) -> None:
    tiles = read_tiles(table(tmp_path, [{**ROWS[0], "group": "\u200ep0\u200f"}, *ROWS[1:]]))
    assert sorted(set(tiles.groups)) == sorted(row["group"] for row in ROWS)


def test_thumbnails_of_a_network_drive_are_not_read_as_tiles(tmp_path: Path) -> None:
    for position in range(8):
        paint(tmp_path / "ab"[position % 2] / f"{position}.png", position)
    paint(tmp_path / "a" / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.jpg", 9)
    assert len(read_tiles(TilesConfig(source="folders", path=str(tmp_path)))) == 8


def test_thumbnails_of_a_network_drive_in_a_zip_are_skipped(tmp_path: Path) -> None:
    image = paint(tmp_path / "0.png", 0)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a/0.png", "a/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/1.png"):
            archive.write(image, name)
    images = open_images(tmp_path / "a.zip")
    assert list(images.ids) == ["a/0.png"]
    assert "a.zip: skipped 2 hidden images: $RECYCLE.BIN/1.png, a/@eaDir/" in images.notes[0]


def shard(path: Path, numbers: range, fields: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            image = io.BytesIO()
            Image.fromarray(np.roll(NOISE, number)).save(image, "PNG")
            text = fields or json.dumps({"label": "ab"[number % 2], "split": "train" if number < 6 else "test"})
            for name, content in ((f"{number}.png", image.getvalue()), (f"{number}.json", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def shards(path: Path) -> TilesConfig:
    return TilesConfig(source="webdataset", path=str(path))


def test_concatenated_shards_are_an_error(tmp_path: Path) -> None:
    first, second = shard(tmp_path / "1.tar", range(5)), shard(tmp_path / "2.tar", range(5, 10))
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match=r"data follow the end-of-archive marker at byte"):
        read_tiles(shards(joined))
    joined.write_bytes(first.read_bytes() + bytes(30_000))  # longer padding is harmless
    assert len(read_tiles(shards(joined))) == 5


def test_a_sample_with_two_labels_is_an_error(tmp_path: Path) -> None:
    path = shard(tmp_path / "1.tar", range(4), '{"label": "a", "label": "b"}')
    with pytest.raises(DataError, match=r"repeated key 'label'(.|\n)*0\.json"):
        read_tiles(shards(path))


def test_a_misspelt_field_is_an_error(tmp_path: Path) -> None:
    path = shard(tmp_path / "1.tar", range(4), '{"label": "a", "Split": "test"}')
    with pytest.raises(DataError, match="no column split; 'Split' would be ignored"):
        read_tiles(shards(path))


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_an_incomplete_jpeg_file_is_an_error(progressive: bool) -> None:
    data = encoded("JPEG", quality=90, progressive=progressive)
    assert decode(io.BytesIO(data + b"more")).size == (48, 48)
    half = len(data) // 2
    with pytest.raises(ImageError):
        decode(io.BytesIO(data[:half] + bytes(len(data) - half)))


def test_a_jpeg_file_padded_with_zeros_is_an_error_even_if_all_blocks_decode() -> None:
    data = encoded("JPEG", quality=90)
    start = len(data) * 8 // 10
    with pytest.raises(ImageError, match="end of the JPEG file is missing"):
        decode(io.BytesIO(data[:start] + bytes(len(data) - start)))


def test_a_jpeg_file_that_triggers_a_libjpeg_warning_is_refused() -> None:
    data = encoded("JPEG", quality=90)
    damaged = io.BytesIO(data[:-30] + data[-2:])
    with pytest.raises(ImageError, match=r"damaged.*premature end of data segment"):
        decode(damaged)


def png(values: "np.ndarray[Any, Any]", bits: int) -> bytes:
    """Return a greyscale PNG with 1 to 8 bits per pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    planes = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    lines = np.packbits(planes.reshape(height, width * bits), axis=1)
    content = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


MASK = np.kron(np.array([[0, 3], [2, 1]], dtype=np.uint8), np.ones((8, 8), dtype=np.uint8))
CLASSES = MaskClasses(("none", "gland", "stroma", "tumour"), {0: 0, 1: 1, 2: 2, 3: 3})


def test_any_flipped_bit_in_a_png_is_detected() -> None:
    data = png(MASK, 8)
    for position in range(data.index(b"IDAT"), data.index(b"IEND") - 4):
        damaged = bytearray(data)
        damaged[position] ^= 4
        with pytest.raises(ImageError):
            decode_mask(io.BytesIO(bytes(damaged)), "m.png", (16, 16), CLASSES)
        with pytest.raises(ImageError):
            decode(io.BytesIO(bytes(damaged)))
        with pytest.raises((ImageError, OSError, SyntaxError)), Image.open(io.BytesIO(bytes(damaged))) as opened:
            to_rgb(opened)  # the path of images that a user passes to a classifier


def png_of(stream: bytes, width: int, height: int, bits: int, colour: int, interlacing: int = 0) -> bytes:
    """Return a PNG with the given pixel stream and valid checksums."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlacing)
    chunks = [(b"IHDR", header), (b"PLTE", bytes(range(48))), (b"IDAT", zlib.compress(stream)), (b"IEND", b"")]
    if colour != 3:
        del chunks[1]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@pytest.mark.parametrize(
    ("bits", "colour", "row"), [(8, 2, 1 + 15), (8, 0, 1 + 5), (1, 0, 1 + 1), (4, 3, 1 + 3), (8, 6, 1 + 20)]
)
def test_a_png_with_missing_pixels_but_valid_checksums_is_an_error(
    bits: int, colour: int, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipit.images.png._UNPACKED_BYTES", 7)
    for stream in (bytes(6 * row), bytes(7 * row), bytes(5 * row) + b"\0" + b"\2" * (row - 1)):
        assert decode(io.BytesIO(png_of(stream, 5, 6, bits, colour))).size == (5, 6)
    for rows in (1, 3, 5):
        data = png_of(bytes((6 - rows) * row), 5, 6, bits, colour)
        for read in (decode, decode_values):
            with pytest.raises(ImageError, match=f"{rows * row} bytes? (is|are) missing at the end"):
                read(io.BytesIO(data))


def test_an_interlaced_png_with_missing_pixels_is_an_error() -> None:
    passes = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 2), (3, 4), (6, 3)]  # columns and rows of each pass
    stream = b"".join((b"\0" + b"\7" * 3 * columns) * rows for columns, rows in passes)
    assert (np.asarray(decode(io.BytesIO(png_of(stream, 6, 7, 8, 2, 1)))) == 7).all()
    for rows in (1, 3):
        with pytest.raises(ImageError, match=f"{rows * 19} bytes? (is|are) missing at the end"):
            decode(io.BytesIO(png_of(stream[: -rows * 19], 6, 7, 8, 2, 1)))


@pytest.mark.parametrize(("kind", "options"), [("BMP", {}), ("WEBP", {}), ("WEBP", {"lossless": True})])
def test_bytes_inserted_into_a_bmp_or_webp_file_are_detected(kind: str, options: "dict[str, Any]") -> None:
    stream = io.BytesIO()
    Image.fromarray(NOISE[:47, :47]).save(stream, kind, **options)
    data = stream.getvalue()
    assert decode(io.BytesIO(data)).size == (47, 47)
    damaged = data[:-100] + bytes(16) + data[-100:]
    with pytest.raises(ImageError, match=rf"the {kind} file is {len(damaged):,} bytes long, not {len(data):,} as"):
        decode(io.BytesIO(damaged))


def test_a_bmp_file_whose_pixels_start_within_its_header_is_an_error() -> None:
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "BMP")
    data = stream.getvalue()
    with pytest.raises(ImageError, match="start within its header, at byte 32: it is damaged"):
        decode(io.BytesIO(data[:10] + (32).to_bytes(4, "little") + data[14:]))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_bmp_file_with_more_pixels_than_its_height_is_an_error(mode: str) -> None:
    """Pillow would drop rows."""
    stream = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(stream, "BMP")
    data = stream.getvalue()
    assert decode(io.BytesIO(data)).size == (48, 48)
    with pytest.raises(ImageError, match="too many for 48 x 32: it is damaged"):
        decode(io.BytesIO(data[:22] + (32).to_bytes(4, "little") + data[26:]))


@pytest.mark.parametrize("stated", [0, 54, 48 * 48 * 3])
def test_bmp_files_with_a_common_wrong_size_field_are_read(stated: int) -> None:
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "BMP")
    data = stream.getvalue()
    assert (np.asarray(decode(io.BytesIO(data[:2] + stated.to_bytes(4, "little") + data[6:]))) == NOISE).all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("PNG", {}), ("TIFF", {"compression": "tiff_adobe_deflate"}), ("TIFF", {"compression": "raw"})],
)
def test_loaded_images_are_converted_without_reading_their_file(
    kind: str, options: "dict[str, Any]", tmp_path: Path
) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    Image.fromarray(NOISE).save(path, kind, **options)
    with path.open("rb") as stream:
        loaded = Image.open(stream)
        loaded.load()
        assert to_rgb(loaded).tobytes() == decode(path).tobytes()
    assert to_rgb(loaded).size == (48, 48), "the file is already closed"
    with Image.open(path) as opened:
        assert to_rgb(opened).size == to_rgb(opened).size == (48, 48)
    assert to_rgb(opened).size == (48, 48)


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, compression="zlib", **options)
    return stream.getvalue()


def compressed_bytes(data: bytes) -> list[int]:
    """Return the byte positions of the compressed pixels of a TIFF."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        parts = zip(page.dataoffsets, page.databytecounts, strict=True)
        return [position for start, count in parts for position in range(start, start + count)]


@pytest.mark.parametrize(
    "options",
    [{"rowsperstrip": 16}, {"tile": (16, 16)}, {"predictor": True}, {"bigtiff": True}, {"byteorder": ">"}],
    ids=str,
)
def test_any_flipped_bit_in_a_tiff_is_detected(options: "dict[str, Any]") -> None:
    """libtiff does not verify the checksums of strips and tiles, and decodes different pixels instead."""
    smooth = np.sort(NOISE, axis=0) // 8
    data = tiff(smooth, photometric="rgb", **options)
    assert (np.asarray(decode(io.BytesIO(data))) == smooth).all()
    places = compressed_bytes(data)
    tried = places[:: len(places) // 60]
    detected = 0
    for position in tried:
        damaged = bytearray(data)
        damaged[position] ^= 4
        try:
            decoded = decode(io.BytesIO(bytes(damaged)))
        except ImageError:
            detected += 1
        else:  # the stream does not use this bit
            assert (np.asarray(decoded) == smooth).all()
    assert detected >= len(tried) - 3


def test_any_flipped_bit_in_a_tiff_mask_is_detected() -> None:
    data = tiff(MASK, tile=(16, 16))
    for position in compressed_bytes(data):
        damaged = bytearray(data)
        damaged[position] ^= 4
        with pytest.raises(ImageError, match=r"strip or tile 0 of the TIFF are damaged|cannot be decoded|error"):
            decode_mask(io.BytesIO(bytes(damaged)), "m.tif", (16, 16), CLASSES)


FAX = [("tiff_ccitt", {}), ("group3", {}), ("group3", {292: 5}), ("group4", {}), ("group4", {278: 16, 266: 2})]


def fax_mask(compression: str, tags: "dict[int, int]") -> tuple[bytes, np.ndarray]:
    rows, columns = np.mgrid[:37, :150]
    mask = (rows - 18) ** 2 + (columns - 70) ** 2 < 200
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "TIFF", compression=compression, tiffinfo={278: 37, **tags})
    return stream.getvalue(), mask


@pytest.mark.parametrize(("compression", "tags"), FAX)
def test_a_fax_compressed_mask_is_read_correctly_or_refused(compression: str, tags: "dict[int, int]") -> None:
    """libtiff fills rows that it cannot decode and reports no error."""
    data, mask = fax_mask(compression, tags)
    assert (decode_values(io.BytesIO(data)) == mask).all()
    assert (np.asarray(decode(io.BytesIO(data))) == 255 * mask[..., None]).all()
    with Image.open(io.BytesIO(data)) as image:
        stored: Any = getattr(image, "tag_v2", {})
        start, stop = stored[273][0], stored[273][0] + stored[279][0]
    for position in range(start, stop - 6, 3):
        damaged = data[:position] + bytes(stop - position) + data[stop:]  # the rest of the strip was never written
        for read in (decode_values, decode):
            with pytest.raises(ImageError, match="strip or tile 0 of the TIFF are damaged"):
                read(io.BytesIO(damaged))
    harmless = 0
    for position in range(start, stop):
        try:
            values = decode_values(io.BytesIO(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :]))
            harmless += bool((values == mask).all())
        except ImageError:
            harmless += 1
    assert harmless >= 0.8 * (stop - start), "some flipped bits encode a different valid mask"


def test_a_truncated_fax_compressed_file_is_refused() -> None:
    data, mask = fax_mask("group4", {})
    with Image.open(io.BytesIO(data)) as image:
        stored: Any = getattr(image, "tag_v2", {})
        strip = data[stored[273][0] : stored[273][0] + stored[279][0]]
    whole = fax._tiff(strip, 4, 0, mask.shape[1], mask.shape[0])
    assert (decode_values(io.BytesIO(whole)) == mask).all()
    assert fax.find_fax_damage(strip + bytes(3), 4, 0, 1, 150, 37) == "", "some programs pad strips"
    for lost in (5, 20, 60):
        with pytest.raises(ImageError):
            decode_values(io.BytesIO(whole[:-lost]))


def test_a_tiff_strip_that_decompresses_to_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipit.images.deflate._MAX_BYTES", 1000)
    monkeypatch.setattr("clipit.images.deflate._CHUNK_BYTES", 100)
    with pytest.raises(ImageError, match="more than 0 GiB when decompressed"):
        decode(io.BytesIO(tiff(NOISE, photometric="rgb")))


def test_bytes_after_the_checksum_of_a_strip_are_ignored() -> None:
    """Some programs pad strips, others write strips without data or reverse the bit order."""
    stream = zlib.compress(bytes(100))
    assert find_deflate_damage(stream) == find_deflate_damage(stream + b"padding") == ""
    assert find_deflate_damage(stream[:-1]) == "the end is missing"
    assert "data check" in find_deflate_damage(stream[:-1] + b"x")
    damaged = io.BytesIO(b"header" + stream[:-1] + b"x")
    tags = {259: 8, 324: (6, 6), 325: (0, len(stream))}

    def read(offset: int, count: int) -> bytes:
        damaged.seek(offset)
        return damaged.read(count)

    assert "strip or tile 1 " in find_damaged_part(tags, read)
    for other in ({259: 5}, {266: 2}, {325: (0, 0)}, {325: (0, 999)}):
        assert find_damaged_part(tags | other, read) == ""


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_masks_with_few_bits_keep_their_values(bits: int) -> None:
    np.testing.assert_array_equal(decode_mask(io.BytesIO(png(MASK, bits)), "m.png", (16, 16), CLASSES), MASK)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiff_masks_keep_their_values(tmp_path: Path, photometric: str) -> None:
    tifffile.imwrite(tmp_path / "m.tif", MASK, photometric=photometric)
    np.testing.assert_array_equal(decode_mask(tmp_path / "m.tif", "m.tif", (16, 16), CLASSES), MASK)


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"quality": 80}), ("JPEG2000", {}), ("MPO", {})])
def test_masks_with_lossy_compression_are_refused(kind: str, options: "dict[str, Any]") -> None:
    stream = io.BytesIO()
    Image.fromarray(np.repeat(MASK[..., None], 3, axis=2)).save(stream, kind, **options)
    with pytest.raises(ImageError, match="compression changes the values"):
        decode_mask(stream, "m.png", (16, 16), CLASSES)


def test_lossless_webp_masks_are_read() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.repeat(MASK[..., None], 3, axis=2)).save(stream, "WEBP", lossless=True)
    np.testing.assert_array_equal(decode_mask(stream, "m.webp", (16, 16), CLASSES), MASK)


def test_a_tiff_that_begins_with_a_thumbnail_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "t.tif") as file:
        file.write(np.ascontiguousarray(NOISE[::2, ::2]), photometric="rgb")
        file.write(NOISE, photometric="rgb")
    with pytest.raises(ImageError, match=r"first page \(24 x 24 pixels\) is smaller than another page \(48 x 48\)"):
        decode(tmp_path / "t.tif")
    with tifffile.TiffWriter(tmp_path / "t.tif") as file:
        file.write(NOISE, photometric="rgb")
        file.write(np.ascontiguousarray(NOISE[::2, ::2]), photometric="rgb")
    assert decode(tmp_path / "t.tif").size == (48, 48)
