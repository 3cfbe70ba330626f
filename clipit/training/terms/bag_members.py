"""Members of text bags (snippets, dictionary prompts, class prompts) and of tile bags (neighbouring tiles)."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, DataError
from clipit.pairing.text_bags import nearest_prompts, text_bags
from clipit.pairing.tile_bags import tile_bags
from clipit.prompts.dictionary import load_dictionary
from clipit.prompts.prompt_set import check_classes
from clipit.stores.embed import Store
from clipit.tiles.tileset import TileSet
from clipit.vectors import centred
from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class BagMembers:
    """Members of each tile's bag; their vectors are read on demand.

    Attributes:
        store: Store of the members' embeddings.
        mean: Mean embedding, subtracted from each vector; None to subtract nothing.
        members: Rows of the store, one bag per training tile; -1 for no member.
    """

    store: Store
    mean: Float32[np.ndarray, "dim"] | None
    members: Int[np.ndarray, "n k"]

    def vectors(self, rows: Int[np.ndarray, "b"]) -> tuple[Float32[np.ndarray, "b k dim"], Bool[np.ndarray, "b k"]]:
        """Read the unit vectors of these tiles' bag members, and the mask of existing members."""
        members = self.members[rows]
        return centred(self.store.rows(np.maximum(members, 0)), self.mean), members >= 0


