"""Reports and pairs in Python: build the index of snippets, and pair tiles with their nearest snippets."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from clipit.api.configuration import Config, as_config
from clipit.api.entry import public

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class IndexResult:
    """Index of the snippets of a configuration's reports.

    Attributes:
        folder: Folder of the index.
        rows: Number of distinct snippet embeddings in the index.
        kind: Key, backend and centring of the index, such as `Flat (faiss, centred)`.
        account: How many reports were read, and what was dropped, as text.
    """

    folder: Path
    rows: int
    kind: str
    account: str
    _workspace: "Workspace" = field(repr=False, compare=False)

    @cached_property
    def snippets(self) -> pd.DataFrame:
        """Snippets, one row each: snippet_id, text and what else is recorded with it."""
        table: pd.DataFrame = self._workspace.snippets.table("snippets.parquet").to_pandas()
        return table


@dataclass(frozen=True)
class PairResult:
    """Pairs of training tiles and snippets.

    Attributes:
        file: Parquet file of the pairs.
        page: HTML page to browse the pairs; None if it was not requested.
        summary: Statistics of the pairs, as text.
    """

    file: Path
    page: Path | None
    summary: str
    _workspace: "Workspace" = field(repr=False, compare=False)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Pairs, by tile, then by rank: tile_id, rank (0 is the nearest), snippet_id, similarity (cosine) and text.

        The column weight is present if `pairing.score_temperature` is set.
        """
        pairs: pd.DataFrame = self._workspace.pairs.table.to_pandas()
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
            raise DataError(f"there is no tile {tile_id!r}", where="tile_id", fix="use an id of `pairs`")
        return tiles.read(int(rows[0]))


@public
def build_text_index(config: Config) -> IndexResult:
    """Read the reports, cut them into snippets, embed them and build the index; finished parts are kept.

    Example:
        >>> index = clipit.build_text_index(config)
        >>> index.snippets["text"].head()

    Args:
        config: Configuration with reports.

    Raises:
        ClipitError: The reports, the VLM or the index have a problem; the message says what to do.
    """
    from clipit.workspace.workspace import Workspace

    workspace = Workspace(as_config(config).run)
    artifact = workspace.index.artifact
    facts = artifact.manifest.facts
    kind = f"{facts['key']} ({facts['backend']}{', centred' if facts['centring'] else ''})"
    return IndexResult(artifact.folder, int(facts["rows"]), kind, workspace.snippet_summary(), workspace)


@public
def pair(config: Config, *, page: bool = True) -> PairResult:
    """Pair every training tile with its nearest snippets, and write a page that shows the pairs.

    Example:
        >>> pairs = clipit.pair(config)
        >>> pairs.pairs.nlargest(5, "similarity")[["tile_id", "similarity", "text"]]
        >>> pairs.image(pairs.pairs["tile_id"][0])

    Args:
        config: Configuration with tiles and reports.
        page: Whether to write the page.

    Raises:
        ClipitError: Tiles, reports or the VLM have a problem; the message says what to do.
    """
    from clipit.distributed import get_processes
    from clipit.workspace.pairing_report import write_pairs_page
    from clipit.workspace.workspace import Workspace

    run = as_config(config).run
    workspace = Workspace(run)
    file = workspace.pairs.artifact.file("pairs.parquet")
    summary = workspace.pairing_summary()
    written = write_pairs_page(run, workspace) if page and get_processes().main else None
    return PairResult(file, written, summary, workspace)
