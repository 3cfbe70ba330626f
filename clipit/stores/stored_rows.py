"""Rows of a store in any order, centred and read shard by shard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from clipit.distributed import get_processes
from clipit.stores import embed
from clipit.stores.embed import Store
from clipit.vectors import centred

_GPU_SHARE = 0.25  # fraction of the GPU's free memory for vectors that are kept between passes


@dataclass(frozen=True)
class StoredRows:
    """Selected rows of a store, read shard by shard.

    On a GPU, vectors are kept between passes, up to a quarter of the memory that is free before the first pass.
    Use a new object for each task, so that this memory is released.

    Attributes:
        mean: Mean to subtract before the vectors are normalised again; None for no centring.
        positions: Store row of each selected row.
        inverse: Selected row of each store row; -1 for store rows that are not selected.
    """

    store: Store
    mean: Float32[np.ndarray, "dim"] | None
    positions: Int[np.ndarray, "n"]
    inverse: Int[np.ndarray, "stored"]

    def __len__(self) -> int:
        """Return the number of selected rows."""
        return len(self.positions)

    def vectors(self, rows: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape dim"]:
        """Read and centre the vectors of the given selected rows."""
        flat = centred_rows(self.store, np.asarray(self.positions[rows.reshape(-1)]), self.mean)
        return flat.reshape(*rows.shape, self.store.dim)

    def shards(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[Int[Tensor, "_"], Float[Tensor, "_ dim"]]]:
        """Iterate over shards of the store, as pairs of selected rows and their vectors on this process's device.

        Centring is faster than in `vectors` but rounds differently, so use these vectors only to choose candidates. The
        next shard may overwrite them.

        Args:
            numbers: Indices of the shards to read; None for all.
        """
        device, dim = get_processes().device, self.store.dim
        shared = torch.empty((embed.SHARD, dim), device=device)
        stored: np.ndarray | None = None
        for number in range(self.store.shards) if numbers is None else numbers:
            rows = self.rows_of(number)
            if not len(rows):
                continue
            vectors = self._kept_shards.get(number)
            if vectors is None:
                keep = self._max_bytes >= embed.SHARD * dim * 4 * (len(self._kept_shards) + 1)
                vectors = torch.empty((len(rows), dim), device=device) if keep else shared[: len(rows)]
                shard = self.store.shard(number)
                stored = np.empty((embed.SHARD, dim), dtype=shard.dtype) if stored is None else stored
                used = np.flatnonzero(self._is_used(number))
                np.take(shard, used, axis=0, out=stored[: len(rows)], mode="clip")  # other modes make a copy
                vectors.copy_(torch.from_numpy(stored[: len(rows)]))
                _centre(vectors, self.mean)
                if keep:
                    self._kept_shards[number] = vectors
            yield torch.from_numpy(rows).to(device), vectors

    def rows_of(self, shard: int) -> Int[np.ndarray, "_"]:
        """Return the selected rows in a shard, in the order of the shard."""
        rows = np.asarray(self.inverse[shard * embed.SHARD : (shard + 1) * embed.SHARD])
        return rows[rows >= 0]

    def shard(self, number: int) -> Float[Tensor, "_ dim"]:
        """Read the selected vectors of a shard onto this process's device, centred as in `vectors`."""
        vectors = self.store.shard(number)[self._is_used(number)].astype(np.float32)
        return torch.from_numpy(centred(vectors, self.mean)).to(get_processes().device)

    def _is_used(self, shard: int) -> Bool[np.ndarray, "_"]:
        return np.asarray(self.inverse[shard * embed.SHARD : (shard + 1) * embed.SHARD]) >= 0

    @cached_property
    def _kept_shards(self) -> dict[int, Tensor]:
        return {}

    @cached_property
    def _max_bytes(self) -> int:
        """Maximum number of bytes of the vectors that are kept between passes."""
        return bytes_to_keep(get_processes().device)


def centred_rows(
    store: Store, rows: Int[np.ndarray, "n"], mean: Float32[np.ndarray, "dim"] | None
) -> Float32[np.ndarray, "n dim"]:
    """Read and centre rows of a store in blocks, to limit memory."""
    vectors = np.empty((len(rows), store.dim), dtype=np.float32)
    for start in range(0, len(rows), embed.SHARD):
        vectors[start : start + embed.SHARD] = centred(store.rows(rows[start : start + embed.SHARD]), mean)
    return vectors


def bytes_to_keep(device: torch.device) -> int:
    """Return the number of bytes of vectors to keep on a device between passes: 0 on a CPU, where files are mapped."""
    return int(torch.cuda.mem_get_info(device)[0] * _GPU_SHARE) if device.type == "cuda" else 0


def _centre(vectors: Float[Tensor, "n dim"], mean: Float32[np.ndarray, "dim"] | None) -> None:
    """Subtract the mean and normalise again, in place."""
    if mean is not None:
        vectors.sub_(torch.from_numpy(mean).to(vectors.device))
        vectors.div_(torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_(min=1e-12))
