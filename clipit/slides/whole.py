"""Read a whole slide as one image, for pages and overlays."""

import logging

from PIL import Image

from clipit.errors import DataError
from clipit.images.decode import ImageError
from clipit.slides.opening import open_slide
from clipit.slides.prepare import PreparedSlide
from clipit.slides.reading import read_overview

logger = logging.getLogger(__name__)


def read_whole(slide: PreparedSlide, longest: int) -> Image.Image:
    """Read the whole slide with a longest edge of at most `longest` pixels.

    If pixels at this resolution are damaged or too many, the overview used to find tissue is returned instead.
    """
    file = open_slide(slide.path)
    try:
        edge = max(file.levels[0].width, file.levels[0].height)
        return read_overview(file, max(1.0, edge / longest))
    except (ImageError, DataError) as error:
        logger.warning(f"{slide.name}: its page shows a coarser overview, because {getattr(error, 'what', error)}")
        with Image.open(slide.overview) as stored:
            return stored.convert("RGB")
    finally:
        file.close()
