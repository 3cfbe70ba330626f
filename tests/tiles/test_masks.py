"""Masks of the images of a table: formats, values, sizes and errors."""

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipit.config.data import TilesConfig
from clipit.config.segmentation import SegmentationConfig
from clipit.errors import ConfigError, DataError
from clipit.images.decode import ImageError
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.mask_files import MaskClasses, decode_values
from clipit.tiles.masks import MaskSet, check_masks, open_masks

CLASSES = MaskClasses(("stroma", "gland"), {0: 0, 1: 1, 300: 1}, (255,))
MASK = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 255]], np.uint8)
DEEP = np.where(MASK == 1, np.uint16(300), MASK).astype(np.uint16)
CODES = [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, -1]]


def table(folder: Path, masks: "dict[str, Any]", zipped: bool = False, **keys: Any) -> MaskSet:
    """Write one mask per image (an array, an image, JSON, bytes, or None for an empty cell) and open the masks."""
    images = folder / "files"
    images.mkdir(parents=True)
    lines = ["path,split,group,mask"]
    for number, (name, mask) in enumerate(masks.items()):
        Image.new("RGB", (4, 3)).save(images / f"{number}.png")
        if isinstance(mask, np.ndarray):
            Image.fromarray(mask).save(images / name)
        elif isinstance(mask, Image.Image):
            mask.save(images / name)
        elif isinstance(mask, bytes):
            (images / name).write_bytes(mask)
        elif isinstance(mask, dict | list):
            (images / name).write_text(json.dumps(mask), encoding="utf-8")
        lines.append(f"{number}.png,{'test' if number == 0 else 'train'},p{number},{'' if mask is None else name}")
    (folder / "tiles.csv").write_text("\n".join(lines), encoding="utf-8")
    root = images
    if zipped:
        root = folder / "files.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for path in images.iterdir():
                archive.write(path, path.name)
    values = {"source": "table", "path": str(folder / "tiles.csv"), "images": str(root), "labels": {"kind": "none"}}
    config = TilesConfig(**{**values, **keys})
    return open_masks(config, read_tiles(config, hold_out=False), CLASSES)


def polygon(name: str, *corners: "tuple[float, float]") -> "dict[str, Any]":
    ring = [list(corner) for corner in (*corners, corners[0])]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }


@pytest.mark.parametrize("zipped", [False, True])
def test_all_mask_formats_give_the_same_classes(tmp_path: Path, zipped: bool) -> None:
    palette = Image.frombytes("P", (4, 3), MASK.tobytes())
    palette.putpalette([7, 7, 7] * 256)
    shapes = [
        polygon("gland", (2, 0), (4, 0), (4, 2), (1, 2), (1, 1), (2, 1)),
        polygon("ignore", (3, 2), (4, 2), (4, 3), (3, 3)),
    ]
    by_qupath = [shapes[0], polygon("Ignore*", (3, 2), (4, 2), (4, 3), (3, 3))]
    masks = {
        "grey.png": MASK,
        "palette.png": palette,
        "deep.png": DEEP,
        "deep.tif": DEEP,
        "grey.bmp": MASK,
        "grey.pgm": MASK,
        "rgb.png": np.repeat(MASK[..., None], 3, axis=2),
        "drawn.geojson": {"type": "FeatureCollection", "features": shapes},
        "qupath.geojson": by_qupath,
    }
    checked = check_masks(table(tmp_path, masks, zipped), "error")
    for index, name in enumerate(masks):
        assert checked.read(index)[1].tolist() == CODES, name
    assert checked.counts.tolist() == [[6, 5]] * len(masks)
    assert checked.of_split("test").tiles.ids.tolist() == ["0.png"]


def test_one_bit_images_and_empty_drawings_are_valid_masks(tmp_path: Path) -> None:
    bits = Image.fromarray(MASK == 1)
    checked = check_masks(table(tmp_path, {"bits.png": bits, "none.geojson": []}), "error")
    assert checked.counts.tolist() == [[7, 5], [12, 0]]


@pytest.mark.parametrize(
    "content",
    [b"P5 2 2 3\n\0\1\2\3", b"P2 2 2 3\n0 1 2 3\n", b"P5 2 2 1000\n\0\0\0\1\0\2\0\3", b"P5 2 2 255\n\0\1\2\3"],
)
def test_pgm_values_are_read_unscaled(content: bytes) -> None:
    assert decode_values(io.BytesIO(content)).tolist() == [[0, 1], [2, 3]]


