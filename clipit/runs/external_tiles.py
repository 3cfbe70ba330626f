"""Tiles of a new test set, mapped to the classes of a trained classifier."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clipit.config.run import LabelsConfig, RunConfig, TilesConfig
from clipit.errors import DataError, counted, shortlist
from clipit.input_files.spelling import spelled_alike
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.tileset import TileSet
from clipit.workspace.tile_reading import artefacts_of, with_kept_size


@dataclass(frozen=True)
class MappedTiles:
    """Tiles with the class codes of a classifier as labels.

    Attributes:
        tiles: Tiles to classify; those without a label are kept.
        excluded: Number of excluded tiles by class, for classes that the classifier lacks.
    """

    tiles: TileSet
    excluded: dict[str, int]


def read_external(section: TilesConfig, config: RunConfig) -> TileSet:
    """Read a new test set with all of its labels: its test split, or all tiles if it has no test split.

    Args:
        section: Section `tiles` of the new set.
        config: Configuration of the run, whose output folder caches streamed tiles and shard indexes.

    Raises:
        DataError: The data set is missing or inconsistent.
        ConfigError: An option does not apply to the source.
    """
    hold_out = section.test_fraction is not None or section.folds is not None
    section = with_kept_size(section.model_copy(update={"labels": LabelsConfig()}), config)
    tiles = read_tiles(section, check=False, hold_out=hold_out, validation=False, root=artefacts_of(config))
    tests = tiles.splits == "test"
    if not tests.any():
        return replace(tiles, splits=np.full(len(tiles), "test", dtype="<U10"))
    if tests.all():
        return tiles
    note = (
        f"only the {counted(int(tests.sum()), 'tile of the test split is', 'tiles of the test split are')} scored, "
        f"out of {counted(len(tiles), 'tile')}"
    )
    selected = tiles.select(tests)
    return replace(selected, notes=(*selected.notes, note))


def map_to_classes(tiles: TileSet, classes: Sequence[str]) -> MappedTiles:
    """Map labels to the classes of a classifier by name; drop and count tiles of other classes.

    Raises:
        DataError: A class differs only in spelling from a class of the classifier, or no labelled tile belongs to
            any of its classes.
    """
    counts = {name: int((tiles.truth == code).sum()) for code, name in enumerate(tiles.classes)}
    excluded = {name: count for name, count in counts.items() if name not in classes and count}
    where = tiles.where
    similar = [pair for name in excluded for known in classes for pair in spelled_alike((name, known))]
    if similar:
        raise DataError(
            f"class names that differ only in spelling from the classifier's: {shortlist(similar)}",
            where=where,
            fix="map the labels of the new set to the classifier's classes in tiles.class_map",
        )
    if not any(counts.get(name) for name in classes):
        if not excluded:
            raise DataError("no tile of the new set has a label", where=where, fix="add labels, or use clipit predict")
        raise DataError(
            f"no tile belongs to any of the classifier's classes; the new set has the classes "
            f"{shortlist(list(excluded), 20)}; the classifier has the classes {', '.join(classes)}",
            where=where,
            fix=f'map the labels: --tiles.class_map=\'{{"{next(iter(excluded))}": "CLASS"}}\'',
        )
    code_of = np.asarray([classes.index(name) if name in classes else -2 for name in tiles.classes] + [-1], np.int64)
    labels = code_of[tiles.truth]  # -1, unknown, is the last entry
    kept = labels != -2
    notes = tiles.notes
    if excluded:
        by_class = ", ".join(f"{name}: {count}" for name, count in excluded.items())
        notes += (
            f"excluded {counted(sum(excluded.values()), 'tile')} of classes that the classifier lacks ({by_class})",
        )
    mapped = replace(tiles, labels=labels.clip(-1), truth=labels.clip(-1), classes=tuple(classes), notes=notes)
    return MappedTiles(mapped.select(kept), excluded)
