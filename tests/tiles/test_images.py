import io
import pickle
import struct
import zipfile
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from labelled_tiles import load_tiles
from PIL import Image, ImageFile, PngImagePlugin

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.images.decode import ImageError, Unreadable, attempt, decode, to_rgb
from clipit.images.image_set import open_images
from clipit.models.preprocess import open_picture
from clipit.tiles.kept_tiles import KeptSize, keep_image
from clipit.tiles.mask_files import decode_values

from .conftest import paint, write_table


def table_of(folder: Path, names: list[str]) -> TilesConfig:
    rows = [{"path": name, "label": index % 2} for index, name in enumerate(names)]
    write_table(folder / "t.csv", rows)
    return TilesConfig(source="table", path=str(folder / "t.csv"), validation_fraction=0.3)


def truncate(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "bmp"])
def test_the_error_for_a_truncated_image_names_the_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{index}.{suffix}" for index in range(8)]
    for index, name in enumerate(names):
        paint(tmp_path / name, index, size=(64, 64))
    truncate(tmp_path / names[3])
    tiles = load_tiles(table_of(tmp_path, names), seed=0)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # other packages may set this
    with pytest.raises(DataError, match=rf"(?s)tile 3.{suffix} cannot be decoded.*where: .*3.{suffix}.*quarantine"):
        tiles.read(3)
    assert tiles.read(4).size == (64, 64)
    with pytest.raises(DataError, match=rf"(?s)tile 3.{suffix} .*where: [^\n]*/3.{suffix}"):
        tiles.select([5, 3]).read(1)


def test_quarantined_images_are_counted_and_listed(tmp_path: Path) -> None:
    names = [f"{index}.tif" for index in range(12)]
    for index, name in enumerate(names):
        paint(tmp_path / name, index, size=(32, 32))
    truncate(tmp_path / "5.tif")
    (tmp_path / "7.tif").write_bytes(b"")
    tiles = load_tiles(table_of(tmp_path, names).model_copy(update={"unreadable": "quarantine"}), seed=0)
    assert tiles.quarantined == ("5.tif", "7.tif")
    assert len(tiles) == 10
    assert "dropped as unreadable: 2 (5.tif, 7.tif)" in tiles.describe()
    for index in range(len(tiles)):
        assert tiles.read(index).tobytes() == decode(tmp_path / tiles.ids[index]).tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_images_are_not_quarantined_for_lack_of_memory(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{index}.png" for index in range(8)]
    for index, name in enumerate(names):
        paint(tmp_path / name, index, size=(32, 32))
    config = table_of(tmp_path, names).model_copy(update={"unreadable": "quarantine"})
    if zipped:
        with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
            for name in names:
                archive.write(tmp_path / name, name)
        config = config.model_copy(update={"images": str(tmp_path / "tiles.zip")})

    def fail(self: ImageFile.ImageFile) -> None:
        raise OSError("out of memory when reading image file")  # as Pillow raises it, without an errno

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError, match="out of memory"):
        load_tiles(config, seed=0)
    with pytest.raises(MemoryError, match="out of memory"), Image.open(tmp_path / names[0]) as image:
        open_picture(image, 0)
    with pytest.raises(MemoryError, match="out of memory"):
        decode_values(tmp_path / names[0])


def test_quarantining_a_whole_split_is_an_error(tmp_path: Path) -> None:
    for index in range(6):
        paint(tmp_path / f"{index}.png", index, size=(32, 32))
    for name in ("3.png", "4.png"):
        (tmp_path / name).write_bytes(b"nothing")
    splits = ["train", "train", "train", "test", "test", "validation"]
    lines = ["path,label,split", *(f"{index}.png,{'ab'[index % 2]},{split}" for index, split in enumerate(splits))]
    (tmp_path / "parts.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = TilesConfig(source="table", path=str(tmp_path / "parts.csv"), unreadable="quarantine")
    with pytest.raises(DataError, match=r"(?s)none of the 2 images in the split test can be decoded.*3\.png"):
        load_tiles(config, seed=0)


def test_quarantining_all_images_is_an_error(tmp_path: Path) -> None:
    names = ["a.png", "b.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the 2 images can be decoded"):
        load_tiles(table_of(tmp_path, names).model_copy(update={"unreadable": "quarantine"}), seed=0)


def test_a_deleted_file_is_not_treated_as_an_unreadable_image(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(8)]
    for index, name in enumerate(names):
        paint(tmp_path / name, index)
    tiles = load_tiles(table_of(tmp_path, names), seed=0)
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"cannot open the image of tile 2.png: No such file"):
        tiles.try_read(2)


