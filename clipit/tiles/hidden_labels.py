"""Hide labels: choose which training and validation tiles keep their labels."""

import logging
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from clipit.config.run import LabelsConfig, RunConfig
from clipit.errors import ConfigError, DataError, counted, shortlist
from clipit.tiles.splits import shuffled
from clipit.tiles.tileset import TileSet

logger = logging.getLogger(__name__)


def with_all_labels(config: RunConfig) -> RunConfig:
    """Return the configuration with no labels hidden, for artefacts that do not depend on labels."""
    return config.model_copy(update={"tiles": config.tiles.model_copy(update={"labels": LabelsConfig()})})


def hide_labels(tiles: TileSet, config: LabelsConfig, seed: int) -> TileSet:
    """Hide labels of the training and validation splits; test labels are never hidden.

    Tiles are drawn by (seed, id) alone, so that for a given seed, a larger labelled set contains every smaller one. A
    fraction applies per class and keeps the label of at least one tile of each class. Tiles labelled by annotators
    are drawn per majority class regardless of `tiles.annotations.labels`, so that the same tiles keep their labels
    whichever kind of label is used.

    Args:
        tiles: Tiles of all splits; `truth` keeps the labels that are hidden in `labels`.
        config: Section `tiles.labels`. With validation "same", the validation split keeps at most as many labels as
            the training split (per class for kind `per_class`).
        seed: Seed for the draw, unless the configuration sets its own.

    Raises:
        ConfigError: A fraction is above 1, or a number per class is not an integer.
        DataError: A class has too few labelled tiles.
    """
    _check(config)
    seed = seed if config.seed is None else config.seed
    labels = tiles.truth.copy()
    train, validation = tiles.splits == "train", tiles.splits == "validation"
    classes = len(tiles.classes)
    strata = tiles.truth if tiles.annotations is None else tiles.annotations.strata(tiles.ids.tolist())
    train_counts = _counts(strata[train], classes)
    quota = np.zeros_like(train_counts)
    if train.any():  # otherwise, the code that needs training tiles raises an error
        quota = _train_quota(train_counts, config, tiles.classes)
    validation_counts = _counts(strata[validation], classes)
    if config.kind == "none":
        validation_quota = np.zeros_like(quota)
    elif config.validation == "all":
        validation_quota = validation_counts
    elif config.kind == "per_class":
        validation_quota = np.minimum(validation_counts, quota)
    else:
        validation_quota = proportional(validation_counts, int(quota.sum()))
    for mask, kept in ((train, quota), (validation, validation_quota)):
        _keep(labels, np.flatnonzero(mask), tiles, strata, kept, seed)
    notes = []
    remaining = _counts(labels[train], classes)
    if tiles.annotations is not None and remaining.sum() < quota.sum():
        drawn, unlabelled = int(quota.sum()), int(quota.sum() - remaining.sum())
        notes.append(
            f"{unlabelled:,} of the {counted(drawn, 'training tile')} selected to keep their labels "
            f"{'has' if unlabelled == 1 else 'have'} no label from the chosen annotator"
        )
    if remaining.any() and not remaining.all():  # with no label at all, either the arm needs none or training fails
        missing = [name for name, count in zip(tiles.classes, remaining.tolist(), strict=True) if not count]
        notes.append(f"no training tile is labelled {shortlist(missing, 20)}")
        logger.warning(notes[-1])
    return replace(tiles, labels=labels, notes=(*tiles.notes, *notes))


def proportional(counts: Int64[np.ndarray, " c"], total: int) -> Int64[np.ndarray, " c"]:
    """Divide `total` among classes in proportion to their counts (largest remainders), never exceeding a count."""
    if total >= counts.sum():
        return counts.copy()
    exact = counts * (total / max(int(counts.sum()), 1))
    shares = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - shares), kind="stable")
    shares[order[: total - int(shares.sum())]] += 1
    return shares


def _check(config: LabelsConfig) -> None:
    if config.kind == "fraction" and config.value > 1:
        problem, fix = f"a fraction of {config.value:g} is above 1", "use a fraction up to 1, or kind=per_class"
    elif config.kind == "per_class" and config.value != int(config.value):
        problem, fix = (
            f"{config.value:g} labels per class is not a whole number",
            "use a whole number, or kind=fraction",
        )
    else:
        return
    raise ConfigError(problem, where="tiles.labels.value", fix=fix)


def _counts(truth: Int64[np.ndarray, " n"], classes: int) -> Int64[np.ndarray, " c"]:
    return np.bincount(truth[truth >= 0], minlength=classes).astype(np.int64)


def _train_quota(
    counts: Int64[np.ndarray, " c"], config: LabelsConfig, classes: tuple[str, ...]
) -> Int64[np.ndarray, " c"]:
    if config.kind == "none":
        return np.zeros_like(counts)
    if config.kind == "fraction":
        kept: Int64[np.ndarray, " c"] = np.minimum(
            counts, np.maximum(1, np.rint(counts * config.value).astype(np.int64))
        )
        return kept
    if config.kind == "per_class":
        per_class = int(config.value)
        short = [f"{name} ({count})" for name, count in zip(classes, counts.tolist(), strict=True) if count < per_class]
        if short:
            raise DataError(
                f"tiles.labels asks for {counted(per_class, 'label')} per class, but the training split has fewer for "
                f"{shortlist(short)}",
                where="tiles.labels",
                fix="use fewer labels, or kind=fraction",
            )
        return np.full_like(counts, per_class)
    return counts


def _keep(
    labels: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    tiles: TileSet,
    strata: Int64[np.ndarray, " n"],
    quota: Int64[np.ndarray, " c"],
    seed: int,
) -> None:
    """Hide, in place, those labels of the tiles `rows` that exceed the quota of their class."""
    for code, kept in enumerate(quota.tolist()):
        members = rows[strata[rows] == code]
        if kept < members.size:
            order = shuffled(tiles.ids[members], seed, "labels")
            labels[members[order[kept:]]] = -1
