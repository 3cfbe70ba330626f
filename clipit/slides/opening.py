"""Open slides (openslide's formats, OME-TIFF and flat images), with their size, levels and micrometres per pixel."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clipit.crash_watch import noted
from clipit.errors import DataError, is_limit
from clipit.images.decode import SUFFIXES, ImageError, decode, is_image
from clipit.input_files.git_lfs import check_pointer
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.zip_files import check_uncompressed
from clipit.slides.deflate_tiles import DeflateLevel, open_deflate_levels
from clipit.slides.dicom import SUFFIX as DICOM
from clipit.slides.dicom import one_per_slide
from clipit.slides.jpeg_tiles import CACHE_BYTES, open_jpeg_levels
from clipit.slides.ome_tiff import OmeTiff, count_ome_levels, has_unknown_channel, is_ome_tiff
from clipit.slides.several_images import check_one_image
from clipit.slides.slide_file import Level, SlideFile, check_square
from clipit.slides.tiff_pages import FORMATS, check_level_orientations, check_page_chain, check_pages

SLIDE_SUFFIXES = frozenset(
    {".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".vsi", ".czi", ".tif", ".tiff"}
)
"""Suffixes of slides; where slides are expected, flat images (`clipit.images.decode.SUFFIXES`) are read as well."""
HEAT_MAP = "heat_map.ome.tif"
"""Name of the heat maps that clipit writes; they are never read as slides, even in a folder of slides."""
_TIFF = (".tif", ".tiff")
_UNSUPPORTED = "Unsupported TIFF compression"  # part of openslide's message
_CONVERT = "convert it, for example: vips tiffsave in.tif out.tif --tile --pyramid --compression jpeg"
_SUB_PAGES = 330  # TIFF tag of sub-IFDs, in which OME-TIFF stores smaller levels
MISSING_SLIDE_PACKAGES = "install the packages that read slides: pip install openslide-python openslide-bin tifffile"
"""Fix shown in errors if openslide cannot be imported."""


def import_openslide() -> Any:
    """Import openslide.

    Raises:
        DataError: openslide is not installed, or its library cannot be loaded.
    """
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise DataError(f"cannot read slides without openslide ({error})", fix=MISSING_SLIDE_PACKAGES) from error
    return openslide


def is_slide(path: Path) -> bool:
    """Return whether a file name has a slide suffix, and is neither hidden nor the name of clipit's heat maps."""
    return path.suffix.lower() in SLIDE_SUFFIXES and not path.name.startswith(".") and path.name != HEAT_MAP


def is_pyramid(path: Path) -> bool:
    """Return whether a file with a TIFF suffix is a slide, that is, contains several levels.

    If a file has a single page, only its header is read, so that checking many files is fast.
    """
    if path.suffix.lower() not in _TIFF or not is_slide(path):
        return False
    try:
        with noted(str(path)), Image.open(path) as image:
            several = getattr(image, "n_frames", 1) > 1 or _SUB_PAGES in getattr(image, "tag_v2", {})
    except Exception:  # Pillow raises many kinds of exceptions for corrupt data, and cannot read every BigTIFF
        several = path.is_file()
    return several and count_levels(path) > 1


def is_slide_file(path: Path) -> bool:
    """Return whether a file is a slide; a file with an image suffix must be a TIFF with several levels."""
    return is_pyramid(path) if is_image(path) else is_slide(path)


def count_levels(path: Path) -> int:
    """Return the number of levels of a slide; 1 if it cannot be read or the packages are not installed."""
    try:
        openslide = import_openslide()
        if path.suffix.lower() in _TIFF and is_ome_tiff(path):
            check_page_chain(path)
            return count_ome_levels(path)
        with openslide.OpenSlide(str(path)) as slide:
            return int(slide.level_count)
    except DataError:
        return 1
    except openslide.OpenSlideError:
        return 1


