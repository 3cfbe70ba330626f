"""Classify reports from text alone: calibrated logistic regression on TF-IDF or embeddings, cross-fitted by group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Shaped

from clipit.errors import DataError, counted, counted_of
from clipit.evaluation.calibration import MIN_LABELS, fit_temperature, with_temperature
from clipit.evaluation.intervals import group_numbers
from clipit.evaluation.logistic import fit_logistic

FOLDS = 5
INVERSE_PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Inverses of the L2 penalty, for features of norm 1 (TF-IDF) or of root mean square norm 1."""
_MIN_PROBABILITY = 1e-6  # bounds the log loss of a class that is absent from the training documents
_MIN_DOCUMENTS = 2  # words and word pairs that occur in fewer training documents are dropped

_FitFeatures = Callable[[Int64[np.ndarray, " k"]], Any]
"""Function from the rows of the training documents to the features of all documents, a dense or sparse matrix."""


@dataclass(frozen=True)
class CrossFitted:
    """Class probabilities of documents from models fitted without the labels of the document's own group.

    Attributes:
        probabilities: Calibrated class probabilities, one row per document.
        folds: Fold of each document; its class is predicted by the model fitted on the other folds. The fold is -1 for
            documents of groups without labels; their probabilities are averaged over the models of all folds.
        inverse_penalties: Selected inverse L2 penalty of each fold's model.
        temperatures: Temperature of each fold's model; 1 where none could be fitted.
        note: Note on the folds without a fitted temperature; "" if there are none.
    """

    probabilities: Float32[np.ndarray, "n c"]
    folds: Int64[np.ndarray, " n"]
    inverse_penalties: tuple[float, ...]
    temperatures: tuple[float, ...]
    note: str = ""

    @property
    def temperature(self) -> float:
        """Geometric mean of the temperatures."""
        return float(np.exp(np.mean(np.log(self.temperatures))))


