"""Thumbnails of tiles as JPEG."""

import base64
import io

from PIL import Image

from clipit.image_set import ImageSet
from clipit.images import Unreadable
from clipit.tiles.tileset import TileSet


def jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """Encode an image as JPEG, shrunk to fit a square of `side` pixels (never enlarged)."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def thumbnail(tiles: TileSet | ImageSet, row: int, *, side: int = 64, quality: int = 70) -> str | None:
    """Return a tile's thumbnail as the base64 text of a JPEG; None if the image cannot be decoded.

    Raises:
        DataError: The file cannot be opened.
    """
    image = tiles.try_read(row)
    return None if isinstance(image, Unreadable) else base64.b64encode(jpeg(image, side, quality)).decode()


def jpeg_uri(encoded: str) -> str:
    """Return the data URI of a base64-encoded JPEG."""
    return f"data:image/jpeg;base64,{encoded}"