def test_the_error_for_a_damaged_zip_member_names_it(tmp_path: Path) -> None:
    names = [f"{index}.bmp" for index in range(8)]
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for index, name in enumerate(names):
            archive.write(paint(tmp_path / "x" / name, index), name)
    data = bytearray((tmp_path / "t.zip").read_bytes())
    data[120] ^= 255  # a pixel of the first member, which only the checksum reveals
    (tmp_path / "t.zip").write_bytes(data)
    tiles = load_tiles(table_of(tmp_path, names).model_copy(update={"images": str(tmp_path / "t.zip")}), seed=0)
    with pytest.raises(DataError, match=r"(?s)Bad CRC.*t.zip!0.bmp"):
        tiles.read(0)
    assert pickle.loads(pickle.dumps(tiles)).read(1).size == (8, 8)


def zip_of(folder: Path, method: int = zipfile.ZIP_DEFLATED) -> tuple[Path, TilesConfig]:
    """Write eight images into a zip, and a table that lists them."""
    names = [f"{index}.bmp" for index in range(8)]
    with zipfile.ZipFile(folder / "t.zip", "w", method) as archive:
        for index, name in enumerate(names):
            archive.write(paint(folder / "x" / name, index), name)
    return folder / "t.zip", table_of(folder, names).model_copy(update={"images": str(folder / "t.zip")})


def alter_entry(path: Path, number: int, offset: int, value: int) -> None:
    """Change two bytes of a central directory entry; offset 6 is the version needed, 8 the flags, 10 the method."""
    data = bytearray(path.read_bytes())
    start = -1
    for _ in range(number + 1):
        start = data.index(b"PK\x01\x02", start + 1)
    data[start + offset : start + offset + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, 0x01, r"(?s)1 of 8 files in the zip is encrypted.*where: .*t\.zip!2\.bmp.*fix: .*without"),
        (8, 0x41, r"(?s)1 of 8 files in the zip is encrypted.*where: .*t\.zip!2\.bmp"),
        (8, 0x20, r"(?s)unknown to Python: patched data.*where: .*t\.zip!2\.bmp"),
        (10, 9, r"(?s)unknown to Python: method 9 \(Deflate64\).*where: .*t\.zip!2\.bmp.*fix: .*Deflate"),
        (10, 77, r"(?s)unknown to Python: method 77\n.*where: .*t\.zip!2\.bmp"),
        (6, 99, r"(?s)not a readable zip: zip file version 9\.9.*where: .*t\.zip"),
    ],
)
@pytest.mark.parametrize("policy", ["error", "quarantine"])
def test_unsupported_zips_are_refused_when_opened(
    tmp_path: Path, offset: int, value: int, message: str, policy: str
) -> None:
    path, config = zip_of(tmp_path)
    alter_entry(path, 2, offset, value)
    with pytest.raises(DataError, match=message):
        load_tiles(config.model_copy(update={"unreadable": policy}), seed=0)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_all_compression_methods_of_python_are_read(tmp_path: Path, method: int) -> None:
    path, config = zip_of(tmp_path, method)
    tiles = load_tiles(config, seed=0)
    assert tiles.read(5).tobytes() == decode(tmp_path / "x" / "5.bmp").tobytes()
    with zipfile.ZipFile(path) as archive:
        sizes = [info.compress_size for info in archive.infolist()]
    data = bytearray(path.read_bytes())
    start = data.index(b"0.bmp") + len("0.bmp")
    data[start + 4 : start + sizes[0]] = b"\xff" * (sizes[0] - 4)  # the first member's data
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"(?s)tile 0.bmp cannot be decoded.*t\.zip!0\.bmp"):
        load_tiles(config, seed=0).read(0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_are_converted_to_rgb(mode: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (204, 204, 204)).convert(mode).save(stream, "TIFF")
    stream.seek(0)
    image = decode(stream)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - 204).max() <= 2


