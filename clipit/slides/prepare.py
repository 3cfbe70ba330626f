"""Prepare slides: find the tissue and lay a grid over each slide; both are stored, so that a command can resume."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool
from PIL import Image

from clipit.config.data import SlidesConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, DataError, counted, shortlist
from clipit.images.decode import ImageError
from clipit.images.read_ahead import reading_threads
from clipit.output_files.artifacts import (
    MANIFEST,
    Artifact,
    artifact_folder,
    file_sha256,
    fingerprint,
    finish_partial,
    locked,
    open_artifact,
    start_partial,
    whole_file,
)
from clipit.output_files.whole_files import write_parquet
from clipit.progress import progress
from clipit.slides.geojson import is_ignored, read_contours
from clipit.slides.grid import SlideGrid, make_grid
from clipit.slides.level_check import check_tile_level, check_unread_pages
from clipit.slides.opening import open_slide
from clipit.slides.option_names import KEYS, OptionNames
from clipit.slides.polygons import Polygon, rasterise, trace
from clipit.slides.qupath import write_polygons_geojson
from clipit.slides.reading import PlacedSlide, read_overview
from clipit.slides.resolution import explain_doubtful_mpp, resolve_mpp
from clipit.slides.slide_file import SlideFile
from clipit.slides.stamps import slide_stamp
from clipit.slides.tissue import TissueShare, find_tissue

KIND = "slide_grids"
GRID, OVERVIEW, TISSUE = "grid.parquet", "overview.png", "tissue.geojson"
_OVERVIEW_MPP = 8.0  # fine enough to find tissue
_OVERVIEW_EDGE = 4096  # longest edge in pixels; limits the memory
TISSUE_COLOUR = "#1b7837"
"""Colour of the tissue in QuPath."""
_THREADS = 4  # each keeps one overview in memory
_CONTOUR_SUFFIXES = (".geojson", ".json")


@dataclass(frozen=True)
class SlidePath:
    """A slide to prepare.

    Attributes:
        mpp: Micrometres per level-0 pixel that the user states for this slide; None if unstated.
        default_mpp: Micrometres per level-0 pixel, used if neither the file nor the user states a value.
    """

    name: str
    path: Path
    mpp: float | None = None
    default_mpp: float | None = None


@dataclass(frozen=True)
class PreparedSlide:
    """A slide with its tissue tiles, whose positions are read from the disk whenever they are needed.

    Attributes:
        artifact: Artefact with the overview, the tissue and the positions of all tissue tiles.
        extent: Tile edge length in level-0 pixels; may be fractional.
        pixels: Tile edge length in pixels after resampling.
        facts: Format, levels, source of the micrometres per pixel, and tissue fraction.
    """

    name: str
    path: Path
    stamp: str
    artifact: Artifact
    tiles: int
    extent: float
    pixels: int
    facts: dict[str, Any]

    @property
    def origin(self) -> tuple[int, int]:
        """Left and upper edge of the scanned area in level-0 pixels."""
        x, y = self.facts.get("origin", (0, 0))  # missing in artefacts from earlier versions
        return int(x), int(y)

    @property
    def grid(self) -> SlideGrid:
        """Grid of the tissue tiles; a random sample if `tiles_per_slide` limits their number."""
        table, facts = self.artifact.table(GRID), self.facts
        x, y, tissue = (np.asarray(table[name]) for name in ("x", "y", "tissue"))
        edge = round(self.extent)
        grid = SlideGrid(self.name, facts["width"], facts["height"], facts["mpp"], edge, facts["step"], x, y, tissue)
        return _draw_tiles(grid, self.tiles)

    @property
    def overview(self) -> Path:
        """Image of the whole slide used to find tissue; its SHA-256 is verified."""
        return self.artifact.file(OVERVIEW)

    @property
    def tissue(self) -> Path:
        """GeoJSON of the tissue's outlines; its SHA-256 is verified."""
        return self.artifact.file(TISSUE)

    @cached_property
    def identity(self) -> str:
        """Fingerprint of the slide's file and of its tiles."""
        grid = self.grid
        positions = fingerprint([grid.x.tolist(), grid.y.tolist()])
        return fingerprint([self.stamp, self.pixels, self.extent, positions])

    @property
    def placed(self) -> PlacedSlide:
        """File and tile size of the slide, for a tile reader."""
        return PlacedSlide(self.name, self.path, self.extent, self.pixels)


@dataclass(frozen=True)
class FailedSlide:
    """A slide that cannot be used."""

    name: str
    path: Path
    reason: str
    fix: str

    def explain(self) -> str:
        """Return the reason and the fix in one line."""
        return f"{self.reason}; fix: {self.fix}" if self.fix else self.reason


