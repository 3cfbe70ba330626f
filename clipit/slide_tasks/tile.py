"""Tile slides: write their list, grids and thumbnails with outlines, and optionally the tiles or coordinates."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from clipit.config.data import SlidesConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, as_note, counted, disk_errors
from clipit.images.decode import Unreadable, attempt
from clipit.images.read_ahead import read_ahead, reading_threads
from clipit.output_files.artifacts import (
    file_sha256,
    make_folder,
    read_json,
    whole_file,
    whole_folder,
    write_record,
)
from clipit.output_files.file_hashes import are_unchanged, hash_files
from clipit.output_files.leftovers import delete_leftovers
from clipit.output_files.whole_files import write_frame
from clipit.progress import progress
from clipit.slide_tasks.tile_scores import slide_folder
from clipit.slides.geojson import read_polygons
from clipit.slides.option_names import SLIDES_OPTIONS
from clipit.slides.prepare import GRID, TISSUE, TISSUE_COLOUR, FailedSlide, PreparedSlide, prepare_slides
from clipit.slides.qupath import write_polygons_geojson
from clipit.tiles.slide_source import SlideList, failure_notes, list_failures, resolution_notes, slide_tiles
from clipit.versions import git_commit, versions

logger = logging.getLogger(__name__)

Extra = Literal["png", "h5"]
"""Additional output per slide: tiles as PNG files, or their coordinates in TRIDENT's format."""
SLIDES = "slides.csv"
"""Table of the slides: paths, metadata, and reasons for failures."""
TILING = "tiling.json"
"""Record of options, slides and versions."""
THUMBNAIL, COORDINATES, TILE_FOLDER, RECORD = "tiles.png", "coords.h5", "tiles", "tile.json"
_TISSUE_LINE, _TILE_LINE = (27, 120, 55), (33, 102, 172)


@dataclass(frozen=True)
class SlideOutcome:
    """Prepared and failed slides of a list, in the order of the list.

    Attributes:
        failed: Slides that cannot be used.
    """

    listed: SlideList
    prepared: tuple[PreparedSlide, ...]
    failed: tuple[FailedSlide, ...]

    def label_of(self, name: str) -> str:
        """Return the label of a slide; "" if it has none."""
        labels = (
            label for slide, label in zip(self.listed.slides, self.listed.labels, strict=True) if slide.name == name
        )
        return next(labels)


def prepare_listed(listed: SlideList, config: SlidesConfig) -> SlideOutcome:
    """Prepare the slides of a list; called by all processes.

    Raises:
        DataError: No slide can be used.
    """
    results = prepare_slides(listed.slides, config, SLIDES_OPTIONS)
    failures = {result.name: result for result in results if isinstance(result, FailedSlide)}
    # A slide that one process could not read, for example from a network drive, is dropped by all.
    failed_anywhere = {
        name: slide for part in reversed(get_processes().gather(failures)) for name, slide in part.items()
    }
    results = [failed_anywhere.get(result.name, result) for result in results]
    failed = tuple(result for result in results if isinstance(result, FailedSlide))
    prepared = tuple(result for result in results if isinstance(result, PreparedSlide))
    if get_processes().main:
        for note in [*listed.notes, *failure_notes(failed, len(results)), *resolution_notes(prepared, config)]:
            logger.info(as_note(note))
        for text in dict.fromkeys(
            f"note: {slide.name}: {slide.facts['note']}" for slide in prepared if slide.facts["note"]
        ):
            logger.info(text)
    if not prepared:
        lines, fixes = list_failures(failed)
        raise DataError(f"no slide can be used ({len(failed)} failed):{lines}", where=listed.where, fix=fixes)
    return SlideOutcome(listed, prepared, failed)


