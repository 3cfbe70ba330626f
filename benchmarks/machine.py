"""Facts about the machine that the benchmarks run on."""

import os
import platform
from pathlib import Path
from typing import Any

from clipit.versions import git_commit, versions

_SETTINGS = (
    "OPENBLAS_CORETYPE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Return the cores, threads, device, package versions, environment variables that affect speed, and load."""
    import torch

    from clipit.stores.index import has_faiss

    cuda = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "commit": git_commit(),
        "versions": versions(),
        "settings": {name: os.environ.get(name) for name in _SETTINGS},
    }
    if has_faiss():
        import faiss

        facts["faiss_threads"] = faiss.omp_get_max_threads()
        facts["faiss_build"] = faiss.get_compile_options().strip()
    return facts


def machine_text(facts: dict[str, Any]) -> str:
    """Format the result of `machine` as a few lines of text."""
    settings = ", ".join(f"{name}={value or '(unset)'}" for name, value in facts["settings"].items())
    threads = f"threads: torch {facts['torch_threads']}, faiss {facts.get('faiss_threads', '(not installed)')}"
    packages = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['device']}; {threads}; "
        f"load {facts['load_average'] and facts['load_average'][0]}\n{settings}\n{packages}; commit {facts['commit']}"
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
