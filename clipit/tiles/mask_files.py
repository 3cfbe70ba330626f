"""Decode masks, from images with one value per pixel or from GeoJSON, to one class per pixel."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16, Integer
from PIL import Image, ImageFile

from clipit.errors import ClipitError, is_out_of_memory, shortlist
from clipit.images.decode import ImageError, check_bytes, noted_file, open_header, turn_upright
from clipit.slides.geojson import is_ignored, read_polygons
from clipit.slides.polygons import rasterise

IGNORED = -1
"""Class of pixels that are used neither for training nor for scores."""
_GEOJSON = (".geojson", ".json")
_IGNORE_NAME = "ignore"
_TOLERANCE = 0.01  # fraction of a tile's edge by which a polygon may extend beyond it
_LISTED = 5  # values or classes listed in an error
_FORMATS = frozenset({"PNG", "TIFF", "BMP", "DIB", "PPM", "WEBP"})
"""Pillow's names for the formats that preserve mask values; PPM includes PGM."""
_LOSSY = frozenset({"AVIF", "JPEG", "JPEG2000", "MPO"})
_LOSSY_TIFF = frozenset({"jpeg", "tiff_jpeg", "webp"})
_WEBP_HEADER = 64  # bytes to read; they include the chunk type of the first image


@dataclass(frozen=True)
class MaskClasses:
    """Classes of masks, and the values that encode them.

    Attributes:
        class_of: Index of the class by value.
        ignore: Values of ignored pixels.
    """

    names: tuple[str, ...]
    class_of: Mapping[int, int]
    ignore: tuple[int, ...] = (255,)

    def codes(self, values: Integer[np.ndarray, "h w"]) -> Int16[np.ndarray, "h w"]:
        """Map the values of a mask to classes; -1 for ignored pixels.

        Raises:
            ImageError: A value is neither a class nor ignored.
        """
        present = np.unique(values)
        unknown = [int(value) for value in present if value not in self.class_of and value not in self.ignore]
        if unknown:
            shown = [f"{value} ({np.mean(values == value):.1%} of the pixels)" for value in unknown]
            class_values = ", ".join(f"{self.names[code]}: {value}" for value, code in sorted(self.class_of.items()))
            raise ImageError(
                f"values that are not classes: {shortlist(shown, _LISTED)}; the classes are {class_values}"
            )
        table = np.full(int(present.max()) + 1 if present.size else 1, IGNORED, dtype=np.int16)
        for value, code in self.class_of.items():
            if value < len(table):
                table[value] = code
        return np.asarray(table[values])


def decode_mask(
    content: Path | io.BytesIO, name: str, size: tuple[int, int], classes: MaskClasses
) -> Int16[np.ndarray, "h w"]:
    """Decode a mask: an image with 1, 8 or 16 bits or a palette (see `decode_values`), or GeoJSON.

    The values of a palette image are its palette indices. Images and masks are rotated according to their EXIF
    orientation. In GeoJSON, coordinates are pixels of the tile, and names are classes or `ignore` (QuPath's `Ignore*`).
    Later polygons cover earlier ones. The remaining pixels have the class with value 0, or are ignored if there is no
    such class.

    Args:
        content: File, or the bytes of a zip member.
        name: Name of the file, whose suffix distinguishes GeoJSON from images.
        size: Width and height of the tile in pixels.

    Returns:
        Class of each pixel; -1 for ignored pixels.

    Raises:
        ImageError: The mask has a different size, cannot be decoded, or contains a value or name that is not a class.
        DataError: The GeoJSON cannot be read.
        OSError: The file cannot be opened.
    """
    if Path(name).suffix.lower() in _GEOJSON:
        return _draw(content, name, size, classes)

    def check_size(width: int, height: int) -> None:
        if {width, height} != {*size}:  # the orientation may swap them
            raise ImageError(f"the mask has {width} x {height} pixels, its image {size[0]} x {size[1]}")

    values = decode_values(content, check_size)
    if values.shape != (size[1], size[0]):
        raise ImageError(
            f"the mask has {values.shape[1]} x {values.shape[0]} pixels, its image {size[0]} x {size[1]}; images are "
            "rotated according to their EXIF orientation, so draw masks on the rotated image"
        )
    return classes.codes(values)


