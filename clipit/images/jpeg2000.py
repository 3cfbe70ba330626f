"""Read headers of JPEG 2000 files for what Pillow ignores: bit depths, colour spaces, and the order of channels."""

import struct
from collections.abc import Iterator
from typing import Any

_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"  # start of a file with boxes; other files begin with the codestream
_CODESTREAM = b"\xff\x4f\xff\x51"
_SIZES = 38  # bytes of the first segment before the component depths: its length, capabilities, eight sizes, a number
_MAX_BOX = 2**16  # leading bytes of a box that are read; only colour profiles are longer
_COLOUR, _ALPHA, _PREMULTIPLIED = 0, 1, 2  # types of channels
_WHOLE_IMAGE, _UNSPECIFIED = 0, 0xFFFF
_ENUMERATED, _PROFILES = 1, (2, 3)  # methods of a colour specification
_OTHER_SPACES = {1: "YCbCr", 3: "YCbCr", 4: "YCbCr", 9: "PhotoYCC", 11: "CMY", 13: "YCCK", 14: "CIELab", 19: "CIEJab"}
"""Enumerated colour spaces that Pillow does not convert to RGB."""
_READ_PROFILES = ("RGB", "GRAY")


def read_bits(image: Any) -> int:
    """Read the largest component depth of a JPEG 2000 file that Pillow has opened; 0 if it is already closed."""
    for kind, start, _ in _boxes(image.fp) if image.fp is not None else ():
        if kind == b"jp2c":
            size = _read(image.fp, start + len(_CODESTREAM), _SIZES)
            depths = _read(image.fp, start + len(_CODESTREAM) + _SIZES, 3 * int.from_bytes(size[36:38]))
            return max(((depth & 0x7F) + 1 for depth in depths[::3]), default=0)
    return 0


def find_misread_channels(image: Any) -> str:
    """Describe why Pillow would misread the channels of a JPEG 2000 file that it has opened; "" if it would not."""
    spaces: list[str] = []
    problem = ""
    for kind, start, end in _boxes(image.fp) if image.fp is not None else ():
        if kind == b"jp2c":
            break
        content = _read(image.fp, start, min(end - start, _MAX_BOX))
        if kind == b"colr":
            spaces.append(_other_space(content))
        elif kind == b"cdef":
            problem = problem or _channel_problem(content)
        elif kind == b"pclr":
            problem = problem or _palette_problem(content, image.mode)
        elif kind == b"cmap" and any(
            direct_use and column != channel
            for channel, (_, direct_use, column) in enumerate(struct.iter_unpack(">HBB", content[: len(content) & ~3]))
        ):
            problem = problem or "whose palette is not in the order red, green, blue"
    if spaces and all(spaces):  # several specifications describe the same colours
        return f"in the colour space {spaces[0]}"
    return problem


def _other_space(content: bytes) -> str:
    """Name the colour space of a colour specification; "" if Pillow reads it."""
    if content[:1] == bytes([_ENUMERATED]):
        return _OTHER_SPACES.get(int.from_bytes(content[3:7]), "")
    space = content[3:][16:20].decode("latin-1").strip()  # of the ICC profile
    return space if content[:1] and content[0] in _PROFILES and space not in _READ_PROFILES else ""


def _channel_problem(content: bytes) -> str:
    """Compare a channel definition with the order in which Pillow reads channels: colours, then transparency."""
    entries = list(struct.iter_unpack(">HHH", content[2 : 2 + (len(content) - 2) // 6 * 6]))
    for channel, kind, colour in entries:
        is_last = channel == len(entries) - 1
        if kind == _PREMULTIPLIED:
            return "whose colours are premultiplied by the transparency"
        if kind == _UNSPECIFIED and channel:
            return "with a channel that has neither a colour nor transparency"
        if kind == _COLOUR and colour not in (_WHOLE_IMAGE, _UNSPECIFIED, channel + 1):
            return "whose channels are not in the order red, green, blue"
        if kind == _ALPHA and not (is_last and colour in (_WHOLE_IMAGE, _UNSPECIFIED)):
            return "whose transparency is not the last channel, or applies to one channel"
    return ""


def _palette_problem(content: bytes, mode: str) -> str:
    """Describe why Pillow would misread a palette; it drops repeated colours, which moves the colours after them."""
    if mode not in ("P", "PA"):
        return "with a palette of grey values, or of more than 8 bits"
    channels = content[2]
    values = content[3 + channels :]
    colours = [values[first : first + channels] for first in range(0, len(values), channels)]
    distinct = list(dict.fromkeys(colours))
    return "" if colours[: len(distinct)] == distinct else "whose palette contains a colour twice"


def _boxes(stream: Any) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the boxes of a file and of its header, up to the codestream."""
    end = _size(stream)
    if _read(stream, 0, len(_SIGNATURE)) != _SIGNATURE:
        yield b"jp2c", 0, end
        return
    offset = 0
    while offset + 8 <= end:
        length, kind = struct.unpack(">I4s", _read(stream, offset, 8))
        start = offset + 8
        if length == 1:
            start, length = start + 8, int.from_bytes(_read(stream, start, 8))
        stop = offset + length if length else end
        if kind == b"jp2h":
            offset = start  # its boxes follow, without a gap
            continue
        if stop < start:
            return  # damaged
        yield kind, start, stop
        if kind == b"jp2c":
            return
        offset = stop


def _size(stream: Any) -> int:
    position = stream.tell()
    size: int = stream.seek(0, 2)
    stream.seek(position)
    return size


def _read(stream: Any, start: int, count: int) -> bytes:
    """Read bytes, and return to the position before."""
    position = stream.tell()
    stream.seek(start)
    content: bytes = stream.read(count)
    stream.seek(position)
    return content