def raw_png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    """Return a PNG with any header, which may contradict the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def deep_png(channels: int) -> bytes:
    """Return a 4 x 4 PNG with 16 bits per channel; Pillow cannot write several such channels."""
    line = b"\0" + struct.pack(">H", 3000) * channels * 4
    return raw_png(4, 4, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], line * 4)


def deep_tiff(bits: int, channels: int) -> bytes:
    """Return an uncompressed 4 x 4 TIFF of unsigned integers."""
    data = bytes(4 * 4 * channels * bits // 8)
    depth_at, pixels_at = 8 + 2 + 9 * 12 + 4, 8 + 2 + 9 * 12 + 4 + 2 * channels
    tags = [(256, 4), (257, 4), (258, bits if channels == 1 else depth_at), (259, 1), (262, 2 if channels > 1 else 1),
            (273, pixels_at), (277, channels), (278, 4), (279, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 3, channels if tag == 258 else 1, value) for tag, value in tags)
    depths = struct.pack("<H", bits) * channels
    return b"II*\0" + struct.pack("<IH", 8, 9) + entries + bytes(4) + depths + data


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


DEEP = {
    "grey.png": deep_png(1), "la.png": deep_png(2), "rgb.png": deep_png(3), "rgba.png": deep_png(4),
    "grey.tif": deep_tiff(16, 1), "rgb.tif": deep_tiff(16, 3),
    "float.tif": encoded(Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)), "TIFF"),
    "rgb.ppm": b"P6 2 2 4095\n" + bytes(24),
    "grey.jp2": encoded(Image.fromarray(np.full((4, 4), 3000, dtype=np.uint16)), "JPEG2000"),
}  # fmt: skip


def test_signed_integer_tiffs_are_refused() -> None:
    content = deep_tiff(8, 1).replace(struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 339, 3, 1, 2))
    with pytest.raises(ImageError, match="signed integer channels"):
        decode(io.BytesIO(content))
    assert decode(io.BytesIO(deep_tiff(8, 1))).size == (4, 4)


def test_a_png_with_more_text_than_pillow_reads_is_named() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", "x" * 2_000_000, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "pink").save(buffer, "PNG", pnginfo=text)
    with pytest.raises(ImageError, match=r"more text than Pillow reads .* save it without the text"):
        decode(buffer)


@pytest.mark.parametrize("scale", [257, 1])
def test_an_8_bit_tiff_palette_that_pillow_reads_as_black_is_refused(scale: int) -> None:
    stream = io.BytesIO()
    colours = np.tile(np.arange(256, dtype=np.uint16) * scale, (3, 1))
    tifffile.imwrite(stream, np.full((4, 4), 200, np.uint8), photometric="palette", colormap=colours)
    if scale == 257:
        assert np.asarray(decode(stream)).max() == 200
    else:
        with pytest.raises(ImageError, match="palette"):
            decode(stream)


@pytest.mark.parametrize("name", sorted(DEEP))
def test_more_than_8_bits_are_refused_by_training_and_prediction(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DEEP[name])
    with pytest.raises(ImageError, match=r"bits per channel"):
        decode(io.BytesIO(DEEP[name]))
    with pytest.raises(DataError, match=rf"(?s)bits per channel.*where: .*{name}"):
        open_picture(tmp_path / name, 0)
    with Image.open(tmp_path / name) as opened, pytest.raises(DataError, match="bits per channel"):
        open_picture(opened, 0)


def test_8_bit_images_of_the_same_formats_are_read() -> None:
    assert decode(io.BytesIO(deep_tiff(8, 3))).size == (4, 4)
    assert decode(io.BytesIO(b"P6 2 2 255\n" + bytes(12))).size == (2, 2)
    assert decode(io.BytesIO(encoded(Image.new("RGB", (4, 4)), "JPEG2000"))).size == (4, 4)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La"])
def test_transparent_pixels_are_composited_over_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (40, 40, 40, 255))
    image = image.convert("LA").convert(mode) if mode.startswith("L") else image.convert(mode)
    assert np.asarray(to_rgb(image)).tolist() == [[[255] * 3, [40] * 3]]


def test_a_transparent_png_colour_is_composited_over_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 8, 7))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    expected = [[[255, 255, 255], [9, 8, 7]]]
    assert np.asarray(decode(tmp_path / "a.png")).tolist() == expected
    assert np.asarray(open_picture(str(tmp_path / "a.png"), 0)).tolist() == expected


def test_prediction_refuses_truncated_images_even_if_pillow_is_set_to_accept_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate(paint(tmp_path / "a.png", size=(64, 64)))
    for image in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with pytest.raises(DataError, match=r"a\.png"):
            open_picture(image, 0)


def two_pages(first: Image.Image, second: Image.Image, **options: Any) -> bytes:
    """Return a TIFF with two pages; options apply to the second."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as pages:
        pages.write(np.asarray(first), photometric="rgb", metadata=None)
        pages.write(np.asarray(second), photometric="rgb", metadata=None, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("channels", "refused"), [(3, False), (4, False), (5, True)])
