"""Points in a plane, such as embeddings along their two main directions, as a PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from clipit.reporting.png import save_png

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def plane_plot(planes: Mapping[str, Mapping[str, Float[np.ndarray, "_ 2"]]], path: Path, *, title: str = "") -> None:
    """One panel per plane, one colour per kind of points.

    Args:
        planes: Title of a panel -> name of the points -> coordinates.
        path: The PNG.
        title: Heading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * max(1, len(planes)), 4.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(planes)), squeeze=False)[0]
    for axes, (name, kinds) in zip(panels, planes.items(), strict=True):
        for i, (kind, points) in enumerate(kinds.items()):
            axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.5, color=_COLOURS[i % len(_COLOURS)], label=kind)
        axes.set(title=name, xticks=[], yticks=[])
        axes.legend(fontsize=8, loc="best")
    figure.suptitle(title)
    save_png(figure, path)
