"""Logistic regression with scikit-learn (L-BFGS), on a single thread for small inputs."""

import warnings
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

MAX_ITERATIONS = 2000
_LARGE = 2**23  # number of feature values (n x d) at which several threads become as fast as one


def fit_logistic(features: Any, labels: Int64[np.ndarray, " n"], inverse_penalty: float = 1.0) -> "LogisticRegression":
    """Fit a multinomial logistic regression; a fit that has not converged after 2,000 iterations is returned as is.

    A small fit runs on one thread: its matrix products take less time than the synchronisation of several threads.

    Args:
        features: Features, float [n, d], dense or sparse.
        labels: Class of each row; at least two classes.
        inverse_penalty: scikit-learn's C.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS)
    one_thread = _blas().limit(limits=1, user_api="blas") if features.size < _LARGE else nullcontext()
    with warnings.catch_warnings(), one_thread:
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, labels)


@cache
def _blas() -> Any:
    """Return a controller for the thread counts of the loaded linear algebra libraries."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
