"""Open the images passed to a classifier in Python: a list, a folder or a zip, but not slides."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from clipit.config.paths import argument_path
from clipit.errors import DataError, shortlist
from clipit.images.decode import is_image
from clipit.images.image_set import ZIP, crop_warning, open_images
from clipit.input_files.folder_files import list_files
from clipit.models.preprocess import Picture, open_picture, require_sequence
from clipit.slides.opening import is_slide_file

logger = logging.getLogger(__name__)

Images = Iterable[Picture] | str | Path
"""Images in any iterable, or the path of a folder or zip file, whose images are read in the order of their paths."""


def open_pictures(images: Images) -> tuple[int, Callable[[int], Image.Image]]:
    """Return the number of images, and a function that reads the image at a position.

    Raises:
        DataError: The path contains no images, or there are slides among the images.
    """
    if isinstance(images, str) and not images.strip():
        raise DataError("the path is empty", where="images", fix='write the path; "." is the current folder')
    if isinstance(images, str | os.PathLike):
        path = argument_path(Path(images))
        _reject_slides(_slides_in(path) if path.is_dir() else [path], images)
        if path.suffix.lower() == ZIP or path.is_dir():
            source = open_images(path)
            for note in source.notes:
                logger.info(f"note: {note}")
            return len(source), source.read
    listed = require_sequence(images)
    _reject_slides([Path(image) for image in listed if isinstance(image, str | Path)], "images")
    return len(listed), lambda position: open_picture(listed[position], position)


class CropWatch:
    """Warns once if a model receives only the centre of images that are not square."""

    def __init__(self, crops: bool) -> None:
        """Create a watch that has seen no images yet.

        Args:
            crops: Whether the model's preprocessing crops images to their centre square.
        """
        self._crops = crops
        self._sizes: list[tuple[int, int]] = []

    def reading(self, read: Callable[[int], Image.Image]) -> Callable[[int], Image.Image]:
        """Return a function that reads an image like `read` and records its size."""

        def read_noted(position: int) -> Image.Image:
            image = read(position)
            self._sizes.append(image.size)
            return image

        return read_noted if self._crops else read

    def report(self) -> None:
        """Warn about the images read since the last call, unless such a warning has been logged before."""
        warning = crop_warning(self._sizes)
        self._sizes.clear()
        if warning:
            logger.warning(warning)
            self._crops = False  # programs may classify one image at a time


def _slides_in(folder: Path) -> list[Path]:
    """List the files of a folder that may be slides: its image files, or all files if it has none."""
    files = list_files(folder, lambda file: not file.name.startswith(".")).files
    images = [file for file in files if is_image(file)]
    return images or files


def _reject_slides(paths: Sequence[Path], where: str | Path) -> None:
    """Reject whole-slide images, including pyramidal TIFFs, each of which would be classified as one small image.

    Raises:
        DataError: A file is a slide.
    """
    slides = [path for path in paths if path.is_file() and is_slide_file(path)]
    if slides:
        raise DataError(
            f"slides cannot be classified as one image: {shortlist([path.name for path in slides], 3)}",
            where=where,
            fix='use clipit.predict(classifier, "slide.svs", "predictions.csv") to classify tissue tiles of slides, '
            "or clipit.score_slides to compute scores and maps of slides",
        )
