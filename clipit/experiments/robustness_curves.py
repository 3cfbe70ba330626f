"""Robustness curves: the same perturbed tiles through every model."""

import numpy as np
from jaxtyping import Float32

from clipit.config import Config
from clipit.distributed import processes
from clipit.evaluation.perturb import PERTURBATIONS, perturb
from clipit.experiments.robustness_rows import Row, score_cell
from clipit.experiments.robustness_subjects import Subject
from clipit.progress import progress
from clipit.tiles.augment import tile_keys
from clipit.tiles.tileset import TileSet

CLEAN = "none"
_CHUNK = 16
"""Tiles perturbed at once."""

Place = tuple[str, float | None, str, str]
"""Perturbation, level, subject, reading."""


def curve_rows(config: Config, tiles: TileSet, subjects: list[Subject]) -> list[Row]:
    """Scores of every subject at every level; the same perturbed tiles for all. In the main process; none elsewhere.

    The stored tile is perturbed, before a model's own resizing, so that models with other inputs see the same change.
    """
    found, untouched = _perturbed(config, tiles, subjects)
    if not processes().main:
        return []
    rows = []
    for (name, level, subject, reading), probabilities in found.items():
        clean = None if name == CLEAN else found[CLEAN, None, subject, reading]
        rows.append(
            {"what": "curve", "subject": subject, "reading": reading, "part": "test", "perturbation": name}
            | {"level": level, "unit": "" if name == CLEAN else PERTURBATIONS[name].unit}
            | {"untouched": untouched.get((name, level), 0)}
            | score_cell(config, tiles, probabilities, clean)
        )
    return rows


def _perturbed(
    config: Config, tiles: TileSet, subjects: list[Subject]
) -> tuple[dict[Place, Float32[np.ndarray, "n c"]], dict[tuple[str, float | None], int]]:
    """Probabilities of all tiles at every level, and how many tiles each level left untouched."""
    here, keys = processes(), tile_keys(tiles.ids.tolist())
    levels: list[tuple[str, float | None]] = [(CLEAN, None)]
    levels += [(name, float(level)) for name, asked in config.robustness.perturbations.items() for level in asked]
    starts = list(range(0, len(tiles), _CHUNK))
    own: dict[int, tuple[dict[Place, np.ndarray], dict[tuple[str, float | None], int]]] = {}
    with progress("perturbing tiles", len(starts), shown=here.main) as advance:
        for start in here.share(starts):
            rows = np.arange(start, min(start + _CHUNK, len(tiles)))
            pictures = [np.asarray(tiles.read(row)).transpose(2, 0, 1) for row in rows]
            answers: dict[Place, np.ndarray] = {}
            counts: dict[tuple[str, float | None], int] = {}
            for name, level in levels:
                changed = pictures
                if level is not None:
                    changed, counts[name, level] = _changed(pictures, name, level, keys[rows], config.robustness.seed)
                for place, found in _answers(subjects, changed).items():
                    answers[(name, level, *place)] = found
            own[start] = (answers, counts)
            advance(here.count)
    merged = {start: found for share in here.gather(own) for start, found in share.items()}
    chunks = [merged[start] for start in starts]
    places = list(chunks[0][0]) if chunks else []
    probabilities = {place: np.concatenate([answers[place] for answers, _ in chunks]) for place in places}
    return probabilities, {at: sum(counts.get(at, 0) for _, counts in chunks) for at in levels}


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


def _answers(subjects: list[Subject], pictures: list[np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """(subject, reading) -> probabilities; models with the same preprocessing share its work."""
    from PIL import Image

    inputs: dict[str, np.ndarray] = {}
    found = {}
    for subject in subjects:
        wanted = subject.preprocess
        if wanted.hash not in inputs:
            images = [Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))) for picture in pictures]
            inputs[wanted.hash] = np.stack([wanted.pixels(image) for image in images])
        vectors = subject.forward(inputs[wanted.hash])
        for reading, answer in subject.answers.items():
            found[subject.name, reading] = answer(vectors[reading])
    return found
