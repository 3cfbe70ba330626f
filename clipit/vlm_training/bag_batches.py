"""Draw batches of bags from the tiles and texts of each example, as a pure function of seed and step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64

from clipit.distributed import stream_positions
from clipit.errors import DataError
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.tileset import TileSet
from clipit.training.terms.bags import share_text


@dataclass(frozen=True)
class ContrastBatch:
    """A global batch: distinct images and texts, each encoded once, and the bags that they form.

    Attributes:
        tiles: Rows of the distinct tiles of the tile bags.
        image_members: Indices into `tiles` of each bag's members; -1 for no member.
        texts: Rows of the distinct texts of the text bags; empty if images are contrasted with images.
        others: Rows of the distinct tiles on the other side, with a different augmentation; empty with texts.
        other_members: Indices into `texts` or `others` of each bag's members on the other side; -1 for no member.
        same: Mask of the pairs of bags that are not negatives of each other; the diagonal is ignored.
    """

    tiles: Int[np.ndarray, "t"]
    image_members: Int[np.ndarray, "b m"]
    texts: Int[np.ndarray, "x"]
    others: Int[np.ndarray, "y"]
    other_members: Int[np.ndarray, "b n"]
    same: Bool[np.ndarray, "b b"]


@dataclass(frozen=True)
class Members:
    """Lists of rows of different lengths, one per example.

    Attributes:
        values: Rows of tiles or texts of all examples, one example after the other.
        starts: Index in `values` of each example's first row, followed by the number of values.
    """

    values: Int64[np.ndarray, "total"]
    starts: Int64[np.ndarray, "bounds"]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | Int64[np.ndarray, "_"]]) -> "Members":
        """Store one list per example."""
        lengths = np.fromiter((len(each) for each in lists), dtype=np.int64, count=len(lists))
        values = np.concatenate([np.asarray(each, dtype=np.int64) for each in lists] or [np.empty(0, dtype=np.int64)])
        return cls(values, np.concatenate([np.zeros(1, dtype=np.int64), lengths.cumsum()]))

    @classmethod
    def grouped(cls, examples: Int64[np.ndarray, "m"], values: Int64[np.ndarray, "m"], count: int) -> "Members":
        """Group values by example, in their given order; values with a negative example index are dropped."""
        known = np.flatnonzero(examples >= 0)
        order = known[np.argsort(examples[known], kind="stable")]
        return cls(values[order], np.searchsorted(examples[order], np.arange(count + 1)).astype(np.int64))

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.starts) - 1

    def __getitem__(self, example: int) -> Int64[np.ndarray, "_"]:
        """Return the rows of an example."""
        return self.values[self.starts[example] : self.starts[example + 1]]

    @property
    def lengths(self) -> Int64[np.ndarray, "n"]:
        """Number of rows of each example."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class BagExamples:
    """Examples with tiles and texts; each step draws some of them.

    Examples are drawn in shuffled order, and every example is drawn once before any is drawn again. The same holds for
    the tiles and texts of an example over its visits, except for a remainder that does not fill a bag.

    Attributes:
        tiles_of: Rows of the tiles of each example; a bag that contains all of them keeps their order.
        tiles_per_bag: Maximum number of tiles of a tile bag.
        texts_per_bag: Maximum number of texts of a text bag; 0 contrasts images with images.
        groups: Group of each example; examples of the same group are not negatives of each other. A group is a patient
            or, where examples of a patient are negatives, a single example.
        partners: Example whose texts each example gets; the example itself, except in the control.
        pixel_codes: Code of each tile's pixels; equal for tiles with the same pixels.
        neighbours: Whether the texts describe only the first tile of an example, and the other tiles are neighbours of
            that tile.
        summary: Counts of used, dropped, split and masked items (JSON-serialisable).
    """

    source: PixelSource
    tile_ids: list[str]
    texts: list[str]
    tiles_of: Members
    texts_of: Members
    tiles_per_bag: int
    texts_per_bag: int
    batch_size: int
    seed: int
    groups: Int64[np.ndarray, "n"]
    partners: Int64[np.ndarray, "n"]
    pixel_codes: Int64[np.ndarray, "t"]
    neighbours: bool = False
    fingerprints: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.tiles_of)

    def used_tiles(self) -> TileSet:
        """Return the tiles that may be used: all tiles if bags have neighbours, since re-mining may draw any tile."""
        tiles = self.source.tiles
        return tiles if self.neighbours else tiles.select(np.unique(self.tiles_of.values))

    def batch(self, step: int) -> ContrastBatch:
        """Return the global batch of a step, counted from 0."""
        first, count = step * self.batch_size, len(self)
        examples = stream_positions(self.seed, "examples", first, self.batch_size, count)
        visits = (first + np.arange(self.batch_size)) // count
        images, others, texts = [], [], []
        for example, visit in zip(examples.tolist(), visits.tolist(), strict=True):
            if self.texts_per_bag:
                partner = int(self.partners[example])
                images.append(self._draw(self.tiles_of, "tiles", example, self.tiles_per_bag, visit))
                texts.append(self._draw(self.texts_of, "texts", partner, self.texts_per_bag, visit))
            else:
                drawn = self._draw(self.tiles_of, "tiles", example, 2 * self.tiles_per_bag, visit)
                half = max(len(drawn) // 2, 1)
                images.append(drawn[:half])
                others.append(drawn[half:] if len(drawn) > 1 else drawn)
        tiles, image_members = _distinct(images)
        text_rows, text_members = _distinct(texts)
        other_rows, other_members = _distinct(others)
        return ContrastBatch(
            tiles=tiles,
            image_members=image_members,
            texts=text_rows,
            others=other_rows,
            other_members=text_members if self.texts_per_bag else other_members,
            same=self._overlapping_bags(examples, images, others, texts),
        )

    def captions(self, example: int) -> list[tuple[int, int]]:
        """Return the image-text pairs of an example as (tile row, text row).

        Each tile is paired with as many texts as a bag contains. If an example has a single tile, or its other tiles
        are neighbours, its first tile is paired with all texts.
        """
        tiles, partner = self.tiles_of[example], int(self.partners[example])
        if self.neighbours or len(tiles) == 1:
            return [(int(tiles[0]), int(text)) for text in self.texts_of[partner]]
        count = max(self.texts_per_bag, 1)
        return [
            (int(tile), int(text))
            for visit, tile in enumerate(tiles)
            for text in self._draw(self.texts_of, "texts", partner, count, visit)
        ]

    def _draw(self, members: Members, kind: str, example: int, count: int, visit: int) -> Int64[np.ndarray, "_"]:
        """Draw up to `count` different rows of an example: all rows, or the next ones in shuffled order."""
        rows = members[example]
        if len(rows) <= count:
            return rows
        shuffle, chunk = divmod(visit, len(rows) // count)  # the remainder of a shuffle is not drawn
        start = shuffle * len(rows) + chunk * count
        drawn: Int64[np.ndarray, "_"] = rows[stream_positions(self.seed, f"{kind} {example}", start, count, len(rows))]
        return drawn

    def _overlapping_bags(
        self,
        examples: Int64[np.ndarray, "b"],
        images: list[Int64[np.ndarray, "_"]],
        others: list[Int64[np.ndarray, "_"]],
        texts: list[Int64[np.ndarray, "_"]],
    ) -> Bool[np.ndarray, "b b"]:
        """Find the bags that share a patient, pixels or a text, on any side."""
        groups = self.groups[examples][:, None]
        if self.texts_per_bag:
            # In the control, the tiles of one bag may belong to the texts of another bag; such bags are not negatives.
            groups = np.concatenate([groups, self.groups[self.partners[examples]][:, None]], axis=1)
        pixels = [self.pixel_codes[rows] for rows in images]
        if others:
            pixels = [np.concatenate([a, self.pixel_codes[b]]) for a, b in zip(pixels, others, strict=True)]
        masks = [share_text(_padded(pixels)), share_text(groups), *([share_text(_padded(texts))] if texts else [])]
        same: Bool[np.ndarray, "b b"] = np.logical_or.reduce(masks)
        return same


def check_negatives(examples: BagExamples, batches: int = 8) -> dict[str, Any]:
    """Check that the bags of the first batches have negatives.

    Returns:
        Counts for the summary: mean number of negatives per bag, and fraction of bags without negatives.

    Raises:
        DataError: No bag in a batch has a negative.
    """
    counts = np.concatenate([_negatives(examples.batch(step)) for step in range(batches)])
    if not counts.any():
        raise DataError(
            "no bag in a batch has a negative: all bags share a patient, an image or a text",
            where="adapt",
            fix="add patients and more varied texts, or raise adapt.batch_size",
        )
    return {"negatives_per_bag": float(counts.mean()), "bags_without_negatives": float((counts == 0).mean())}


def _negatives(batch: ContrastBatch) -> Int64[np.ndarray, "b"]:
    masked = batch.same.copy()
    np.fill_diagonal(masked, True)
    return np.asarray((~masked).sum(axis=1), dtype=np.int64)


def _padded(lists: Sequence[Int[np.ndarray, "_"]]) -> Int64[np.ndarray, "b most"]:
    """Stack lists as rows of a table, padded with -1."""
    table = np.full((len(lists), max((len(each) for each in lists), default=0)), -1, dtype=np.int64)
    for row, each in enumerate(lists):
        table[row, : len(each)] = each
    return table


def _distinct(lists: Sequence[Int[np.ndarray, "_"]]) -> tuple[Int64[np.ndarray, "t"], Int64[np.ndarray, "b most"]]:
    """Return the distinct rows of all lists, sorted, and the indices of each list's rows among them."""
    if not lists:
        return np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.int64)
    rows, indices = np.unique(np.concatenate(lists), return_inverse=True)
    ends = np.cumsum([len(each) for each in lists])[:-1]
    return rows.astype(np.int64), _padded(np.split(indices.astype(np.int64), ends))
