"""Decode images completely as 8-bit RGB, or fail; truncated images are never returned."""

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile

from clipit.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
_EIGHT_BIT = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
# Exceptions that Pillow and zipfile raise for corrupt bytes (found by damaging files at random). TypeError and
# LookupError are deliberately excluded: they would be bugs in this package, not broken images.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Unreadable:
    """An image that exists but cannot be decoded."""

    reason: str


def is_image(path: str | Path) -> bool:
    """Check whether a file name has an image suffix and is not hidden."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def decode(source: Path | io.BytesIO) -> Image.Image:
    """Decode an image completely and convert it to RGB.

    Raises:
        OSError, ValueError, ...: The image is truncated, of an unknown format, or has more than 8 bits per channel.
    """
    # Other packages set this flag globally; truncated images would then be returned half grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with Image.open(source) as image:
        image.load()
        if image.mode not in _EIGHT_BIT:
            raise ValueError(f"pixel mode {image.mode}: 8 bits per channel are needed")
        return image if image.mode == "RGB" else image.convert("RGB")


def attempt(read: Callable[[], Image.Image], *, tile_id: str, where: str) -> Image.Image | Unreadable:
    """Read one image; return an `Unreadable` if its bytes cannot be decoded.

    Raises:
        DataError: The file cannot be opened (missing, no permission, too many open files), regardless of its content.
    """
    try:
        return read()
    except _DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"cannot open the image of tile {tile_id}: {error.strerror or error}",
                where=where,
                fix="put the file back or correct its permissions",
            ) from error
        return Unreadable(f"{type(error).__name__}: {error}")