def slides_table(outcome: SlideOutcome, failed: Sequence[FailedSlide] = ()) -> pd.DataFrame:
    """Tabulate all slides of a list.

    Columns: slide, path, label, split, group, status (`ok` or `failed`), reason, tiles, mpp, width, height, format and
    tissue (fraction of the slide's area).
    """
    by_name = {slide.name: slide for slide in outcome.prepared}
    reasons = {slide.name: slide.reason for slide in (*outcome.failed, *failed)}
    listed = outcome.listed
    rows = []
    for number, slide in enumerate(listed.slides):
        prepared = by_name.get(slide.name)
        rows.append(
            {
                "slide": slide.name,
                "path": str(slide.path),
                "label": listed.labels[number],
                "split": listed.source_splits[number],
                "group": listed.groups[number],
                "status": "failed" if slide.name in reasons else "ok",
                "reason": reasons.get(slide.name, ""),
                "tiles": prepared.tiles if prepared else 0,
                **{
                    name: prepared.facts[name] if prepared else None
                    for name in ("mpp", "width", "height", "format", "tissue")
                },
            }
        )
    return pd.DataFrame(rows)


def write_slides_table(out: Path, table: pd.DataFrame) -> Path:
    """Write the table of slides to the output folder."""
    make_folder(out)
    write_frame(out / SLIDES, table)
    return out / SLIDES


def tile_slides(listed: SlideList, config: SlidesConfig, out: Path, extras: Sequence[Extra] = ()) -> pd.DataFrame:
    """Find the tissue of slides and lay tile grids over it; called by all processes, which share the slides.

    Writes `slides.csv` and `tiling.json` (options, slides and versions), and for each slide
    `slides/<name>/grid.parquet` (id, x, y, tissue), `tissue.geojson`, the thumbnail `tiles.png` with the outlines of
    tissue and tiles, and the output named in `extras`: the folder `tiles/` of PNG files, or `coords.h5`. Files of a
    slide are kept if they belong to the same tiles and are unchanged (`tile.json`); others are replaced.

    Returns:
        The table of slides.

    Raises:
        DataError: No slide can be used.
        ArtifactError: The files cannot be written.
    """
    processes = get_processes()
    outcome = prepare_listed(listed, config)
    with progress("writing grids", len(outcome.prepared), shown=processes.main) as advance:
        for slide in processes.claim(outcome.prepared):
            folder = slide_folder(out, slide.name)
            make_folder(folder)
            delete_leftovers(folder)
            _write_grid(slide, folder)
            if "h5" in extras:
                write_coordinates(slide, folder / COORDINATES, config)
            if "png" in extras:
                _write_tiles(slide, folder / TILE_FOLDER)
            advance(processes.count)
    table = slides_table(outcome)
    if processes.main:
        write_slides_table(out, table)
        record = {
            "tiles": config.model_dump(mode="json", exclude={"grids"}),
            "slides": {slide.name: slide.stamp for slide in outcome.prepared},
            "commit": git_commit(),
            "versions": versions(),
        }
        write_record(out / TILING, record)
    processes.barrier()
    return table


