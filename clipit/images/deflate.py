"""Verify the checksums of Deflate streams in TIFF files, because libtiff mostly ignores them."""

import zlib

COMPRESSIONS = frozenset({8, 32946})
"""Values of the TIFF tag Compression that stand for Deflate."""
_CHUNK_BYTES = 2**24  # bytes decompressed at once
_MAX_BYTES = 2**30  # limit for a decompressed strip or tile; larger than any image that clipit reads


def find_deflate_damage(data: bytes) -> str:
    """Decompress a zlib stream, and describe its damage; "" if the stream is complete and its checksum is correct."""
    stream, unpacked = zlib.decompressobj(), 0
    try:
        while data and not stream.eof:
            unpacked += len(stream.decompress(data, _CHUNK_BYTES))
            if unpacked > _MAX_BYTES:
                return f"more than {_MAX_BYTES >> 30} GiB when decompressed"
            data = stream.unconsumed_tail
    except zlib.error as error:
        return str(error)
    return "" if stream.eof else "the end is missing"