def prepare_slides(
    slides: Sequence[SlidePath], config: SlidesConfig, options: OptionNames = KEYS
) -> list[PreparedSlide | FailedSlide]:
    """Find the tissue and lay a grid over every slide, or open the results of an earlier call.

    Several processes that call this function divide the slides among themselves, and each returns all results in order.
    A slide that cannot be used does not stop the others.

    Args:
        slides: Slides with unique names.
        config: Section `tiles.slides`.

    Raises:
        ConfigError: One contour file is configured for several slides.
        DataError: Two slides would share a contour file.
    """
    if config.contours is not None and len(slides) > 1:
        _check_contours(Path(config.contours).expanduser(), slides)
    processes = get_processes()
    order = [*range(processes.rank, len(slides), processes.count)]
    order += [index for index in range(len(slides)) if index % processes.count != processes.rank]
    results: dict[int, PreparedSlide | FailedSlide] = {}
    with (
        progress("finding tissue", len(slides), shown=processes.main and len(slides) > 1) as advance,
        reading_threads(_THREADS) as pool,
    ):
        for index, result in zip(
            order, pool.map(lambda index: _try_prepare(slides[index], config, options), order), strict=True
        ):
            results[index] = result
            advance()
    return [results[index] for index in range(len(slides))]


def _try_prepare(slide: SlidePath, config: SlidesConfig, options: OptionNames) -> PreparedSlide | FailedSlide:
    try:
        return _prepare(slide, config, options)
    except DataError as error:
        return FailedSlide(slide.name, slide.path, error.what, error.fix)
    except ImageError as error:
        return FailedSlide(slide.name, slide.path, f"the slide is damaged: {error}", "copy it again")


def _prepare(slide: SlidePath, config: SlidesConfig, options: OptionNames) -> PreparedSlide:
    try:
        if not slide.path.is_file():
            raise DataError("no such slide", where=slide.path, fix="correct the path")
        stamp = slide_stamp(slide.path)
    except PermissionError as error:
        raise DataError("no permission to read the slide", where=slide.path, fix="correct its permissions") from error
    contours = None if config.contours is None else _contour_file(Path(config.contours).expanduser(), slide, options)
    inputs = {
        "slide": slide.name,
        "stamp": stamp,
        "stated_mpp": slide.default_mpp if slide.mpp is None else slide.mpp,
        "contours": contours and file_sha256(contours),
        "tiles": config.model_dump(mode="json", exclude={"contours", "grids", "tiles_per_slide"}),
    }
    if contours is not None and b"ignore" in contours.read_bytes().lower():
        inputs["ignored"] = "cut out"  # grids from earlier versions include these areas
    if slide.mpp is not None:
        inputs["mpp_source"] = "table"  # an option's value may differ from the file's, but a table's may not
    folder = artifact_folder(Path(config.grids).expanduser(), KIND, inputs)
    if not (folder / MANIFEST).is_file():
        with locked(folder):
            if not (folder / MANIFEST).is_file():
                prepared = _find_tissue_and_grid(slide, config, contours, options)
                partial = start_partial(folder)
                _write(partial, slide, prepared)
                finish_partial(folder, KIND, inputs, prepared.facts)
    return _open(open_artifact(folder, KIND), slide, stamp, config)


def _check_contours(contours: Path, slides: Sequence[SlidePath]) -> None:
    """Check that no two slides have the same contour file.

    Contours are found by the slide's name or else by its file name, and files in different folders may share a name.

    Raises:
        ConfigError: One file is configured for several slides.
        DataError: A file in the folder would be used for several slides, or a slide has two files.
    """
    if contours.is_file():
        raise ConfigError(
            f"one contour file is configured for {counted(len(slides), 'slide')}",
            where=contours,
            fix="name a folder with one file per slide, named after the slide",
        )
    users: dict[Path, dict[Path, SlidePath]] = {}
    for slide in slides:
        file = _find_contours(contours, slide)
        if file is not None:
            users.setdefault(file, {}).setdefault(slide.path.resolve(), slide)
    shared = {file: list(by_path.values()) for file, by_path in users.items() if len(by_path) > 1}
    if shared:
        listed = [
            f"{file.name} ({shortlist([f'{slide.name}: {slide.path}' for slide in several])})"
            for file, several in shared.items()
        ]
        names = [slide.name for slide in next(iter(shared.values()))]
        raise DataError(
            f"{counted(len(shared), 'contour file')} would be used for several slides: {shortlist(listed)}",
            where=contours,
            fix=f"name one file per slide, such as {names[0]}.geojson and {names[1]}.geojson",
        )


def _find_contours(contours: Path, slide: SlidePath) -> Path | None:
    """Find the contour file of a slide in a folder: named after the slide or its file; None if there is none.

    Raises:
        DataError: There are two files with this name.
    """
    for name in dict.fromkeys((slide.name, slide.path.stem)):
        files = [file for suffix in _CONTOUR_SUFFIXES if (file := contours / (name + suffix)).is_file()]
        if len(files) > 1:
            shown = " and ".join(file.name for file in files)
            raise DataError(
                f"two contour files for slide {slide.name}: {shown}", where=contours, fix="remove one of them"
            )
        if files:
            return files[0]
    return None


def _contour_file(contours: Path, slide: SlidePath, options: OptionNames) -> Path:
    """Return the contour file of a slide.

    Raises:
        DataError: The slide has no contour file, or two.
    """
    file = contours if contours.is_file() else _find_contours(contours, slide)
    if file is None:
        raise DataError(
            f"no contours for this slide in {contours}",
            where=slide.path,
            fix=f"add {slide.name}.geojson, or remove {options.contours} so that tissue is found by colour",
        )
    return file


