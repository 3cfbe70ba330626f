"""Distributed processes: ranks, work sharing and synchronisation.

Global batches are a pure function of (seed, step), and each process takes its share, so the batches do not depend on
the number of processes.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Int64

from clipit.errors import LaunchError, counted
from clipit.free_memory import keep_freed_memory
from clipit.output_files.artifacts import (
    MANIFEST,
    Artifact,
    artifact_folder,
    finish_partial,
    locked,
    open_artifact,
    start_partial,
)

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism",
}
"""Environment variables that `accelerate launch` sets from its configuration, with the sharding that each enables."""
_TIMEOUT = timedelta(hours=12)  # longest wait for another process to build an artefact
_claims = count()  # every process calls `claim` in the same order


@dataclass(frozen=True)
class Processes:
    """This process in the process group.

    Attributes:
        rank: Rank of this process, from 0.
    """

    rank: int
    count: int
    device: "torch.device"

    @property
    def main(self) -> bool:
        """Whether this is the main process, which prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's share of the items: every `count`-th, starting at its rank."""
        return items[self.rank :: self.count]

    def claim(self, items: Sequence[T]) -> Iterator[T]:
        """Yield items that no other process has claimed, so that faster processes get more of them.

        All processes must make the same calls in the same order. Which items a process gets depends on its speed, so
        results must not depend on the process.
        """
        if self.count == 1:
            yield from items
            return
        import torch.distributed as dist

        store = dist.distributed_c10d._get_default_store()
        key = f"clipit/claim/{next(_claims)}"
        while (index := store.add(key, 1) - 1) < len(items):
            yield items[index]

    def barrier(self) -> None:
        """Wait until all processes have reached this point."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()

    def broadcast(self, value: T) -> T:
        """Return the main process's value in all processes."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        result: T = values[0]
        return result

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, ordered by rank, in all processes."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def map_blocks(self, total: int, size: int, compute: Callable[[Int64[np.ndarray, "_"]], T]) -> list[T]:
        """Apply a function to blocks of the rows 0..total, shared among processes.

        Args:
            compute: Function that returns the result for a block, given its row numbers.

        Returns:
            One result per block, in order, in all processes.
        """
        starts = range(0, total, size)
        results = {start: compute(np.arange(start, min(start + size, total))) for start in self.share(starts)}
        merged = {start: result for part in self.gather(results) for start, result in part.items()}
        return [merged[start] for start in starts]


def check_launch(count: int) -> None:
    """Check that the launcher started the requested number of processes.

    `accelerate launch --cpu --num_processes 2` starts one process, and `--multi_gpu` without a GPU starts processes
    without a common process group, so each of them would write the same run.

    Raises:
        LaunchError: A different number was started; the message gives the correct command.
    """
    requested = int(os.environ.get("WORLD_SIZE", "1"))
    single = requested == 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ
    if count == 1 and (requested > 1 or single):
        raise LaunchError(
            f"{counted(requested, 'process was', 'processes were')} started without a common process group"
            if requested > 1
            else "several processes were requested, but only one was started",
            where="accelerate launch",
            fix="without GPUs: ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 "
            "-m clipit train --config ...; with GPUs: accelerate launch --num_processes N -m clipit train ...",
        )


def check_backend() -> None:
    """Check that Accelerate's configuration does not enable model sharding, which clipit does not support.

    Raises:
        LaunchError: DeepSpeed, FSDP or another kind of sharding is enabled, for example in the file that
            `accelerate config` wrote.
    """
    from accelerate.utils import parse_flag_from_env

    used = [name for variable, name in _SHARDING.items() if parse_flag_from_env(variable)]
    if used:
        raise LaunchError(
            f"Accelerate's configuration uses {' and '.join(used)}, which clipit does not support: each process holds "
            "the whole model",
            where="accelerate launch",
            fix="pass --config_file with a configuration without sharding, or run accelerate config again",
        )


@cache
def get_processes() -> Processes:
    """Join the process group that Accelerate or torchrun started, or run as a single process if there is none.

    Raises:
        LaunchError: The launcher did not start the requested processes (see `check_launch`), or model sharding is
            enabled.
    """
    from accelerate import PartialState
    from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env

    keep_freed_memory()
    check_backend()
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")  # unlike Accelerator, PartialState does not read it
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Import this before the group exists. If open_clip imported it later, the default arguments of its functions
        # would keep the group alive until exit; see `_leave_group`.
        import torch.distributed.nn.functional  # noqa: F401

        state = PartialState(cpu=on_cpu, **InitProcessGroupKwargs(timeout=_TIMEOUT).to_kwargs())
    else:
        state = PartialState(cpu=on_cpu)
    check_launch(state.num_processes)
    if state.num_processes > 1:
        atexit.register(_leave_group)
    return Processes(rank=state.process_index, count=state.num_processes, device=state.device)


def _leave_group() -> None:
    """Leave the process group before the interpreter shuts down.

    Gloo's threads may still reference tensors of the last collective operation. Freeing them during shutdown would
    abort a finished program with SIGABRT; leaving the group waits for the threads first.
    """
    import gc

    import torch.distributed as dist

    gc.collect()  # model wrappers in reference cycles keep the group alive
    if dist.is_initialized():
        dist.destroy_process_group()


def build_once(root: Path, kind: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> Artifact:
    """Open the artefact with this kind and these inputs, or build it in all processes together.

    Args:
        kind: Kind of the artefact, which is the first part of the folder's name.
        inputs: JSON-like inputs that determine its content; their fingerprint is the second part of the name.
        make: Function called in every process with the folder to write to, which may contain files from an
            interrupted attempt. Returns facts for the manifest, such as row counts.
    """
    processes = get_processes()
    folder = artifact_folder(root, kind, inputs)
    if processes.broadcast((folder / MANIFEST).is_file()):
        return open_artifact(folder, kind)
    if not processes.main:
        if processes.broadcast(False):  # another program built it while the main process waited for the lock
            return open_artifact(folder, kind)
        make(folder.with_name(folder.name + ".partial"))
        processes.barrier()
        processes.barrier()
        return open_artifact(folder, kind)
    with locked(folder):
        if processes.broadcast((folder / MANIFEST).is_file()):
            return open_artifact(folder, kind)
        facts = make(start_partial(folder))
        processes.barrier()
        artifact = finish_partial(folder, kind, inputs, facts)
    processes.barrier()
    return artifact


def stream_positions(seed: int, stream: str, start: int, count: int, size: int) -> Int64[np.ndarray, "count"]:
    """Return items `start` to `start + count` of an endless shuffled stream over `size` items.

    The stream is a sequence of permutations of all items; each depends only on (seed, stream, epoch).
    """
    import hashlib

    name = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
    epochs = range(start // size, (start + count - 1) // size + 1) if count else range(0)
    order = [np.random.default_rng([seed, name, epoch]).permutation(size) for epoch in epochs]
    if not order:
        return np.empty(0, dtype=np.int64)
    first = start - epochs[0] * size
    return np.concatenate(order)[first : first + count].astype(np.int64)
