"""Mean and standard deviation of features read in parts."""

import numpy as np

from clipit.stores.moments import mean_and_deviation


def test_moments_of_parts_match_all_rows_and_constant_features_have_deviation_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    values[:, 2] = 7
    mean, deviation = mean_and_deviation([values[:20], values[20:20], values[20:]], 30)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(deviation, [*values.std(axis=0)[:2], 1, values[:, 3].std()], rtol=1e-6)
    thinned, _ = mean_and_deviation([values[:20], values[20:]], 10)
    np.testing.assert_allclose(thinned, np.concatenate([values[:20:2], values[20::3]]).mean(axis=0), rtol=1e-6)
