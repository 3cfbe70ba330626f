"""Find damaged strips or tiles of TIFF files, because libtiff ignores most checksums and warnings of its decoders."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from PIL import Image

from clipit.images import fax
from clipit.images.deflate import COMPRESSIONS, find_deflate_damage
from clipit.images.jpeg import find_corruption

_COMPRESSION, _FILL_ORDER = 259, 266  # TIFF tags
_WIDTHS, _HEIGHTS = (322, 256), (323, 278, 257)  # TIFF tags: extents of a tile, of a strip and of the image
_CHANNELS, _PLANES, _TABLES = 277, 284, 347  # TIFF tags: samples per pixel, planar configuration, JPEG tables
_PARTS = ((273, 279), (324, 325))  # TIFF tags: offsets and byte counts of strips, and of tiles
_BITS, _COLOURS = 258, 262  # TIFF tags: bits per sample, photometric interpretation
_NONE, _LZW, _PACKBITS, _JPEG = 1, 5, 32773, 7  # values of TIFF tags: compression
_SEPARATE, _YCBCR = 2, 6  # values of TIFF tags: channels in separate planes; colours that may be subsampled
_MAX_PADDING = 1.05  # maximum ratio of the stored bytes to those of uncompressed pixels
_ABSENT = 2**32  # larger than any extent; stands for a missing tag
_START, _END = b"\xff\xd8", b"\xff\xd9"  # first and last marker of a JPEG stream


def find_damaged_part(tags: Mapping[int, Any], read: Callable[[int, int], bytes]) -> str:
    """Describe the first missing or damaged strip or tile of a TIFF page; "" if none is found, or none can be checked.

    A missing part has the offset 0, as in sparse files, or no offset at all: Pillow would read the start of the file
    instead, or leave the pixels black. Deflate streams contain checksums. JPEG and fax streams do not, but some damage
    is recognised (see `clipit.images.jpeg` and `clipit.images.fax`). Uncompressed and PackBits pixels must have the
    expected size, because a wrong compression tag would turn other streams into noise. LZW streams must not be too
    long, which is checked only if `imagecodecs` is installed.

    Args:
        tags: Values of the page's TIFF tags, as Pillow returns them.
        read: Function that reads a number of bytes at an offset of the file.
    """
    missing = _first_missing(tags)
    if missing is not None:
        return f"strip or tile {missing} of the TIFF is missing"
    compression = tags.get(_COMPRESSION)
    if compression in (None, _NONE):
        counts = [count for _, count in _parts(tags)] if _is_plain(tags) else []
        expected = sum(_size(tags, number) for number in range(len(counts)))
        if sum(counts) > _MAX_PADDING * expected:
            return (
                f"the TIFF has {sum(counts):,} bytes of pixels instead of {expected:,}, although it is not compressed"
            )
        return ""
    is_deflate = compression in COMPRESSIONS and tags.get(_FILL_ORDER, 1) == 1
    is_packed = compression == _PACKBITS and _is_plain(tags)
    is_lzw = compression == _LZW and _is_plain(tags) and tags.get(_FILL_ORDER, 1) == 1
    if not is_deflate and not is_packed and not is_lzw and compression != _JPEG and compression not in fax.COMPRESSIONS:
        return ""
    for number, (offset, count) in enumerate(_parts(tags)):
        data = read(offset, count) if count else b""  # a part without data is empty
        if not data or len(data) < count:  # missing bytes are reported when the page is decoded
            continue
        if is_packed:
            data = data.translate(fax.REVERSED) if tags.get(_FILL_ORDER) == 2 else data
            damage = "" if _unpacked_size(data) == _size(tags, number) else "they do not fill it exactly"
        elif is_lzw:  # the last strip may be padded
            damage = "they are too long" if _lzw_size(data) > _size(tags, 0) else ""
        elif compression in fax.COMPRESSIONS:
            damage = _find_fax_damage(tags, data, number)
        else:
            damage = find_deflate_damage(data) if is_deflate else _find_corrupt_jpeg(tags, data)
        if damage:
            return f"the compressed pixels of strip or tile {number} of the TIFF are damaged: {damage}"
    return ""


def _parts(tags: Mapping[int, Any]) -> Iterator[tuple[int, int]]:
    """Yield the offset and byte count of each strip or tile."""
    for offsets, counts in _PARTS:
        yield from zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)


def _first_missing(tags: Mapping[int, Any]) -> int | None:
    """Return the number of the first strip or tile without an offset; None if there is none."""
    offsets = next((tags[part] for part, _ in _PARTS if part in tags), ())
    expected = len(offsets)
    if offsets and _has_extent(tags):  # the old kind of JPEG compression needs no offsets
        edges = _extent(tags, 0)
        planes = tags.get(_CHANNELS, 1) if tags.get(_PLANES) == _SEPARATE else 1
        expected = (
            prod(-(-tags[size[-1]] // edge) for size, edge in zip((_WIDTHS, _HEIGHTS), edges, strict=True)) * planes
        )
    return next((number for number in range(expected) if number >= len(offsets) or not offsets[number]), None)


def _extent(tags: Mapping[int, Any], number: int) -> tuple[int, int]:
    """Return the width and height of a strip or tile; the last strip of a plane may be shorter."""
    width, height = tags[_WIDTHS[1]], tags[_HEIGHTS[2]]
    if _HEIGHTS[0] in tags:
        return tags.get(_WIDTHS[0], width), tags[_HEIGHTS[0]]
    rows = min(tags.get(_HEIGHTS[1], height), height)
    return width, min(rows, height - number % -(-height // rows) * rows)


def _has_extent(tags: Mapping[int, Any]) -> bool:
    """Return whether the extents of the image and of its strips or tiles are known."""
    return all(tags.get(tag, default) for tag, default in ((256, 0), (257, 0), (278, 1), (322, 1), (323, 1)))


def _is_plain(tags: Mapping[int, Any]) -> bool:
    """Return whether the uncompressed size of a strip or tile follows from its extent."""
    return _has_extent(tags) and tags.get(_COLOURS) != _YCBCR and len({*_depths(tags)}) == 1


def _size(tags: Mapping[int, Any], number: int) -> int:
    """Return the number of bytes of an uncompressed strip or tile."""
    width, height = _extent(tags, number)
    channels = 1 if tags.get(_PLANES) == _SEPARATE else tags.get(_CHANNELS, 1)
    return int(height * -(-width * channels * _depths(tags)[0] // 8))


def _depths(tags: Mapping[int, Any]) -> tuple[int, ...]:
    bits = tags.get(_BITS, (1,))
    return bits if isinstance(bits, tuple) else (bits,)


def _unpacked_size(data: bytes) -> int:
    """Return the number of bytes that a PackBits stream stands for."""
    size = position = 0
    while position < len(data):
        code = data[position]
        copied = code + 1 if code < 128 else 1  # bytes that follow; a single byte is repeated
        size += 0 if code == 128 or position + copied >= len(data) else copied if code < 128 else 257 - code
        position += 1 if code == 128 else 1 + copied
    return size


def _lzw_size(data: bytes) -> int:
    """Return the number of bytes that an LZW stream stands for; 0 if it cannot be decoded, which libtiff reports."""
    try:
        from imagecodecs import lzw_decode

        return len(lzw_decode(data))
    except (ImportError, RuntimeError, ValueError):  # the package is not installed, or the stream is damaged
        return 0


def _find_fax_damage(tags: Mapping[int, Any], part: bytes, number: int) -> str:
    """Describe the damage of a fax-compressed strip or tile."""
    compression, (width, height) = tags[_COMPRESSION], _extent(tags, number)
    options = tags.get(fax.OPTIONS.get(compression, 0), 0)
    return fax.find_fax_damage(part, compression, options, tags.get(_FILL_ORDER, 1), width, height)


def _find_corrupt_jpeg(tags: Mapping[int, Any], part: bytes) -> str:
    """Return libjpeg's warning about corrupt data in a strip or tile, which may share its tables with the others."""
    tables = tags.get(_TABLES, b"")
    shared = tables[len(_START) : -len(_END)] if isinstance(tables, bytes) else b""
    channels = 1 if tags.get(_PLANES) == _SEPARATE else tags.get(_CHANNELS, 1)
    # Some programs omit the end, and libtiff ignores that.
    data = _START + shared + part[len(_START) :] + _END
    width, height = (min(tags.get(tag, _ABSENT) for tag in extent) for extent in (_WIDTHS, _HEIGHTS))
    return find_corruption(data, channels, width, height)


def stored_colours(pixels: Image.Image, file: Any, tiles: Sequence[Any]) -> Image.Image:
    """Return the stored colours of an image that is transparent everywhere.

    Args:
        pixels: Colours as loaded by Pillow, which sets them to 0 in a TIFF with premultiplied alpha.
        file: Path or stream of the file; None if there is none.
        tiles: Attribute `tile` of the image before it was loaded.
    """
    if file is None or not any(isinstance(tile[3], tuple) and tile[3][0] == "RGBa" for tile in tiles):
        return pixels
    with Image.open(file) as again:
        again.tile = [tile._replace(args=("RGBA", *tile[3][1:])) for tile in tiles]
        return again.convert("RGB")