@dataclass(frozen=True)
class PromptMembers:
    """Prompts used as members of the text bags.

    Attributes:
        vectors: Unit-norm prompt embeddings.
        codes: Integer id of each prompt's text; a text that is both in the dictionary and in a class has a single id.
        rows: Rows of `vectors` for each tile.
        exists: Mask of the existing members; the others are padding.
        texts: Distinct texts, by id.
    """

    vectors: Float32[np.ndarray, "entries dim"]
    codes: Int[np.ndarray, "entries"]
    rows: Int[np.ndarray, "n p"]
    exists: Bool[np.ndarray, "n p"]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContrastBags:
    """Text bags and tile bags of the training tiles.

    Attributes:
        texts: Paired snippets.
        prompts: Nearest dictionary and class prompts; None if neither is used.
        tiles: Neighbouring tiles; None if each tile bag contains only the student's view of the tile.
        counts: Numbers of pruned members and empty bags, for training.json.
        weights: Weights of the paired snippets, summing to 1 in each non-empty bag; None for equal weights.
    """

    texts: BagMembers
    prompts: PromptMembers | None
    tiles: BagMembers | None
    counts: dict[str, int] = field(default_factory=dict)
    weights: Float32[np.ndarray, "n k"] | None = None

    def text_members(
        self, rows: Int[np.ndarray, "b"]
    ) -> tuple[Float32[np.ndarray, "b k dim"], Bool[np.ndarray, "b k"]]:
        """Return the vectors and mask of the text bags of these tiles."""
        vectors, mask = self.texts.vectors(rows)
        if self.prompts is None:
            return vectors, mask
        prompts = self.prompts.vectors[self.prompts.rows[rows]]
        return np.concatenate([vectors, prompts], axis=1), np.concatenate([mask, self.prompts.exists[rows]], axis=1)

    def text_ids(self, rows: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b k"]:
        """Return the integer id of the text of each member of these tiles' text bags; -1 for no member.

        A snippet's id is its row in the text store; the ids of distinct prompts follow those of all snippets.
        """
        snippets: Int[np.ndarray, "b k"] = self.texts.members[rows]
        if self.prompts is None:
            return snippets
        prompts = self.prompts.codes[self.prompts.rows[rows]] + len(self.texts.store.ids)
        return np.concatenate([snippets, np.where(self.prompts.exists[rows], prompts, -1)], axis=1)

    def text_weights(self, rows: Int[np.ndarray, "b"]) -> Float32[np.ndarray, "b k"] | None:
        """Return the weights of the members of these tiles' text bags: 1 per prompt, and 1 per snippet on average."""
        if self.weights is None:
            return None
        exists = self.texts.members[rows] >= 0
        weights = np.where(exists, self.weights[rows] * exists.sum(axis=1, keepdims=True), 0).astype(np.float32)
        if self.prompts is None:
            return weights
        return np.concatenate([weights, self.prompts.exists[rows].astype(np.float32)], axis=1)


def make_contrast_bags(config: RunConfig, workspace: Workspace, train: TileSet) -> ContrastBags:
    """Build the bags of all training tiles.

    Raises:
        ConfigError: `bags.weighted` is set but the pairs have no weights, or class prompts lack a prompt set.
        DataError: Every text bag is empty.
    """
    b = config.bags
    if b.weighted and config.pairing.score_temperature is None:
        raise ConfigError(
            "bags.weighted needs weighted pairs, but pairing.score_temperature is not set",
            where="bags.weighted",
            fix="set pairing.score_temperature, for example to 0.1, or bags.weighted=false",
        )
    index = workspace.index
    texts = text_bags(train.ids, workspace.pairs, index.store, b.snippets, b.margin)
    prompts = prompt_members(config, workspace, train) if b.prompts or b.class_prompts else None
    if texts.empty.all() and prompts is None:
        raise DataError("every text bag is empty", where="bags", fix="lower pairing.threshold")
    empty = texts.empty if prompts is None else texts.empty & ~prompts.exists.any(axis=1)
    counts = {
        "empty_text_bags": int(empty.sum()),  # the bag loss skips these tiles
        "without_snippets": int(texts.empty.sum()),
        "pruned_snippets": texts.pruned,
    }
    tiles, tile_counts = neighbour_members(config, workspace, train)
    weights = texts.weights if b.weighted else None
    return ContrastBags(BagMembers(index.store, index.mean, texts.rows), prompts, tiles, counts | tile_counts, weights)


def neighbour_members(
    config: RunConfig, workspace: Workspace, train: TileSet
) -> tuple[BagMembers | None, dict[str, int]]:
    """Find the tiles in each training tile's bag: the nearest tiles of other patients, within `bags.margin`.

    Returns:
        The members (None if `bags.tiles` is 0), and the numbers of empty bags and pruned members.
    """
    b = config.bags
    if not b.tiles:
        return None, {}
    store = workspace.tile_store("train")
    grouped = (train.patients != "").any()
    groups = dict(zip(train.ids.tolist(), train.patients.tolist(), strict=True)) if grouped else None
    neighbours = tile_bags(
        workspace.root,
        store,
        b.tiles,
        mean=workspace.tile_mean,
        pairs=workspace.pairs if b.text_neighbours else None,
        index=workspace.index if b.text_neighbours else None,
        groups=groups,
        margin=b.margin,
        block=config.pairing.block,
    )
    members = BagMembers(store, workspace.tile_mean, neighbours.rows(train.ids, store))
    return members, {"empty_tile_bags": len(neighbours.empty), "pruned_tiles": neighbours.pruned}


def prompt_members(config: RunConfig, workspace: Workspace, train: TileSet) -> PromptMembers:
    """Find each tile's nearest dictionary and class prompts within `bags.margin`.

    Raises:
        ConfigError: Class prompts are configured without a prompt set.
    """
    b, store = config.bags, workspace.tile_store("train")
    tiles = centred(store.rows(store.positions(train.ids)), workspace.tile_mean)
    texts: list[str] = []
    vectors: list[np.ndarray] = []
    members: list[np.ndarray] = []

    def add(pool: list[str], searched: Bool[np.ndarray, "p"], count: int) -> Int[np.ndarray, "n k"]:
        """Embed a pool of texts, and search some of them for those nearest to each tile; return rows of the pool."""
        embedded = centred(workspace.encode(pool), workspace.text_mean)
        texts.extend(pool)
        vectors.append(embedded)
        nearest = nearest_prompts(tiles, embedded[searched], min(count, int(searched.sum())), config.pairing.block)
        rows: Int[np.ndarray, "n k"] = np.flatnonzero(searched)[nearest]
        return rows

    if b.prompts:
        dictionary = load_dictionary(b.dictionary)
        entries = sorted(dictionary.entries)
        bags = [dictionary.bag(entry) if b.whole_entries else dictionary.texts(entry) for entry in entries]
        terms = [text in dictionary.texts(entry) for entry, bag in zip(entries, bags, strict=True) for text in bag]
        rows = add([text for bag in bags for text in bag], np.array(terms), b.prompts)
        members.append(_whole_entries(rows, np.array([len(bag) for bag in bags])) if b.whole_entries else rows)
    if b.class_prompts:
        if workspace.prompts is None:
            raise ConfigError(
                "class prompts need a prompt set",
                where="bags.class_prompts",
                fix="set the key prompts to a file or the name of a packaged set",
            )
        check_classes(workspace.prompts, workspace.all_tiles.classes)
        names = [name for name in workspace.prompts.classes if name in workspace.all_tiles.classes]
        pool, before = [text for name in names for text in workspace.prompts.texts(name)], len(texts)
        members.append(add(pool, np.ones(len(pool), dtype=np.bool_), b.class_prompts) + before)
    embedded, rows = np.concatenate(vectors), np.concatenate(members, axis=1)
    distinct, codes = np.unique(texts, return_inverse=True)
    exists, rows = rows >= 0, np.maximum(rows, 0)
    if b.margin is not None:
        scores = np.where(exists, np.einsum("nd,npd->np", tiles, embedded[rows]), -np.inf)
        exists = scores >= scores.max(axis=1, keepdims=True) - b.margin
    return PromptMembers(embedded, codes.astype(np.int64), rows, exists, tuple(distinct.tolist()))


def _whole_entries(rows: Int[np.ndarray, "n k"], sizes: Int[np.ndarray, "e"]) -> Int[np.ndarray, "n m"]:
    """Return all texts of each tile's dictionary entries, each entry once, padded with -1.

    Args:
        rows: Nearest texts of each tile, as rows of the concatenated texts of all entries.
        sizes: Number of texts of each entry, in the same order.
    """
    chosen = np.repeat(np.arange(len(sizes)), sizes)[rows]
    offsets = np.arange(sizes.max())
    table = np.where(offsets < sizes[:, None], (np.cumsum(sizes) - sizes)[:, None] + offsets, -1)
    repeated = np.stack([(chosen[:, :k] == chosen[:, k : k + 1]).any(axis=1) for k in range(chosen.shape[1])], axis=1)
    return np.where(repeated[:, :, None], -1, table[chosen]).reshape(len(rows), -1)
