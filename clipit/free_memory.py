"""Measure the free memory of a machine and its GPUs, and let a process keep freed memory for reuse."""

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_MAX_KEPT = 256 * 2**20  # maximum bytes of freed memory that are kept
_MAX_BLOCK = 32 * 2**20  # maximum bytes of a block that may be kept; the maximum of glibc's dynamic threshold


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MB of freed memory for reuse, if it uses glibc's malloc.

    By default, glibc returns the memory of freed tensors to the operating system, which must then zero new pages at the
    next step. With small tiles on a CPU, this takes a fifth of the step's time. Results do not change. Thresholds that
    the user has set in the environment are left unchanged.
    """
    user_settings = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"}
    if sys.platform != "linux" or user_settings & os.environ.keys():
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # missing in musl
        library.mallopt(_MMAP_THRESHOLD, _MAX_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, _MAX_KEPT)


def device_memory(device: "torch.device") -> int:
    """Return the free memory of a device in bytes.

    On a GPU, memory that torch has reserved but does not use counts as free. On a CPU, this is the memory available
    without swapping, within the limits of the process's control groups (containers, batch systems).
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil

    return min([int(psutil.virtual_memory().available), *_cgroup_memory(Path("/"))])


def _cgroup_memory(root: Path) -> Iterable[int]:
    """Yield the free bytes of each control group (version 1 or 2) of this process that has a memory limit."""
    try:
        lines = (root / f"proc/{os.getpid()}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, usage, cache = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        innermost = Path(path.lstrip("/"))
        for group in (innermost, *innermost.parents):
            folder = root / base / group
            try:
                allowed, used = (int((folder / name).read_text()) for name in (limit, usage))
                statistics = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no limit ("max"), or a group that this process cannot read
                continue
            yield max(allowed - used + int(statistics.get(cache, 0)), 0)
