"""Tests of zero-shot classification and the linear probe."""

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clipit.errors import DataError
from clipit.evaluation.probes import linear_probe
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.prompts.prompt_set import PromptSet

PROMPTS = PromptSet(
    "two", "1", ("an image of {}", "{}."), {"a": ("adenoma", "polyp", "adenomatous polyp"), "b": ("normal mucosa",)}
)


def encode(texts: Sequence[str]) -> np.ndarray:
    """Deterministic vectors of different lengths, one per text."""
    rows = [np.random.default_rng(sum(map(ord, text))).normal(size=6) * len(text) + 2 for text in texts]
    return np.array(rows, dtype=np.float32)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("mean", [None, np.linspace(-0.2, 0.5, 6)])
def test_prompts_are_normalised_centred_and_averaged_in_this_order(mean: np.ndarray | None) -> None:
    embeddings = prompt_embeddings(PROMPTS, encode, mean)
    for row, name in enumerate(("a", "b")):
        vectors = [unit(encode([text])[0]) for text in PROMPTS.texts(name)]
        if mean is not None:
            vectors = [unit(vector - mean) for vector in vectors]
        np.testing.assert_allclose(embeddings[row], unit(np.mean(vectors, axis=0)), atol=1e-6)
    normalised_last = unit(np.mean([encode([text])[0] for text in PROMPTS.texts("a")], axis=0))
    assert np.abs(embeddings[0] - normalised_last).max() > 1e-3


def test_rows_follow_the_given_class_order() -> None:
    np.testing.assert_array_equal(
        prompt_embeddings(PROMPTS, encode, classes=["b", "a"]), prompt_embeddings(PROMPTS, encode)[::-1]
    )
    with pytest.raises(DataError, match="without prompts: c"):
        prompt_embeddings(PROMPTS, encode, classes=["a", "c"])


def test_invalid_embeddings_raise_an_error_with_the_text() -> None:
    def broken(texts: Sequence[str]) -> np.ndarray:
        rows = encode(texts)
        rows[3] = np.nan
        return rows

    with pytest.raises(DataError, match=r"polyp\."):
        prompt_embeddings(PROMPTS, broken)


def test_probabilities_are_the_softmax_of_scaled_cosines() -> None:
    generator = np.random.default_rng(0)
    images, classes = generator.normal(size=(7, 5)), generator.normal(size=(3, 5))
    probabilities = zero_shot_probabilities(images, classes, 10.0)
    cosines = np.array([[unit(i) @ unit(c) for c in classes] for i in images])
    expected = np.exp(10 * cosines) / np.exp(10 * cosines).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(zero_shot_probabilities(images * 50, classes, 10.0), probabilities, atol=1e-6)
    assert np.isfinite(zero_shot_probabilities(images, classes, 5000.0)).all()


def clusters(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, n_classes, n)
    centres = np.random.default_rng(99).normal(size=(n_classes, 8))
    return (centres[labels] + generator.normal(size=(n, 8)) * 1.5) * 0.01 + 5, labels


@pytest.mark.parametrize("n_classes", [2, 4])
def test_probe_matches_scikit_learn_at_the_chosen_penalty(n_classes: int) -> None:
    train, valid, test = (clusters(n, n_classes, seed) for n, seed in ((120, 0), (80, 1), (100, 2)))
    labels = train[1].copy()
    labels[:10] = -1
    probe = linear_probe(train[0], labels, *valid, n_classes)
    assert probe.inverse_penalty == min(probe.validation_loss, key=lambda c: (probe.validation_loss[c], c))
    assert len(probe.validation_loss) == 17
    centre, spread = train[0][10:].mean(0), train[0][10:].std(0)
    model = LogisticRegression(C=probe.inverse_penalty, max_iter=2000).fit(
        (train[0][10:] - centre) / spread, labels[10:]
    )
    np.testing.assert_allclose(
        probe.probabilities(test[0]), model.predict_proba((test[0] - centre) / spread), atol=1e-5
    )
    assert (probe.probabilities(test[0]).argmax(1) == test[1]).mean() > 1.2 / n_classes


def test_probe_gives_unseen_classes_probability_zero() -> None:
    features, labels = clusters(100, 4, 0)
    seen = labels != 2
    probe = linear_probe(features[seen], labels[seen], features, labels, 4)
    probabilities = probe.probabilities(features)
    assert (probabilities[:, 2] == 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


def test_probe_needs_labels() -> None:
    features, labels = clusters(30, 3, 0)
    with pytest.raises(DataError, match="0 validation labels"):
        linear_probe(features, labels, features, np.full(30, -1), 3)
    with pytest.raises(DataError, match="1 class"):
        linear_probe(features, np.zeros(30, np.int64), features, labels, 3)
