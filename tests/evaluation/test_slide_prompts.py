"""Tests of zero-shot slide scores with prompt ensembles and sampled prompts."""

import numpy as np
import pandas as pd
import pytest

from clipit.errors import DataError
from clipit.evaluation.slide_prompts import (
    ENSEMBLE,
    PUBLISHED_DRAWS,
    pool_prompts,
    score_prompts,
)
from clipit.evaluation.slide_scores import slide_table
from clipit.reporting.subtyping_table import PUBLISHED, published_subtyping, subtyping_tables

CLASSES = ("LUAD", "LUSC")
CELLS = np.stack([np.arange(8) // 4, np.arange(8) % 4], axis=1)


def slide_tiles(label: int) -> np.ndarray:
    """Eight noisy embeddings around the class vector, with random lengths."""
    generator = np.random.default_rng(label)
    tiles = np.eye(3)[[label] * 8] + 0.2 * generator.normal(size=(8, 3))
    return (tiles * generator.uniform(0.5, 2, (8, 1))).astype(np.float32)


def similarities(tiles: np.ndarray, classifiers: np.ndarray) -> np.ndarray:
    """Cosine similarities [tiles, classifiers, classes]; class vectors have unit norm."""
    unit = tiles / np.linalg.norm(tiles, axis=1, keepdims=True)
    return np.einsum("nd,kcd->nkc", unit, classifiers).astype(np.float32)


def test_cosine_similarities_are_pooled_for_each_classifier() -> None:
    classifiers = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 1, 0], [1, 0, 0]]], dtype=np.float32)
    tiles = slide_tiles(0)
    first, second = pool_prompts(similarities(tiles, classifiers), CELLS)
    cosines = tiles[:, :2] / np.linalg.norm(tiles, axis=1, keepdims=True)
    assert first[0].pooling == "top1" and len(first) == len(second) == 7
    np.testing.assert_allclose(first[0].scores, cosines.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(first[0].scores, second[0].scores[::-1], rtol=1e-6)


@pytest.fixture(scope="module")
def scored() -> pd.DataFrame:
    """Scores of four slides with a correct ensemble and three prompt draws, one with swapped classes."""
    good = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32)
    kinds = {ENSEMBLE: good[None], PUBLISHED_DRAWS: np.stack([good, good, good[::-1]])}
    slides = {f"s{i}": slide_tiles(i % 2) for i in range(4)}
    table = pd.DataFrame({"slide": list(slides), "label": [CLASSES[i % 2] for i in range(4)], "split": "test"})
    tables = {}
    for kind, classifiers in kinds.items():
        pooled = {name: pool_prompts(similarities(tiles, classifiers), CELLS) for name, tiles in slides.items()}
        tables[kind] = [
            slide_table({name: of_slide[i] for name, of_slide in pooled.items()}, CLASSES)
            for i in range(len(classifiers))
        ]
    return score_prompts(tables, table, CLASSES)


def test_draws_are_summarised_by_their_median_and_quartiles(scored: pd.DataFrame) -> None:
    rows = scored.query("level == 'slide' and pooling == 'top5' and metric == 'balanced_accuracy'")
    ensemble, draws = rows.iloc[0], rows.iloc[1]
    assert (ensemble["prompts"], ensemble["median"], ensemble["draws"]) == (ENSEMBLE, 1.0, 1)
    # Two draws are correct on all slides, the swapped one on none.
    assert (draws["median"], draws["lower"], draws["upper"]) == (1.0, 0.5, 1.0)
    assert (draws["draws"], draws["labelled"], draws["patients"]) == (3, 4, 4)


def test_table_lists_prompts_poolings_and_published_scores(scored: pd.DataFrame) -> None:
    (table,) = subtyping_tables(scored, CLASSES, "tiny VLM")
    evaluated = [row for row in table.rows if row[-1] == "this evaluation"]
    assert (
        len(evaluated) == 2 * 7 and ["tiny VLM, ensemble", "top1", "1.000", "1.000", 4, "this evaluation"] in evaluated
    )
    assert evaluated[7][0] == "tiny VLM, 3 published draws" and evaluated[7][2] == "1.000 [0.500, 1.000]"
    published = [row for row in table.rows if str(row[-1]).startswith("published: ")]
    assert len(evaluated) + len(published) == len(table.rows)
    assert [row[0] for row in published if row[2] == "0.902"] == ["KEEP"]
    assert [row[0] for row in published if row[2] == "0.907 (accuracy)"] == ["CONCH"]
    assert any("published: KEEP (arXiv 2412.13126)" in str(row[-1]) for row in published)
    (unpublished,) = subtyping_tables(scored, ("a", "b"), "tiny VLM")
    assert all(row[-1] == "this evaluation" for row in unpublished.rows)
    assert subtyping_tables(scored[scored.draws == 1], ("a", "b"), "tiny VLM") == []


def test_published_scores_are_shown_only_for_their_classes() -> None:
    assert published_subtyping(("normal", "tumour")) == []
    rcc = published_subtyping(("PRCC", "CHRCC", "CCRCC"))
    assert {entry.task for entry in rcc} == {"RCC"} and len(rcc) == 9
    assert all(0 < entry.score < 1 and entry.source for entry in PUBLISHED)


def test_prompts_without_scores_raise_an_error() -> None:
    with pytest.raises(DataError, match="no slide scores for ensemble"):
        score_prompts({ENSEMBLE: []}, pd.DataFrame({"slide": []}), CLASSES)
