"""Score zero-shot classification of slides with several wordings of the class prompts: ensembles and single draws.

MI-Zero (Lu et al., CVPR 2023) samples 50 prompt sets, classifies all slides with each, and reports the median of the
50 balanced accuracies for each K of the top-K pooling. CONCH averages all names and templates of a class instead (the
ensemble). Scores of the two protocols differ by many percentage points, so tables must name the protocol.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from clipit.errors import DataError
from clipit.evaluation.intervals import group_numbers
from clipit.evaluation.prompt_modes import summarise_scores
from clipit.evaluation.slide_metrics import TRAIN, score_predictions
from clipit.evaluation.slide_scores import PooledScore, pool_slide
from clipit.evaluation.slide_sets import Level, SlideSet, collect_slides

ENSEMBLE, PUBLISHED_DRAWS = "ensemble", "published draws"
"""Kinds of zero-shot classifiers: the mean of all texts, or the sampled sets of a published file."""
PROMPT_METRICS = ("balanced_accuracy", "auroc")
_COLUMNS = [
    "prompts", "draws", "split", "level", "pooling", "smoothed", "metric", "median", "lower", "upper", "labelled",
    "patients",
]  # fmt: skip


def pool_prompts(
    similarities: Float32[np.ndarray, "n N C"], cells: Int64[np.ndarray, "n 2"], smoothing: Sequence[bool] = (False,)
) -> list[list[PooledScore]]:
    """Pool the cosine similarities between one slide's tiles and the class embeddings of N zero-shot classifiers.

    Args:
        similarities: Cosine similarity between each tile and the class embeddings of each classifier.
        cells: Row and column of each tile in the slide's grid.
        smoothing: Whether to pool the tiles' own scores, smoothed scores, or both.

    Returns:
        Scores of each classifier by pooling (`slide_scores.pool_slide`).

    Raises:
        DataError: The slide has no tiles, or a similarity is not finite.
    """
    return [pool_slide(similarities[:, number], cells, smoothing) for number in range(similarities.shape[1])]


def score_prompts(
    tables: Mapping[str, Sequence[pd.DataFrame]], slides: pd.DataFrame, classes: Sequence[str]
) -> pd.DataFrame:
    """Compute balanced accuracy and AUROC of zero-shot classifiers on labelled slides, as medians over the draws.

    Nothing is selected: all pooling methods are reported, for every split with labelled slides except `train`, per
    slide and per patient.

    Args:
        tables: Tables of slide scores (`slide_scores.slide_table`), one per draw, by kind of classifier.
        slides: Table of slides: `slide`, `label`, and optionally `group` (patient) and `split`.
        classes: Class names, in the order of the scores.

    Returns:
        One row per kind, split, level, pooling and metric: `prompts` (the kind), `draws` (number of draws), `split`,
        `level`, `pooling`, `smoothed`, `metric`, `median`, `lower` and `upper` (quartiles; equal to the median for one
        classifier; None where a score is undefined), `labelled` (number of labelled slides or patients) and
        `patients`.

    Raises:
        DataError: A kind has no table, or the tables do not match (`slide_sets.collect_slides`).
    """
    empty = [kind for kind, draws in tables.items() if not draws]
    if empty:
        raise DataError(f"no slide scores for {', '.join(empty)}", fix="score the slides with at least one prompt set")
    rows = []
    for kind, draws in tables.items():
        sets = [collect_slides(table, slides, classes) for table in draws]
        for split in sets[0].split_names():
            if split == TRAIN:
                continue
            for level in ("slide", "patient"):
                rows += _prompt_rows(kind, sets, split, level)
    return pd.DataFrame(rows, columns=_COLUMNS)


def _prompt_rows(kind: str, sets: Sequence[SlideSet], split: str, level: Level) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for key in sets[0].scores:
        predictions = [each.predictions(key, level, split) for each in sets]
        known = predictions[0].labels >= 0
        if not known.any():
            continue
        scores = [score_predictions(each) for each in predictions]
        for metric in PROMPT_METRICS:
            summary = summarise_scores([each[metric] for each in scores])
            rows.append(
                {
                    "prompts": kind, "draws": len(sets), "split": split, "level": level, "pooling": key.pooling,
                    "smoothed": key.smoothed, "metric": metric, "median": summary.median if summary else None,
                    "lower": summary.lower if summary else None, "upper": summary.upper if summary else None,
                    "labelled": int(known.sum()),
                    "patients": len(np.unique(group_numbers(predictions[0].groups[known]))),
                }
            )  # fmt: skip
    return rows