def open_slide(path: Path) -> SlideFile:
    """Open a slide or a flat image.

    Raises:
        DataError: The file is missing, not readable, empty, damaged, of an unknown format or not a bright-field image;
            or a package that reads slides is missing.
    """
    try:
        if not path.is_file():  # including pipes and folders
            raise DataError("no such slide", where=path, fix=f"correct the path; {similar_names(str(path))}")
        with path.open("rb") as stream:
            if not stream.read(1):
                raise DataError("the file is empty", where=path, fix="copy the slide again")
        check_pointer(path)
        check_uncompressed(path)
        return _open(path)
    except OSError as error:
        if is_limit(error):
            raise
        reason = error.strerror or error
        raise DataError(f"cannot open the slide: {reason}", where=path, fix="correct its permissions") from error


def _open(path: Path) -> SlideFile:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES and suffix not in _TIFF:
        return _FlatImage(path)
    if suffix == ".vsi":  # contains only label and overview; openslide cannot read the slide's .ets files
        raise DataError(
            "VSI slides (Olympus) cannot be read",
            where=path,
            fix="convert the slide to a pyramidal OME-TIFF with QuPath (Export images) or Bio-Formats (bfconvert)",
        )
    openslide = import_openslide()
    check_page_chain(path)
    if suffix in _TIFF and is_ome_tiff(path):
        return OmeTiff(path)
    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor is not None:
            if vendor == "generic-tiff":
                check_pages(path)
            if vendor in FORMATS:
                check_one_image(path, strips_are_images=vendor != "aperio")
            slide = _OpenSlideFile(openslide, path)
            if vendor == "generic-tiff" and has_unknown_channel(path):  # openslide would read it as transparency
                slide.close()
                return OmeTiff(path, slide.format, slide.mpp)
            return slide
    except openslide.OpenSlideError as error:
        fix = _CONVERT if _UNSUPPORTED in str(error) else "copy it again"
        raise DataError(f"openslide cannot open the slide: {error}", where=path, fix=fix) from error
    if suffix in _TIFF:
        check_one_image(path)
        return _FlatImage(path)
    raise DataError(_why_unknown(path), where=path, fix="copy the slide again, or convert it to a pyramidal TIFF")


def _why_unknown(path: Path) -> str:
    """Explain why openslide does not recognise a file."""
    if path.suffix.lower() == ".mrxs" and not path.with_suffix("").is_dir():
        return f"the folder {path.stem} with the pixels of the slide is missing; it must be next to the file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about the tags of a truncated TIFF
            with Image.open(path) as image:
                image_format = image.format
    except Exception:  # Pillow raises many kinds of exceptions for corrupt data
        return "not a slide that openslide can read: the file is damaged, truncated or of a different format"
    if image_format == "TIFF":  # most slide formats are TIFFs
        return "not a slide that openslide can read: the TIFF is damaged, truncated or of a different format"
    return f"not a slide, but a {image_format} image with the suffix {path.suffix}"