def deep_png(colour_type: int, channels: int) -> bytes:
    """Return a PNG with 16 bits per channel, all channels equal to the mask."""
    pixels = np.repeat(DEEP[..., None], channels, axis=2).astype(">u2")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", DEEP.shape[1], DEEP.shape[0], 16, colour_type, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_deep_greyscale_is_read_but_deep_colours_are_errors() -> None:
    assert decode_values(io.BytesIO(deep_png(0, 1))).tolist() == DEEP.tolist()
    colour_ppm = b"P6 2 1 1000\n" + np.repeat(np.array([1, 2], ">u2"), 3).tobytes()
    for content in (deep_png(4, 2), deep_png(2, 3), deep_png(6, 4), colour_ppm):
        with pytest.raises(ImageError, match="several channels of 16 bits: save the mask as greyscale"):
            decode_values(io.BytesIO(content))


def test_images_and_masks_are_rotated_by_their_own_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    masks = table(tmp_path, {"upright.png": MASK, "stored.png": MASK})
    for name in ("0.png", "1.png"):
        Image.new("RGB", (3, 4)).save(tmp_path / "files" / name, exif=exif)
    Image.fromarray(np.ascontiguousarray(np.rot90(MASK))).save(tmp_path / "files/stored.png", exif=exif)
    assert [masks.read(index)[1].tolist() for index in (0, 1)] == [CODES, CODES]
    assert masks.read(0)[0].size == (4, 3)
    Image.fromarray(np.ascontiguousarray(np.rot90(MASK))).save(tmp_path / "files/stored.png")
    with pytest.raises(DataError, match="its image 4 x 3; images are rotated according to their EXIF orientation"):
        masks.read(1)


def tiff_declaring(width: int, height: int) -> bytes:
    """Return a TIFF of a few hundred bytes that declares many pixels."""
    stream = io.BytesIO()
    Image.new("L", (64, 64)).save(stream, "TIFF", compression="tiff_lzw")
    data = bytearray(stream.getvalue())
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in (256, 257, 278):  # width, height, rows per strip
            struct.pack_into("<HHII", data, entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


def gif(*frames: "np.ndarray[Any, Any]") -> bytes:
    stream = io.BytesIO()
    first, *more = (Image.fromarray(frame) for frame in frames)
    first.save(stream, "GIF", save_all=bool(more), append_images=more)
    return stream.getvalue()


INVALID: "dict[str, tuple[Any, str]]" = {
    "big.png": (np.zeros((6, 8), np.uint8), "the mask has 8 x 6 pixels, its image 4 x 3"),
    "claims.tif": (tiff_declaring(12000, 12000), "the mask has 12000 x 12000 pixels, its image 4 x 3"),
    "bomb.tif": (tiff_declaring(60000, 60000), "declares more than 179 million pixels"),
    "still.gif": (gif(MASK), "a GIF image, in which programs renumber the values of a mask: save masks as PNG, TIFF"),
    "moving.gif": (gif(MASK, 1 - MASK), "a GIF image"),
    "targa.tga": (MASK, "a TGA image: save masks as PNG, TIFF, BMP, PGM or lossless WebP"),
    "seven.png": (np.where(MASK == 1, 7, MASK).astype(np.uint8), r"not classes: 7 \(41.7% of the pixels\)"),
    "lossy.jpg": (MASK, "JPEG compression changes the values"),
    "colour.png": (np.arange(36, dtype=np.uint8).reshape(3, 4, 3), "a colour image"),
    "cut.png": (b"\x89PNG\r\n\x1a\n" + bytes(9), "Error"),
    "names.geojson": (
        [polygon("glnd", (0, 0), (1, 0), (1, 1))],
        "polygons with unknown classes: glnd; use stroma, gland or ignore",
    ),
    "far.geojson": ([polygon("gland", (0, 0), (90, 0), (90, 90))], "outside the image of 4 x 3"),
    "text.geojson": (b"not json", "not JSON"),
}


@pytest.mark.parametrize("name", INVALID)
def test_the_error_for_an_invalid_mask_names_it_and_the_reason(tmp_path: Path, name: str) -> None:
    mask, reason = INVALID[name]
    with pytest.raises(DataError, match=reason) as error:
        check_masks(table(tmp_path, {"good.png": MASK, name: mask}), "error")
    assert name in str(error.value) and "Traceback" not in str(error.value)


def test_all_invalid_masks_are_listed_or_dropped(tmp_path: Path) -> None:
    files = {"good.png": MASK, "big.png": INVALID["big.png"][0], "seven.png": INVALID["seven.png"][0]}
    masks = table(tmp_path, files)
    with pytest.raises(DataError, match="2 of 3 masks cannot be used") as error:
        check_masks(masks, "error")
    assert "8 x 6 pixels" in str(error.value) and "not classes: 7" in str(error.value)
    remaining = check_masks(masks, "quarantine")
    assert remaining.tiles.ids.tolist() == ["0.png"]
    assert "dropped 2 masks (cannot be used): 1.png" in remaining.notes[0]


def test_tiles_without_a_mask_and_masks_without_pixels_are_counted(tmp_path: Path) -> None:
    masks = table(tmp_path, {"a.png": MASK, "b.png": None, "c.png": np.full((3, 4), 255, np.uint8)})
    assert masks.notes == ("1 of 3 tiles has no mask",) and len(masks) == 2
    remaining = check_masks(masks, "error")
    assert remaining.tiles.ids.tolist() == ["0.png"] and "1 mask was dropped, because every pixel" in remaining.notes[1]


def test_ignored_pixels_are_counted_with_a_warning_if_they_may_be_a_class(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 1, 0]] * 3, np.uint8)
    consistent = check_masks(table(tmp_path / "alike", {"a.png": mask, "b.png": mask}), "error")
    assert not consistent.notes
    inconsistent = check_masks(table(tmp_path / "unlike", {"a.png": mask, "b.png": mask * 255}), "error")
    assert inconsistent.notes[0] == "1 of 2 masks contains ignored pixels (255), 25.00% of all mask pixels"
    assert (
        inconsistent.notes[1].startswith("WARNING: 1 of 2 masks contains only one class")
        and "1.png" in inconsistent.notes[1]
    )


