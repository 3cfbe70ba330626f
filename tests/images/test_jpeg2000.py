import io
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from clipit.images.decode import ImageError, decode

NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
INDICES = np.arange(256, dtype=np.uint8).reshape(16, 16) % 4
RED_GREEN_BLUE = [(0, 0, 1), (1, 0, 2), (2, 0, 3)]
SRGB, CIELAB = b"\1\0\0" + struct.pack(">I", 16), b"\1\0\0" + struct.pack(">I", 14)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def encoded(pixels: np.ndarray, *boxes: bytes, colour: Sequence[bytes] = (SRGB,)) -> io.BytesIO:
    """Encode pixels losslessly, and replace all header boxes but the image size."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", irreversible=False, mct=0)
    data = stream.getvalue()
    start = data.index(b"jp2h") - 4
    stop = start + int.from_bytes(data[start : start + 4])
    size = data[start + 8 : start + 8 + 22]
    header = size + b"".join([*(box(b"colr", box_content) for box_content in colour), *boxes])
    return io.BytesIO(data[:start] + box(b"jp2h", header) + data[stop:])


def channels(entries: Sequence[tuple[int, int, int]]) -> bytes:
    return box(b"cdef", struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHH", *entry) for entry in entries))


def profile(space: bytes, method: int = 2, size: int = 200) -> bytes:
    return bytes([method, 0, 0]) + bytes(16) + space + bytes(size)


def palette(colours: Sequence[Sequence[int]], order: Sequence[int] = (0, 1, 2), bits: int = 8) -> bytes:
    values = b"".join(value.to_bytes(bits // 8) for colour in colours for value in colour)
    header = struct.pack(">HB", len(colours), len(order)) + bytes([bits - 1] * len(order))
    return box(b"pclr", header + values) + box(
        b"cmap", b"".join(struct.pack(">HBB", 0, 1, channel) for channel in order)
    )


COLOURS = [(200, 10, 20), (30, 210, 40), (50, 60, 220), (7, 8, 9)]


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        (encoded(NOISE[..., :3], channels([(0, 0, 3), (1, 0, 2), (2, 0, 1)])), "not in the order red, green, blue"),
        (encoded(NOISE, channels([(0, 1, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3)])), "transparency is not the last"),
        (encoded(NOISE, channels([*RED_GREEN_BLUE, (3, 2, 0)])), "premultiplied"),
        (encoded(NOISE, channels([*RED_GREEN_BLUE, (3, 0xFFFF, 0xFFFF)])), "neither a colour nor transparency"),
        (encoded(NOISE[..., :3], colour=[CIELAB]), "in the colour space CIELab"),
        (encoded(NOISE[..., :3], colour=[profile(b"Lab ")]), "in the colour space Lab"),
        (encoded(NOISE, colour=[profile(b"CMYK", 3)]), "in the colour space CMYK"),
        (encoded(INDICES, palette(COLOURS, (2, 1, 0))), "palette is not in the order red, green, blue"),
        (encoded(INDICES, palette([COLOURS[0], *COLOURS[:3]])), "palette contains a colour twice"),
        (encoded(INDICES, palette(COLOURS, bits=16)), "more than 8 bits"),
        (encoded(INDICES, palette([(9,), (80,), (70,)], (0,)), colour=[SRGB[:-1] + b"\x11"]), "palette of grey values"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_channels_that_pillow_would_misread_are_errors(stream: io.BytesIO, problem: str) -> None:
    with pytest.raises(ImageError, match=f"a JPEG 2000 file .*{problem}.*: convert the image to RGB"):
        decode(stream)


@pytest.mark.parametrize(
    "stream",
    [
        encoded(NOISE[..., :3]),
        encoded(NOISE[..., :3], channels(RED_GREEN_BLUE)),
        encoded(NOISE[..., :3], colour=[profile(b"RGB ", size=100_000)]),
        encoded(NOISE[..., :3], colour=[CIELAB, SRGB]),
    ],
)
def test_common_channel_layouts_are_decoded(stream: io.BytesIO) -> None:
    assert np.array_equal(np.asarray(decode(stream)), NOISE[..., :3])


def test_palettes_and_opaque_transparency_are_decoded() -> None:
    padded = [*COLOURS, (0, 0, 0), (0, 0, 0)]
    assert np.array_equal(np.asarray(decode(encoded(INDICES, palette(padded)))), np.array(COLOURS)[INDICES])
    opaque = np.concatenate([NOISE[..., :3], np.full((16, 16, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(np.asarray(decode(encoded(opaque, channels([*RED_GREEN_BLUE, (3, 1, 0)])))), NOISE[..., :3])


def test_the_bit_depth_is_found_after_a_large_colour_profile() -> None:
    stream = encoded(NOISE[..., :3], colour=[profile(b"RGB ", size=100_000)])
    data = stream.getvalue()
    start = data.index(b"\xff\x4f\xff\x51") + 42  # depth of the first component
    assert data[start] == 7
    with pytest.raises(ImageError, match="12 bits per channel"):
        decode(io.BytesIO(data[:start] + b"\x0b" + data[start + 1 :]))
