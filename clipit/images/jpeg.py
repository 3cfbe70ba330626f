"""Decode plain JPEG files with simplejpeg, which is faster than Pillow, if it gives the same pixels.

The package is optional (`pip install simplejpeg`) and changes no pixel. Before its first use in a process, a few
images are decoded with simplejpeg and with Pillow; simplejpeg is used only if all pixel values agree. Both usually
contain libjpeg-turbo, but a Pillow built with another JPEG library rounds differently.

If simplejpeg raises an error or a warning, Pillow decodes the file, so a file that Pillow rejects causes the same error
either way. Pillow drops libjpeg's warnings and returns grey or shifted blocks where data are corrupt, so such
damage is detected only if simplejpeg is installed. JPEG files that Pillow decodes, such as grey images, and the JPEG
strips and tiles of TIFF files are decoded a second time with simplejpeg to obtain the warnings.
"""

import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

logger = logging.getLogger(__name__)

_MAX_PIXELS = 4096 * 4096  # pixels; larger images gain little and take twice their memory
_SAMPLINGS = frozenset({(1, 1), (2, 1), (2, 2)})
"""Luma sampling factors of images whose decoding is compared with Pillow's; those of chroma are (1, 1)."""
_SUBSAMPLED = ("4:4:4", "4:2:2", "4:2:0")

_CORRUPT = re.compile(
    r"premature end|bad Huffman code|found marker .* instead of|inconsistent progression sequence", re.IGNORECASE
)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
"""Warning about data after the last pixel of a scan or restart interval: padding, or left over from misread pixels."""
_END, _SCAN = b"\xff\xd9", 0xDA
_DECODING = frozenset({0xDB, 0xDD, *range(0xC0, 0xD0)} - {0xC8})
"""Markers of segments that determine how pixels are decoded: tables, restart interval and frame headers."""
_FILLING = b"\0\xff"
_COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}
"""simplejpeg's name for the colour space of an image, by its number of channels."""

Decoder = Callable[[bytes], UInt8[np.ndarray, "h w 3"]]


def decode_plain(image: Image.Image) -> Image.Image | str:
    """Decode an opened JPEG file with three 8-bit channels, without applying its EXIF orientation.

    Args:
        image: Image that Pillow has opened, but not loaded; it can still be loaded afterwards.

    Returns:
        The decoded image. For a file that Pillow must decode, libjpeg's warning about corrupt data, or "".
    """
    if type(image) is not JpegImageFile or image.fp is None or not image.tile or find_decoder() is None:
        return ""
    data = _read_all(image)
    samplings = [(component[1], component[2]) for component in image.layer]
    if image.mode == "RGB" and is_compared(image.width, image.height, samplings):
        return decode_bytes(data, image.width, image.height)
    return find_corruption(data, len(samplings), image.width, image.height)


def count_pictures(image: Image.Image) -> int:
    """Count the pictures of an opened multi-picture JPEG (MPO) that have the size and mode of the first.

    The others are previews, depth maps and gain maps.
    """
    data = _read_all(image)
    count = 1
    with Image.open(io.BytesIO(data)) as copy:
        for number in range(1, int(getattr(copy, "n_frames", 1))):
            with suppress(SyntaxError, ValueError):  # a picture that is missing or damaged
                copy.seek(number)
                count += (copy.size, copy.mode) == (image.size, image.mode)
    return count


def _read_all(image: Any) -> bytes:
    """Read the bytes of an image that Pillow has opened, but not loaded; it can still be loaded afterwards."""
    position = image.fp.tell()
    image.fp.seek(0)
    data: bytes = image.fp.read()
    image.fp.seek(position)
    return data


def is_compared(width: int, height: int, samplings: Sequence[tuple[int, int]]) -> bool:
    """Return whether an image is of a kind whose decoding is compared with Pillow's.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        samplings: Horizontal and vertical sampling factor of each channel.
    """
    luma, *chroma = samplings
    return luma in _SAMPLINGS and chroma == [(1, 1)] * 2 and width * height <= _MAX_PIXELS


