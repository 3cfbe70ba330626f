"""Map slides: overlays, heat maps, QuPath files and a page per slide; an interrupted command resumes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32

from clipit.distributed import get_processes
from clipit.errors import counted
from clipit.evaluation.slide_scores import SCORE_PREFIX
from clipit.evaluation.slide_sets import PoolingKey
from clipit.output_files.artifacts import file_sha256, fingerprint, read_json, write_record
from clipit.output_files.file_hashes import are_unchanged, hash_files
from clipit.output_files.leftovers import delete_leftovers
from clipit.output_files.whole_files import write_text
from clipit.progress import progress
from clipit.reporting.heat_map_tiff import write_heat_map_tiff
from clipit.reporting.heat_maps import class_colours, write_overlays
from clipit.reporting.slide_page import OVERVIEW_PIXELS, Neighbour, SlidePage, TopTile, slide_page, top_rows
from clipit.reporting.thumbnails import picture_uri
from clipit.runs.text_neighbours import TextNeighbours
from clipit.runs.tile_scorer import TileScorer
from clipit.slide_tasks.score import PAGE as INDEX
from clipit.slide_tasks.score import ScoredSlides, chosen_pooling, embedded_caution
from clipit.slide_tasks.tile_scores import MAPS, TILES, TileScores, read_scores, slide_folder
from clipit.slides.geojson import read_polygons
from clipit.slides.opening import HEAT_MAP
from clipit.slides.prepare import PreparedSlide
from clipit.slides.qupath import write_regions_geojson, write_tiles_geojson
from clipit.slides.whole import read_whole
from clipit.tiles.slide_source import slide_tiles

RECORD, PAGE, OVERLAYS, _, TILES_QUPATH, REGIONS_QUPATH = MAPS
logger = logging.getLogger(__name__)

_NEIGHBOURS = 3  # texts shown per tile
_PICTURE = 128  # edge length of a tile's picture in pixels
_RESTART = "delete this file and start the same command again"


@dataclass(frozen=True)
class MapOptions:
    """Content of slide pages.

    Attributes:
        snippets: Report snippets; those nearest to each top tile are shown. None for no snippets.
    """

    top: int = 8
    snippets: TextNeighbours | None = None

    @property
    def identity(self) -> str:
        """Fingerprint of the options."""
        return fingerprint([self.top, None if self.snippets is None else list(self.snippets.sources)])


def map_slides(scored: ScoredSlides, scorer: TileScorer, out: Path, options: MapOptions) -> dict[str, str]:
    """Write the maps of all scored slides; called by all processes, which share the slides.

    For each slide, writes to `slides/<name>/`: `overlays/` (a picture of each class and of the most probable class),
    `heat_map.ome.tif`, `tiles.geojson` and `regions.geojson` for QuPath, the page `index.html`, and last `map.json`. A
    slide whose `map.json` belongs to the same scores and options is not mapped again, unless a file is missing or its
    SHA-256 differs from the one in `map.json`.

    Args:
        options: Content of the pages.

    Returns:
        Path of each slide's page, relative to the output folder.

    Raises:
        ArtifactError: A file cannot be written, for example because the disk is full.
    """
    processes = get_processes()
    chosen = chosen_pooling(scored, scorer)
    candidates = scored.prepared if processes.main else ()
    missing = processes.broadcast(
        [slide.name for slide in candidates if not _is_mapped(slide, scored, out, options, chosen)]
    )
    changed = [name for name in missing if (slide_folder(out, name) / RECORD).is_file()] if processes.main else []
    if changed:
        logger.info(
            f"note: mapping {counted(len(changed), 'slide')} again, because scores, labels or options have changed, or "
            "map files are missing or have changed"
        )
    by_name = {slide.name: slide for slide in scored.prepared}
    with progress("mapping slides", len(missing), shown=processes.main and bool(missing)) as advance:
        for name in processes.claim(missing):
            _map_slide(by_name[name], scored, scorer, out, options, chosen)
            advance(processes.count)
    processes.barrier()
    return {slide.name: f"slides/{slide.name}/{PAGE}" for slide in scored.prepared}


def _inputs(
    slide: PreparedSlide, scored: ScoredSlides, out: Path, options: MapOptions, chosen: PoolingKey | None
) -> dict[str, Any]:
    scores = file_sha256(slide_folder(out, slide.name) / TILES)
    inputs = {"scores": scores, "label": scored.outcome.label_of(slide.name), "options": options.identity}
    return inputs | ({"chosen": chosen.title} if chosen else {})


def _is_mapped(
    slide: PreparedSlide, scored: ScoredSlides, out: Path, options: MapOptions, chosen: PoolingKey | None
) -> bool:
    folder = slide_folder(out, slide.name)
    record = folder / RECORD
    if not all((folder / name).exists() for name in MAPS):
        return False
    recorded = dict(read_json(record, _RESTART))
    files = recorded.pop("files", None)  # missing in records of earlier versions
    same = recorded == _inputs(slide, scored, out, options, chosen)
    return same and are_unchanged(folder, MAPS[1:], files)


def _map_slide(
    slide: PreparedSlide,
    scored: ScoredSlides,
    scorer: TileScorer,
    out: Path,
    options: MapOptions,
    chosen: PoolingKey | None,
) -> None:
    folder, tiles = slide_folder(out, slide.name), read_scores(slide, scorer, out)
    (folder / RECORD).unlink(missing_ok=True)
    delete_leftovers(folder)
    grid, classes = tiles.grid, scorer.classes
    probabilities = scorer.probabilities(tiles.scores)
    colours = class_colours(len(classes))
    write_tiles_geojson(folder / TILES_QUPATH, grid, classes, probabilities, colours, slide.origin)
    write_regions_geojson(folder / REGIONS_QUPATH, grid, classes, probabilities, colours, slide.origin)
    write_heat_map_tiff(folder / HEAT_MAP, grid, classes, probabilities)
    label = scored.outcome.label_of(slide.name)
    overview = read_whole(slide, OVERVIEW_PIXELS)
    write_overlays(folder / OVERLAYS, overview, grid, classes, probabilities, colours)
    content = SlidePage(
        grid=grid,
        classes=classes,
        scores=probabilities,
        overview=overview,
        tissue=read_polygons(slide.tissue)[0],
        facts={
            **({"label": label} if label else {}),
            "format": slide.facts["format"],
            "tissue": f"{slide.facts['tissue']:.0%} of the area",
            **({"resolution from": slide.facts["note"]} if slide.facts["note"] else {}),
            **scored.facts,
        },
        slide_scores=pooled_scores(scored.table, slide.name, classes, chosen),
        top=_top_tiles(slide, tiles, probabilities, scorer, options),
        note=embedded_caution(scorer),
        index=f"../../{INDEX}",
        colours=colours,
    )
    write_text(folder / PAGE, slide_page(content))
    files = hash_files(folder, MAPS[1:])
    write_record(folder / RECORD, _inputs(slide, scored, out, options, chosen) | {"files": files})


def pooled_scores(
    table: pd.DataFrame, slide: str, classes: Sequence[str], chosen: PoolingKey | None = None
) -> Mapping[str, Sequence[float]]:
    """Return the scores of a slide by pooling, unsmoothed ones first; the chosen pooling method is marked."""
    rows = table[table["slide"] == slide]
    scores = rows[[f"{SCORE_PREFIX}{name}" for name in classes]].to_numpy(dtype=float).tolist()
    titles = [
        f"{pooling}{', smoothed' if smoothed else ''}"
        f"{' (chosen on validation slides)' if chosen == (pooling, smoothed) else ''}"
        for pooling, smoothed in zip(rows["pooling"], rows["smoothed"], strict=True)
    ]
    return dict(zip(titles, scores, strict=True))


def _top_tiles(
    slide: PreparedSlide,
    tiles: TileScores,
    probabilities: Float32[np.ndarray, "n c"],
    scorer: TileScorer,
    options: MapOptions,
) -> list[list[TopTile]]:
    """Read the top tiles of each class, and find the texts nearest to them."""
    chosen = top_rows(tiles.grid, probabilities, options.top)
    rows = sorted({row for of_class in chosen for row in of_class})
    row_of = {tile_id: row for row, tile_id in enumerate(slide.grid.ids)}  # including unreadable tiles
    images = slide_tiles([slide])
    ids = tiles.grid.ids
    grid_rows = {row: row_of[ids[row]] for row in rows}
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack([scorer.pixels(images.read(grid_rows[row])) for row in rows]))
        embedded = scorer.compute(pixels.to(scorer.device))[1]
    texts: dict[str, list[list[Neighbour]]] = {}
    for kind, known in (("prompts", scorer.prompts), ("snippets", options.snippets)):
        if embedded is None or known is None:
            texts[kind] = [[] for _ in rows]
            continue
        nearest = known.nearest(embedded.float().cpu().numpy(), _NEIGHBOURS)
        texts[kind] = [
            [Neighbour(known.texts[text], cosine, known.sources[text]) for text, cosine in of_tile]
            for of_tile in nearest
        ]
    shown = {}
    for number, row in enumerate(rows):
        picture = picture_uri(images, grid_rows[row], side=_PICTURE, quality=80)
        shown[row] = TopTile(row, picture, texts["prompts"][number], texts["snippets"][number])
    return [[shown[row] for row in of_class] for of_class in chosen]
