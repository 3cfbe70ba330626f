"""Time to fit a small logistic regression with one thread for linear algebra, relative to all cores."""

from functools import partial

import numpy as np

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds


def measure(options: Options) -> list[Measurement]:
    """Time the fits of a linear probe relative to plain scikit-learn, on random features."""
    from sklearn.linear_model import LogisticRegression

    from clipit.evaluation.logistic import MAX_ITERATIONS, fit_logistic

    measurements = []
    for n, dim, classes in ((options.size(400, 40), 256, 8), (options.size(2000, 80), 512, 8)):
        random = np.random.default_rng(0)
        labels = random.integers(0, classes, n)
        features = (random.standard_normal((n, dim)) + 0.3 * np.eye(classes, dim)[labels]).astype(np.float32)
        model = LogisticRegression(max_iter=MAX_ITERATIONS)
        samples = alternate(
            {
                "clipit": partial(seconds, partial(fit_logistic, features, labels)),
                "scikit-learn": partial(seconds, partial(model.fit, features, labels)),
            },
            options,
        )
        difference = np.abs(fit_logistic(features, labels).coef_ - model.fit(features, labels).coef_).max()
        name = f"time with one thread / scikit-learn's default: {n} tiles x {dim} features, {classes} classes"
        facts = {"iterations": int(model.n_iter_.max()), "largest_difference": float(difference)}
        values = ratios(samples, "clipit", "scikit-learn")
        measurements.append(Measurement("logistic_threads", name, values, "", None, False, samples, facts))
    return measurements
