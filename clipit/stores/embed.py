"""On-disk stores of text and tile embeddings: half-precision vectors in shards, with their ids.

Vectors in the joint space are normalised before they are written (`write_embeddings`); raw features are not.

A shard is the unit of work: shards are distributed over the processes, and each is written atomically, so that an
interrupted job resumes at the next shard. Batches do not span shards, so the written bytes do not depend on the number
of processes.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16, Float32, Int

from clipit.distributed import build_once, get_processes
from clipit.errors import ArtifactError, DataError, counted, shortlist
from clipit.images.read_ahead import ReadingClock
from clipit.output_files.artifacts import Artifact, fingerprint
from clipit.output_files.whole_files import text_array, write_array, write_parquet
from clipit.progress import Advance, progress
from clipit.vectors import unit

if TYPE_CHECKING:
    from clipit.models.vlm import VLM, Space
    from clipit.tiles.tileset import TileSet

_MANY_PROMPTS = 1000
"""Number of texts above which a progress bar is shown; sets of class prompts have fewer."""
SHARD = 4096
"""Rows per shard."""
_MAX_MAPPED = 256  # maximum number of shards that are kept mapped; each needs a file handle


@dataclass(frozen=True)
class Store:
    """Embeddings stored on disk, one row per id."""

    artifact: Artifact

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the store's inputs."""
        return self.artifact.fingerprint

    @property
    def vlm(self) -> dict[str, str]:
        """Name and fingerprint of the VLM."""
        return {"name": self.artifact.manifest.facts["vlm"], "fingerprint": self.artifact.manifest.inputs["vlm"]}

    @property
    def space(self) -> str:
        """`joint` (unit vectors of images and texts) or `raw` (image features before the projection)."""
        return str(self.artifact.manifest.inputs.get("space", "joint"))

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.artifact.manifest.facts["dim"])

    @cached_property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._names("emb-"))

    @cached_property
    def size(self) -> int:
        """Number of rows."""
        rows = self.artifact.manifest.facts.get("rows")
        return len(self.ids) if rows is None else int(rows)

    @cached_property
    def ids(self) -> np.ndarray:
        """Ids, in the order of the rows."""
        names = self._names("ids-")
        if not names:
            return np.empty(0, dtype=np.str_)
        return np.concatenate([text_array(self.artifact.table(name).column("id").to_pylist()) for name in names])

    def _names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.artifact.manifest.files if name.startswith(prefix))

    @cached_property
    def _mapped(self) -> dict[int, Float[np.ndarray, "_ dim"]]:
        """Memory-mapped shards that `rows` has read from, by number."""
        return {}

    def shard(self, number: int) -> Float[np.ndarray, "_ dim"]:
        """Memory-map a shard, in its stored precision; processes on the same machine share the pages."""
        return self.artifact.array(f"emb-{number:05d}.npy", "r")

    def blocks(self, size: int = SHARD) -> Iterable[tuple[int, Float32[np.ndarray, "_ dim"]]]:
        """Iterate over blocks of at most `size` rows, each from one shard, as pairs of first row and vectors."""
        for number in range(self.shards):
            shard = self.shard(number)
            for start in range(0, len(shard), size):
                yield number * SHARD + start, np.asarray(shard[start : start + size], dtype=np.float32)

    def rows(self, positions: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape dim"]:
        """Read the vectors at the given rows."""
        flat = positions.reshape(-1)
        vectors = np.empty((len(flat), self.dim), dtype=np.float32)
        for number, indices in _by_shard(flat):
            shard = self._mapped.get(number)
            if shard is None:
                if len(self._mapped) >= _MAX_MAPPED:
                    self._mapped.clear()
                shard = self._mapped[number] = self.shard(number)
            vectors[indices] = shard[flat[indices] % SHARD]
            _release(shard)
        return vectors.reshape(*positions.shape, self.dim)

    def ids_at(self, positions: Int[np.ndarray, "n"]) -> np.ndarray:
        """Read the ids of the given rows, without reading other shards."""
        if "ids" in self.__dict__:
            return np.asarray(self.ids[positions])
        ids = np.empty(len(positions), dtype=object)
        for number, indices in _by_shard(positions):
            column = self.artifact.table(f"ids-{number:05d}.parquet").column("id")
            ids[indices] = column.take(positions[indices] % SHARD).to_pylist()
        return text_array(ids)

    def positions(self, ids: Sequence[str] | np.ndarray) -> Int[np.ndarray, "n"]:
        """Find the rows of the given ids.

        Raises:
            ArtifactError: An id is not in the store.
        """
        names = text_array(ids)
        order = self._rows_sorted_by_id
        indices = np.searchsorted(self.ids, names, sorter=order).clip(max=max(len(order) - 1, 0))
        rows = order[indices] if len(order) else np.zeros(len(names), dtype=np.int64)
        missing = names[self.ids[rows] != names] if len(order) else names
        if len(missing):
            raise ArtifactError(
                f"{counted(len(missing), 'id is', 'ids are')} not in the store: {shortlist(list(missing))}",
                where=self.artifact.folder,
                fix="the store was built from different data: delete this folder and build the store again",
            )
        return np.asarray(rows, dtype=np.int64)

    @cached_property
    def _rows_sorted_by_id(self) -> Int[np.ndarray, "_"]:
        return np.asarray(np.argsort(self.ids, kind="stable"), dtype=np.int64)

    def mean(self) -> Float32[np.ndarray, "dim"]:
        """Compute the mean of all vectors."""
        total = np.zeros(self.dim, dtype=np.float64)
        for _, block in self.blocks():
            total += block.sum(axis=0, dtype=np.float64)
        return (total / max(self.size, 1)).astype(np.float32)


def _by_shard(rows: Int[np.ndarray, "n"]) -> Iterator[tuple[int, Int[np.ndarray, "_"]]]:
    """Group rows by shard: yield each shard number, and the indices in `rows` of the rows in this shard."""
    order = np.argsort(rows, kind="stable")
    numbers = rows[order] // SHARD
    for indices in np.split(order, np.flatnonzero(np.diff(numbers)) + 1):
        if len(indices):
            yield int(rows[indices[0]] // SHARD), indices


def _release(array: np.ndarray) -> None:
    """Release the pages of a mapped file: they stay in the system's cache, but no longer count as memory in use."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def embed_texts(
    root: Path, vlm: "VLM", snippets: Artifact, *, batch_size: int = 64, word_drop: float = 0.0, seed: int = 0
) -> Store:
    """Embed the texts of a `snippets` artefact.

    Args:
        snippets: Artefact with `snippets.parquet`.
        batch_size: Texts per forward pass.
        word_drop: Probability of dropping a word; the choice depends only on seed and snippet id, and at least one word
            of a text is kept.
        seed: Seed for `word_drop`.
    """
    inputs: dict[str, Any] = {"snippets": snippets.fingerprint, **_encoder(vlm)}
    if word_drop:
        inputs |= {"word_drop": word_drop, "seed": seed}

    def make(folder: Path) -> dict[str, Any]:
        table = snippets.table("snippets.parquet", ["snippet_id", "text"])
        ids = table.column("snippet_id").to_pylist()
        texts = table.column("text").to_pylist()
        if word_drop:
            texts = [drop_words(text, word_drop, seed, snippet) for text, snippet in zip(texts, ids, strict=True)]

        def encode(start: int, stop: int, advance: Advance) -> Float32[np.ndarray, "_ dim"]:
            # Group texts of similar length into batches to reduce padding.
            order = sorted(range(start, stop), key=lambda row: (len(texts[row]), row))
            vectors = np.empty((stop - start, vlm.joint_dim), dtype=np.float32)
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                vectors[np.array(rows) - start] = vlm.encode_texts([texts[row] for row in rows]).float().cpu().numpy()
                advance(len(rows))
            return vectors

        return write_embeddings(folder, ids, vlm, "joint", encode, "embedding snippets")

    return Store(build_once(root, "text_store", inputs, make))


def embed_prompts(vlm: "VLM", texts: Sequence[str], batch_size: int) -> Float32[np.ndarray, "n dim"]:
    """Encode prompts as unit vectors, without storing them; long texts are truncated with a warning."""
    if not len(texts):
        raise DataError("there are no texts to embed", where="texts", fix="pass at least one text")
    vlm.warn_truncated(texts)
    batches = []
    shown = get_processes().main and len(texts) > _MANY_PROMPTS
    with progress("embedding texts", len(texts), shown=shown) as advance:
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            batches.append(vlm.encode_texts(batch, truncate=True).cpu().numpy())
            advance(len(batch))
    return unit(np.concatenate(batches))


def drop_words(text: str, share: float, seed: int, key: str) -> str:
    """Drop each word of a text with probability `share`, reproducibly for a seed and key; keep at least one word."""
    words = text.split()
    number = int.from_bytes(bytes.fromhex(fingerprint([seed, key])), "big")
    keep = np.random.default_rng(number).random(len(words)) >= share
    kept = [word for word, is_kept in zip(words, keep, strict=True) if is_kept]
    return " ".join(kept or words[:1])


def embed_tiles(
    root: Path, vlm: "VLM", tiles: "TileSet", *, batch_size: int = 64, space: "Space" = "joint", threads: int = 0
) -> Store:
    """Embed a set of tiles; labels are not used.

    Args:
        batch_size: Tiles per forward pass.
        space: `joint` for matching with texts, `raw` for probes; each space has its own store.
        threads: Number of reader threads; 0 for one per available core, at most 8.

    Raises:
        ModelError: The VLM has no raw space.
    """
    vlm.dim(space)
    inputs = {"tiles": tiles.fingerprint, **_encoder(vlm, space)}

    def make(folder: Path) -> dict[str, Any]:
        import torch

        from clipit.tiles.pixel_source import PixelSource

        source, clock = PixelSource(tiles, vlm.preprocess.pixels, threads=threads), ReadingClock()

        def encode(start: int, stop: int, advance: Advance) -> Float32[np.ndarray, "_ dim"]:
            batches = [np.arange(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]
            vectors = []  # kept on the device until the shard is finished, so that a GPU does not wait for copies
            for rows, pixels in source.on_device(batches, vlm.device, clock):
                vectors.append(vlm.encode_images(pixels, space=space).float())
                advance(len(rows))
            return np.asarray(torch.cat(vectors).cpu().numpy(), dtype=np.float32)

        facts = write_embeddings(folder, [str(i) for i in tiles.ids], vlm, space, encode, "embedding tiles")
        clock.report("embedding tiles", "training.threads")
        return facts

    return Store(build_once(root, "tile_store", inputs, make))


def _encoder(vlm: "VLM", space: "Space" = "joint") -> dict[str, Any]:
    return {"vlm": vlm.fingerprint, "precision": vlm.precision, "space": space}


def write_shards(
    folder: Path, ids: Sequence[str], encode: Callable[[int, int, Advance], Float[np.ndarray, "_ dim"]], title: str
) -> None:
    """Write the missing shards of a store, distributed over the processes.

    Args:
        encode: Function from the first and last (exclusive) row of a shard to its vectors, in the stored precision; it
            advances the progress bar by the rows of each batch.
    """
    processes = get_processes()
    missing = [start for start in range(0, len(ids), SHARD) if not all(f.is_file() for f in _shard(folder, start))]
    rows = sum(min(SHARD, len(ids) - start) for start in missing)
    processes.barrier()  # all processes have listed the missing shards before any is written
    with progress(title, len(ids), shown=processes.main, done=len(ids) - rows) as bar:

        def advance(units: int = 1, note: str = "") -> None:
            bar(units * processes.count, note)

        for start in processes.share(missing):
            stop = min(start + SHARD, len(ids))
            vectors_file, ids_file = _shard(folder, start)
            vectors = encode(start, stop, advance)
            write_array(vectors_file, vectors)
            write_parquet(ids_file, pa.table({"id": list(ids[start:stop])}))


def _shard(folder: Path, start: int) -> tuple[Path, Path]:
    return folder / f"emb-{start // SHARD:05d}.npy", folder / f"ids-{start // SHARD:05d}.parquet"


def write_embeddings(
    folder: Path,
    ids: list[str],
    vlm: "VLM",
    space: "Space",
    encode: Callable[[int, int, Advance], Float32[np.ndarray, "_ dim"]],
    title: str,
) -> dict[str, Any]:
    """Write the embeddings of a VLM in half precision, unit-norm if in the joint space; return the manifest's `facts`.

    Args:
        encode: Function from the first and last (exclusive) row of a shard to its vectors; it advances the progress
            bar.

    Raises:
        DataError: An embedding is not finite.
    """

    def encode_half(start: int, stop: int, advance: Advance) -> Float16[np.ndarray, "_ dim"]:
        vectors = encode(start, stop, advance)
        with np.errstate(over="ignore"):  # half-precision overflow is reported by _check_finite
            half = (unit(vectors) if space == "joint" else vectors).astype(np.float16)
        _check_finite(half, ids[start:stop], vlm.name)
        return half

    write_shards(folder, ids, encode_half, title)
    return {"rows": len(ids), "dim": vlm.dim(space), "vlm": vlm.name, "preprocess": vlm.preprocess.hash}


def _check_finite(vectors: Float16[np.ndarray, "n dim"], ids: Sequence[str], name: str) -> None:
    non_finite = [ids[row] for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()]
    if non_finite:
        raise DataError(
            f"{counted(len(non_finite), 'embedding is', 'embeddings are')} not finite: {shortlist(non_finite)}",
            where=name,
            fix="use vlm.precision=fp32, or check these inputs",
        )
