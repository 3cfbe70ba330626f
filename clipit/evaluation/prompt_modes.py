"""Build zero-shot classifiers from a prompt set: single prompt, random draws, and screened prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped

from clipit.errors import DataError
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.predictions import softmax
from clipit.evaluation.zero_shot import TextVectors, unit_rows, zero_shot_probabilities

_BLOCK = 4096
"""Number of tiles whose cosines are held in memory at once."""


@dataclass(frozen=True)
class ScoreSummary:
    """Median, quartiles and extremes of a score over several classifiers (linear interpolation)."""

    median: float
    lower: float
    upper: float
    lowest: float
    highest: float


def single_prompt(texts: TextVectors) -> Float32[np.ndarray, "C D"]:
    """Return the embedding of each class's first name in the first template.

    This is PLIP's protocol (one name, one template). The result depends on the order of names and templates in the
    prompt set.
    """
    return np.asarray(texts.vectors[_first_rows(texts)])


def sample_classifiers(texts: TextVectors, draws: int, seed: int) -> Int64[np.ndarray, "draws C"]:
    """Draw random classifiers: for each, one name per class and one template for all classes.

    The template is drawn first, then a name per class, uniformly and independently (draws can repeat). A classifier
    is returned as one row number of `texts` per class; its weights are the unit vectors in these rows. KEP's published
    sets are 100 such draws; MI-Zero draws one name per class and a random subset of the templates, 50 times. Both
    report medians.

    Args:
        texts: Embedded prompts from `embed_prompt_set`.
        draws: Number of classifiers.
        seed: Seed for the draws, which otherwise depend only on the numbers of names and templates.
    """
    rng = np.random.default_rng(seed)
    n_names = _name_counts(texts)
    n_templates = int(texts.template_of.max()) + 1
    template = rng.integers(0, n_templates, size=(draws, 1))
    name = rng.integers(0, n_names, size=(draws, len(n_names)))
    rows: Int64[np.ndarray, "draws C"] = _first_rows(texts) + name * n_templates + template
    return rows


def candidate_classifiers(texts: TextVectors, limit: int, seed: int) -> Int64[np.ndarray, "N C"]:
    """Enumerate all classifiers with one name per class and a shared template; above `limit`, draw `limit` at random.

    KEEP enumerates all of them (its CAMELYON screening has 6 x 5 names x 22 templates = 660).
    """
    n_names = _name_counts(texts)
    n_templates = int(texts.template_of.max()) + 1
    if math.prod(n_names.tolist()) * n_templates > limit:
        return sample_classifiers(texts, limit, seed)
    combinations = np.indices((*n_names.tolist(), n_templates)).reshape(len(n_names) + 1, -1).T
    rows: Int64[np.ndarray, "N C"] = _first_rows(texts) + combinations[:, :-1] * n_templates + combinations[:, -1:]
    return rows


def screening_scores(
    texts: TextVectors, rows: Int64[np.ndarray, "N C"], tiles: Float32[np.ndarray, "n D"], logit_scale: float
) -> Float[np.ndarray, " N"]:
    """Compute the confidence of each classifier on unlabelled tiles: mean of (max - second) - |max + second - 1|.

    Max and second are a tile's two largest probabilities (softmax of `logit_scale` times cosine). This follows KEEP's
    prompt screening. With two classes the second term is 0.

    Raises:
        DataError: There are no tiles, or an embedding is zero or not finite.
    """
    if not len(tiles):
        raise DataError("no training tiles to select prompts with", where="prompt_study", fix="add training tiles")
    total = np.zeros(len(rows))
    for start in range(0, len(tiles), _BLOCK):
        block = tiles[start : start + _BLOCK].astype(np.float64)
        cosines = unit_rows(block, range(start, start + len(block))) @ texts.vectors.T.astype(np.float64)
        for number, row in enumerate(rows):
            top_two = np.sort(softmax(logit_scale * cosines[:, row]).astype(np.float64), axis=1)[:, -2:]
            second, largest = top_two[:, 0], top_two[:, 1]
            total[number] += ((largest - second) - np.abs(largest + second - 1)).sum()
    scores: Float[np.ndarray, " N"] = total / len(tiles)
    return scores


def screened_prompts(
    texts: TextVectors,
    tiles: Float32[np.ndarray, "n D"],
    splits: Shaped[np.ndarray, " n"],
    *,
    share: float,
    limit: int,
    seed: int,
    logit_scale: float,
) -> Float32[np.ndarray, "C D"]:
    """Average the classifiers that are most confident on unlabelled training tiles.

    Score all `candidate_classifiers` with `screening_scores`, keep the top share (at least one; ties go to the earlier
    candidate), sum the unit vectors of the kept texts per class, and normalise. KEEP's protocol keeps 50 of 660 to 1782
    classifiers and screens on the tiles of the slide to be classified; here, only training tiles are allowed.

    Args:
        texts: Embedded prompts from `embed_prompt_set`.
        tiles: Image embeddings in the space of `texts`; centred if the texts are centred.
        share: Fraction of the candidates to keep, above 0 and at most 1.
        limit: Maximum number of candidates.
        seed: Seed for the draws, used when there are more combinations than `limit`.
        logit_scale: Logit scale of `zero_shot_probabilities`; it affects the selection.

    Raises:
        DataError: There are no tiles, a tile is not a training tile, or the kept texts of a class cancel out.
    """
    outside = np.unique(splits[splits != "train"]).tolist()
    if outside:
        raise DataError(
            f"prompts cannot be screened with tiles of the split {', '.join(outside)}",
            where="prompt_study",
            fix="use training tiles only: prompts must not be selected on tiles that they are evaluated on",
        )
    rows = candidate_classifiers(texts, limit, seed)
    scores = screening_scores(texts, rows, tiles, logit_scale)
    # Rounded so that floating-point error does not break ties.
    kept = np.argsort(-scores.round(9), kind="stable")[: max(1, round(share * len(rows)))]
    return unit_rows(texts.vectors[rows[kept]].astype(np.float64).sum(axis=0), texts.classes).astype(np.float32)


def score_classifiers(
    texts: TextVectors,
    rows: Int64[np.ndarray, "N C"],
    tiles: Float32[np.ndarray, "n D"],
    labels: Int64[np.ndarray, " n"],
    logit_scale: float,
) -> list[dict[str, float | None]]:
    """Compute the metrics of each classifier in `rows` on n labelled tiles."""
    return [compute_metrics(labels, zero_shot_probabilities(tiles, texts.vectors[row], logit_scale)) for row in rows]


def summarise_scores(values: Sequence[float | None]) -> ScoreSummary | None:
    """Summarise scores by median, quartiles and extremes; None if there are no scores or any is undefined."""
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return None
    lowest, lower, median, upper, highest = np.quantile(defined, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return ScoreSummary(median, lower, upper, lowest, highest)


def _name_counts(texts: TextVectors) -> Int64[np.ndarray, " C"]:
    return np.array([texts.name_of[texts.class_of == c].max() + 1 for c in range(len(texts.classes))], dtype=np.int64)


def _first_rows(texts: TextVectors) -> Int64[np.ndarray, " C"]:
    return np.searchsorted(texts.class_of, np.arange(len(texts.classes))).astype(np.int64)
