"""Decode images completely to upright 8-bit RGB, or raise an error; used by training, prediction, stores and pages."""

import io
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from clipit.crash_watch import noted
from clipit.errors import DataError, counted, is_out_of_memory
from clipit.images.bmp import find_bmp_damage
from clipit.images.jpeg import count_pictures, decode_plain
from clipit.images.jpeg2000 import find_misread_channels, read_bits
from clipit.images.png import count_missing_bytes, find_wrong_checksum
from clipit.images.tiff_copies import differs, is_auxiliary, is_reduced
from clipit.images.tiff_parts import find_damaged_part, stored_colours
from clipit.input_files.git_lfs import PULL, find_pointer, is_pointer

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
_EIGHT_BIT = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_BITS_PER_SAMPLE, _SUBFILE_TYPE, _SAMPLE_FORMAT, _DESCRIPTION, _COLOURS = 258, 254, 339, 270, 320  # TIFF tags
_NAME_LENGTH = 100  # leading characters of a description that may name the image
_PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES = 262, 277, 338  # TIFF tags
_COMPRESSION, _PREDICTOR, _PACKBITS = 259, 317, 32773  # TIFF tags, and a compression
_COLOUR_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # by photometric interpretation
_REDUCED_OR_MASK = 0b101  # bits of the subfile type: a smaller copy of another page, a transparency mask
_ANIMATIONS = frozenset({"GIF", "PNG", "WEBP"})
_MAX_PIXELS = 178_956_970  # 512 MiB as RGB; the limit of Pillow, which other packages may turn off
_DEEP = re.compile(r";(16|32|64)[BLNF]")
"""Pillow's names of packed pixels with more than 8 bits per channel; BGR;16 (5, 6 and 5 bits) is not among them."""
_ORIENTATION = 274  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operation that turns an image upright, for each value of its orientation."""
_ORIENTATION_SOURCES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_CHECKED = frozenset({"BMP", "JPEG", "PNG", "TIFF", "WEBP"})  # formats in which Pillow does not report some damage
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0")  # the last is a BigTIFF
_JPEG_END = b"\xff\xd9"
_noted_ignored_channel = False  # whether this process has logged that a channel is ignored


class ImageError(ValueError):
    """An image that exists but cannot be decoded to 8-bit RGB without loss."""


@dataclass(frozen=True)
class Unreadable:
    """Result of reading an image that exists but cannot be decoded."""

    reason: str


def is_image(path: str | Path) -> bool:
    """Return whether a file name has an image suffix and is not hidden."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def decode(source: Path | io.BytesIO, *, compare_pages: bool = True) -> Image.Image:
    """Decode an image file completely and convert it to RGB (see `to_rgb`).

    Plain JPEG files are decoded with simplejpeg, if it is installed (see `clipit.images.jpeg`). It is faster than
    Pillow, and reports corrupt data for which Pillow returns wrong pixels.

    Args:
        compare_pages: Whether to reject a TIFF with smaller pages that are neither copies of the first page nor marked
            as masks, thumbnails, labels or macro images. False for slides, whose label image may not be marked.

    Raises:
        ImageError: The bytes are damaged, truncated or of an unknown format, or `to_rgb` rejects the image.
        OSError: The file cannot be opened.
    """
    try:
        with noted_file(source), open_header(source) as image:
            _check(image, compare_pages)
            plain = decode_plain(image)
            if isinstance(plain, Image.Image):
                return turn_upright(plain, image)
            check_bytes(image)
            loaded = _load(image)
            if plain:
                raise ImageError(f"the JPEG file is damaged, so some of its pixels are wrong ({plain})")
            return loaded
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        if is_pointer(source.getvalue()) if isinstance(source, io.BytesIO) else find_pointer(source):
            raise ImageError(f"the file is a Git LFS pointer, not the image: {PULL}") from None
        with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else source.open("rb") as stream:
            start = stream.read(4)
        if start == b"MM\0+":
            raise ImageError("Pillow cannot read a big-endian BigTIFF; save it as an ordinary TIFF or PNG") from None
        if start in _TIFF_STARTS:
            raise ImageError(
                "Pillow cannot read this TIFF: it is damaged, or its compression or pixel format is not supported; "
                "save it as PNG, or as TIFF with LZW compression"
            ) from None
        raise ImageError("the bytes are not an image in a known format") from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions for corrupt data
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if is_out_of_memory(error):  # Pillow raises an OSError; the image may be intact
            raise MemoryError(str(error)) from error
        if "PngImagePlugin.MAX_TEXT" in str(error):  # a limit of Pillow against decompression bombs
            raise ImageError(
                "a PNG with more text than Pillow reads (1 MB a chunk): save it without the text"
            ) from error
        reason = f"{type(error).__name__}: {error}"
        clear = isinstance(error, OSError | SyntaxError | ValueError)  # other messages would not help a user
        raise ImageError(reason if clear else f"the file is damaged or truncated ({reason})") from error


