"""Processes: who am I, who does what, and one step after another in all of them.

The list of global batches is a pure function of (seed, step); every process takes its slice of it. So one
process and N processes see the same batches.
"""

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Int64

from clipit.artifacts import MANIFEST, Artifact, artifact_folder, finish_partial, locked, open_artifact, start_partial
from clipit.errors import LaunchError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_PATIENCE = timedelta(hours=12)  # how long a process waits for the one that builds an artefact


@dataclass(frozen=True)
class Processes:
    """This process among all of them."""

    rank: int
    count: int
    device: "torch.device"

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every count-th item, starting at this process's rank."""
        return items[self.rank :: self.count]

    def barrier(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()

    def broadcast(self, value: T) -> T:
        """The main process's value, in all of them."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, in all of them."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def map_blocks(self, total: int, size: int, compute: Callable[[Int64[np.ndarray, "_"]], T]) -> list[T]:
        """Apply a function to blocks of the rows 0..total, shared among processes.

        Args:
            total: Number of rows.
            size: Rows per block.
            compute: Function of the row numbers of a block.

        Returns:
            Results by block, in order, in all processes.
        """
        starts = range(0, total, size)
        results = {start: compute(np.arange(start, min(start + size, total))) for start in self.share(starts)}
        merged = {start: result for part in self.gather(results) for start, result in part.items()}
        return [merged[start] for start in starts]


def check_launch(count: int) -> None:
    """Stop when the launcher started other processes than were asked for.

    `accelerate launch --cpu --num_processes 2` runs one process, and `--multi_gpu` without a GPU runs
    processes that do not know of each other and would write the same run.

    Raises:
        LaunchError: With the command that works.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    silent_one = asked == 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ
    if count == 1 and (asked > 1 or silent_one):
        what = (
            f"{asked} processes were started that do not know of each other"
            if asked > 1
            else ("several processes were asked for, but only one was started")
        )
        raise LaunchError(
            what,
            where="accelerate launch",
            fix="without GPUs: ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 "
            "scripts/train.py --config ...; with GPUs: accelerate launch --num_processes N scripts/train.py ...",
        )


@cache
def get_processes() -> Processes:
    """Join the processes that Accelerate or torchrun started (one when nobody did).

    Raises:
        LaunchError: See `check_launch`.
    """
    from accelerate import PartialState
    from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env

    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")  # Accelerator looks there by itself, PartialState does not
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Imported later (open_clip does), its functions' default arguments hold the group until the very end: `_leave`.
        import torch.distributed.nn.functional  # noqa: F401

        state = PartialState(cpu=on_cpu, **InitProcessGroupKwargs(timeout=_PATIENCE).to_kwargs())
    else:
        state = PartialState(cpu=on_cpu)
    check_launch(state.num_processes)
    if state.num_processes > 1:
        atexit.register(_leave)
    return Processes(rank=state.process_index, count=state.num_processes, device=state.device)


def _leave() -> None:
    """Leave the process group while the interpreter is whole.

    Gloo's threads may still hold tensors of the last exchange. Giving those back while the interpreter is torn down
    ends a program that has done its work with SIGABRT; leaving the group waits for the threads first.
    """
    import gc

    import torch.distributed as dist

    gc.collect()  # wrappers of models in reference cycles hold the group
    if dist.is_initialized():
        dist.destroy_process_group()


def build_once(root: Path, kind: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> Artifact:
    """The artefact of this kind made from these inputs: opened when it exists, else made by all processes together.

    Args:
        root: Output root.
        kind: What it is; also the first part of the folder's name.
        inputs: All that its content depends on, as JSON; their fingerprint is the second part.
        make: Called in every process with the folder to write to, which may hold what a killed attempt left
            there; returns facts (row counts and the like) for the manifest.
    """
    processes = get_processes()
    folder = artifact_folder(root, kind, inputs)
    if processes.broadcast((folder / MANIFEST).is_file()):
        return open_artifact(folder, kind)
    if not processes.main:
        if processes.broadcast(False):  # another program finished it while the main process waited for the lock
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
    """Positions `start .. start+count` of an endless shuffled stream over `size` items.

    The stream is one permutation of all items after another; each depends on (seed, stream, epoch) alone.
    """
    import hashlib

    name = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
    epochs = range(start // size, (start + count - 1) // size + 1) if count else range(0)
    order = [np.random.default_rng([seed, name, epoch]).permutation(size) for epoch in epochs]
    if not order:
        return np.empty(0, dtype=np.int64)
    first = start - epochs[0] * size
    return np.concatenate(order)[first : first + count].astype(np.int64)
