"""Check the installed packages: requirements, faiss, and the decoder of JPEG tiles."""

import importlib.metadata
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from clipit.doctor.check_results import Check
from clipit.versions import DISTRIBUTION, installed

_FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu11", "faiss-gpu-cu12")
_MODERN_KERNELS = frozenset({"haswell", "zen", "skylakex", "cooperlake", "sapphirerapids", "excavator"})
"""OpenBLAS kernels that use at least AVX2."""


def check_packages() -> list[Check]:
    """Check required packages, faiss and the kernels of its OpenBLAS, and the decoder of JPEG tiles."""
    versions = installed(_FAISS)
    openblas = check_openblas() if versions else []
    return [check_requirements(), check_faiss(versions), *openblas, check_jpeg()]


def check_requirements() -> Check:
    """Check that the packages required in pyproject.toml are installed and recent enough."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        fix = "pip install the wheel of clipit (in a checkout: make env)"
        return Check("FAIL", "packages", f"{DISTRIBUTION} is not installed in {sys.prefix}.", fix)
    required = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})]
    versions = installed({requirement.name for requirement in required})
    unmet = [
        r for r in required if r.name not in versions or not r.specifier.contains(versions[r.name], prereleases=True)
    ]
    if unmet:
        listed = ", ".join(f"{r.name}{r.specifier} ({versions.get(r.name, 'absent')})" for r in unmet)
        requirements = " ".join(f"'{r.name}{r.specifier}'" for r in unmet)
        fix = f"pip install {requirements} (in a checkout: make env)"
        return Check("FAIL", "packages", f"Packages are missing or too old: {listed}.", fix)
    return Check("PASS", "packages", "all required packages are installed")


def check_faiss(versions: Mapping[str, str]) -> Check:
    """Check that exactly one faiss package is installed, can be imported and matches the device."""
    listed = " and ".join(f"{name} {version}" for name, version in versions.items())
    has_gpu = _has_gpu()
    if len(versions) > 1:
        keep = next(name for name in versions if name != "faiss-cpu") if has_gpu else min(versions)
        message = f"{listed} are both installed and overwrite each other's files."
        return Check("FAIL", "faiss", message, f"pip uninstall -y {' '.join(versions)} && pip install {keep}")
    if not versions:
        message = "faiss is not installed, so torch searches instead and pairing.index must be Flat."
        return Check("WARN", "faiss", message, f"pip install {'faiss-gpu' if has_gpu else 'faiss-cpu'}")
    try:
        import faiss

        gpus = int(getattr(faiss, "get_num_gpus", lambda: 0)())
        options = str(faiss.get_compile_options()).strip()
    except (ImportError, OSError, AttributeError) as error:
        fix = f"pip install --force-reinstall --no-deps {next(iter(versions))}"
        return Check("FAIL", "faiss", f"{listed} cannot be imported: {error}.", fix)
    if has_gpu and "faiss-cpu" in versions:
        return Check("PASS", "faiss", f"{listed} ({options}) searches on the CPU; faiss-gpu uses the GPU")
    if has_gpu and not gpus:
        fix = "compare its CUDA version with that of the driver (nvidia-smi); meanwhile, it searches on the CPU"
        return Check("WARN", "faiss", f"{listed} ({options}) finds no GPU, although torch does.", fix)
    return Check("PASS", "faiss", f"{listed} ({options})")


def check_jpeg() -> Check:
    """Report which library decodes JPEG tiles: simplejpeg if it is installed and agrees with Pillow, or Pillow."""
    from clipit.images.jpeg import find_decoder

    versions = installed(["simplejpeg"])
    if find_decoder() is not None:
        return Check("PASS", "JPEG tiles", f"simplejpeg {versions.get('simplejpeg', '')} decodes them")
    different = "simplejpeg decodes differently from this build of Pillow"
    reason = different if versions else "simplejpeg is faster and detects damage: pip install simplejpeg"
    return Check("PASS", "JPEG tiles", f"Pillow decodes them ({reason})")


def _has_gpu() -> bool:
    try:
        import torch
    except (ImportError, OSError):
        return False
    return bool(torch.cuda.is_available())


def check_openblas() -> list[Check]:
    """Check which kernel the OpenBLAS of faiss selected for this CPU, if that can be determined."""
    cpu = Path("/proc/cpuinfo")
    try:
        import faiss  # noqa: F401  # loads its OpenBLAS
        from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

        flags = re.search(r"^flags\s*:(.*)", cpu.read_text("utf-8"), re.M)
    except (ImportError, OSError):
        return []
    kernels = {
        str(library.get("architecture"))
        for library in threadpool_info()
        if library.get("internal_api") == "openblas" and "faiss" in Path(library["filepath"]).parent.name
    }
    return [check_kernel(kernel, flags[1].split() if flags else []) for kernel in sorted(kernels)]


def check_kernel(kernel: str, cpu_flags: Collection[str]) -> Check:
    """Check that an OpenBLAS kernel uses the CPU's instruction sets, given the CPU flags as listed by Linux.

    An OpenBLAS release that does not know the CPU falls back to kernels for a much older CPU, which makes exact search
    3 to 5 times slower (`python -m benchmarks faiss_threads` measures it).
    """
    best = "SKYLAKEX" if "avx512f" in cpu_flags else "Haswell" if "avx2" in cpu_flags else ""
    if kernel.lower() in _MODERN_KERNELS or not best:
        return Check("PASS", "OpenBLAS of faiss", f"kernel {kernel}")
    message = f"Kernel {kernel} on a CPU with {'AVX-512' if best == 'SKYLAKEX' else 'AVX2'} makes exact search slow."
    return Check("WARN", "OpenBLAS of faiss", message, f"export OPENBLAS_CORETYPE={best}")
