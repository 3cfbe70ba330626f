"""Find damage in BMP files that Pillow does not report: sizes in the header that contradict the file."""

import struct

_HEADER = 14  # bytes before the second header, which begins with its size
_FIELDS = struct.Struct("<IiiHHII")  # its size, width, height, planes, bits per pixel, compression, bytes of pixels
_WINDOWS = 40  # size of the second header without colour masks and profiles, which may follow the pixels
_PLAIN = (0, 3)  # values of the compression: none, none with colour masks


def find_bmp_damage(data: bytes) -> str:
    """Describe a contradiction between the header and the size of a BMP file; "" if there is none."""
    stated, start = int.from_bytes(data[2:6], "little"), int.from_bytes(data[10:14], "little")
    if stated not in (len(data), len(data) - start, start, 0):  # some programs write a different size, or none
        return f"the BMP file is {len(data):,} bytes long, not {stated:,} as its header says: it is damaged"
    if 0 < start < _HEADER + int.from_bytes(data[_HEADER : _HEADER + 4], "little"):
        return f"the pixels of the BMP file start within its header, at byte {start}: it is damaged"
    if len(data) < _HEADER + _FIELDS.size:
        return ""
    size, width, height, _, bits, compression, pixel_bytes = _FIELDS.unpack_from(data, _HEADER)
    if size < _WINDOWS or compression not in _PLAIN:
        return ""
    row = (width * bits + 31) // 32 * 4
    available = pixel_bytes or (len(data) - start if size == _WINDOWS else 0)
    if available >= row * (abs(height) + 1) > 0:  # some programs add a few bytes
        return f"the BMP file has {available:,} bytes of pixels, too many for {width} x {abs(height)}: it is damaged"
    return ""
