"""Images that a classifier is given in Python: a list, a folder or a zip; slides are refused."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from clipit.data_files import list_files
from clipit.errors import DataError, shortlist
from clipit.image_set import ZIP, open_images
from clipit.images import is_image
from clipit.models.preprocess import Picture, check_several, open_picture
from clipit.slides.opening import count_levels, is_slide

Images = Sequence[Picture] | str | Path
"""A list of images, or the path of a folder or zip, whose images are read in the order of their paths."""


def open_pictures(images: Images) -> tuple[int, Callable[[int], Image.Image]]:
    """Return the number of images, and a function that reads one of them by its position.

    Raises:
        DataError: The path contains no image, or slides are given.
    """
    if isinstance(images, str | Path):
        path = Path(images).expanduser()
        _refuse_slides(_slides_alone(path) if path.is_dir() else [path], images)
        if path.suffix.lower() == ZIP or path.is_dir():
            source = open_images(path)
            return len(source), source.read
    listed = check_several(images)
    _refuse_slides([Path(image) for image in listed if isinstance(image, str | Path)], "images")
    return len(listed), lambda position: open_picture(listed[position], position)


def _slides_alone(folder: Path) -> list[Path]:
    """List the slides of a folder without images."""
    files = list_files(folder, lambda file: not file.name.startswith(".")).files
    return [] if any(map(is_image, files)) else files


def _refuse_slides(paths: Sequence[Path], where: str | Path) -> None:
    """Refuse files of whole slides, each of which would be classified as one small picture.

    A pyramidal TIFF is told from an image only where it is the only path, because every file has to be opened for it.

    Raises:
        DataError: A file is a slide.
    """
    slides = [path for path in paths if is_slide(path) and not is_image(path) and path.is_file()]
    if len(paths) == 1 and not slides and is_slide(paths[0]) and count_levels(paths[0]) > 1:
        slides = [*paths]
    if slides:
        raise DataError(
            f"whole slides are not classified as one image: {shortlist([path.name for path in slides], 3)}",
            where=where,
            fix='clipit.predict(classifier, "slide.svs", "predictions.csv") predicts the tissue tiles of slides; '
            "clipit.score_slides gives scores and maps of slides",
        )