def decode_values(
    content: Path | io.BytesIO, check_size: Callable[[int, int], None] = lambda width, height: None
) -> Integer[np.ndarray, "h w"]:
    """Decode the values of a mask image: PNG, TIFF, BMP, PGM or lossless WebP with 1, 8 or 16 bits or a palette.

    Other formats are rejected, including GIF, because programs renumber the values of a GIF when they save it.

    Args:
        content: File, or the bytes of a zip member.
        check_size: Function called with the declared width and height, before any pixel is decoded and before the
            EXIF orientation is applied; raises an error if they are wrong.

    Raises:
        ImageError: The image cannot be decoded, or its pixels do not encode classes.
        OSError: The file cannot be opened.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other packages enable it, and a truncated mask would end in zeros
    try:
        with noted_file(content), open_header(content) as image:
            _check_format(image)
            check_size(*image.size)
            if getattr(image, "n_frames", 1) > 1:
                raise ImageError(f"{getattr(image, 'n_frames', 1)} frames or pages: save a mask as one image")
            packed, maximum = _packed_mode(image), _declared_maximum(image)
            check_bytes(image)
            image.load()
            values = np.asarray(turn_upright(image, image))
            mode = image.mode
    except (ImageError, ClipitError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions for corrupt data
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise ImageError(f"{type(error).__name__}: {error}") from error
    if mode in ("LA", "RGB", "RGBA"):
        if ";16" in packed or (maximum is not None and maximum > 255):  # Pillow reads only the higher 8 bits
            raise ImageError("several channels of 16 bits: save the mask as greyscale with 8 or 16 bits")
        colours = values[..., : 1 if mode == "LA" else 3]
        if (colours != colours[..., :1]).any():
            raise ImageError("a colour image; pixels must encode classes: save it as greyscale or with a palette")
        values = values[..., 0]
    elif mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise ImageError(f"pixel mode {mode}: save the mask as PNG with 8 or 16 bits")
    unscaled = _unscaled(values.astype(np.uint8) if values.dtype == np.bool_ else values, packed)
    if maximum is not None:
        unscaled = np.rint(unscaled * (maximum / (65535 if mode == "I" else 255))).astype(np.int64)
    if unscaled.size and (unscaled.min() < 0 or unscaled.max() > 65535):
        raise ImageError(f"values from {unscaled.min()} to {unscaled.max()}: a mask has values from 0 to 65535")
    return unscaled


def _check_format(image: Image.Image) -> None:
    """Reject formats that do not preserve the values of a mask."""
    if _is_lossy(image):
        raise ImageError(f"{image.format} compression changes the values of a mask: save masks as PNG")
    if image.format not in _FORMATS:
        why = ", in which programs renumber the values of a mask" if image.format == "GIF" else ""
        raise ImageError(f"a {image.format} image{why}: save masks as PNG, TIFF, BMP, PGM or lossless WebP")


def _is_lossy(image: Image.Image) -> bool:
    """Return whether the compression of an opened image may change its values."""
    stream = getattr(image, "fp", None)
    if image.format == "WEBP" and stream is not None:
        position = stream.tell()
        stream.seek(0)
        lossless = b"VP8L" in stream.read(_WEBP_HEADER)
        stream.seek(position)
        return not lossless
    return image.format in _LOSSY or image.info.get("compression") in _LOSSY_TIFF


def _packed_mode(image: Image.Image) -> str:
    """Return the storage mode of an opened image's pixels, such as L;4 for 4-bit grey; "" if unknown."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _declared_maximum(image: Image.Image) -> int | None:
    """Return the maximum that a PGM declares, if Pillow scales its values because of it; otherwise None."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles and image.format == "PPM" else ()
    return int(arguments[1]) if isinstance(arguments, tuple) and len(arguments) == 2 and arguments[1] else None


def _unscaled(values: Integer[np.ndarray, "h w"], packed: str) -> Integer[np.ndarray, "h w"]:
    """Undo Pillow's changes to grey values: it scales 2 and 4 bits to 8, and inverts TIFFs in which 0 is white."""
    grey = re.fullmatch(r"(?:L|(1))(?:;([24])?(I?)R?)?", packed)
    if grey is None:
        return values
    binary, bits, inverted = grey.groups()
    maximum = 1 if binary else 255
    values = maximum - values if inverted else values
    return values // (maximum // (2 ** int(bits) - 1)) if bits else values


def _draw(
    content: Path | io.BytesIO, name: str, size: tuple[int, int], classes: MaskClasses
) -> Int16[np.ndarray, "h w"]:
    """Rasterise the polygons of a GeoJSON file."""
    width, height = size
    path = content if isinstance(content, Path) else Path(name)
    polygons, _ = read_polygons(path, None if isinstance(content, Path) else content.read(), may_be_empty=True)
    code_of = {polygon.name: IGNORED for polygon in polygons if is_ignored(polygon)}
    code_of |= {known: code for code, known in enumerate(classes.names)} | {_IGNORE_NAME: IGNORED}
    unknown = sorted({polygon.name or "(no name)" for polygon in polygons if polygon.name not in code_of})
    if unknown:
        raise ImageError(
            f"polygons with unknown classes: {shortlist(unknown, _LISTED)}; use {', '.join(classes.names)} or "
            f"{_IGNORE_NAME}"
        )
    mask = np.full((height, width), classes.class_of.get(0, IGNORED), dtype=np.int16)
    for polygon in polygons:
        low, high = polygon.extent
        edges = np.array([width, height])
        if (low < -_TOLERANCE * edges).any() or (high > (1 + _TOLERANCE) * edges).any():
            raise ImageError(
                f"a polygon from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}) lies outside the image of "
                f"{width} x {height} pixels"
            )
        mask[rasterise([polygon], (height, width), 1.0)] = code_of[polygon.name]
    return mask
