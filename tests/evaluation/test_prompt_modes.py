"""Tests of prompt modes against plain loops over the same embeddings."""

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from clipit.errors import DataError
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.prompt_modes import (
    candidate_classifiers,
    sample_classifiers,
    score_classifiers,
    screened_prompts,
    screening_scores,
    single_prompt,
    summarise_scores,
)
from clipit.evaluation.zero_shot import (
    TextVectors,
    class_means,
    embed_prompt_set,
    prompt_embeddings,
    zero_shot_probabilities,
)
from clipit.prompts.prompt_set import PromptSet

PROMPTS = PromptSet(
    "three",
    "1",
    ("an image of {}", "{}.", "H&E of {}"),
    {"a": ("adenoma", "polyp"), "b": ("normal mucosa",), "c": ("cancer", "carcinoma", "malignancy")},
)
ORDER = ("c", "a", "b")


def encode(texts: Sequence[str]) -> np.ndarray:
    """Deterministic vectors of different lengths, one per text."""
    rows = [np.random.default_rng(sum(map(ord, text))).normal(size=6) * len(text) for text in texts]
    return np.array(rows, dtype=np.float32)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def embed_texts() -> TextVectors:
    return embed_prompt_set(PROMPTS, encode, None, ORDER)


def random_tiles(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def test_texts_have_class_name_and_template_indices() -> None:
    embedded = embed_texts()
    assert embedded.classes == ORDER
    assert len(embedded.texts) == 6 * 3
    for row, (c, n, t) in enumerate(zip(embedded.class_of, embedded.name_of, embedded.template_of, strict=True)):
        text = PROMPTS.templates[t].replace("{}", PROMPTS.classes[ORDER[c]][n])
        assert embedded.texts[row] == text
        np.testing.assert_allclose(embedded.vectors[row], unit(encode([text])[0]), atol=1e-6)


def test_single_prompt_is_the_first_name_in_the_first_template() -> None:
    expected = [unit(encode([f"an image of {name}"])[0]) for name in ("cancer", "adenoma", "normal mucosa")]
    np.testing.assert_allclose(single_prompt(embed_texts()), expected, atol=1e-6)


def test_ensemble_matches_a_plain_loop() -> None:
    expected = []
    for class_name in ORDER:
        total = np.zeros(6)
        for name in PROMPTS.classes[class_name]:
            for template in PROMPTS.templates:
                total += unit(encode([template.replace("{}", name)])[0])
        expected.append(unit(total / (3 * len(PROMPTS.classes[class_name]))))
    np.testing.assert_allclose(class_means(embed_texts()), expected, atol=1e-6)
    np.testing.assert_array_equal(class_means(embed_texts()), prompt_embeddings(PROMPTS, encode, None, ORDER))


def test_sampled_classifiers_have_one_name_per_class_and_one_template() -> None:
    embedded = embed_texts()
    rows = sample_classifiers(embedded, 3000, 4)
    np.testing.assert_array_equal(embedded.class_of[rows], np.tile([0, 1, 2], (3000, 1)))
    templates = embedded.template_of[rows]
    assert (templates == templates[:, :1]).all()
    for counts in (Counter(templates[:, 0].tolist()), Counter(embedded.name_of[rows[:, 0]].tolist())):
        assert len(counts) == 3
        assert all(abs(count / 3000 - 1 / 3) < 0.04 for count in counts.values())
    np.testing.assert_array_equal(rows, sample_classifiers(embedded, 3000, 4))
    assert (rows != sample_classifiers(embedded, 3000, 5)).any()


def test_sampled_scores_and_their_summary() -> None:
    embedded, images = embed_texts(), random_tiles(60)
    labels = np.arange(60) % 3
    rows = sample_classifiers(embedded, 25, 0)
    accuracies = []
    for row in rows:
        right = 0
        for image, label in zip(images, labels, strict=True):
            cosines = [unit(image) @ embedded.vectors[place] for place in row]
            right += int(np.argmax(cosines) == label)
        accuracies.append(right / 60)
    scores = score_classifiers(embedded, rows, images, labels, 10.0)
    np.testing.assert_allclose([score["accuracy"] for score in scores], accuracies)
    result = summarise_scores([score["accuracy"] for score in scores])
    assert result is not None and len(scores) == 25
    assert result.median == pytest.approx(np.median(accuracies))
    assert (result.lower, result.upper) == pytest.approx(tuple(np.percentile(accuracies, (25, 75))))
    assert (result.lowest, result.highest) == (min(accuracies), max(accuracies))


def test_undefined_score_has_no_summary() -> None:
    assert summarise_scores([0.5, None]) is None
    assert summarise_scores([]) is None


def test_all_candidates_are_used_if_they_are_few() -> None:
    embedded = embed_texts()
    rows = candidate_classifiers(embedded, 18, 0)
    expected = {
        (f"{c}@{t}", f"{a}@{t}", f"{b}@{t}") for t in range(3) for c in range(3) for a in range(2) for b in (0,)
    }
    named = {tuple(f"{embedded.name_of[place]}@{embedded.template_of[place]}" for place in row) for row in rows}
    assert named == expected and len(rows) == 18
    np.testing.assert_array_equal(embedded.class_of[rows], np.tile([0, 1, 2], (18, 1)))
    np.testing.assert_array_equal(candidate_classifiers(embedded, 17, 3), sample_classifiers(embedded, 17, 3))


def slow_screening(embedded: TextVectors, rows: np.ndarray, images: np.ndarray, scale: float) -> list[float]:
    scores = []
    for row in rows:
        total = 0.0
        for image in images:
            values = sorted(softmax(np.array([scale * (unit(image) @ embedded.vectors[place]) for place in row])))
            total += (values[-1] - values[-2]) - abs(values[-1] + values[-2] - 1)
        scores.append(total / len(images))
    return scores


def test_screening_matches_a_plain_loop() -> None:
    embedded, images = embed_texts(), random_tiles(40)
    rows = candidate_classifiers(embedded, 100, 0)
    expected = slow_screening(embedded, rows, images, 10.0)
    np.testing.assert_allclose(screening_scores(embedded, rows, images, 10.0), expected, atol=1e-6)
    best = sorted(range(18), key=lambda place: -expected[place])[:5]  # 0.3 of 18
    means = [unit(sum(embedded.vectors[rows[place][c]].astype(float) for place in best)) for c in range(3)]
    screened = screened_prompts(embedded, images, np.full(40, "train"), share=0.3, limit=100, seed=0, logit_scale=10.0)
    np.testing.assert_allclose(screened, means, atol=1e-6)


def test_screening_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded, images = embed_texts(), random_tiles(41)
    expected = screening_scores(embedded, candidate_classifiers(embedded, 100, 0), images, 10.0)
    monkeypatch.setattr("clipit.evaluation.prompt_modes._BLOCK", 7)
    np.testing.assert_allclose(
        screening_scores(embedded, candidate_classifiers(embedded, 100, 0), images, 10.0), expected, atol=1e-12
    )


def test_ties_prefer_the_earlier_candidate() -> None:
    embedded = embed_texts()
    identical = TextVectors(**(embedded.__dict__ | {"vectors": np.repeat(embedded.vectors[:1], 18, axis=0)}))
    screened = screened_prompts(
        identical, random_tiles(9), np.full(9, "train"), share=1e-6, limit=100, seed=0, logit_scale=10.0
    )
    np.testing.assert_allclose(screened, identical.vectors[candidate_classifiers(identical, 100, 0)[0]], atol=1e-6)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_screening_needs_training_tiles(split: str) -> None:
    with pytest.raises(DataError, match=f"tiles of the split {split}"):
        screened_prompts(
            embed_texts(),
            random_tiles(3),
            np.array(["train", split, "train"]),
            share=0.5,
            limit=9,
            seed=0,
            logit_scale=1.0,
        )
    with pytest.raises(DataError, match="no training tiles"):
        screened_prompts(
            embed_texts(), random_tiles(0), np.array([], dtype=str), share=0.5, limit=9, seed=0, logit_scale=1.0
        )


def test_screening_prefers_discriminative_prompts() -> None:
    """Of two templates, one matches the two clusters of tiles and the other barely differs between classes."""
    directions = {"good a": [1, 0.0, 0], "good b": [0, 1, 0], "bad a": [0, 0.1, 1], "bad b": [0, -0.1, 1]}
    prompts = PromptSet("p", "1", ("bad {}", "good {}"), {"a": ("a",), "b": ("b",)})
    embedded = embed_prompt_set(
        prompts, lambda requested: np.array([directions[text] for text in requested], dtype=np.float32)
    )
    labels = np.arange(30) % 2
    images = (np.eye(3)[labels] + np.random.default_rng(0).normal(size=(30, 3)) * 0.1).astype(np.float32)
    screened = screened_prompts(embedded, images, np.full(30, "train"), share=0.5, limit=9, seed=0, logit_scale=10.0)
    np.testing.assert_allclose(screened, np.eye(3)[:2], atol=1e-6)
    assert compute_metrics(labels, zero_shot_probabilities(images, screened, 10.0))["accuracy"] == 1
    assert compute_metrics(labels, zero_shot_probabilities(images, single_prompt(embedded), 10.0))["accuracy"] < 0.5


@pytest.mark.skipif(not os.environ.get("CLIPIT_TEST_DATA"), reason="needs the published draws in CLIPIT_TEST_DATA")
def test_published_draws_have_one_name_per_class_and_one_template() -> None:
    """Check the format of KEP's file with 100 draws."""
    import json
    from pathlib import Path

    path = Path(os.environ["CLIPIT_TEST_DATA"]) / "prompts/kep_kather_prompts_100.json"
    draws = json.loads(path.read_text(encoding="utf-8"))
    assert len(draws) == 100
    assert all(isinstance(draw["templates"], str) for draw in draws.values())
    assert all(isinstance(name, str) for draw in draws.values() for name in draw["classnames"].values())