def noted_file(source: Path | io.BytesIO) -> AbstractContextManager[None]:
    """Record which file is being read (see `noted`); for bytes, the caller has already done so."""
    return noted(str(source)) if isinstance(source, Path) else nullcontext()


def open_header(source: Path | io.BytesIO) -> Image.Image:
    """Open an image without decoding it, and check the declared size, because decoding reserves memory for all pixels.

    Raises:
        ImageError: The file declares more than 179 million pixels.
        OSError: The file cannot be opened, or its format is unknown.
    """
    reason = (
        f"the file declares more than {_MAX_PIXELS / 1e6:.0f} million pixels: cut it into tiles, or convert it to a "
        "pyramidal TIFF and read it as a slide"
    )
    try:
        image = Image.open(source)
    except Image.DecompressionBombError:
        raise ImageError(reason) from None
    if image.width * image.height > _MAX_PIXELS:
        image.close()
        raise ImageError(reason)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Load an image completely and convert it to 8-bit RGB; transparent pixels are composited over white.

    The image is turned upright according to its EXIF orientation, as in viewers (Pillow does this itself for TIFF). The
    first page of a TIFF with several pages is used if the others are smaller copies of it or masks.

    Raises:
        ImageError: The pixel format is not supported, or there are several frames or pages of equal size.
        OSError, ValueError, ...: The image is truncated or damaged.
    """
    _check(image)
    check_bytes(image)
    return _load(image)


def _check(image: Image.Image, compare_pages: bool = True) -> None:
    """Reject images without pixels, and images that cannot be converted to 8-bit RGB without loss."""
    if 0 in image.size:
        raise ImageError(f"it has no pixels ({image.width} x {image.height})")
    _check_pixel_format(image)
    _check_pages(image, compare_pages)


def check_bytes(image: Image.Image) -> None:
    """Reject files with damage that Pillow does not report.

    A JPEG file may be cut off, a PNG file may contain wrong checksums or lack rows, the size of a BMP or WebP file may
    differ from the size in its header, and a compressed strip or tile of a TIFF file may be damaged (see
    `clipit.images.tiff_parts`).

    Args:
        image: Image that Pillow has opened, but not loaded; it can still be loaded afterwards. A PNG file is loaded.
    """
    stream = getattr(image, "fp", None)
    if image.format not in _CHECKED or stream is None or getattr(stream, "closed", False):
        return  # if no file is open, the image has already been loaded
    position = stream.tell()
    if image.format == "TIFF":

        def read(offset: int, count: int) -> bytes:
            stream.seek(offset)
            content: bytes = stream.read(count)
            return content

        damage = find_damaged_part(getattr(image, "tag_v2", {}), read)
        stream.seek(position)
        if damage:
            raise ImageError(damage)
        return
    stream.seek(0)
    data = stream.read()
    stream.seek(position)
    if image.format == "JPEG" and data.find(_JPEG_END, position) < 0:
        raise ImageError("the end of the JPEG file is missing: the file is truncated")
    if image.format == "PNG":
        _check_png(image, data)
    if image.format == "WEBP":
        _check_webp(data)
    if image.format == "BMP" and (damage := find_bmp_damage(data)):
        raise ImageError(damage)


def _check_webp(data: bytes) -> None:
    stated = int.from_bytes(data[4:8], "little") + 8
    if len(data) not in (stated, stated + stated % 2):  # with padding
        raise ImageError(f"the WEBP file is {len(data):,} bytes long, not {stated:,} as its header says: it is damaged")


def _check_png(image: Image.Image, data: bytes) -> None:
    """Verify checksums, load the image, and check that no pixels are missing."""
    if chunk_type := find_wrong_checksum(data):
        raise ImageError(f"a wrong checksum in the {chunk_type} chunk: the PNG file is damaged")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    image.load()
    last_row = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
    complete = bool(last_row.strip(b"\0")) and not image.info.get("interlace")  # Pillow fills missing rows with zeros
    if missing := 0 if complete else count_missing_bytes(data):
        raise ImageError(
            f"{counted(missing, 'byte is', 'bytes are')} missing at the end of the pixel data: the PNG file is damaged"
        )


def _load(image: Image.Image) -> Image.Image:
    """Load a checked image completely, and convert it."""
    # Other packages set this flag globally; truncated images would then be returned half grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    source, tiles = getattr(image, "filename", "") or getattr(image, "fp", None), list(getattr(image, "tile", ()))
    image.load()
    if not image.has_transparency_data:
        return turn_upright(image if image.mode == "RGB" else image.convert("RGB"), image)
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    is_hidden = (
        rgba.getchannel("A").point(lambda alpha: alpha > 1).getbbox() is None
    )  # some programs write 1 for opaque
    if is_hidden and stored_colours(rgba.convert("RGB"), source, tiles).getcolors(1) is None:
        raise ImageError(
            "transparent everywhere, although its colours vary: the fourth channel is probably not transparency; save "
            "the image as RGB"
        )
    return turn_upright(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), image)


def turn_upright(pixels: Image.Image, source: Image.Image) -> Image.Image:
    """Turn an image upright according to the EXIF orientation of its file, and drop the orientation from its metadata.

    Args:
        pixels: Image as stored in the file.
        source: Opened file, or the image in memory that the pixels come from.
    """
    operation = None
    if source.format != "TIFF":  # Pillow has already turned it
        with suppress(Exception):  # Pillow raises many kinds of exceptions for damaged metadata
            operation = _UPRIGHT.get(source.getexif().get(_ORIENTATION, 1))
    if operation is None:
        return pixels
    upright = pixels.transpose(operation)
    for name in _ORIENTATION_SOURCES:
        upright.info.pop(name, None)
    return upright


def _check_pixel_format(image: Image.Image) -> None:
    """Reject more than 8 bits, signed values, additional channels, and palettes that Pillow would misread."""
    if image.mode not in _EIGHT_BIT:
        depth = "more than 8 bits per channel" if image.mode[0] in "IF" else "unsupported channels"
        raise ImageError(f"{depth} (pixel mode {image.mode}): convert the image to 8-bit RGB")
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        raise ImageError("a CMYK JPEG file that does not state whether its colours are inverted: convert it to RGB")
    if 2 in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ()):  # Pillow would read -1 as 255
        raise ImageError("signed integer channels: convert the image to unsigned 8-bit RGB")
    tags = getattr(image, "tag_v2", {})
    samples, channels = tags.get(_SAMPLES, 1), _COLOUR_CHANNELS.get(tags.get(_PHOTOMETRIC, -1), 4)
    is_unspecified = samples == channels + 1 and tags.get(_EXTRA_SAMPLES) == (0,)  # otherwise, it is transparency
    if samples > channels + 1 or (is_unspecified and channels == 1):
        colourless = counted(samples - channels, "has no colour", "have no colour")
        raise ImageError(f"a TIFF with {samples} channels, of which {colourless}: save the image as RGB")
    if is_unspecified:
        _note_ignored_channel(str(getattr(image, "filename", "")))
    if tags.get(_PREDICTOR, 1) != 1 and tags.get(_COMPRESSION) == _PACKBITS:  # libtiff would ignore the predictor
        raise ImageError("a TIFF with a predictor and PackBits compression: save it with LZW compression")
    colours = getattr(image, "tag_v2", {}).get(_COLOURS, ())
    if colours and 0 < max(colours) < 256:  # some programs write 8-bit values, but TIFF palettes have 16 bits
        raise ImageError("a TIFF palette with 8-bit values, which would be read as black: convert the image to RGB")
    bits = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (1,)))
    for tile in getattr(image, "tile", ()):
        packed = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(name, str) and _DEEP.search(name) for name in packed):
            bits = max(bits, 16)
        elif str(tile[0]).startswith("ppm") and isinstance(packed[-1], int) and packed[-1] > 255:
            bits = max(bits, packed[-1].bit_length())
    if image.format == "JPEG2000":
        bits = max(bits, read_bits(image))
        if problem := find_misread_channels(image):
            raise ImageError(f"a JPEG 2000 file {problem}: convert the image to RGB")
    if bits > 8:
        raise ImageError(f"{bits} bits per channel: convert the image to 8 bits with a suitable intensity range")


def _note_ignored_channel(name: str) -> None:
    """Log, once per process, that a channel of a TIFF is ignored, as the TIFF standard requires."""
    global _noted_ignored_channel
    if not _noted_ignored_channel:
        _noted_ignored_channel = True
        logger.info(
            f"note: {name or 'an image'}: a TIFF with a channel that has neither a colour nor transparency "
            "(ExtraSamples 0); such channels are ignored, in this image and in all later ones"
        )


def _check_pages(image: Image.Image, compare: bool) -> None:
    """Reject animations, MPO and TIFF files with several images; smaller copies and masks may follow the first page.

    A TIFF whose first page is smaller than another one is rejected, because only the first page is read.
    """
    if not getattr(image, "is_animated", False):
        return
    size, pages = image.size, int(getattr(image, "n_frames", 1))
    if image.format in _ANIMATIONS:
        raise ImageError(f"an animation with {pages} frames: save each frame as a separate file")
    if image.format == "MPO" and (pictures := count_pictures(image)) > 1:
        raise ImageError(f"a multi-picture JPEG (MPO) with {pictures} pictures of equal size: save each separately")
    if image.format != "TIFF":
        return
    equal = 1
    larger = None
    smaller: dict[int, Image.Image] = {}  # smaller pages that are not marked as copies
    for page in range(1, pages):
        try:
            image.seek(page)
        except SyntaxError:  # a pixel format that Pillow does not support, such as that of a mask
            continue
        tags = getattr(image, "tag_v2", {})
        marked = tags.get(_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK
        equal += image.size == size and not marked
        if image.width > size[0] and image.height > size[1]:
            larger = image.size
        elif compare and image.size != size and not (marked or is_auxiliary(_page_name(tags))):
            with suppress(Exception):  # damaged, or in a mode that cannot be compared
                smaller[page] = image.convert("RGB")
    image.seek(0)
    if larger is not None:
        raise ImageError(
            f"a TIFF whose first page ({size[0]} x {size[1]} pixels) is smaller than another page ({larger[0]} x "
            f"{larger[1]}): save only the larger page"
        )
    if equal > 1:
        raise ImageError(f"a TIFF with {equal} pages of equal size: save each page as a separate file")
    # smaller pages of a rotated image may be stored in another orientation
    turned = getattr(image, "tag_v2", {}).get(_ORIENTATION, 1) != 1
    others = [
        number
        for number, page in smaller.items()
        if not turned and (not is_reduced(page.size, size) or differs(page, image))
    ]
    if others:
        extent = " x ".join(map(str, smaller[others[0]].size))
        raise ImageError(
            f"a TIFF with several images: page {others[0]} ({extent} pixels) is not a smaller copy of the first: save "
            "each page as a separate file"
        )


def _page_name(tags: Mapping[int, object]) -> str:
    return str(tags.get(_DESCRIPTION, ""))[:_NAME_LENGTH]


def attempt(read: Callable[[], Image.Image], *, tile_id: str, where: str) -> Image.Image | Unreadable:
    """Read one image; return an `Unreadable` if its bytes cannot be decoded.

    Raises:
        DataError: The file cannot be opened (missing, no permission, too many open files).
    """
    try:
        with noted(where):
            return read()
    except ImageError as error:
        return Unreadable(str(error))
    except OSError as error:
        if error.errno is None:
            return Unreadable(f"{type(error).__name__}: {error}")
        raise DataError(
            f"cannot open the image of tile {tile_id}: {error.strerror or error}",
            where=where,
            fix="restore the file, or correct its permissions",
        ) from error
