"""Score the tiles of slides, one table per slide; processes share the slides, and finished slides are skipped."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float32, UInt8

from clipit.distributed import get_processes
from clipit.errors import ArtifactError, DataError, ModelError, counted, disk_errors
from clipit.images.decode import Unreadable, attempt
from clipit.images.device_copies import copy_ahead, stack
from clipit.images.read_ahead import ReadingClock, read_ahead, reading_threads
from clipit.output_files.artifacts import fingerprint, make_folder, reading
from clipit.output_files.leftovers import delete_leftovers
from clipit.output_files.whole_files import write_parquet
from clipit.progress import progress
from clipit.runs.prediction_chunks import PredictionOptions
from clipit.runs.tile_scorer import TileScorer
from clipit.slide_tasks.prompt_draws import draw_similarities, write_draws
from clipit.slides.grid import SlideGrid
from clipit.slides.opening import HEAT_MAP
from clipit.slides.prepare import FailedSlide, PreparedSlide
from clipit.tiles.slide_source import slide_tiles

TILES = "tiles.parquet"
"""Table of a slide's tiles: id, x, y, tissue and one score per class (`score_<class>`)."""
MAPS = ("map.json", "index.html", "overlays", HEAT_MAP, "tiles.geojson", "regions.geojson")
"""Maps of a slide (see `clipit.slide_tasks.map`), which are deleted when its scores change."""
_INPUTS = b"clipit"  # key in the metadata of the Parquet file
_RESTART = "delete this file and start the same command again"


@dataclass(frozen=True)
class TileScores:
    """Scores of a slide's readable tiles.

    Attributes:
        unreadable: Number of tiles that cannot be read.
    """

    grid: SlideGrid
    scores: Float32[np.ndarray, "n c"]
    unreadable: int


def slide_folder(out: Path, slide: str) -> Path:
    """Return the folder of a slide's files."""
    return out / "slides" / slide


def score_tiles(
    slides: Sequence[PreparedSlide], scorer: TileScorer, out: Path, options: PredictionOptions
) -> list[FailedSlide]:
    """Score the tiles of all slides; must be called by all processes, which share the slides.

    Slides that were scored before with the same model and tiles are not scored again. The tables do not depend on the
    number of processes.

    Returns:
        Slides that have no readable tile or can no longer be opened; the same list in all processes.

    Raises:
        ModelError: A score is not finite.
    """
    processes = get_processes()
    listed = enumerate(slides) if processes.main else ()
    pending = processes.broadcast([index for index, slide in listed if not _is_scored(slide, scorer, out)])
    # Largest slides first, so that all processes finish at about the same time.
    pending.sort(key=lambda index: (-slides[index].tiles, index))
    total = sum(slides[index].tiles for index in pending)
    failed: dict[int, str] = {}
    clock = ReadingClock()
    with (
        progress("scoring tiles", total, shown=processes.main) as advance,
        torch.inference_mode(),
        reading_threads(options.workers) as pool,
    ):
        for index in processes.claim(pending):
            slide = slides[index]

            def done(count: int) -> None:
                advance(count * processes.count)

            delete_leftovers(slide_folder(out, slide.name))
            try:
                reason = _score_slide(slide, scorer, out, options.batch_size, pool, clock, done)
            except DataError as error:  # for example, the file is gone
                reason = error.what
            if reason:
                failed[index] = reason
    if processes.main:
        clock.report("scoring tiles", "the number of reader threads (--workers)")
    merged = {index: reason for part in processes.gather(failed) for index, reason in part.items()}
    return [
        FailedSlide(slides[index].name, slides[index].path, reason, "copy the slide again")
        for index, reason in sorted(merged.items())
    ]


