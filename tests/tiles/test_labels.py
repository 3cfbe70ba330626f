from collections.abc import Callable

import numpy as np
import pytest

from clipit.config.run import LabelsConfig
from clipit.errors import ConfigError, DataError
from clipit.tiles.hidden_labels import hide_labels, proportional
from clipit.tiles.tileset import TileSet

Make = Callable[..., TileSet]


@pytest.fixture
def tiles(make_tiles: Make) -> TileSet:
    """Tiles of two classes: 40 + 20 for training, 30 + 30 for validation and 10 + 10 for testing."""
    labels = [0] * 40 + [1] * 20 + [0] * 30 + [1] * 30 + [0] * 10 + [1] * 10
    return make_tiles(labels, ["train"] * 60 + ["validation"] * 60 + ["test"] * 20)


def visible_counts(tiles: TileSet, split: str) -> tuple[int, ...]:
    return tuple(int((tiles.labels[tiles.splits == split] == code).sum()) for code in range(len(tiles.classes)))


@pytest.mark.parametrize(
    ("config", "train", "validation"),
    [
        (LabelsConfig(), (40, 20), (30, 30)),
        (LabelsConfig(kind="none"), (0, 0), (0, 0)),
        (LabelsConfig(kind="none", validation="all"), (0, 0), (0, 0)),
        (LabelsConfig(kind="fraction", value=0.1), (4, 2), (3, 3)),
        (LabelsConfig(kind="fraction", value=0.1, validation="all"), (4, 2), (30, 30)),
        (LabelsConfig(kind="fraction", value=0.001), (1, 1), (1, 1)),
        (LabelsConfig(kind="per_class", value=5), (5, 5), (5, 5)),
        (LabelsConfig(kind="per_class", value=5, validation="all"), (5, 5), (30, 30)),
    ],
)
def test_number_of_visible_labels(
    tiles: TileSet, config: LabelsConfig, train: tuple[int, ...], validation: tuple[int, ...]
) -> None:
    hidden = hide_labels(tiles, config, seed=0)
    assert visible_counts(hidden, "train") == train
    assert visible_counts(hidden, "validation") == validation
    assert visible_counts(hidden, "test") == (10, 10)
    np.testing.assert_array_equal(hidden.truth, tiles.truth)
    visible = hidden.labels >= 0
    np.testing.assert_array_equal(hidden.labels[visible], tiles.truth[visible])


def test_validation_labels_are_limited_to_the_number_of_training_labels(make_tiles: Make) -> None:
    tiles = make_tiles([0] * 4 + [0] * 6 + [1] * 6, ["train"] * 4 + ["validation"] * 12)
    assert visible_counts(hide_labels(tiles, LabelsConfig(), 0), "validation") == (2, 2)


def test_draws_are_nested_seeded_and_independent_of_row_order(tiles: TileSet) -> None:
    def labelled_ids(source: TileSet, value: float, run_seed: int, **more: int) -> set[str]:
        hidden = hide_labels(source, LabelsConfig(kind="per_class", value=value, **more), run_seed)
        return set(hidden.ids[(hidden.splits == "train") & (hidden.labels >= 0)])

    assert labelled_ids(tiles, 3, 0) < labelled_ids(tiles, 8, 0)
    assert labelled_ids(tiles, 8, 0) != labelled_ids(tiles, 8, 1)
    assert labelled_ids(tiles, 8, 0, seed=4) == labelled_ids(tiles, 8, 1, seed=4)
    order = np.random.default_rng(0).permutation(len(tiles))
    assert labelled_ids(tiles.select(order), 8, 0) == labelled_ids(tiles, 8, 0)


def test_impossible_requests_are_errors(tiles: TileSet) -> None:
    without = tiles.select(tiles.splits != "train")  # missing training tiles are reported elsewhere
    assert (
        hide_labels(without, LabelsConfig(kind="per_class", value=30), 0).labels[without.splits == "test"] >= 0
    ).all()
    with pytest.raises(DataError, match=r"30 labels per class, but the training split has fewer for c1 \(20"):
        hide_labels(tiles, LabelsConfig(kind="per_class", value=30), 0)
    with pytest.raises(ConfigError, match=r"(?s)1.5 is above 1.*tiles.labels.value"):
        hide_labels(tiles, LabelsConfig(kind="fraction", value=1.5), 0)
    with pytest.raises(ConfigError, match=r"2.5 labels per class is not a whole number"):
        hide_labels(tiles, LabelsConfig(kind="per_class", value=2.5), 0)


def test_proportional_shares_add_up() -> None:
    counts = np.asarray([7, 1, 13, 0], dtype=np.int64)
    for total in range(22):
        shares = proportional(counts, total)
        assert shares.sum() == total
        assert (shares <= counts).all()
