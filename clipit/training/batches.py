"""Plan the tiles of each step: a pure function of (seed, step), independent of the number of processes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from clipit.config.run import RunConfig
from clipit.distributed import stream_positions
from clipit.errors import ConfigError, DataError, counted
from clipit.training.terms.term_table import supervises_unlabelled, uses_unlabelled


@dataclass(frozen=True)
class BatchPlan:
    """Global batches over the rows of the training tiles.

    Attributes:
        labelled: Rows of labelled tiles.
        unlabelled: Rows of unlabelled tiles; empty if no loss term uses them.
        n_labelled: Number of labelled tiles per global batch.
        n_unlabelled: Number of unlabelled tiles per global batch.
        seed: Seed for shuffling the tiles.
    """

    labelled: Int64[np.ndarray, "_"]
    unlabelled: Int64[np.ndarray, "_"]
    n_labelled: int
    n_unlabelled: int
    seed: int

    def rows(self, step: int) -> Int64[np.ndarray, "b"]:
        """Return the rows of the global batch of a step (counted from 0), labelled tiles first.

        Labelled and unlabelled tiles are endless shuffled streams: no tile repeats before all others have been drawn.
        """
        chunks = []
        for stream, rows, count in (
            ("labelled", self.labelled, self.n_labelled),
            ("unlabelled", self.unlabelled, self.n_unlabelled),
        ):
            if count:
                chunks.append(rows[stream_positions(self.seed, stream, step * count, count, len(rows))])
        return np.concatenate(chunks)


def plan_batches(config: RunConfig, has_label: Bool[np.ndarray, "n"]) -> BatchPlan:
    """Plan the batches of a run.

    Unlabelled tiles are used if a loss term needs them; `training.labelled_share` is then the fraction of labelled
    tiles in a batch. Otherwise, batches of the same size contain only labelled tiles, or only unlabelled tiles if no
    tile has a label.

    Args:
        config: Run configuration, with its arm resolved.
        has_label: Mask of the training tiles whose label the run may use.

    Raises:
        DataError: There are no tiles, or no tile has a label and no loss term supervises unlabelled tiles.
        ConfigError: The batch is too small for both labelled and unlabelled tiles.
    """
    labelled, unlabelled = np.flatnonzero(has_label), np.flatnonzero(~has_label)
    size = config.training.tiles_per_step
    if not len(has_label):
        raise DataError(
            "no training tiles: all tiles of the source are in other splits",
            where="tiles.splits",
            fix="name the source's training split in tiles.splits.train, or correct the split column",
        )
    if not len(labelled) and not supervises_unlabelled(config):
        labels_hidden = config.tiles.labels.kind != "all"
        fix = (
            "keep some labels, such as tiles.labels.kind=per_class with tiles.labels.value=10"
            if labels_hidden
            else "add labels to the tile source; for a table, check the label column (tiles.columns)"
        )
        raise DataError(
            "no training tile has a label, and no loss term supervises unlabelled tiles",
            where="tiles.labels" if labels_hidden else f"tiles ({config.tiles.path})",
            fix=f"{fix}; or train without labels, from prompts: arm=zero_label",
        )
    if not len(labelled):
        return BatchPlan(labelled, unlabelled, 0, size, config.seed)
    if not uses_unlabelled(config) or not len(unlabelled):
        return BatchPlan(labelled, unlabelled[:0], size, 0, config.seed)
    n_labelled = round(size * config.training.labelled_share)
    if not 0 < n_labelled < size:
        raise ConfigError(
            f"a batch of {counted(size, 'tile')} with a labelled share of {config.training.labelled_share:g} has no "
            "room for both labelled and unlabelled tiles",
            where="training.labelled_share",
            fix="choose a share between 0 and 1 that gives at least one labelled and one unlabelled tile",
        )
    return BatchPlan(labelled, unlabelled, n_labelled, size - n_labelled, config.seed)
