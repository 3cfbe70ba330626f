"""Warn about images whose resolution, size or shape differs from that of a model's training tiles."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from PIL import Image

from clipit.errors import counted_of
from clipit.images.decode import Unreadable
from clipit.images.image_set import crop_warning
from clipit.tiles.tileset import TileSet

_SAMPLED = 16  # number of images whose size is read


def mpp_warning(tiles: TileSet, expected: float | None, model: str, *, resize: float = 1.0) -> str | None:
    """Return a warning if the resolution of tiles is far from that of a model's training tiles, else None.

    Args:
        tiles: Tiles, with `mpp` of the stored pixels.
        expected: Micrometres per pixel of the model's training tiles; None if unknown.
        model: Name of the model.
        resize: Input pixels per stored pixel, such as 224 / 96 if tiles of 96 px are enlarged to 224 px.
    """
    known = tiles.mpp[~np.isnan(tiles.mpp)] / resize
    if expected is None or not known.size:
        return None
    far = (known > 1.5 * expected) | (known < expected / 1.5)
    if not far.any():
        return None
    bounds = [f"{bound:.3g}" for bound in (known[far].min(), known[far].max())]
    return (
        f"{model} expects {expected:g} µm per pixel; "
        f"{counted_of(int(far.sum()), len(tiles), 'tile is', 'tiles are')} "
        f"read at {' to '.join(dict.fromkeys(bounds))}: features may be worse than published"
    )


def sample_sizes(read: Callable[[int], Image.Image | Unreadable], total: int) -> dict[int, tuple[int, int]]:
    """Read the sizes (width, height) of up to 16 evenly spaced images, keyed by row; skip unreadable ones."""
    rows = np.unique(np.linspace(0, total - 1, min(_SAMPLED, total)).astype(np.int64)).tolist()
    return {row: image.size for row in rows if isinstance(image := read(row), Image.Image)}


def view_warnings(
    read: Callable[[int], Image.Image | Unreadable],
    mpp: Float64[np.ndarray, " n"],
    *,
    pixels: int | None,
    expected: float | None,
    model: str,
    crops: bool,
) -> list[str]:
    """Return warnings if images show much more or less tissue than a model's training tiles, or are cropped.

    Up to 16 images, evenly spaced, are read. An unknown resolution is assumed to be that of the training tiles.

    Args:
        read: Function that reads an image by its row.
        mpp: Micrometres per pixel of each image; NaN where unknown.
        pixels: Edge length of the model's training tiles in pixels; None to compare only resolutions.
        expected: Micrometres per pixel of the model's training tiles; None to compare only sizes.
        model: Name of the model.
        crops: Whether the model's preprocessing crops images to their centre square.
    """
    sizes = sample_sizes(read, len(mpp))
    warnings = [crop_warning([*sizes.values()])] if crops else []
    ratios = np.array([min(size) / (pixels or min(size)) for size in sizes.values()])
    if expected is not None:
        ratios *= np.nan_to_num(mpp[[*sizes]] / expected, nan=1.0)
    far = ratios[(ratios > 1.5) | (ratios < 1 / 1.5)]
    if far.size:
        bounds = " to ".join(dict.fromkeys(f"{bound:.2g}" for bound in (far.min(), far.max())))
        stated = [f"{pixels} pixels" if pixels else "", f"{expected:g} µm per pixel" if expected is not None else ""]
        shown = counted_of(len(far), len(sizes), "sampled image shows", "sampled images show")
        warnings.append(
            f"{shown} {bounds} times the width of the training tiles ({' at '.join(filter(None, stated))}) of "
            f"{model}, assuming the same resolution where it is unknown: predictions may be wrong"
        )
    return [warning for warning in warnings if warning]