class _OpenSlideFile:
    def __init__(self, openslide: Any, path: Path) -> None:
        self._error, self._path = openslide.OpenSlideError, path
        self._slide = slide = openslide.OpenSlide(str(path))
        share_cache(openslide, slide)
        properties = slide.properties
        self.format = str(properties.get("openslide.vendor", "unknown"))
        self.levels = [
            Level(width, height, float(downsample))
            for (width, height), downsample in zip(slide.level_dimensions, slide.level_downsamples, strict=True)
        ]
        check_level_orientations(path, self.levels)
        self.mpp = _mean_mpp(
            _number(properties.get("openslide.mpp-x")), _number(properties.get("openslide.mpp-y")), path
        )
        self.magnification = _number(properties.get("openslide.objective-power"))
        x, y = (properties.get(f"openslide.bounds-{axis}") for axis in "xy")
        self.origin = (int(x), int(y)) if x is not None and y is not None else (0, 0)
        self.remark = ""
        is_tiff = self.format in FORMATS
        self._jpeg = open_jpeg_levels(path, self.levels) if is_tiff else {}
        self._deflate: dict[int, DeflateLevel] = {}
        if is_tiff and len(self._jpeg) < len(self.levels):
            self._deflate = open_deflate_levels(path, self.levels)

    def read_region(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        """Read a rectangle as RGB; pixels outside the scanned area are white."""
        jpeg, downsample = self._jpeg.get(level), self.levels[level].downsample
        if jpeg is not None:
            return jpeg.read(round(x / downsample), round(y / downsample), width, height)
        if level in self._deflate:
            self._deflate[level].check(x / downsample, y / downsample, width, height)
        try:
            rgba = self._slide.read_region((x, y), level, (width, height))
        except self._error as error:
            raise ImageError(f"openslide cannot read the pixels: {error}") from error
        return over_white(rgba)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


class _FlatImage:
    """An image with a single level, decoded completely when it is opened."""

    def __init__(self, path: Path) -> None:
        try:
            self._image = decode(path, compare_pages=False)  # see check_one_image
        except ImageError as error:
            raise DataError(
                f"the image cannot be read as a slide: {error}", where=path, fix="copy it again, or convert it to RGB"
            ) from error
        self.format = "flat image"
        self.magnification: float | None = None
        self.origin, self.remark = (0, 0), ""
        self.levels = [Level(*self._image.size, 1.0)]
        self.mpp = _tiff_mpp(path) if path.suffix.lower() in _TIFF else None

    def read_region(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        """Crop a rectangle; pixels outside the image are white."""
        region = Image.new("RGB", (width, height), "white")
        region.paste(self._image, (-x, -y))
        return region

    def close(self) -> None:
        """Free the pixels."""
        self._image.close()


def over_white(image: Image.Image) -> Image.Image:
    """Composite transparent pixels, which lie outside the scanned area, over white."""
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if 0 < value < float("inf") else None


def _mean_mpp(x: float | None, y: float | None, path: Path) -> float | None:
    """Return the mean of the micrometres per pixel along x and y; None if one is unknown.

    Raises:
        DataError: The pixels are not square.
    """
    if x is None or y is None:
        return None
    check_square(x, y, path)
    return (x + y) / 2


def _tiff_mpp(path: Path) -> float | None:
    """Read micrometres per pixel from a TIFF's resolution in pixels per centimetre.

    A resolution in pixels per inch is ignored, because it usually describes the print size.

    Raises:
        DataError: The pixels are not square.
    """
    with noted(str(path)), Image.open(path) as image:
        tags = getattr(image, "tag_v2", {})
        x, y, unit = tags.get(282), tags.get(283), tags.get(296)
    if unit != 3 or not x or not y:
        return None
    return _mean_mpp(1e4 / float(x), 1e4 / float(y), path)


def slide_name(path: Path) -> str:
    """Return the name of a slide: its file name without the suffix (`.ome.tiff` counts as one)."""
    stem = path.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def slide_names(files: Sequence[Path]) -> list[str]:
    """Return the names of slides; a DICOM slide that is alone in its folder is named after the folder."""
    folders = {file.parent for file in files if file.suffix.lower() == DICOM and file.parent.is_dir()}
    alone = {folder for folder in folders if len(one_per_slide(filter(is_slide, folder.iterdir()))) == 1}
    return [file.parent.resolve().name if file.parent in alone else slide_name(file) for file in files]


_caches: dict[int, Any] = {}  # by process id: a forked process must not use a lock that another thread held


def share_cache(openslide: Any, slide: Any) -> None:
    """Make a slide use the tile cache of this process.

    Openslide's own cache of 32 MiB per slide cannot hold two rows of tiles of a slide more than 16,000 pixels wide, so
    each row of a grid would decode most tiles again. Before version 4, openslide has no other cache.
    """
    process_id = os.getpid()
    try:
        if process_id not in _caches:
            _caches[process_id] = openslide.OpenSlideCache(CACHE_BYTES)
        slide.set_cache(_caches[process_id])
    except openslide.OpenSlideVersionError:
        return
