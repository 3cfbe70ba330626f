"""Pair tiles with reports in Python: build the snippet index, and find the snippets nearest to each tile."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from clipit.api.configuration import Config, as_config
from clipit.api.entry import public

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipit.pairing.pairs import Pairs
    from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class IndexResult:
    """Snippet index of a configuration's reports.

    Attributes:
        folder: Folder of the index.
        rows: Number of distinct snippet embeddings in the index.
        kind: Key, backend and centring of the index, such as `Flat (faiss, centred)`.
        summary: Summary of the texts read and dropped.
        reused: Whether existing snippets were reused; if so, their summary was not logged.
    """

    folder: Path
    rows: int
    kind: str
    summary: str
    reused: bool
    _workspace: "Workspace" = field(repr=False, compare=False)

    @cached_property
    def snippets(self) -> pd.DataFrame:
        """Snippets, one row each: snippet_id, text and metadata."""
        table: pd.DataFrame = self._workspace.snippets.table("snippets.parquet").to_pandas()
        return table


@dataclass(frozen=True)
class PairResult:
    """Pairs of tiles and snippets.

    Attributes:
        file: Parquet file of the pairs.
        page: HTML page to browse the pairs, if it was written.
        summary: Statistics of the pairs, as text.
        places: Slide and coordinates (x, y) by tile_id, for slide features; None for tiles with images.
    """

    file: Path
    page: Path | None
    summary: str
    places: pd.DataFrame | None = field(repr=False, compare=False)
    _pairs: "Pairs" = field(repr=False, compare=False)
    _workspace: "Workspace" = field(repr=False, compare=False)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Pairs, sorted by tile and rank: tile_id, rank (from 0), snippet_id, similarity (cosine) and text.

        The column weight is present if `pairing.score_temperature` is set.
        """
        pairs: pd.DataFrame = self._pairs.table.to_pandas()
        pairs = pairs.rename(columns={"score": "similarity"})
        return pairs.assign(text=pairs["snippet_id"].map(self._workspace.snippet_texts()))

    def image(self, tile_id: str) -> "Image":
        """Read the image of a tile.

        Raises:
            DataError: There is no such tile, or its image cannot be decoded.
        """
        from clipit.errors import DataError

        tiles = self._workspace.all_tiles
        rows = (tiles.ids == tile_id).nonzero()[0]
        if not len(rows):
            raise DataError(f"unknown tile {tile_id!r}", where="tile_id", fix="use a tile_id from `pairs`")
        return tiles.read(int(rows[0]))


@public
def build_text_index(config: Config) -> IndexResult:
    """Read the reports, split them into snippets, embed them and build the index; finished parts are reused.

    Example:
        >>> index = clipit.build_text_index(config)
        >>> index.snippets["text"].head()

    Args:
        config: Configuration with reports. It needs no tiles; with tiles, reports of patients with validation or test
            tiles raise an error, or are dropped with `leaks.policy: exclude`.

    Raises:
        ClipitError: The reports, the VLM or the index cannot be used; the message states what to do.
    """
    from clipit.workspace.preflight import check_inputs
    from clipit.workspace.workspace import Workspace

    workspace = Workspace(as_config(config, needs_tiles=False).run)
    check_inputs(workspace, ["vlm"], reports=True)
    artifact = workspace.index.artifact
    facts = artifact.manifest.facts
    kind = f"{facts['key']} ({facts['backend']}{', centred' if facts['centring'] else ''})"
    summary = workspace.snippet_summary()
    return IndexResult(artifact.folder, int(facts["rows"]), kind, summary, not workspace.split_reports, workspace)


@public
def pair(config: Config, *, features: Sequence[str | Path] | str | Path | None = None, page: bool = True) -> PairResult:
    """Pair every training tile with its nearest snippets, and write a page that shows the pairs.

    Example:
        >>> pairs = clipit.pair(config)
        >>> pairs.pairs.nlargest(5, "similarity")[["tile_id", "similarity", "text"]]
        >>> pairs.image(pairs.pairs["tile_id"][0])
        >>> slides = clipit.pair(config, features="trident/features_conch_v1")

    Args:
        config: Configuration with reports and, unless `features` is given, tiles.
        features: Feature files from TRIDENT or CLAM (.h5, .hdf5), or a folder of them, whose tiles are paired instead
            of the configured tiles. They must be unit-norm embeddings from the image tower of `vlm` in the joint space
            (for TRIDENT's CONCH encoder: `with_proj=True, normalize=True`). The group of a tile is its slide. No page
            is written, because there are no images.
        page: Whether to write the page.

    Raises:
        ClipitError: The tiles, the reports or the VLM cannot be used; the message states what to do.
    """
    from clipit.distributed import get_processes
    from clipit.workspace.pairs_page import write_pairs_page
    from clipit.workspace.preflight import check_inputs
    from clipit.workspace.workspace import Workspace

    run = as_config(config, needs_tiles=features is None).run
    workspace = Workspace(run)
    if features is not None:
        paths = [features] if isinstance(features, str | Path) else features
        return _pair_features(workspace, [Path(path) for path in paths])
    check_inputs(workspace, ["vlm"], reports=True)
    pairs = workspace.pairs
    summary = workspace.pairing_summary()
    written = write_pairs_page(run, workspace) if page and get_processes().main else None
    return PairResult(pairs.artifact.file("pairs.parquet"), written, summary, None, pairs, workspace)


def _pair_features(workspace: "Workspace", paths: Sequence[Path]) -> PairResult:
    """Pair slide tiles using their precomputed features."""
    from clipit.pairing.pair_statistics import summary_text
    from clipit.pairing.pairs import pair_tiles
    from clipit.stores.feature_import import TILES, import_features

    rules = workspace.config.pairing
    store = import_features(workspace.root, paths, workspace.vlm)
    coordinates: pd.DataFrame = store.artifact.table(TILES).to_pandas().set_index("id")
    sources = workspace.snippets.table("snippet_sources.parquet")
    groups = {str(tile): str(slide) for tile, slide in coordinates["slide"].items()}
    root, index = workspace.root, workspace.index
    pairs = pair_tiles(root, index, store, k=rules.k, block=rules.block, rules=rules, sources=sources, groups=groups)
    summary = summary_text(pairs.summary, workspace.snippet_texts())
    return PairResult(pairs.artifact.file("pairs.parquet"), None, summary, coordinates, pairs, workspace)
