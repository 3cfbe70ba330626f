"""Ways to make zero-shot classifiers of the texts of a prompt set: single, ensemble, sampled, screened."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped

from clipit.errors import DataError, explain
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.predictions import softmax
from clipit.evaluation.zero_shot import TextVectors, class_means, unit_rows, zero_shot_probabilities

_BLOCK = 4096
"""Tiles whose cosines are in memory at once."""


@dataclass(frozen=True)
class Spread:
    """A score over several classifiers: median, quartiles and extremes (linear interpolation), and how many."""

    median: float
    lower: float
    upper: float
    lowest: float
    highest: float
    n: int


def single(texts: TextVectors) -> Float32[np.ndarray, "C D"]:
    """Each class's first name in the first template.

    Order of operations: the text's unit vector, nothing else. This is PLIP's protocol (one name, one template); which
    text it is, is chosen by the author of the prompt set.
    """
    return np.asarray(texts.vectors[_first_rows(texts)])


def ensemble(texts: TextVectors) -> Float32[np.ndarray, "C D"]:
    """Each class's mean over all its names and templates.

    Order of operations: unit vector per text; mean; unit length. CONCH's and CLIP_benchmark's protocol.
    """
    return class_means(texts)


def sampled(texts: TextVectors, draws: int, seed: int) -> Int64[np.ndarray, "draws C"]:
    """Rows of `texts` that make random classifiers: per draw one name of each class and one template for all classes.

    Order of operations: draw the template, then a name per class, each with equal chances and independent of all other
    draws (equal draws can occur); the classifier is the texts' unit vectors. After KEP, whose published sets are 100
    such draws; MI-Zero draws one name per class and a random subset of the templates, 50 times. Both report medians.

    Args:
        texts: Of `embed_prompts`.
        draws: Number of classifiers.
        seed: Of the draws; they depend on it and on the numbers of names and templates only.
    """
    rng = np.random.default_rng(seed)
    n_names = _name_counts(texts)
    first = _first_rows(texts)
    n_templates = int(texts.template_of.max()) + 1
    template = rng.integers(0, n_templates, size=(draws, 1))
    name = rng.integers(0, n_names, size=(draws, len(n_names)))
    rows: Int64[np.ndarray, "draws C"] = first + name * n_templates + template
    return rows


def candidates(texts: TextVectors, most: int, seed: int) -> Int64[np.ndarray, "N C"]:
    """All classifiers of one name per class and one template for all, if there are at most `most`; else `most` draws.

    KEEP lists all of them (its CAMELYON screening has 6 x 5 names x 22 templates = 660).
    """
    n_names = _name_counts(texts)
    n_templates = int(texts.template_of.max()) + 1
    if math.prod(n_names.tolist()) * n_templates > most:
        return sampled(texts, most, seed)
    places = np.indices((*n_names.tolist(), n_templates)).reshape(len(n_names) + 1, -1).T
    rows: Int64[np.ndarray, "N C"] = _first_rows(texts) + places[:, :-1] * n_templates + places[:, -1:]
    return rows


def screening_scores(
    texts: TextVectors, rows: Int64[np.ndarray, "N C"], tiles: Float32[np.ndarray, "n D"], logit_scale: float
) -> Float[np.ndarray, " N"]:
    """How decided each classifier is about unlabelled tiles: mean of (max - second) - |max + second - 1|.

    Max and second are a tile's two largest probabilities (softmax of `logit_scale` times cosine). After KEEP's prompt
    screening. With two classes the second term is 0.

    Raises:
        DataError: There is no tile, or an embedding is not finite or of length 0.
    """
    if not len(tiles):
        raise DataError(explain("no tiles to screen prompts with", where="zero_shot", fix="give some training tiles"))
    total = np.zeros(len(rows))
    for start in range(0, len(tiles), _BLOCK):
        block = tiles[start : start + _BLOCK].astype(np.float64)
        unit = unit_rows(block, range(start, start + len(block)))
        cosines = unit @ texts.vectors.T.astype(np.float64)
        for number, row in enumerate(rows):
            two = np.sort(softmax(logit_scale * cosines[:, row]).astype(np.float64), axis=1)[:, -2:]
            second, largest = two[:, 0], two[:, 1]
            total[number] += ((largest - second) - np.abs(largest + second - 1)).sum()
    scores: Float[np.ndarray, " N"] = total / len(tiles)
    return scores


def screened(
    texts: TextVectors,
    tiles: Float32[np.ndarray, "n D"],
    splits: Shaped[np.ndarray, " n"],
    *,
    share: float,
    most: int,
    seed: int,
    logit_scale: float,
) -> Float32[np.ndarray, "C D"]:
    """The mean of the classifiers that are most decided about unlabelled training tiles.

    Order of operations: `candidates`; `screening_scores` on the tiles; keep the top share (at least one, ties to the
    earlier candidate); sum the kept texts' unit vectors per class; unit length. KEEP's protocol (it keeps 50 of 660 to
    1782, and screens on the tiles of the slide that it classifies; here only training tiles are allowed).

    Args:
        texts: Of `embed_prompts`.
        tiles: Image embeddings in the space of `texts` (centred, if these are).
        splits: Split of each tile.
        share: Share of the candidates to keep, above 0 and at most 1.
        most: Most candidates.
        seed: Of the draws, when there are more combinations than `most`.
        logit_scale: As in `zero_shot_probabilities`; here it matters.

    Raises:
        DataError: A tile is not a training tile, or there is none; or the kept texts of a class cancel out.
    """
    outside = np.unique(splits[splits != "train"]).tolist()
    if outside:
        raise DataError(
            explain(
                f"prompts screened with tiles of the split {', '.join(outside)}",
                where="zero_shot",
                fix="give training tiles only: what is chosen on tiles must not be reported on them",
            )
        )
    rows = candidates(texts, most, seed)
    scores = screening_scores(texts, rows, tiles, logit_scale)
    # Rounded: which of two equal candidates is kept must not hang on the last bit of a sum.
    kept = np.argsort(-scores.round(9), kind="stable")[: max(1, round(share * len(rows)))]
    return unit_rows(texts.vectors[rows[kept]].astype(np.float64).sum(axis=0), texts.classes).astype(np.float32)


def sampled_scores(
    texts: TextVectors,
    rows: Int64[np.ndarray, "N C"],
    tiles: Float32[np.ndarray, "n D"],
    labels: Int64[np.ndarray, " n"],
    logit_scale: float,
) -> list[dict[str, float | None]]:
    """`compute_metrics` of every classifier of `rows` on n labelled tiles; the protocol reports their median."""
    return [compute_metrics(labels, zero_shot_probabilities(tiles, texts.vectors[row], logit_scale)) for row in rows]


def spread(values: Sequence[float | None]) -> Spread | None:
    """Median, quartiles and extremes of scores; None when there is none, or one of them is undefined."""
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return None
    lowest, lower, median, upper, highest = np.quantile(defined, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return Spread(median, lower, upper, lowest, highest, len(defined))


def _name_counts(texts: TextVectors) -> Int64[np.ndarray, " C"]:
    return np.array([texts.name_of[texts.class_of == c].max() + 1 for c in range(len(texts.classes))], dtype=np.int64)


def _first_rows(texts: TextVectors) -> Int64[np.ndarray, " C"]:
    return np.searchsorted(texts.class_of, np.arange(len(texts.classes))).astype(np.int64)