def _write_grid(slide: PreparedSlide, folder: Path) -> None:
    """Write grid, tissue and thumbnail, unless they are unchanged, and delete the output of other tiles."""
    grid, record = slide.grid, folder / RECORD
    inputs = {"tiles": slide.identity, "tissue": file_sha256(slide.tissue)}
    recorded = dict(read_json(record, "delete this file and start the same command again")) if record.is_file() else {}
    files = recorded.pop("files", None)  # missing in records of earlier versions
    if recorded == inputs:
        present = all((folder / name).is_file() for name in (GRID, TISSUE, THUMBNAIL))
        if present and are_unchanged(folder, (GRID, TISSUE, THUMBNAIL), files):
            return
        logger.info(f"note: {slide.name}: writing its grid, tissue and thumbnail again, because they have changed")
    elif outdated := [name for name in (COORDINATES, TILE_FOLDER) if (folder / name).exists()]:
        logger.info(f"note: {slide.name}: deleting {' and '.join(outdated)}, which may belong to other tiles")
        (folder / COORDINATES).unlink(missing_ok=True)
        shutil.rmtree(folder / TILE_FOLDER, ignore_errors=True)
    record.unlink(missing_ok=True)
    with whole_file(folder / GRID) as temporary:
        pd.DataFrame({"id": grid.ids, "x": grid.x, "y": grid.y, "tissue": grid.tissue}).to_parquet(
            temporary, index=False
        )
    if slide.origin == (0, 0):
        with whole_file(folder / TISSUE) as temporary:
            shutil.copyfile(slide.tissue, temporary)
    else:
        outlines = [outline.shifted(-slide.origin[0], -slide.origin[1]) for outline in read_polygons(slide.tissue)[0]]
        write_polygons_geojson(folder / TISSUE, slide.name, outlines, "Tissue", TISSUE_COLOUR)
    with whole_file(folder / THUMBNAIL) as temporary:
        draw_outlines(slide).save(temporary, format="PNG")
    write_record(record, inputs | {"files": hash_files(folder, (GRID, TISSUE, THUMBNAIL))})


def draw_outlines(slide: PreparedSlide) -> Image.Image:
    """Draw the outlines of the tissue and of the tiles over the overview of a slide."""
    grid, downsample = slide.grid, float(slide.facts["overview_downsample"])
    with Image.open(slide.overview) as stored:
        image = stored.convert("RGB")
    scale = max(1, round(1000 / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BILINEAR)
    draw, factor = ImageDraw.Draw(image), scale / downsample
    for x, y in zip((grid.x * factor).tolist(), (grid.y * factor).tolist(), strict=True):
        draw.rectangle((x, y, x + grid.edge * factor, y + grid.edge * factor), outline=_TILE_LINE)
    for polygon in read_polygons(slide.tissue)[0]:
        for ring in (polygon.exterior, *polygon.holes):
            draw.line([tuple(point) for point in (ring * factor).tolist()], fill=_TISSUE_LINE, width=2)
    return image


def _write_tiles(slide: PreparedSlide, folder: Path) -> None:
    """Write every tile as a PNG file; the folder is written atomically. Unreadable tiles are skipped and counted.

    Raises:
        DataError: The slide cannot be opened.
    """
    if folder.is_dir():
        return
    tiles = slide_tiles([slide])
    batches = [range(start, min(start + 64, len(tiles))) for start in range(0, len(tiles), 64)]
    with whole_folder(folder) as partial, disk_errors(folder), reading_threads() as pool:

        def write(row: int) -> str:
            image = attempt(lambda: tiles.reader.read(row), tile_id=tiles.ids[row], where=tiles.reader.where(row))
            if isinstance(image, Unreadable):
                return image.reason
            image.save(partial / f"{tiles.ids[row]}.png", format="PNG")
            return ""

        reasons = [reason for _, results in read_ahead(batches, write, pool) for reason in results if reason]
    if reasons:
        logger.warning(
            f"{slide.name}: skipped {len(reasons)} of {counted(len(tiles), 'tile')} (unreadable): {reasons[0]}"
        )


def write_coordinates(slide: PreparedSlide, path: Path, config: SlidesConfig) -> None:
    """Write the coordinates of the tiles in TRIDENT's format: dataset `coords` [n, 2] with attributes."""
    import h5py

    grid = slide.grid
    attributes: dict[str, Any] = {
        "name": slide.name,
        "patch_size": slide.pixels,
        "patch_size_level0": grid.edge,
        "level0_magnification": round(10 / grid.mpp),
        "target_magnification": round(10 / config.mpp),
        "overlap": round(slide.pixels * config.overlap),
        "level0_width": grid.width,
        "level0_height": grid.height,
    }
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        coords = file.create_dataset("coords", data=np.stack([grid.x, grid.y], axis=1).astype(np.int64))
        for name, value in attributes.items():
            coords.attrs[name] = value