def test_a_tiff_with_several_extra_channels_is_refused(channels: int, refused: bool) -> None:
    stream = io.BytesIO()
    extra = (0,) * (channels - 3)
    pixels = np.full((8, 8, channels), 100, np.uint8)
    tifffile.imwrite(stream, pixels, photometric="rgb", planarconfig="contig", extrasamples=extra)
    stream.seek(0)
    with pytest.raises(ImageError, match="5 channels, of which 2 have no colour") if refused else nullcontext():
        assert decode(stream).size == (8, 8)


def test_a_single_extra_channel_besides_rgb_is_ignored_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("clipit.images.decode._noted_ignored_channel", False)
    caplog.set_level("INFO")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb", extrasamples=(0,))
        assert (np.asarray(decode(tmp_path / name)) == pixels[..., :3]).all()
    (message,) = caplog.messages
    assert message.startswith("note: ")
    assert "a.tif: a TIFF with a channel that has neither a colour nor transparency" in message
    grey = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "two.tif", pixels[..., :2], extrasamples=(0,), **grey)
    with pytest.raises(ImageError, match="2 channels, of which 1 has no colour"):
        decode(tmp_path / "two.tif")
    tifffile.imwrite(tmp_path / "clear.tif", pixels[..., :2] * 0, extrasamples=(2,), **grey)
    assert (np.asarray(decode(tmp_path / "clear.tif")) == 255).all()


def test_only_smaller_copies_may_follow_the_first_page_of_a_tiff() -> None:
    first = Image.new("RGB", (8, 8), (1, 2, 3))
    pyramid = encoded(first, "TIFF", save_all=True, append_images=[Image.new("RGB", (4, 4)), Image.new("L", (2, 2))])
    assert decode(io.BytesIO(pyramid)).tobytes() == first.tobytes()
    stack = encoded(first, "TIFF", save_all=True, append_images=[Image.new("RGB", (8, 8))] * 2)
    with pytest.raises(ImageError, match="3 pages of equal size"):
        decode(io.BytesIO(stack))


def test_a_smaller_page_with_different_content_is_an_error(tmp_path: Path) -> None:
    """Pages that are marked or named as thumbnails may differ from the first page."""
    random = np.random.default_rng(0)
    tile, other = (
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((120, 120)) for _ in range(2)
    )
    half = (60, 60)
    for small in (tile.resize(half), tile.resize(half, Image.Resampling.NEAREST), tile.resize((16, 16))):
        assert decode(io.BytesIO(two_pages(tile, small))).tobytes() == tile.tobytes()
    for small in (other.resize(half), other.resize((60, 30)), Image.new("RGB", half)):
        with pytest.raises(ImageError, match=r"several images: page 1 \(60 x .* no.*smaller copy"):
            decode(io.BytesIO(two_pages(tile, small)))
        for options in ({"subfiletype": 1}, {"description": "label 60x60"}, {"description": "Macro"}):
            assert decode(io.BytesIO(two_pages(tile, small, **options))).tobytes() == tile.tobytes()
    (tmp_path / "a.tif").write_bytes(two_pages(tile, other.resize(half)))
    assert isinstance(open_images(tmp_path / "a.tif").try_read(0), Unreadable)


