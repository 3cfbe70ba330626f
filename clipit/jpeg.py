"""Decode plain JPEG files with simplejpeg, which is faster than Pillow, where it gives the same pixels.

The package is optional (`pip install simplejpeg`) and changes no result: before its first use in a process, a few
images are decoded with it and with Pillow, and it is used only if all pixel values agree. Both usually contain
libjpeg-turbo, but a Pillow built with another JPEG library rounds differently.

Files for which simplejpeg raises an error or a warning are left to Pillow, so that damaged files cause the same errors
with and without it.
"""

import io
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

logger = logging.getLogger(__name__)

_LARGEST = 4096 * 4096  # pixels; larger images gain little and take twice their memory
_SAMPLINGS = frozenset({(1, 1), (2, 1), (2, 2)})
"""Sampling factors of luma whose decoding is compared with Pillow's; those of chroma are (1, 1)."""
_SUBSAMPLED = ("4:4:4", "4:2:2", "4:2:0")

Decoder = Callable[[bytes], UInt8[np.ndarray, "h w 3"]]


def decode_plain(image: Image.Image) -> Image.Image | None:
    """Decode an opened JPEG file of three 8-bit channels; return None for files that Pillow must decode.

    Args:
        image: Image that Pillow has opened, but not loaded; it can still be loaded afterwards.
    """
    if type(image) is not JpegImageFile or image.mode != "RGB" or image.fp is None or not image.tile:
        return None
    luma, *chroma = ((component[1], component[2]) for component in image.layer)
    if luma not in _SAMPLINGS or chroma != [(1, 1)] * 2 or image.width * image.height > _LARGEST:
        return None
    decoder = find_decoder()
    if decoder is None:
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    try:
        pixels = decoder(image.fp.read())
    except ValueError:  # an error or a warning of libjpeg
        return None
    finally:
        image.fp.seek(position)
    return Image.fromarray(pixels) if pixels.shape == (image.height, image.width, 3) else None


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
        logger.info("note: simplejpeg decodes JPEG files differently from this Pillow, so Pillow is used")
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
