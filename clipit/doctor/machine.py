"""Check the GPUs, threads, faiss, the disk and Accelerate's launcher."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.config.config_args import default_config_file, load_config_from_file

from clipit.doctor.check_results import Check, record_error
from clipit.errors import counted
from clipit.versions import installed
from clipit.workspace.preflight import check_output

_GIB = 2**30
_FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu11", "faiss-gpu-cu12")
_MODERN_KERNELS = frozenset({"haswell", "zen", "skylakex", "cooperlake", "sapphirerapids", "excavator"})
"""OpenBLAS kernels that use at least AVX2."""


def check_machine(output: Path) -> list[Check]:
    """Check the GPUs, threads, faiss, the output folder's disk and the launcher."""
    return [
        *check_gpus(), *check_threads(), check_faiss(installed(_FAISS)), *check_disk(output), *check_default_launch()
    ]  # fmt: skip


def check_gpus() -> list[Check]:
    """List the GPUs that torch finds, or warn if a CUDA build of torch finds none."""
    names = [torch.cuda.get_device_properties(number).name for number in range(torch.cuda.device_count())]
    if names or not torch.version.cuda:
        return [Check("PASS", "GPU", ", ".join(names))] if names else []
    message = "torch is a CUDA build but finds no GPU, so everything runs on the CPU."
    fix = "check nvidia-smi, and that CUDA_VISIBLE_DEVICES is not empty; without a GPU, ignore this warning"
    return [Check("WARN", "GPU", message, fix)]


def check_threads() -> list[Check]:
    """Warn if waiting OpenMP threads keep their cores busy, which `import clipit` avoids by default."""
    if os.environ.get("OMP_WAIT_POLICY", "").lower() != "active":
        return []
    message = "OMP_WAIT_POLICY is active, so waiting threads slow down all other work."
    return [Check("WARN", "CPU", message, "unset OMP_WAIT_POLICY")]


def check_faiss(versions: Mapping[str, str]) -> Check:
    """Check that exactly one faiss package is installed, can be imported and matches the device."""
    listed = " and ".join(f"{name} {version}" for name, version in versions.items())
    has_gpu = torch.cuda.is_available()
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
    except (ImportError, OSError, AttributeError) as error:
        fix = f"pip install --force-reinstall --no-deps {next(iter(versions))}"
        return Check("FAIL", "faiss", f"{listed} cannot be imported: {error}.", fix)
    if has_gpu and not gpus and "faiss-cpu" not in versions:
        fix = "compare the CUDA version of faiss with that of the driver (nvidia-smi); until then, faiss uses the CPU"
        return Check("WARN", "faiss", f"{listed} finds no GPU, although torch does.", fix)
    best = {"AVX512": "SKYLAKEX", "AVX2": "Haswell"}.get(torch.backends.cpu.get_cpu_capability().partition("_")[0])
    slow = sorted(kernel for kernel in _faiss_kernels() if kernel.lower() not in _MODERN_KERNELS)
    if best and slow:
        message = f"{listed} searches slowly: its OpenBLAS does not recognise this CPU, and uses the kernel {slow[0]}."
        return Check("WARN", "faiss", message, f"export OPENBLAS_CORETYPE={best}")
    return Check("PASS", "faiss", listed)


def _faiss_kernels() -> set[str]:
    """Return the kernels that the OpenBLAS of faiss has selected for this CPU.

    An OpenBLAS release that does not recognise the CPU falls back to kernels for a much older one, which makes exact
    search 3 to 5 times slower (measured by `python -m benchmarks faiss_threads`).
    """
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    libraries = [library for library in threadpool_info() if library.get("internal_api") == "openblas"]
    return {str(blas.get("architecture")) for blas in libraries if "faiss" in Path(blas["filepath"]).parent.name}


def check_disk(output: Path) -> list[Check]:
    """Check that the output folder, or its nearest existing parent, is writable and has free space."""
    subject, folder, checks = f"disk at {output}", output.absolute(), list[Check]()
    with record_error(subject, checks):
        check_output(output)
    if checks:
        return checks
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free / _GIB
    if free < 10:
        fix = "free some space, or choose a different folder with --output; large data sets need tens of GiB"
        return [Check("FAIL" if free < 1 else "WARN", subject, f"Only {free:.0f} GiB free.", fix)]
    return [Check("PASS", subject, f"{free:.0f} GiB free")]


def check_default_launch() -> list[Check]:
    """Check that the default configuration of `accelerate launch`, if there is one, starts one process per GPU."""
    path, gpus = Path(default_config_file), torch.cuda.device_count()
    if not path.is_file():
        return []
    try:
        values: Any = load_config_from_file(str(path))
        processes, use_cpu = values.num_processes or 1, values.use_cpu
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [Check("FAIL", "accelerate", f"{path} cannot be read: {error}.", f"accelerate config, or delete {path}")]
    if use_cpu or not gpus or processes == gpus:  # training checks the number of processes on CPUs
        return []
    message = f"num_processes is {processes} in {path}, but torch finds {counted(gpus, 'GPU')}."
    fix = f"set num_processes: {gpus} in this file, or run accelerate config"
    return [Check("FAIL" if processes > gpus else "WARN", "accelerate", message, fix)]
