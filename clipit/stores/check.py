"""Check the shards of a store before they are searched."""

import numpy as np
from jaxtyping import Float

from clipit.distributed import get_processes
from clipit.errors import ArtifactError, DataError, counted, shortlist
from clipit.output_files.artifacts import known_digests
from clipit.stores import embed
from clipit.stores.embed import Store

_SHOWN = 5  # maximum number of problems that an error lists


def check_shards(store: Store) -> None:
    """Check that the shards of a store are complete and consistent; only their headers are read.

    Raises:
        ArtifactError: A shard is missing, unreadable or truncated, or has the wrong dimension or number of rows.
    """
    shards = [name for name in sorted(store.artifact.manifest.files) if name.startswith("emb-")]
    expected_names = [f"emb-{number:05d}.npy" for number in range(-(-store.size // embed.SHARD))]
    problems = [f"{name} is missing" for name in sorted(set(expected_names) - set(shards))]
    problems += [f"{name} is unexpected" for name in sorted(set(shards) - set(expected_names))]
    for number, name in enumerate(expected_names):
        ids = name.replace("emb-", "ids-").replace(".npy", ".parquet")
        if ids not in store.artifact.manifest.files:
            problems.append(f"{ids} is missing")
        if name not in shards:
            continue
        expected = (min(embed.SHARD, store.size - number * embed.SHARD), store.dim)
        try:
            shape = np.load(store.artifact.folder / name, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError, EOFError) as error:
            problems.append(f"{name} is unreadable ({error})")
            continue
        if shape != expected:
            problems.append(f"{name} has the shape {shape} instead of {expected}")
    if problems:
        raise ArtifactError(
            f"the embedding shards are damaged or inconsistent: {shortlist(problems, _SHOWN)}",
            where=store.artifact.folder,
            fix="delete this folder and embed again",
        )


def check_finite(store: Store, items: str) -> None:
    """Check that all embeddings of a store are finite; a single non-finite value would corrupt the mean and all scores.

    Must be called by all processes: each process checks some of the shards, and receives the digests of the files that
    the other processes have verified.

    Args:
        items: Name of the embedded items, for the error message.

    Raises:
        DataError: Embeddings are not finite; the message lists their ids.
    """
    processes = get_processes()
    own_names: list[str] = []
    for number in processes.share(range(store.shards)):
        shard = store.shard(number)
        if not _all_finite(shard):
            rows = np.flatnonzero(~np.isfinite(shard).all(axis=1))
            own_names += store.ids_at(number * embed.SHARD + rows).tolist()
    for digests in processes.gather(known_digests):
        known_digests.update(digests)
    non_finite = sorted(name for names in processes.gather(own_names) for name in names)
    if non_finite:
        raise DataError(
            f"{items}: {counted(len(non_finite), 'embedding is', 'embeddings are')} not finite: "
            f"{shortlist(non_finite)}",
            where=store.artifact.folder,
            fix="delete this folder and embed again with vlm.precision=fp32; if the error persists, check these inputs",
        )


def _all_finite(values: Float[np.ndarray, "_ dim"]) -> bool:
    """Return whether all values are finite; in half precision, only exponents are compared (14 times as fast)."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    exponent = np.uint16(0x7C00)  # all bits of the exponent are set in infinities and NaN
    return not bool(((np.ascontiguousarray(values).view(np.uint16) & exponent) == exponent).any())
