"""Find the slide among the images of an OME-TIFF, and read its metadata."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.errors import DataError, shortlist
from clipit.images.tiff_copies import is_auxiliary
from clipit.slides.several_images import is_smaller_copy
from clipit.slides.slide_file import MPP_TOLERANCE

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_UNITS = {"um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "micron": 1.0, "mm": 1e3, "cm": 1e4, "nm": 1e-3}
_ALPHA = re.compile("alpha|opacity|transparen", re.IGNORECASE)
_FIX = (
    "save each image as a separate file, for example with Bio-Formats: bfconvert -noflat -series 0 "
    "SLIDE OUT_0.ome.tif, and so on for each series"
)


@dataclass(frozen=True)
class OmeImage:
    """One image of an OME-TIFF.

    Attributes:
        number: Position in the metadata; Bio-Formats and tifffile call it the series.
        name: Name in the metadata; "" if there is none.
        size: Width and height in pixels.
        pixel_size: Width and height of a pixel in micrometres; None if one is missing or in an unknown unit.
        has_alpha: Whether the name of a channel marks it as transparency.
    """

    number: int
    name: str
    size: tuple[int, int]
    pixel_size: tuple[float, float] | None
    has_alpha: bool

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel; None if they are unknown, or different for the two axes."""
        if self.pixel_size is None or abs(self.pixel_size[0] - self.pixel_size[1]) > MPP_TOLERANCE * self.pixel_size[0]:
            return None
        return self.pixel_size[0]

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"series {self.number}{name} ({self.size[0]} x {self.size[1]} pixels)"


def choose_image(file: Any, path: Path) -> tuple[Any, OmeImage | None]:
    """Find the slide among the images of a TIFF.

    Args:
        file: Open `tifffile.TiffFile`.

    Returns:
        tifffile series, and the image's metadata; None if the file has no metadata for it.

    Raises:
        DataError: Several images may be the slide.
    """
    if not file.is_ome:
        return file.series[0], None
    candidates = _candidates(file)
    if len(candidates) > 1:
        raise DataError(
            f"the OME-TIFF contains {len(candidates)} images instead of one slide: "
            f"{shortlist([image for _, image in candidates])}",
            where=path,
            fix=_FIX,
        )
    return candidates[0] if candidates else (file.series[0], next(iter(read_images(file.ome_metadata)), None))


def has_several(file: Any) -> bool:
    """Return whether several images of an open OME-TIFF may be the slide."""
    return bool(file.is_ome) and len(_candidates(file)) > 1


def _candidates(file: Any) -> list[tuple[Any, OmeImage]]:
    """List the images of a file, except label, macro, overview, thumbnail and smaller copies of another image.

    Images described in the metadata but stored in another file are not listed.
    """
    stored = [(series, image) for series, image in _pair(file) if series.keyframe.parent is file]
    slides = [(series, image) for series, image in stored if not is_auxiliary(image.name)] or stored
    return [(series, image) for series, image in slides if not any(_is_copy(image, other) for _, other in slides)]


def _is_copy(image: OmeImage, other: OmeImage) -> bool:
    """Return whether an image has the shape of a smaller level of another image, but does not state the same mpp."""
    if image.mpp is not None and other.mpp is not None and abs(image.mpp - other.mpp) <= MPP_TOLERANCE * other.mpp:
        return False
    return is_smaller_copy(image.size, other.size)


def _pair(file: Any) -> list[tuple[Any, OmeImage]]:
    """Match the tifffile series to the images in the metadata; tifffile skips images that it cannot read."""
    images = read_images(file.ome_metadata)
    pairs, first = [], 0
    for series in file.series:
        size = (int(series.keyframe.imagewidth), int(series.keyframe.imagelength))
        for position in range(first, len(images)):
            if (images[position].name, images[position].size) == (series.name or "", size):
                pairs.append((series, images[position]))
                first = position + 1
                break
    return pairs


def read_images(xml: str | None) -> list[OmeImage]:
    """Read the images described in OME-XML; return an empty list if the XML is missing or damaged."""
    root = _parse(xml)
    if root is None:
        return []
    images = []
    for number, node in enumerate(child for child in root if _tag(child) == "Image"):
        pixels = next((child for child in node if _tag(child) == "Pixels"), None)
        if pixels is not None:
            has_alpha = any(_ALPHA.search(child.get("Name", "")) for child in pixels if _tag(child) == "Channel")
            size = (_number(pixels.get("SizeX")), _number(pixels.get("SizeY")))
            images.append(OmeImage(number, node.get("Name", ""), size, _pixel_size(pixels), has_alpha))
    return images


def _tag(node: "Element") -> str:
    """Return the name of an element without its namespace."""
    return node.tag.rpartition("}")[2]


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _parse(xml: str | None) -> "Element | None":
    """Parse OME-XML; None if it is missing or damaged."""
    from xml.etree import ElementTree

    try:
        return ElementTree.fromstring(xml or "")
    except ElementTree.ParseError:
        return None


def _pixel_size(pixels: "Element") -> tuple[float, float] | None:
    """Read the width and height of a pixel in micrometres; None if one is missing or in an unknown unit."""
    sizes = []
    for axis in "XY":
        factor = _UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m"))
        try:
            value = float(pixels.get(f"PhysicalSize{axis}", ""))
        except ValueError:
            return None
        if factor is None or value <= 0:
            return None
        sizes.append(value * factor)
    return sizes[0], sizes[1]
