"""Verify the checksums of Deflate streams in TIFF files, because libtiff mostly ignores them."""

import zlib
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

COMPRESSIONS = frozenset({8, 32946})
"""Values of the TIFF tag Compression for Deflate."""
_COMPRESSION, _FILL_ORDER = 259, 266  # TIFF tags
_PARTS = ((273, 279), (324, 325))  # TIFF tags: offsets and byte counts of strips, and of tiles
_CHUNK_BYTES = 2**24  # bytes unpacked at once
_MAX_BYTES = 2**30  # limit for an unpacked strip or tile; larger than any image that clipit reads


def find_damage(data: bytes) -> str:
    """Unpack a zlib stream, and describe its damage; "" if the stream is complete and its checksum is right."""
    stream, unpacked = zlib.decompressobj(), 0
    try:
        while data and not stream.eof:
            unpacked += len(stream.decompress(data, _CHUNK_BYTES))
            if unpacked > _MAX_BYTES:
                return f"more than {_MAX_BYTES >> 30} GiB when unpacked"
            data = stream.unconsumed_tail
    except zlib.error as error:
        return str(error)
    return "" if stream.eof else "the end is missing"


def find_damaged_part(tags: Mapping[int, Any], read: Callable[[int, int], bytes]) -> str:
    """Describe the first damaged strip or tile of a TIFF page; "" for undamaged pages and those without Deflate.

    Args:
        tags: Values of the page's TIFF tags, as Pillow returns them.
        read: Function that reads a number of bytes at an offset of the file.
    """
    if tags.get(_COMPRESSION) not in COMPRESSIONS or tags.get(_FILL_ORDER, 1) != 1:
        return ""
    parts = (zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False) for offsets, counts in _PARTS)
    for number, (offset, count) in enumerate(chain.from_iterable(parts)):
        data = read(offset, count) if count else b""  # a part without data is empty
        damage = find_damage(data) if len(data) == count else ""  # missing bytes are reported when it is decoded
        if count and damage:
            return f"the compressed pixels of strip or tile {number} of the TIFF are damaged: {damage}"
    return ""
