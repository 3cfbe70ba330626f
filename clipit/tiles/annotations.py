"""Tile labels from several annotators: read them, stratify held-out splits by them, and derive training labels."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from clipit.annotators.label_table import AnnotationTable, make_votes, read_annotations
from clipit.annotators.labelling import label_tiles
from clipit.annotators.votes import Votes, majority
from clipit.config.run import AnnotationsConfig, TilesConfig
from clipit.tiles.datasets import DATASETS
from clipit.tiles.source import check_annotator_names
from clipit.tiles.tileset import TileSet


@dataclass(frozen=True, eq=False)
class AnnotatedTiles:
    """Annotators' votes on the tiles of a source, and the source's own labels.

    Attributes:
        config: Section `tiles.annotations`.
        source_labels: Class of each tile in the source, by id; -1 if unlabelled.
        blind: Whether labels of training and validation tiles must not be used.
    """

    config: AnnotationsConfig
    votes: Votes
    source_labels: dict[str, int]
    blind: bool

    def with_strata(self, tiles: TileSet, *, tests: bool) -> TileSet:
        """Replace labels with those used to stratify held-out splits, regardless of `annotations.labels`.

        Args:
            tiles: Tiles before any are held out.
            tests: True to hold out test tiles, stratified by the labels that they are scored against; False to hold out
                validation tiles, stratified by the majority vote of the training annotators.
        """
        if tests and self.config.test_labels == "source":
            return _with_labels(tiles, self.source_labels)
        panel = self.config.test_annotators
        names = [name for name in self.votes.annotators if not panel or (name in panel) == tests]
        votes = self.votes.of_annotators(names)
        labels = majority(votes.counts(), votes.items).labels
        return _with_labels(tiles, dict(zip(votes.items, labels.tolist(), strict=True)))

    def label(self, tiles: TileSet, *, all_tests: bool = False) -> TileSet:
        """Label tiles as configured, and add the notes on their annotators.

        Args:
            tiles: Tiles with their final splits.
            all_tests: Whether all tiles are test tiles, regardless of their split.

        Raises:
            DataError: See `clipit.annotators.labelling.label_tiles`.
        """
        is_test = np.full(len(tiles), all_tests) | (tiles.splits == "test")
        tests: Collection[str] = tiles.ids[is_test].tolist()
        training: Collection[str] = [] if self.blind else tiles.ids[~is_test].tolist()
        labelling = label_tiles(self.votes, self.config, training, tests)
        labels = dict(labelling.classes)
        if self.config.test_labels == "source":
            labels |= {name: self.source_labels[name] for name in tests}
        labelled = _with_labels(tiles, labels)
        return replace(labelled, annotations=labelling.annotations, notes=(*tiles.notes, *labelling.notes))


def read_annotators(config: TilesConfig) -> AnnotationTable | None:
    """Read the table of annotators' labels; None if none is configured.

    Raises:
        DataError: See `label_table.read_annotations`; or two annotators' names differ only in spelling.
    """
    if config.annotations is None:
        return None
    table = read_annotations(config.annotations, config.class_map, () if config.class_map else config.classes or ())
    check_annotator_names(table.annotators, table.where)
    return table


def join_annotators(
    tiles: TileSet, table: AnnotationTable | None, config: TilesConfig
) -> tuple[TileSet, AnnotatedTiles | None]:
    """Match the annotators' labels to the tiles, and add notes on dropped rows.

    Raises:
        DataError: A label is not one of the classes, or none of the annotated tiles is in the data set.
    """
    if table is None or config.annotations is None:
        return tiles, None
    votes, notes = make_votes(table, tiles.ids.tolist(), tiles.classes)
    source = dict(zip(tiles.ids.tolist(), tiles.truth.tolist(), strict=True))
    section, data_set = config.annotations, DATASETS.get(config.source)
    if data_set is not None and data_set.by_annotators and section.source_annotators == "unknown":
        section = section.model_copy(update={"source_annotators": "same"})
    joined = AnnotatedTiles(section, votes, source, config.labels.kind == "none")
    return replace(tiles, notes=(*tiles.notes, *table.notes, *notes)), joined


def _with_labels(tiles: TileSet, labels: dict[str, int]) -> TileSet:
    codes: Int64[np.ndarray, " n"] = np.asarray([labels.get(name, -1) for name in tiles.ids.tolist()], dtype=np.int64)
    return replace(tiles, labels=codes, truth=codes.copy())
