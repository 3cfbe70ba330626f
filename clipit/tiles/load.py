"""From the configuration to a `TileSet`: source, splits, validation part, visible labels."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from clipit.config.run import TilesConfig
from clipit.errors import ConfigError, DataError, shortlist
from clipit.tiles.bach import read_bach
from clipit.tiles.dataset_reader import read_data_set
from clipit.tiles.datasets import DATASETS
from clipit.tiles.folders import read_folders
from clipit.tiles.huggingface import read_huggingface
from clipit.tiles.labels import hide_labels
from clipit.tiles.nct_crc import read_nct_crc
from clipit.tiles.pcam import read_pcam
from clipit.tiles.quarantine import check_images
from clipit.tiles.source import LEFT_OUT, SourceTiles, map_labels, sorted_names
from clipit.tiles.splits import check_groups, cut_test, cut_validation, resolve_parts
from clipit.tiles.table import read_table
from clipit.tiles.tileset import TileSet

SOURCES: dict[str, Callable[[TilesConfig], SourceTiles]] = {
    "folders": read_folders,
    "table": read_table,
    "pcam": read_pcam,
    "nct_crc": read_nct_crc,
    "bach": read_bach,
    "huggingface": read_huggingface,
}
"""Sources with a reader of their own; the other data sets of `DATASETS` are read by the rules of their row."""


def load_tiles(config: TilesConfig, seed: int) -> TileSet:
    """Find the tiles of a data set and settle what each is used for: `read_tiles`, then `hide_labels`.

    For several seeds, call `read_tiles` once and `hide_labels` for each of them.

    Args:
        config: The `tiles` section.
        seed: The run's seed; chooses the labelled tiles unless `labels.seed` is given.

    Raises:
        DataError: The data set is missing, contradictory or not as published, or has too few labels.
        ConfigError: An option does not belong to the source, or asks for labels that cannot be.
    """
    return hide_labels(read_tiles(config), config.labels, seed)


def read_tiles(config: TilesConfig, *, check: bool = True) -> TileSet:
    """What is the same for every seed; no label is hidden yet (`labels` equals `truth`).

    In this order: read the source, map and check classes, map splits, leave out what maps to nothing, check groups,
    leave out unreadable images if asked to, cut a test part from train for a published data set that has none (by the
    rule and seed of its row), cut a validation part from train if the source has none. That cut has a seed of its own
    (`split_seed`).

    Args:
        config: The `tiles` section.
        check: Refuse groups that stand in two splits; False: the caller looks for leaks and decides.

    Raises:
        DataError: The data set is missing, contradictory or not as published.
        ConfigError: An option does not belong to the source.
    """
    _check_options(config)
    row = DATASETS.get(config.source)
    # `classes` are ours; with a mapping the source calls its own otherwise.
    as_called = config.model_copy(update={"classes": None}) if config.class_map else config
    if config.source in SOURCES:
        source = SOURCES[config.source](as_called)
    else:
        source = read_data_set(as_called, DATASETS[config.source])
    tiles = assemble(source, config)
    if check:
        check_groups(tiles)
    tiles = check_images(tiles, config.unreadable)
    if row is not None and row.test_fraction is not None and not (tiles.splits == "test").any():
        tiles = cut_test(tiles, row.test_fraction, row.test_seed)
    if row is not None and not (tiles.splits == "test").any():
        note = f"no test part here, so no test score: {row.title} is expected as {row.layout}"
        tiles = replace(tiles, notes=(*tiles.notes, note))
    if (tiles.splits == "train").any() and not (tiles.splits == "validation").any():
        blind = config.labels.kind == "none"
        tiles = cut_validation(tiles, config.validation_fraction, config.split_seed, blind=blind)
    return tiles


def assemble(source: SourceTiles, config: TilesConfig) -> TileSet:
    """Rows of a source as a `TileSet`: class numbers, our splits, mpp from the configuration where the source has none.

    Tiles of labels that `class_map` does not name, and with `other_parts: ignore` those of other parts, are left out.

    Raises:
        DataError: A label or a split is not known, or nothing is left.
    """
    source = map_labels(source, config.class_map)
    classes = _classes(source, config)
    number = {name: code for code, name in enumerate(classes)} | {"": -1, LEFT_OUT: -1}
    labels = np.asarray([number[name] for name in source.labels], dtype=np.int64)
    mpp = np.asarray(source.mpp, dtype=np.float64)
    if config.mpp is not None:
        mpp = np.where(np.isnan(mpp), config.mpp, mpp)
    splits = resolve_parts(source.parts, config.splits, source.part_names, source.where, config.other_parts)
    kept = np.asarray([bool(split) for split in splits]) & (np.asarray(source.labels, dtype=object) != LEFT_OUT)
    if not kept.any():
        raise DataError(
            "no tile is left of the parts and labels that are asked for",
            where=source.where,
            fix="correct tiles.splits or tiles.class_map",
        )
    # What is left out has a split for a moment only.
    everything = TileSet(
        ids=np.asarray(source.ids, dtype=np.str_),
        labels=labels,
        truth=labels.copy(),
        splits=np.asarray([split or "train" for split in splits], dtype="<U10"),
        groups=np.asarray(source.groups, dtype=np.str_),
        mpp=mpp,
        classes=classes,
        reader=source.reader,
        rows=np.arange(len(source.ids), dtype=np.int64),
        stamps=np.asarray(source.stamps, dtype=np.str_),
        notes=(*source.notes, *_part_notes(source, splits)),
        where=source.where,
    )
    return everything if kept.all() else everything.select(kept)


def _part_notes(source: SourceTiles, splits: list[str]) -> tuple[str, ...]:
    """How many tiles of which other parts were left out."""
    others = Counter(part or "(none)" for part, split in zip(source.parts, splits, strict=True) if not split)
    if not others:
        return ()
    told = [f"{part}: {count}" for part, count in sorted(others.items())]
    return (f"{sum(others.values())} tiles of other parts left out ({shortlist(told)})",)


def _classes(source: SourceTiles, config: TilesConfig) -> tuple[str, ...]:
    found = set(source.labels) - {"", LEFT_OUT}
    classes = config.classes or source.classes or sorted_names(found)
    if len(set(classes)) < len(classes) or "" in classes:
        raise ConfigError("a class is named twice or has no name", where=f"tiles.classes = {classes}", fix="correct it")
    strange = sorted(found - set(classes))
    if strange:
        rows = [tile for tile, name in zip(source.ids, source.labels, strict=True) if name in strange]
        raise DataError(
            f"labels outside the classes: {shortlist(strange)}, in {len(rows)} tiles: {shortlist(rows, 3)}",
            where=source.where,
            fix=f"the classes are {', '.join(classes)}: correct the labels or tiles.classes",
        )
    return classes


def _check_options(config: TilesConfig) -> None:
    """An option of another source would be ignored without a word."""
    wrong = []
    if config.images is not None and config.source != "table":
        wrong.append("tiles.images (table only)")
    if config.columns and config.source not in ("table", "huggingface"):
        wrong.append("tiles.columns (table and huggingface only)")
    if config.photos != "resize" and config.source != "bach":
        wrong.append("tiles.photos (bach only)")
    row = DATASETS.get(config.source)
    if not config.check_counts and (row is None or config.source == "bach"):
        wrong.append("tiles.check_counts (published data sets only, and not bach, whose split names each photo)")
    if config.magnification is not None and (row is None or not row.counts_at):
        wrong.append("tiles.magnification (breakhis only)")
    if wrong:
        raise ConfigError(
            f"not options of source {config.source}: {', '.join(wrong)}", where="tiles", fix="remove them"
        )


def mpp_warning(tiles: TileSet, expected: float | None, model: str, *, resize: float = 1.0) -> str | None:
    """What to tell a user whose tiles are far from the resolution that a model was made for; None when they are not.

    Args:
        tiles: Their `mpp` is that of the stored pixels.
        expected: Micrometres per pixel that the model was trained at; None: unknown.
        model: Its name, for the message.
        resize: Pixels of the model's input per stored pixel (224 / 96 when 96 px tiles are enlarged to 224).
    """
    known = tiles.mpp[~np.isnan(tiles.mpp)] / resize
    if expected is None or not known.size:
        return None
    far = (known > 1.5 * expected) | (known < expected / 1.5)
    if not far.any():
        return None
    return (
        f"{model} expects {expected:g} micrometres per pixel; {int(far.sum())} of {len(tiles)} tiles reach it with "
        f"{known[far].min():.3g} to {known[far].max():.3g}: its features may be poorer than published"
    )