@dataclass(frozen=True)
class _SlideParts:
    """Overview, tissue and grid of a slide, with its facts."""

    overview: Image.Image
    mask: Bool[np.ndarray, "h w"]
    downsample: float
    grid: SlideGrid
    facts: dict[str, Any]


def _find_tissue_and_grid(
    slide: SlidePath, config: SlidesConfig, contours: Path | None, options: OptionNames
) -> _SlideParts:
    """Read the overview, find the tissue and lay the grid.

    Raises:
        DataError: The slide cannot be read, its levels show different images, or no tile has enough tissue.
    """
    file = open_slide(slide.path)
    try:
        mpp, note = resolve_mpp(file, slide.mpp, slide.path, options, slide.default_mpp)
        doubt = explain_doubtful_mpp(file, mpp, slide.path, options)
        whole = file.levels[0]
        downsample = _overview_downsample(file, mpp, config)
        overview = read_overview(file, downsample)
        check_tile_level(file, overview, downsample, config.mpp / mpp, slide.path)
        check_unread_pages(slide.path, file, overview)
        origin, remark = file.origin, file.remark
    finally:
        file.close()
    if contours is None:
        mask = find_tissue(overview, mpp * downsample)
    else:
        polygons = read_contours(contours, whole.width, whole.height, origin)
        shape = (overview.height, overview.width)
        mask = rasterise([polygon for polygon in polygons if not is_ignored(polygon)], shape, downsample)
        mask &= ~rasterise([polygon for polygon in polygons if is_ignored(polygon)], shape, downsample)
    grid = make_grid(
        slide.name, whole.width, whole.height, mpp, config, TissueShare(mask, downsample).of_squares, options
    )
    if not len(grid):
        raise DataError(
            _no_tissue(mask, grid, config),
            where=slide.path,
            fix=f"lower {options.min_tissue}, or add contours of the tissue ({options.contours}){options.elsewhere}",
        )
    facts = {
        "format": file.format,
        "width": whole.width,
        "height": whole.height,
        "origin": origin,
        "levels": [level.downsample for level in file.levels],
        "mpp": mpp,
        "note": note,
        "doubt": doubt,
        "remark": remark,
        "overview_downsample": downsample,
        "tissue": float(mask.mean()),
        "step": grid.step,
        "tiles": len(grid),
    }
    return _SlideParts(overview, mask, downsample, grid, facts)


def _write(folder: Path, slide: SlidePath, parts: _SlideParts) -> None:
    """Write the overview, the outlines of the tissue and the grid."""
    grid = parts.grid
    with whole_file(folder / OVERVIEW) as temporary:
        parts.overview.save(temporary, format="PNG")
    limit = np.array([grid.width, grid.height])  # the last row and column of the mask may extend beyond the slide
    outlines = [
        Polygon(np.minimum(outline.exterior, limit), tuple(np.minimum(hole, limit) for hole in outline.holes))
        for outline in trace(parts.mask, parts.downsample)
    ]
    write_polygons_geojson(folder / TISSUE, slide.name, outlines, "Tissue", TISSUE_COLOUR)
    write_parquet(folder / GRID, pa.table({"x": grid.x, "y": grid.y, "tissue": grid.tissue}))


def _overview_downsample(slide: SlideFile, mpp: float, config: SlidesConfig) -> float:
    """Return the downsample for finding tissue: 8 micrometres per pixel, or finer for small tiles."""
    target_mpp = min(_OVERVIEW_MPP, config.mpp * config.pixels / 8)
    longest = max(slide.levels[0].width, slide.levels[0].height)
    return max(1.0, target_mpp / mpp, longest / _OVERVIEW_EDGE)


def _no_tissue(mask: Bool[np.ndarray, "h w"], grid: SlideGrid, config: SlidesConfig) -> str:
    cells = grid.shape[0] * grid.shape[1]
    return (
        f"no tissue: none of {counted(cells, 'tile')} contains at least {config.min_tissue:.0%} tissue "
        f"(the whole slide: {float(mask.mean()):.1%})"
    )


def _open(artifact: Artifact, slide: SlidePath, stamp: str, config: SlidesConfig) -> PreparedSlide:
    facts = artifact.manifest.facts
    tiles = min(facts["tiles"], config.tiles_per_slide or facts["tiles"])
    extent = config.pixels * config.mpp / facts["mpp"]
    return PreparedSlide(slide.name, slide.path, stamp, artifact, tiles, extent, config.pixels, facts)


def _draw_tiles(grid: SlideGrid, max_tiles: int) -> SlideGrid:
    """Draw tiles at random, reproducibly, and keep their order."""
    if len(grid) <= max_tiles:
        return grid
    generator = np.random.default_rng(int(fingerprint(["tiles_per_slide", grid.slide]), 16))
    rows = np.sort(generator.permutation(len(grid))[:max_tiles])
    return replace(grid, x=grid.x[rows], y=grid.y[rows], tissue=grid.tissue[rows])