def decode_bytes(data: bytes, width: int, height: int) -> Image.Image | str:
    """Decode a JPEG for which `is_compared` is true, as `decode_plain` does.

    Args:
        width: Width in pixels according to its header.
        height: Height in pixels.
    """
    decoder = find_decoder()
    if decoder is None:
        return ""
    try:
        pixels = decoder(data)
    except ValueError as error:  # an error or a warning from libjpeg
        return _corruption(str(error), data)
    return Image.fromarray(pixels) if pixels.shape == (height, width, 3) else ""


def find_corruption(data: bytes, channels: int, width: int, height: int) -> str:
    """Return libjpeg's warning about corrupt data in a JPEG that another library decodes.

    Args:
        data: JPEG file, or a strip or tile of a TIFF file with its tables.
        channels: Number of channels; only 1, 3 and 4 are supported.
        width: Width in pixels.
        height: Height in pixels.

    Returns:
        The warning; "" if there is none, without simplejpeg, and for images of more than 16.8 million pixels.
    """
    if find_decoder() is None or channels not in _COLOURS or width * height > _MAX_PIXELS:
        return ""
    from simplejpeg import decode_jpeg

    try:
        decode_jpeg(data, _COLOURS[channels], strict=True)
    except ValueError as error:
        return _corruption(str(error), data)
    return ""


def _corruption(warning: str, data: bytes) -> str:
    """Return libjpeg's warning if it means that pixels are wrong; "" for other warnings."""
    if _CORRUPT.search(warning):
        return warning
    extraneous = _EXTRANEOUS.search(warning)
    if extraneous is None:
        return ""
    count, marker = int(extraneous[1]), bytes([0xFF, int(extraneous[2], 16)])
    segments = list(_header_segments(data))
    if any(
        kind in _DECODING and data[end:start].strip(_FILLING) for (kind, _, end), (_, start, _) in pairwise(segments)
    ):
        return warning  # bytes after a table or frame header, which is therefore wrong
    if marker == _END:
        ends = [data.rfind(marker)]
    else:  # several scans or restart intervals; other data before the first scan contain no pixels
        first = _first_scan(data)
        ends = [match.start() for match in re.finditer(re.escape(marker), data) if match.start() > first]
    rests = [data[max(0, end - count) : end] for end in ends]
    padding = any(rest.count(0) == len(rest) or rest.count(0xFF) == len(rest) for rest in rests)
    return "" if padding or not rests else warning


def _first_scan(data: bytes) -> int:
    """Return the offset of the first start-of-scan marker."""
    return next((start for kind, start, _ in _header_segments(data) if kind == _SCAN), len(data))


def _header_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the first scan; thumbnails within segments are skipped."""
    offset = 2
    while (offset := data.find(b"\xff", offset)) >= 0 and offset + 4 <= len(data):
        marker = data[offset + 1]
        if marker in (0x00, 0xFF):  # a marker may be preceded by any number of fill bytes
            offset += 1
            continue
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4])
        yield marker, offset, end
        if marker == _SCAN:
            return
        offset = end


@cache
def find_decoder() -> Decoder | None:
    """Return the fast decoder; None if its package is not installed or decodes differently from Pillow."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None

    def decode(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
        pixels: UInt8[np.ndarray, "h w 3"] = decode_jpeg(data, "RGB", strict=True)
        return pixels

    if not equals_pillow(decode):
        logger.info("note: simplejpeg decodes JPEG files differently from this build of Pillow, so Pillow is used")
        return None
    return decode


def equals_pillow(decode: Decoder) -> bool:
    """Compare a decoder with Pillow on images of every supported kind: subsampling, quality, progressive, RGB."""
    rng = np.random.default_rng(0)
    for width, height in ((40, 56), (33, 19)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(coarse, dtype=np.float32) + rng.normal(0, 12, (height, width, 3))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        options: list[dict[str, Any]] = [
            {"quality": quality, "subsampling": sampling, "progressive": progressive}
            for quality in (60, 92)
            for sampling in _SUBSAMPLED
            for progressive in (False, True)
        ]
        for chosen in (*options, {"quality": 80, "keep_rgb": True}):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", **chosen)
            with Image.open(buffer) as image:
                expected = np.asarray(image)
            if not np.array_equal(decode(buffer.getvalue()), expected):
                return False
    return True