def evenly_stained(width: int, height: int, seed: int) -> Image.Image:
    """Return noise at several scales around one colour, with vignetting as in a microscope."""
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), (190.0, 140.0, 175.0))
    for scale in (2, 6, 20):
        noise = random.normal(0, 12, (height // scale + 1, width // scale + 1))
        pixels += np.kron(noise, np.ones((scale, scale)))[:height, :width, None]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return Image.fromarray((pixels - 10 * (x**2 + y**2)[..., None]).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(500, 500), (511, 511), (256, 256), (128, 128), (48, 48)])
def test_a_page_with_similarly_stained_tissue_is_not_a_copy(size: tuple[int, int]) -> None:
    first = evenly_stained(512, 512, 1)
    with pytest.raises(ImageError, match="not a smaller copy"):
        decode(io.BytesIO(two_pages(first, evenly_stained(*size, seed=2))))
    with pytest.raises(ImageError, match="not a smaller copy"):
        decode(io.BytesIO(two_pages(first, evenly_stained(512, 512, 3).resize(size))))
    for method in Image.Resampling:
        assert decode(io.BytesIO(two_pages(first, first.resize(size, method)))).size == (512, 512)
    jpeg = encoded(first.resize(size), "JPEG", quality=30)
    assert decode(io.BytesIO(two_pages(first, Image.open(io.BytesIO(jpeg))))).size == (512, 512)


@pytest.mark.parametrize(
    ("first", "second"),
    [((256, 128), (256, 256)), ((128, 256), (256, 128)), ((256, 256), (256, 255)), ((256, 256), (128, 100))],
)
def test_a_copy_must_be_smaller_by_the_same_factor_in_both_directions(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    image = evenly_stained(*first, seed=1)
    with pytest.raises(ImageError, match="not a smaller copy"):
        decode(io.BytesIO(two_pages(image, image.resize(second))))


def test_pyramids_with_rounded_sizes_and_of_uniform_images_are_copies() -> None:
    first = evenly_stained(1001, 333, 1)
    for factor in (2, 4, 8, 16):
        for edge in (np.floor, np.ceil):
            small = first.resize((int(edge(1001 / factor)), int(edge(333 / factor))))
            assert decode(io.BytesIO(two_pages(first, small))).size == first.size
    empty = (np.random.default_rng(n).normal(240, 4, (256 // n, 256 // n, 3)).clip(0, 255) for n in (1, 2))
    pages = [Image.fromarray(pixels.astype(np.uint8)) for pixels in empty]
    assert decode(io.BytesIO(two_pages(*pages))).size == (256, 256)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "avif", "bmp", "jp2", "gif"])
def test_damaged_bytes_give_an_image_or_are_unreadable(suffix: str) -> None:
    kinds = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kinds.get(suffix, suffix.upper()))
    for seed in range(60):
        random = np.random.default_rng(seed)
        data = np.frombuffer(content, dtype=np.uint8).copy()
        data[random.integers(0, len(data), 4)] = random.integers(0, 256, 4)
        damaged = data.tobytes()[: len(data) if seed % 2 else int(random.integers(1, len(data)))]
        result = attempt(lambda damaged=damaged: decode(io.BytesIO(damaged)), tile_id="a", where="b")  # type: ignore[misc]
        assert isinstance(result, Image.Image | Unreadable)


def test_a_zip_member_with_an_enormous_declared_size_is_not_read(tmp_path: Path) -> None:
    path, config = zip_of(tmp_path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    data[start + 24 : start + 28] = struct.pack("<I", 3 * 2**30)  # uncompressed size in the central directory
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"(?s)tile 0\.bmp cannot be decoded .*3\.0 GiB"):
        load_tiles(config, seed=0).read(0)


def test_an_image_that_declares_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = raw_png(20_000, 20_000, 8, 0, bytes(99))
    for limit in (Image.MAX_IMAGE_PIXELS, None):  # other packages disable Pillow's limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match="declares more than 179 million pixels: cut it into tiles"):
            decode(io.BytesIO(data))


def test_damaged_zips_raise_errors_or_give_unreadable_images(tmp_path: Path) -> None:
    path, config = zip_of(tmp_path)
    content = path.read_bytes()
    for seed in range(80):
        random = np.random.default_rng(seed)
        data = np.frombuffer(content, dtype=np.uint8).copy()
        data[random.integers(len(data) // 2, len(data), 3)] = random.integers(0, 256, 3)  # mostly the directory
        path.write_bytes(data.tobytes())
        try:
            tiles = load_tiles(config, seed=0)
        except DataError as error:
            assert "t.zip" in str(error)
        else:
            assert all(isinstance(tiles.try_read(row), Image.Image | Unreadable) for row in range(8))


def test_a_zip_member_without_a_name_is_an_error(tmp_path: Path) -> None:
    path, config = zip_of(tmp_path)
    alter_entry(path, 2, 28, 0)  # length of the name
    with pytest.raises(DataError, match=r"not a readable zip"):
        load_tiles(config, seed=0)


def test_a_jpeg_with_several_pictures_of_equal_size_is_refused(tmp_path: Path) -> None:
    first = Image.new("RGB", (64, 64), "red")
    for others, equal in (([(64, 64)], 2), ([(32, 32)], 1), ([], 1)):
        more = [Image.new("RGB", size, "blue") for size in others]
        more.append(Image.new("L", (64, 64)))  # a depth or gain map
        first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=more)
        if equal > 1:
            with pytest.raises(ImageError, match=rf"\(MPO\) with {equal} pictures of equal size"):
                decode(tmp_path / "a.jpg")
        else:
            assert decode(tmp_path / "a.jpg").size == (64, 64)


@pytest.mark.parametrize("name", ["PNG", "GIF", "WEBP"])
def test_an_animation_is_refused(name: str) -> None:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(stream, name, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="an animation with 3 frames"):
        decode(io.BytesIO(stream.getvalue()))


CORNERS = np.zeros((20, 30, 3), np.uint8)
CORNERS[:8, :8], CORNERS[:8, -8:] = (250, 20, 20), (20, 250, 20)
STORED = {  # by EXIF orientation: the operation that gives the stored pixels of `CORNERS`
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, 1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, -1),
}


def with_orientation(path: Path, orientation: int, pixels: np.ndarray = CORNERS) -> Path:
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels)))
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {"lossless": True}
    stored.save(path, exif=exif, **({} if path.suffix in (".png", ".tif") else options))
    return path


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_orientation_of_a_file_is_applied_in_every_format(
    tmp_path: Path, suffix: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_orientation(tmp_path / f"a.{suffix}", orientation)
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr("clipit.images.jpeg.find_decoder", lambda: None)
        with Image.open(path) as opened:
            for image in (decode(path), decode(io.BytesIO(path.read_bytes())), to_rgb(opened), open_picture(path, 0)):
                assert np.abs(np.asarray(image).astype(int) - CORNERS).max() < 40
    kept = keep_image(path.read_bytes(), KeptSize(pixels=10, quality=None))
    rotated = np.asarray(decode(io.BytesIO(kept.data))).astype(int)  # not rotated a second time
    assert rotated.shape == (10, 15, 3) and rotated[1, 1].argmax() == 0 and rotated[1, -2].argmax() == 1


def test_transparent_images_with_an_orientation_and_damaged_metadata_are_read(tmp_path: Path) -> None:
    rgba = np.dstack([CORNERS, np.full((20, 30), 255, np.uint8)])
    assert np.array_equal(np.asarray(decode(with_orientation(tmp_path / "a.png", 6, rgba))), CORNERS)
    Image.fromarray(CORNERS).save(tmp_path / "b.jpg", exif=b"Exif\0\0MM\0*\0\0\0\xff\xff\xff", quality=95)
    assert decode(tmp_path / "b.jpg").size == (30, 20)


@pytest.mark.parametrize("alpha", [0, 1])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "premultiplied TIFF", "deflated premultiplied TIFF"])
def test_a_fully_transparent_image_must_not_have_varying_colours(kind: str, alpha: int, tmp_path: Path) -> None:
    """Some programs write an unused fourth byte as transparency, which would turn the whole image white."""
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for name, rgb in (("noise", colours), ("plain", np.full_like(colours, 7))):
        rgba, path = np.dstack([rgb, np.full((16, 16), alpha, np.uint8)]), tmp_path / f"{name}.tif"
        if "TIFF" in kind:
            extra, packed = ["assocalpha" if "pre" in kind else "unassalpha"], "zlib" if "deflated" in kind else None
            tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=extra, compression=packed)
        else:
            Image.fromarray(rgba).save(path, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
        for source in (path, io.BytesIO(path.read_bytes())):
            if name == "plain":
                assert min(low for low, _ in decode(source).getextrema()) >= 254
            else:
                with pytest.raises(ImageError, match="transparent everywhere, although its colours vary"):
                    decode(source)


def test_a_cmyk_jpeg_must_state_whether_its_colours_are_inverted() -> None:
    """Pillow assumes inverted colours as in Adobe files; other programs invert them only with Adobe's marker."""
    data = encoded(Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK"), "JPEG")
    assert decode(io.BytesIO(data)).getpixel((8, 8)) == pytest.approx((200, 30, 90), abs=4)
    start = data.index(b"\xff\xee")
    without = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    with pytest.raises(ImageError, match="CMYK JPEG file that does not state whether its colours are inverted"):
        decode(io.BytesIO(without))
