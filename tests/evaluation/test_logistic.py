"""Tests of the number of threads of logistic regression."""

import numpy as np
import pytest
from scipy import sparse
from threadpoolctl import threadpool_info

from clipit.evaluation import logistic
from clipit.evaluation.logistic import fit_logistic


def _blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_small_fits_use_a_single_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression

    seen: list[set[int]] = []
    fit = LogisticRegression.fit

    def fit_and_record_threads(model: LogisticRegression, features: object, labels: object) -> LogisticRegression:
        seen.append(_blas_threads())
        return fit(model, features, labels)  # type: ignore[no-any-return]

    monkeypatch.setattr(LogisticRegression, "fit", fit_and_record_threads)
    features, labels = np.random.default_rng(0).standard_normal((30, 4)), np.arange(30) % 3
    before = _blas_threads()
    dense = fit_logistic(features, labels, 2.0)
    as_sparse = fit_logistic(sparse.csr_matrix(features), labels, 2.0)
    monkeypatch.setattr(logistic, "_LARGE", features.size)
    large = fit_logistic(features, labels, 2.0)
    assert seen == [{1}, {1}, before] and _blas_threads() == before
    expected = LogisticRegression(C=2.0).fit(features, labels).coef_
    for model in (dense, as_sparse, large):
        np.testing.assert_allclose(model.coef_, expected, atol=1e-4)
