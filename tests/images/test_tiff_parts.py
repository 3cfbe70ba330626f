"""Test that TIFF files with a wrong compression tag are rejected, and valid uncompressed files are not."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from clipit.images.decode import ImageError, check_bytes, decode

_COMPRESSION = 259
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (70, 50, 3), dtype=np.uint8)
SMOOTH = (np.add.outer(np.arange(70), np.arange(50))[..., None] + RNG.integers(0, 3, (70, 50, 3))).astype(np.uint8)


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """Change the value of a tag in a little-endian TIFF."""
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    entries = range(start + 2, start + 2 + 12 * count, 12)
    (entry,) = (offset for offset in entries if struct.unpack("<H", data[offset : offset + 2]) == (tag,))
    return data[: entry + 8] + struct.pack("<H", value) + data[entry + 10 :]


@pytest.mark.parametrize("pixels", [NOISE, SMOOTH], ids=["noise", "smooth"])
@pytest.mark.parametrize("value", [1, 32773], ids=["uncompressed", "PackBits"])
def test_lzw_data_with_a_wrong_compression_tag_is_an_error(pixels: np.ndarray, value: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", compression="tiff_lzw")
    assert np.array_equal(np.asarray(decode(io.BytesIO(buffer.getvalue()))), pixels)
    with pytest.raises((ImageError, OSError)):
        decode(io.BytesIO(with_tag(buffer.getvalue(), _COMPRESSION, value)))


@pytest.mark.parametrize(
    "options",
    [{}, {"rowsperstrip": 16}, {"tile": (32, 32)}, {"planarconfig": "separate", "rowsperstrip": 16}, {"bits": 16}],
    ids=["strip", "strips", "tiles", "planes", "16 bits"],
)
def test_valid_uncompressed_files_are_accepted(options: dict[str, Any], tmp_path: Path) -> None:
    pixels = SMOOTH[..., 0].astype(np.uint16) if options.get("bits") else SMOOTH
    pixels = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
    photometric = "minisblack" if pixels.ndim == 2 else "rgb"
    tags = {name: value for name, value in options.items() if name != "bits"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, **tags)
    with Image.open(tmp_path / "a.tif") as image:
        check_bytes(image)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
@pytest.mark.parametrize("rows", [16, 24, 64])
def test_lzw_data_must_not_be_too_long(mode: str, rows: int) -> None:
    buffer = io.BytesIO()
    pixels = Image.fromarray(SMOOTH).convert(mode)
    pixels.save(buffer, "TIFF", compression="tiff_lzw", tiffinfo={278: rows})
    with Image.open(buffer) as image:
        check_bytes(image)
    shorter = with_tag(with_tag(buffer.getvalue(), 257, 8), 278, 8)  # the strip has more rows than the tags say
    with Image.open(io.BytesIO(shorter)) as image, pytest.raises(ImageError, match="damaged: they are too long"):
        check_bytes(image)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16"])
def test_valid_packbits_files_are_accepted(mode: str) -> None:
    buffer = io.BytesIO()
    pixels = SMOOTH[..., 0].astype(np.uint16) if mode == "I;16" else SMOOTH
    image = Image.fromarray(pixels) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    image.save(buffer, "TIFF", compression="packbits", tiffinfo={278: 16})
    with Image.open(buffer) as opened:
        assert len(opened.tag_v2[273]) == 5
        check_bytes(opened)


def test_packbits_data_is_checked_in_the_bit_order_of_the_file() -> None:
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).save(buffer, "TIFF", compression="packbits", tiffinfo={266: 1, 278: 70})
    with Image.open(buffer) as opened:
        (offset,), (count,) = opened.tag_v2[273], opened.tag_v2[279]
    data = with_tag(buffer.getvalue(), 266, 2)
    with Image.open(io.BytesIO(data)) as opened, pytest.raises(ImageError, match="do not fill it exactly"):
        check_bytes(opened)
    pixels = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data[offset : offset + count])
    with Image.open(io.BytesIO(data[:offset] + pixels + data[offset + count :])) as opened:
        check_bytes(opened)
        assert np.array_equal(np.asarray(opened), SMOOTH)


@pytest.mark.parametrize(
    ("compression", "predictor", "message"),
    [
        ("packbits", True, "a predictor and PackBits compression: save it with LZW"),  # libtiff returns differences
        ("jpeg2000", False, r"cannot read this TIFF: .* compression or pixel format is not supported; save it as PNG"),
    ],
)
def test_a_tiff_that_pillow_would_misread_or_cannot_read_is_an_error(
    tmp_path: Path, compression: str, predictor: bool, message: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH, photometric="rgb", compression=compression, predictor=predictor)
    with pytest.raises(ImageError, match=message):
        decode(tmp_path / "a.tif")


def test_a_big_endian_bigtiff_is_an_error(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH, photometric="rgb", bigtiff=True, byteorder=">")
    for source in (tmp_path / "a.tif", io.BytesIO((tmp_path / "a.tif").read_bytes())):
        with pytest.raises(ImageError, match="cannot read a big-endian BigTIFF; save it"):
            decode(source)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("options", "tag", "values"),
    [
        ({"rowsperstrip": 16}, "StripOffsets", {2: 0}),
        ({"tile": (32, 32)}, "TileOffsets", {3: 0}),
        ({"rowsperstrip": 16, "planarconfig": "separate"}, "StripOffsets", {12: 0}),
    ],
    ids=["strips", "tiles", "planes"],
)
def test_missing_parts_of_sparse_files_are_an_error(
    options: dict[str, Any], tag: str, values: dict[int, int], compression: str | None, tmp_path: Path
) -> None:
    """Without an offset, Pillow reads uncompressed pixels from the start of the file."""
    pixels = np.moveaxis(NOISE, 2, 0) if "planarconfig" in options else NOISE
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", compression=compression, **options)
    assert np.array_equal(np.asarray(decode(path)), NOISE)
    with tifffile.TiffFile(path, mode="r+b") as file:
        offsets = [values.get(part, offset) for part, offset in enumerate(file.pages[0].tags[tag].value)]
        file.pages[0].tags[tag].overwrite(offsets)
    with pytest.raises(ImageError, match=rf"strip or tile {min(values)} of the TIFF is missing"):
        decode(path)


def test_fewer_offsets_than_strips_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", rowsperstrip=16)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["StripOffsets"].overwrite(file.pages[0].tags["StripOffsets"].value[:3])
    with pytest.raises(ImageError, match="strip or tile 3 of the TIFF is missing"):
        decode(path)
