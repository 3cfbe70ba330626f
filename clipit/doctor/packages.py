"""Packages: those that are needed, the extras, and faiss in particular."""

import importlib.metadata
import platform
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from clipit.artifacts import installed
from clipit.doctor.findings import Finding

_DISTRIBUTION = "clipit-pathology"
_FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu11", "faiss-gpu-cu12")
_MODERN = frozenset({"haswell", "zen", "skylakex", "cooperlake", "sapphirerapids", "excavator"})
"""OpenBLAS kernels that use AVX2 at least."""


def package_findings() -> list[Finding]:
    """Everything about installed packages."""
    found = installed(_FAISS)
    return [*requirement_findings(), faiss_finding(found), *kernel_findings(found)]


def requirement_findings() -> list[Finding]:
    """The packages that pyproject.toml asks for, and which extras are complete."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in importlib.metadata.requires(_DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        return [Finding("FAIL", "packages", f"{_DISTRIBUTION} is not installed in {sys.prefix}", "make env")]
    versions = installed({one.name for one in asked})
    missing: dict[str, list[str]] = {}
    for one in asked:
        extra = _extra_of(str(one.marker or ""))
        missing.setdefault(extra, [])
        applies = one.marker is None or one.marker.evaluate({"extra": extra})
        if applies and (one.name not in versions or not one.specifier.contains(versions[one.name], prereleases=True)):
            missing[extra].append(f"{one.name}{one.specifier} ({versions.get(one.name, 'absent')})")
    needed = missing.pop("", [])
    if needed:
        first = Finding(
            "FAIL", "packages", f"missing or too old: {', '.join(needed)}", "make env (or pip install -e .)"
        )
    else:
        first = Finding("PASS", "packages", "all that are needed")
    there = [extra for extra, gaps in missing.items() if not gaps]
    absent = [extra for extra, gaps in missing.items() if gaps]
    text = f"installed: {', '.join(there) or 'none'}"
    if absent:
        text += f"; not installed: {', '.join(absent)} (when wanted: pip install -e '.[NAME]')"
    return [first, Finding("PASS", "extras", text)]


def _extra_of(marker: str) -> str:
    """`wandb` of `extra == "wandb"`; "" for a package that is always needed."""
    return marker.rpartition("extra == ")[2].strip("\"' )") if "extra" in marker else ""


def faiss_finding(found: Mapping[str, str]) -> Finding:
    """Exactly one faiss, which can be imported and fits the device.

    Args:
        found: Installed faiss distributions and their versions.
    """
    listed = " and ".join(f"{name} {version}" for name, version in found.items())
    if len(found) > 1:
        keep = next(name for name in found if name != "faiss-cpu") if _has_gpu() else min(found)
        return Finding(
            "FAIL", "faiss", f"{listed} are both installed: they overwrite each other's files without a word",
            f"pip uninstall -y {' '.join(found)} && pip install {keep}",
        )  # fmt: skip
    if not found:
        return Finding(
            "WARN", "faiss", "not installed: torch searches exactly instead, and pairing.index can only be Flat",
            f"pip install {'faiss-gpu' if _has_gpu() else 'faiss-cpu'}",
        )  # fmt: skip
    try:
        import faiss

        gpus = int(getattr(faiss, "get_num_gpus", lambda: 0)())
        options = str(faiss.get_compile_options()).strip()
    except (ImportError, OSError, AttributeError) as error:
        (name,) = found
        return Finding(
            "FAIL", "faiss", f"{listed} cannot be imported: {error}", f"pip install --force-reinstall --no-deps {name}"
        )
    if "faiss-cpu" in found:
        more = "; searches on the CPU, beside a GPU (EXTRA=gpu make env uses it)" if _has_gpu() else ""
        return Finding("PASS", "faiss", f"{listed} ({options}){more}")
    if _has_gpu() and not gpus:
        return Finding(
            "WARN", "faiss", f"{listed} ({options}) sees no GPU, torch does",
            "see that its CUDA version fits the driver (nvidia-smi); it searches on the CPU meanwhile",
        )  # fmt: skip
    return Finding("PASS", "faiss", f"{listed} ({options}), {gpus} GPUs")


def _has_gpu() -> bool:
    try:
        import torch
    except (ImportError, OSError):
        return False
    return bool(torch.cuda.is_available())


def kernel_findings(found: Mapping[str, str]) -> list[Finding]:
    """Which of its kernels faiss' OpenBLAS has chosen for this CPU, where that can be asked."""
    if not found or platform.machine() not in ("x86_64", "AMD64"):
        return []
    try:
        import faiss  # noqa: F401  # loads its OpenBLAS
        from threadpoolctl import threadpool_info  # type: ignore[import-untyped]
    except (ImportError, OSError):
        return []
    kernels = {
        str(library.get("architecture"))
        for library in threadpool_info()
        if library.get("internal_api") == "openblas" and "faiss" in Path(library["filepath"]).parent.name
    }
    return [kernel_finding(kernel, _cpu_flags()) for kernel in sorted(kernels)]


def kernel_finding(kernel: str, flags: Collection[str]) -> Finding:
    """Whether an OpenBLAS kernel uses what the CPU can do.

    An OpenBLAS older than the CPU does not know it and takes kernels for a much older one: exact search is
    then 3 to 5 times slower (`python -m benchmarks faiss_threads` measures it).

    Args:
        kernel: OpenBLAS' name of it.
        flags: The CPU's abilities as Linux lists them.
    """
    best = "SKYLAKEX" if "avx512f" in flags else "Haswell" if "avx2" in flags else ""
    if kernel.lower() in _MODERN or not best:
        return Finding("PASS", "OpenBLAS of faiss", f"kernel {kernel}")
    able = "AVX-512" if "avx512f" in flags else "AVX2"
    return Finding(
        "WARN",
        "OpenBLAS of faiss",
        f"kernel {kernel}, although the CPU has {able}: exact search is several times slower than it could be",
        f"export OPENBLAS_CORETYPE={best}",
    )


def _cpu_flags() -> frozenset[str]:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()