def test_fully_ignored_masks_and_absent_classes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every pixel is ignored"):
        check_masks(table(tmp_path, {"a.png": np.full((3, 4), 255, np.uint8)}), "error")
    (tmp_path / "wrong").mkdir()
    with pytest.raises(DataError, match=r"no mask can be used; the first problem: .*7") as caught:
        check_masks(table(tmp_path / "wrong", {"a.png": np.full((3, 4), 7, np.uint8)}), "quarantine")
    assert str(caught.value).count("fix:") == 1
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="no mask contains a pixel of gland"):
        check_masks(table(tmp_path / "other", {"a.png": np.zeros((3, 4), np.uint8)}), "error")


def test_missing_files_columns_and_other_sources_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 1 file in the table is missing: gone\.png"):
        table(tmp_path, {"gone.png": 0})
    (tmp_path / "tiles.csv").write_text("path,mask\n0.png,\n", encoding="utf-8")
    keys = {"path": str(tmp_path / "tiles.csv"), "images": str(tmp_path / "files"), "labels": {"kind": "none"}}
    config = TilesConfig(source="table", **keys)
    tiles = read_tiles(config, hold_out=False)
    with pytest.raises(DataError, match="no tile has a mask in column mask"):
        open_masks(config, tiles, CLASSES)
    with pytest.raises(DataError, match="missing columns: outline"):
        open_masks(config.model_copy(update={"columns": {"mask": "outline"}}), tiles, CLASSES)
    with pytest.raises(ConfigError, match="masks are read from a table"):
        open_masks(config.model_copy(update={"source": "folders"}), tiles, CLASSES)


def test_the_fingerprint_changes_with_a_mask(tmp_path: Path) -> None:
    masks = table(tmp_path, {"a.png": MASK})
    (tmp_path / "files/a.png").touch()
    os.utime(tmp_path / "files/a.png", ns=(1, 1))
    config = TilesConfig(
        source="table", path=str(tmp_path / "tiles.csv"), images=str(tmp_path / "files"), labels={"kind": "none"}
    )
    assert open_masks(config, masks.tiles, CLASSES).fingerprint != masks.fingerprint


def test_class_values_are_validated() -> None:
    section = SegmentationConfig(classes={"stroma": 0, "gland": (1, 2)})
    assert section.class_of == {0: 0, 1: 1, 2: 1} and section.averaged == ("gland",)
    assert SegmentationConfig(classes={"a": 3, "b": 4}).averaged == ("a", "b")
    for invalid in ({"a": 0, "b": 0}, {"a": 0}, {"a": 0, "b": ()}, {"a": 0, "b": 255}, {"a": 0, "b": -1}):
        with pytest.raises(ValueError, match=r"."):
            SegmentationConfig(classes=invalid)
    with pytest.raises(ValueError, match="not among classes: tumour"):
        SegmentationConfig(classes={"a": 0, "b": 1}, foreground=("tumour",))


REAL = os.environ.get("CLIPIT_TEST_DATA")


@pytest.mark.skipif(not REAL, reason="CLIPIT_TEST_DATA is not set")
def test_real_gland_masks_are_read_from_the_zip_of_their_images() -> None:
    folder = Path(str(REAL)) / "glas_half"
    config = TilesConfig(source="table", path=str(folder / "glas.csv"), images=str(folder / "glas_half.zip"))
    config = config.model_copy(update={"splits": {"train": ("train", "testA", "testB")}})
    tiles = read_tiles(config, hold_out=False).select(range(3))
    masks = check_masks(open_masks(config, tiles, MaskClasses(("stroma", "gland"), {0: 0, 1: 1})), "error")
    image, mask = masks.read(0)
    assert image.size == (387, 261) == mask.shape[::-1] and tiles.mpp[0] == 1.24
    assert masks.counts[0].tolist() == [14217, 86790] and (masks.counts > 0).all()
