"""Verify fax-compressed (CCITT) strips and tiles of TIFF files, because libtiff only warns about damaged rows."""

import io
import re
import struct
from typing import Any

from PIL import Image

COMPRESSIONS = {2: "tiff_ccitt", 3: "group3", 4: "group4"}
"""Pillow's names for values of the TIFF tag Compression."""
OPTIONS = {3: 292, 4: 293}
"""TIFF tags with the options of a compression."""
_ROWS, _OFFSETS, _COUNTS = 278, 273, 279  # TIFF tags: rows per strip, offsets and byte counts of strips
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in reverse order (TIFF tag FillOrder 2)."""
_BLOCK_END = "000000000001" * 2
_REST = re.compile(r"0*(?:0{11}1[01]?)*0*")
"""Bits after the last row: padding and end-of-line codes."""
_DIFFERENT = "encoding them again gives different bytes; if the image is intact, save it as PNG or with LZW compression"


def find_fax_damage(data: bytes, compression: int, options: int, fill_order: int, width: int, height: int) -> str:
    """Decode a strip or tile, encode it again, and describe its damage; "" if the bytes are the same.

    Args:
        data: Compressed bytes.
        compression: Key of `COMPRESSIONS`.
        options: Value of the TIFF tag in `OPTIONS`.
        fill_order: Value of the TIFF tag FillOrder; 2 if the bits of each byte are reversed.
    """
    data = data.translate(REVERSED) if fill_order == 2 else data
    written, tags = io.BytesIO(), {_ROWS: height}
    if compression in OPTIONS:
        tags[OPTIONS[compression]] = options
    with Image.open(io.BytesIO(_tiff(data, compression, options, width, height))) as part:
        try:
            part.load()
        except OSError as error:
            return str(error)
        part.save(written, "TIFF", compression=COMPRESSIONS[compression], tiffinfo=tags)
    with Image.open(written) as again:
        stored: Any = getattr(again, "tag_v2", {})
        start, count = stored[_OFFSETS][0], stored[_COUNTS][0]
    encoded = written.getvalue()[start : start + count]
    if encoded == data:
        return ""
    expected, actual = _bits(encoded).rstrip("0").removesuffix(_BLOCK_END), _bits(data)
    same = actual.startswith(expected) and _REST.fullmatch(actual, len(expected))
    return "" if same else _DIFFERENT


def _tiff(data: bytes, compression: int, options: int, width: int, height: int) -> bytes:
    """Return a TIFF file with one strip of black-and-white pixels."""
    tags = {256: width, 257: height, 258: 1, 259: compression, 262: 1, _OFFSETS: 0, 277: 1, _ROWS: height}
    tags |= {_COUNTS: len(data)} | ({OPTIONS[compression]: options} if compression in OPTIONS else {})
    tags[_OFFSETS] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def _bits(data: bytes) -> str:
    return f"{int.from_bytes(data):0{8 * len(data)}b}" if data else ""