def _score_slide(
    slide: PreparedSlide,
    scorer: TileScorer,
    out: Path,
    batch_size: int,
    pool: Any,
    clock: ReadingClock,
    done: Callable[[int], None],
) -> str:
    """Score the tiles of one slide and write its table; return the reason if no tile can be read, otherwise ""."""
    tiles, total = slide_tiles([slide]), slide.tiles

    def read(row: int) -> UInt8[np.ndarray, "3 h w"] | Unreadable:
        image = attempt(lambda: tiles.reader.read(row), tile_id=str(row), where=tiles.reader.where(row))
        return image if isinstance(image, Unreadable) else scorer.pixels(image)

    reasons: dict[int, str] = {}
    draws = None if scorer.draws is None else torch.from_numpy(scorer.draws).to(scorer.device)
    outputs: list[torch.Tensor] = []  # on the device until the slide is done, so that a GPU never waits
    similarities: list[torch.Tensor] = []

    def batches() -> Iterator[tuple[range, torch.Tensor]]:
        for rows, results in read_ahead(_batches(total, batch_size), read, pool, clock=clock):
            readable = []
            for row, result in zip(rows, results, strict=True):
                if isinstance(result, Unreadable):
                    reasons[row] = result.reason
                else:
                    readable.append(result)
            yield rows, stack(readable, scorer.device)

    for rows, pixels in copy_ahead(batches(), scorer.device):
        if len(pixels):
            output, embeddings = scorer.compute(pixels)
            outputs.append(output)
            if draws is not None:
                similarities.append(draw_similarities(embeddings, draws))
        done(len(rows))
    if not outputs:
        return f"no tile can be read ({counted(total, 'tile')}): {next(iter(reasons.values()))}"
    scores = torch.cat(outputs).float().cpu().numpy()
    if not np.isfinite(scores).all():
        raise ModelError(
            "the model's scores are not finite",
            where=slide.path,
            fix="score in float32, on a different device, or check the model's weights",
        )
    if similarities:  # written before the table of tiles, which marks the slide as finished
        (slide_folder(out, slide.name) / TILES).unlink(missing_ok=True)  # may contain scores of other prompts
        cells = slide.grid.cells[[row not in reasons for row in range(total)]]
        pooled = torch.cat(similarities).float().cpu().numpy()
        write_draws(slide_folder(out, slide.name), slide.name, pooled, cells, scorer.classes)
    _write(slide, scorer, out, scores, reasons)
    return ""


def _batches(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


def _write(
    slide: PreparedSlide,
    scorer: TileScorer,
    out: Path,
    scores: Float32[np.ndarray, "n c"],
    reasons: dict[int, str],
) -> None:
    grid = slide.grid
    readable = np.array([row not in reasons for row in range(len(grid))])
    columns = {
        "id": pa.array([name for name, kept in zip(grid.ids, readable, strict=True) if kept], pa.string()),
        "x": grid.x[readable],
        "y": grid.y[readable],
        "tissue": grid.tissue[readable],
        **{f"score_{name}": scores[:, code] for code, name in enumerate(scorer.classes)},
    }
    table = pa.table(columns)
    record = {"inputs": _inputs(slide, scorer), "unreadable": len(reasons), "content": _content(table)}
    table = table.replace_schema_metadata({_INPUTS: json.dumps(record).encode()})
    folder = slide_folder(out, slide.name)
    make_folder(folder)
    _delete_maps(folder)
    write_parquet(folder / TILES, table)


def _content(table: pa.Table) -> str:
    """Compute the SHA-256 of all columns of a table, and of their names and types."""
    digest = hashlib.sha256(str(table.schema.remove_metadata()).encode())
    for column in table.columns:
        if pa.types.is_string(column.type):
            digest.update(json.dumps(column.to_pylist()).encode())
        else:
            digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    return digest.hexdigest()


def _delete_maps(folder: Path) -> None:
    """Delete the maps of earlier scores, the record first, so that maps left by a killed process are not reused."""
    with disk_errors(folder):
        for name in MAPS:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)


def _inputs(slide: PreparedSlide, scorer: TileScorer) -> str:
    """Fingerprint of the model, the slide's file and its tiles."""
    return fingerprint([scorer.identity, slide.identity])


def _record(path: Path) -> dict[str, Any]:
    with reading(path, _RESTART):
        metadata = pq.read_schema(path).metadata or {}
        value = json.loads(metadata.get(_INPUTS, b"{}"))
        return value if isinstance(value, dict) else {}


def _is_scored(slide: PreparedSlide, scorer: TileScorer, out: Path) -> bool:
    path = slide_folder(out, slide.name) / TILES
    return path.is_file() and _record(path).get("inputs") == _inputs(slide, scorer)


def read_scores(slide: PreparedSlide, scorer: TileScorer, out: Path) -> TileScores:
    """Read the scores of a slide's tiles.

    Raises:
        ArtifactError: The table is missing or damaged.
        DataError: The table belongs to a different model or different tiles.
    """
    path = slide_folder(out, slide.name) / TILES
    record = _record(path)
    if record.get("inputs") != _inputs(slide, scorer):
        raise DataError("these scores belong to a different model or different tiles", where=path, fix=_RESTART)
    with reading(path, _RESTART):
        table = pq.read_table(path)
    if "content" in record and record["content"] != _content(table):  # missing in tables of earlier versions
        raise ArtifactError("the scores have changed since they were written", where=path, fix=_RESTART)
    x, y, tissue = (np.asarray(table[name]) for name in ("x", "y", "tissue"))
    scores = np.stack([np.asarray(table[f"score_{name}"]) for name in scorer.classes], axis=1).astype(np.float32)
    grid = slide.grid
    scored_grid = SlideGrid(grid.slide, grid.width, grid.height, grid.mpp, grid.edge, grid.step, x, y, tissue)
    return TileScores(scored_grid, scores, int(record.get("unreadable", 0)))
