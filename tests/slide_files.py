"""Small slides in real formats: pyramidal TIFFs that openslide opens, and OME-TIFFs."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

WHITE, PINK, PURPLE, PEN = (255, 255, 255), (225, 120, 170), (120, 70, 160), (20, 160, 60)


def picture(width: int = 600, height: int = 400) -> np.ndarray:
    """A white slide with a pink rectangle (x 100 to 400, y 80 to 320) and a purple half (from x 250 on)."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[80:320, 100:400] = PINK
    pixels[80:320, 250:400] = PURPLE
    return pixels


def levels_of(pixels: np.ndarray, count: int) -> list[np.ndarray]:
    image = Image.fromarray(pixels)
    sizes = [(image.width >> level, image.height >> level) for level in range(count)]
    return [np.asarray(image.resize(size, Image.Resampling.BOX)) for size in sizes]


def write_slide(path: Path, pixels: np.ndarray, mpp: float | None = 1.0, levels: int = 3) -> Path:
    """Write a tiled pyramid, one page per level, which openslide opens as generic TIFF."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels_of(pixels, levels)):
            scaled = {k: tuple(v / 2**number for v in r) if k == "resolution" else r for k, r in resolution.items()}
            file.write(
                level, tile=(64, 64), photometric="rgb", compression="deflate", subfiletype=int(number > 0),
                metadata=None, **scaled,
            )  # fmt: skip
    return path


def write_ome(path: Path, pixels: np.ndarray, mpp: float = 1.0, levels: int = 2, axes: str = "YXS") -> Path:
    """Write an OME-TIFF whose smaller levels are sub-IFDs."""
    first, *others = levels_of(pixels, levels) if axes == "YXS" else [pixels]
    units = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    rgb = {"photometric": "rgb"} if axes == "YXS" else {"photometric": "minisblack"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(first, tile=(64, 64), subifds=len(others), metadata={"axes": axes, **units}, **rgb)
        for level in others:
            file.write(level, tile=(64, 64), subfiletype=1, **rgb)
    return path


def damage_tile(path: Path, x: int, y: int) -> None:
    """Overwrite the internal tile of the finest level that contains a pixel, so that it cannot be decoded."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        number = (y // 64) * -(-page.imagewidth // 64) + x // 64
        start, count = page.dataoffsets[number], page.databytecounts[number]
    content = bytearray(path.read_bytes())
    content[start : start + count] = bytes(count)
    path.write_bytes(content)