def cross_fitted_probabilities(
    documents: "Sequence[str] | Float[np.ndarray, 'n d']",
    labels: Int64[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    n_classes: int,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    inverse_penalties: Sequence[float] = INVERSE_PENALTIES,
) -> CrossFitted:
    """Predict the class of each document with models fitted on the labelled documents of other groups.

    Groups are assigned to folds at random, regardless of their labels. The model of a fold is a multinomial logistic
    regression on the labelled documents of all other folds. Its penalty (lowest log loss) and its temperature
    (`calibration.fit_temperature`) are chosen on predictions for the same documents, cross-fitted over those folds.
    The labels of a group therefore do not affect the predictions of its own documents.

    Classes are not weighted: balanced class weights would distort the probabilities in a way that no temperature can
    correct. In a fold, a class that is absent from the training documents gets probability 0; if only one class is
    left, the probabilities are (count + 1) / (documents + classes).

    Args:
        documents: Texts, from which TF-IDF features of words and word pairs are computed (`tfidf_features`), or
            embeddings, one row per document.
        labels: Class index of each document; -1 if unknown.
        groups: Group of each document, such as the patient; a document with "" (unknown) forms its own group.
        folds: Maximum number of folds; reduced to the number of labelled groups if there are fewer.
        inverse_penalties: Inverses of the L2 penalty to choose from; the middle one is used where none can be chosen.

    Raises:
        DataError: Fewer than two classes or groups have labels, no text contains a word, or an embedding is not finite.
    """
    units = group_numbers(groups)
    labelled = np.flatnonzero(labels >= 0).astype(np.int64)
    classes, owners = np.unique(labels[labelled]), np.unique(units[labelled])
    if len(classes) < 2 or len(owners) < 2:
        raise DataError(
            "a text classifier needs labelled reports from at least two classes and two groups; found "
            f"{counted(len(classes), 'class', 'classes')} "
            f"and {counted(len(owners), 'group')} among {counted(len(labelled), 'labelled report')}",
            where="report labels",
            fix="label more reports, or use rules",
        )
    folds = min(folds, len(owners))
    fold_of = np.full(int(units.max()) + 1, -1, dtype=np.int64)
    fold_of[np.random.default_rng(seed).permutation(owners)] = np.arange(len(owners)) % folds
    assigned = fold_of[units]
    fit_features = embedding_features(documents) if isinstance(documents, np.ndarray) else tfidf_features(documents)
    probabilities: Float64[np.ndarray, "n c"] = np.zeros((len(labels), n_classes))
    unassigned = np.flatnonzero(assigned < 0).astype(np.int64)
    choices: list[_Choice] = []
    for fold in range(folds):
        train = labelled[assigned[labelled] != fold]
        choices.append(_choose(fit_features, labels, train, assigned[train], n_classes, sorted(inverse_penalties)))
        in_fold = np.flatnonzero(assigned == fold).astype(np.int64)
        predicted = _fit_and_predict(
            fit_features(train),
            labels,
            train,
            np.concatenate([in_fold, unassigned]),
            n_classes,
            choices[-1].inverse_penalty,
        )
        scaled = with_temperature(predicted, choices[-1].temperature)
        probabilities[in_fold] = scaled[: len(in_fold)]
        probabilities[unassigned] += scaled[len(in_fold) :] / folds
    missing = sum(not choice.calibrated for choice in choices)
    note = (
        f"{counted_of(missing, folds, 'fold is', 'folds are')} not calibrated: fitting a temperature needs at least "
        f"{MIN_LABELS} labelled reports, some of them misclassified, and predictions that are better than chance"
    )
    return CrossFitted(
        probabilities.astype(np.float32),
        assigned,
        tuple(choice.inverse_penalty for choice in choices),
        tuple(choice.temperature for choice in choices),
        note if missing else "",
    )


def tfidf_features(texts: Sequence[str]) -> _FitFeatures:
    """Build TF-IDF features of words and word pairs, fitted on the training documents alone.

    Words of one character are kept, because grades are single digits. Counts are replaced by 1 + log(count), and
    vectors have norm 1. Words and word pairs that occur in fewer than two training documents are dropped, unless all of
    them do.

    Returns:
        Function from the rows of the training documents to the features of all documents, as a sparse matrix.

    Raises:
        DataError: No text contains a word.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    try:
        counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit_transform(texts).tocsc()
    except ValueError as error:
        raise DataError("the reports contain no words", fix="check reports.text_column") from error

    def fit(train: Int64[np.ndarray, " k"]) -> Any:
        documents = np.diff(counts[train].tocsc().indptr)
        columns = np.flatnonzero(documents >= min(_MIN_DOCUMENTS, int(documents.max())))
        kept = counts[:, columns].tocsr().astype(np.float64)
        return TfidfTransformer(sublinear_tf=True).fit(kept[train]).transform(kept)

    return fit


def embedding_features(vectors: Float[np.ndarray, "n d"]) -> _FitFeatures:
    """Build features from embeddings: centred and scaled to a root mean square norm of 1 on the training documents.

    Returns:
        Function from the rows of the training documents to the features of all documents.

    Raises:
        DataError: An embedding is not finite.
    """
    if not np.isfinite(vectors).all():
        raise DataError("an embedding is not finite", fix="check the VLM's precision (fp16 can overflow)")
    values = vectors.astype(np.float64)

    def fit(train: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, "n d"]:
        centred = values - values[train].mean(axis=0)
        scale = float(np.sqrt((centred[train] ** 2).sum(axis=1).mean()))
        return np.asarray(centred / (scale or 1.0))

    return fit


def _fit_and_predict(
    features: Any,
    labels: Int64[np.ndarray, " n"],
    train: Int64[np.ndarray, " k"],
    rows: Int64[np.ndarray, " r"],
    n_classes: int,
    inverse_penalty: float,
) -> Float64[np.ndarray, "r c"]:
    """Fit a logistic regression on the rows `train`, and predict class probabilities for `rows`."""
    probabilities: Float64[np.ndarray, "r c"] = np.zeros((len(rows), n_classes))
    counts = np.bincount(labels[train], minlength=n_classes)
    if (counts > 0).sum() < 2:
        probabilities[:] = (counts + 1) / (len(train) + n_classes)
    elif len(rows):
        model = fit_logistic(features[train], labels[train], inverse_penalty)
        probabilities[:, model.classes_] = model.predict_proba(features[rows])
    return probabilities


@dataclass(frozen=True)
class _Choice:
    """Penalty and temperature of a fold's model."""

    inverse_penalty: float
    temperature: float = 1.0
    calibrated: bool = False


def _choose(
    fit_features: _FitFeatures,
    labels: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " k"],
    folds: Int64[np.ndarray, " k"],
    n_classes: int,
    inverse_penalties: Sequence[float],
) -> _Choice:
    """Choose the penalty with the lowest log loss, and its temperature, on cross-fitted predictions for `rows`.

    Ties go to the stronger penalty. With a single fold, the middle penalty is used without a temperature.
    """
    numbers = np.unique(folds).tolist()
    if len(numbers) < 2:
        return _Choice(inverse_penalties[len(inverse_penalties) // 2])
    predicted: Float64[np.ndarray, "s k c"] = np.zeros((len(inverse_penalties), len(rows), n_classes))
    for fold in numbers:
        train, held_out = rows[folds != fold], rows[folds == fold]
        features = fit_features(train)
        for row, inverse_penalty in enumerate(inverse_penalties):
            predicted[row, folds == fold] = _fit_and_predict(
                features, labels, train, held_out, n_classes, inverse_penalty
            )
    best, lowest = _Choice(inverse_penalties[0]), np.inf
    for inverse_penalty, probabilities in zip(inverse_penalties, predicted, strict=True):
        try:
            choice = _Choice(inverse_penalty, fit_temperature(labels[rows], probabilities).value, calibrated=True)
        except DataError:
            choice = _Choice(inverse_penalty)
        scaled = with_temperature(probabilities, choice.temperature)[np.arange(len(rows)), labels[rows]]
        loss = float(-np.log(np.maximum(scaled, _MIN_PROBABILITY)).mean())
        if loss < lowest:
            best, lowest = choice, loss
    return best
