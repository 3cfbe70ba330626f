"""JPEG thumbnails of tiles."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from clipit.images.decode import Unreadable
from clipit.images.image_set import ImageSet
from clipit.tiles.tileset import TileSet


def encode_jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """Encode an image as JPEG, shrunk to fit a square of `side` pixels (never enlarged)."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def thumbnail(tiles: TileSet | ImageSet, row: int, *, side: int = 64, quality: int = 70) -> str | None:
    """Return a tile's thumbnail as a base64-encoded JPEG; None if the image cannot be decoded.

    Raises:
        DataError: The file cannot be opened.
    """
    image = tiles.try_read(row)
    return None if isinstance(image, Unreadable) else base64.b64encode(encode_jpeg(image, side, quality)).decode()


LARGE, SMALL = 224, 64
"""Maximum sides in pixels of large and small pictures on a page that enlarges tiles."""
LARGE_BYTES = 12_000_000
"""Maximum total size of the large pictures on a page, base64-encoded."""


def page_pictures(
    tiles: TileSet, rows: Sequence[int], *, advance: Callable[[], object] = lambda: None
) -> Iterator[str | None]:
    """Yield the picture of each tile of a page: up to 224 pixels per side where `LARGE_BYTES` allows, otherwise 64.

    Large pictures are spread evenly over the rows. Pictures are base64-encoded JPEGs; None if an image cannot be
    decoded.

    Args:
        advance: Function called after each tile, for a progress bar.

    Raises:
        DataError: A file cannot be opened.
    """
    used = 0
    for i, row in enumerate(rows, start=1):
        image = tiles.try_read(row)
        if isinstance(image, Unreadable):
            yield None
        else:
            picture = base64.b64encode(encode_jpeg(image, LARGE, 75)).decode()
            if used + len(picture) <= LARGE_BYTES * i // len(rows):
                used += len(picture)
                yield picture
            else:
                yield base64.b64encode(encode_jpeg(image, SMALL, 70)).decode()
        advance()


def jpeg_uri(encoded: str) -> str:
    """Return the data URI of a base64-encoded JPEG."""
    return f"data:image/jpeg;base64,{encoded}"


def picture_uri(tiles: TileSet | ImageSet, row: int, *, side: int = 64, quality: int = 70) -> str | None:
    """Return the data URI of a tile's thumbnail; arguments and errors are those of `thumbnail`."""
    encoded = thumbnail(tiles, row, side=side, quality=quality)
    return None if encoded is None else jpeg_uri(encoded)
