"""Robustness curves, and adaptation along them: the same perturbed tiles through every model."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float32

from clipit.config.run import RunConfig
from clipit.config.studies import RobustnessConfig
from clipit.distributed import get_processes
from clipit.evaluation.perturb import PERTURBATIONS, perturb
from clipit.progress import progress
from clipit.studies.robustness.adaptation import Known, adapted_rows
from clipit.studies.robustness.scores import Row, score_cell
from clipit.studies.robustness.subjects import Subject, Vectors
from clipit.tiles.augment import tile_keys
from clipit.tiles.tileset import TileSet

CLEAN = "none"
_CHUNK = 16
"""Tiles perturbed at once."""


def curve_rows(
    config: RunConfig,
    settings: RobustnessConfig,
    tiles: TileSet,
    subjects: list[Subject],
    known: Mapping[str, Known],
) -> list[Row]:
    """Scores of every subject at every level, and of every adaptation there. In the main process; none elsewhere.

    The stored tile is perturbed, before a model's own resizing, so that models with other inputs see the same change.
    One level is in memory at a time; the tiles are read anew for each.

    Args:
        config: Configuration of the runs.
        settings: Section of the study.
        tiles: Test tiles, all with a label.
        subjects: Models.
        known: Subject -> of the training's origin, which adaptation needs.
    """
    levels: list[tuple[str, float | None]] = [(CLEAN, None)]
    levels += [(name, float(level)) for name, asked in settings.perturbations.items() for level in asked]
    clean: dict[tuple[str, str], Float32[np.ndarray, "n c"]] = {}
    rows: list[Row] = []
    processes = get_processes()
    with progress("perturbing tiles", len(levels) * -(-len(tiles) // _CHUNK), shown=processes.main) as advance:
        for name, level in levels:
            found, untouched = _perturbed(settings, tiles, subjects, name, level, advance)
            if not processes.main:
                continue
            unit = "" if level is None else PERTURBATIONS[name].unit
            at = {"part": "test", "perturbation": name, "level": level, "unit": unit, "untouched": untouched}
            for subject in subjects:
                for reading, answer in subject.answers.items():
                    probabilities = answer(found[subject.name][reading])
                    before = clean.get((subject.name, reading))
                    if level is None:
                        clean[subject.name, reading] = probabilities
                    cell = score_cell(config, settings, tiles, probabilities, before, config.evaluation.bootstrap)
                    rows.append({"what": "curve", "subject": subject.name, "reading": reading} | at | cell)
                if level is not None and settings.adaptation:  # settings to count the guard's errors over
                    here_known, where = known[subject.name], f"{name} {level:g}"
                    adapted = adapted_rows(config, settings, tiles, subject, found[subject.name], here_known, where)
                    rows += [row | at for row in adapted]
    return rows


def _perturbed(
    settings: RobustnessConfig,
    tiles: TileSet,
    subjects: list[Subject],
    name: str,
    level: float | None,
    advance: Callable[[int], None],
) -> tuple[dict[str, Vectors], int]:
    """Subject -> vectors of all tiles at one level, and how many tiles it left untouched; the processes share them."""
    processes, keys = get_processes(), tile_keys(tiles.ids.tolist())
    starts = list(range(0, len(tiles), _CHUNK))
    own: dict[int, tuple[dict[str, Vectors], int]] = {}
    for start in processes.share(starts):
        rows = np.arange(start, min(start + _CHUNK, len(tiles)))
        pictures, untouched = [np.asarray(tiles.read(row)).transpose(2, 0, 1) for row in rows], 0
        if level is not None:
            pictures, untouched = _changed(pictures, name, level, keys[rows], settings.seed)
        own[start] = (_vectors(subjects, pictures), untouched)
        advance(processes.count)
    merged = {start: found for share in processes.gather(own) for start, found in share.items()}
    chunks = [merged[start] for start in starts]
    joined = {
        subject.name: {
            reading: np.concatenate([found[subject.name][reading] for found, _ in chunks])
            for reading in subject.answers
        }
        for subject in subjects
    }
    return joined, sum(untouched for _, untouched in chunks)


def _changed(
    pictures: list[np.ndarray], name: str, level: float, keys: np.ndarray, seed: int
) -> tuple[list[np.ndarray], int]:
    """Pictures of any sizes, perturbed in batches of one size; and how many were left untouched."""
    changed: list[np.ndarray] = list(pictures)
    untouched = 0
    for shape in sorted({picture.shape for picture in pictures}):
        rows = [i for i, picture in enumerate(pictures) if picture.shape == shape]
        found = perturb(np.stack([pictures[i] for i in rows]), name, level, keys[rows], seed)
        untouched += int(found.untouched.sum())
        for i, pixels in zip(rows, found.pixels, strict=True):
            changed[i] = pixels
    return changed, untouched


def _vectors(subjects: list[Subject], pictures: list[np.ndarray]) -> dict[str, Vectors]:
    """Subject -> reading -> vectors; models with the same preprocessing share its work."""
    from PIL import Image

    inputs: dict[str, np.ndarray] = {}
    found = {}
    for subject in subjects:
        wanted = subject.preprocess
        if wanted.hash not in inputs:
            images = [Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))) for picture in pictures]
            inputs[wanted.hash] = np.stack([wanted.pixels(image) for image in images])
        found[subject.name] = subject.forward(inputs[wanted.hash])
    return found
