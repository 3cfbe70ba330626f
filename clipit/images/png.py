"""Find damage in PNG files that Pillow does not report: wrong checksums, and missing rows."""

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = 8  # bytes before the first chunk
_HEADER = struct.Struct(">IIBB2xB")  # width, height, bits per channel, colour type, interlacing
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_WHOLE = ((0, 0, 1, 1),)  # first column and row of each pass, and their steps
_INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_UNPACKED_BYTES = 2**24  # bytes decompressed at once


def find_wrong_checksum(data: bytes) -> str:
    """Return the type of the first chunk with a wrong checksum; "" if there is none.

    Pillow does not verify the checksums of pixel data.
    """
    for chunk_type, start, stop in _chunks(data):
        if zlib.crc32(data[start - 4 : stop]) != int.from_bytes(data[stop : stop + 4], "big"):
            return chunk_type.decode("latin-1")
    return ""


def count_missing_bytes(data: bytes) -> int:
    """Count the bytes missing from pixel data whose stream ends normally; Pillow fills missing rows with zeros.

    Returns:
        Number of bytes; 0 for a stream that is cut off or damaged, which Pillow reports.
    """
    chunks = list(_chunks(data))
    width, height, bits, colour, interlacing = _HEADER.unpack_from(data, chunks[0][1])
    missing = 0
    for left, top, right, down in _INTERLACED if interlacing else _WHOLE:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            missing += rows * (1 + (columns * bits * _CHANNELS[colour] + 7) // 8)
    stream, packed = zlib.decompressobj(), b"".join(data[start:stop] for kind, start, stop in chunks if kind == b"IDAT")
    try:
        while packed and missing > 0 and not stream.eof:
            missing -= len(stream.decompress(packed, _UNPACKED_BYTES))
            packed = stream.unconsumed_tail
    except zlib.error:
        return 0
    return max(missing, 0) if stream.eof else 0


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each complete chunk before the end, and where its content starts and stops."""
    start = _SIGNATURE
    while start + 12 <= len(data):
        length, chunk_type = struct.unpack_from(">I4s", data, start)
        stop = start + 8 + length
        if chunk_type == b"IEND" or stop + 4 > len(data):
            return
        yield chunk_type, start + 8, stop
        start = stop + 4
