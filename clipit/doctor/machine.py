"""Check Python, torch, devices, the disk and the launcher."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from clipit.doctor.check_results import Check
from clipit.errors import TORCH_FIX, counted

_GIB = 2**30
_TWO_ON_CPU = "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m clipit train --config ..."


def check_machine(output: Path) -> list[Check]:
    """Check Python, torch, devices, the disk of the output folder, and the launcher."""
    return [check_python(), *check_torch(), check_disk(output), check_default_launch()]


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Check for Python 3.11 or later."""
    text = ".".join(map(str, version))
    if tuple(version) >= (3, 11):
        return Check("PASS", "Python", f"{text}, {sys.executable}")
    return Check(
        "FAIL",
        "Python",
        f"Python {text} is too old.",
        "install clipit into an environment with Python 3.11 or later (in a checkout: PYTHON=python3.12 make env)",
    )


def check_torch() -> list[Check]:
    """Check torch, torchvision, and the devices visible to torch."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Check("FAIL", "torch", f"torch cannot be imported: {error}.", TORCH_FIX)]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return [Check("PASS", "torch", f"{torch.__version__}, {build} build"), check_torchvision(), *check_devices()]


def check_torchvision() -> Check:
    """Check that torchvision can be imported, in a subprocess because a failed import leaves modules half loaded.

    If this process has imported it already, no subprocess is needed.
    """
    loaded = sys.modules.get("torchvision")
    if loaded is not None:
        return Check("PASS", "torchvision", loaded.__version__)
    code = "import torchvision; print(torchvision.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if not result.returncode:
        return Check("PASS", "torchvision", result.stdout.strip())
    error = (result.stderr.strip().splitlines() or ["no message"])[-1]
    return Check("FAIL", "torchvision", f"torchvision cannot be imported: {error}.", TORCH_FIX)


def check_devices() -> list[Check]:
    """Check the GPUs (memory, bf16 support), and the CPU cores and wait policy of OpenMP threads."""
    import torch

    checks = []
    for number in range(gpu_count()):
        gpu: Any = torch.cuda.get_device_properties(number)
        precision = "bf16" if gpu.major >= 8 else "no bf16: use fp16 or fp32"
        checks.append(Check("PASS", f"GPU {number}", f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB, {precision}"))
    if not checks and torch.version.cuda:
        message = "torch is a CUDA build but finds no GPU, so everything runs on the CPU."
        fix = "check nvidia-smi, and that CUDA_VISIBLE_DEVICES is not empty; without a GPU, ignore this warning"
        checks.append(Check("WARN", "GPU", message, fix))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = counted(count, "core")
    # `import clipit` sets this to passive, unless the user has set it.
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        message = f"OMP_WAIT_POLICY is active, so waiting threads slow down all other work on {cores}."
        checks.append(Check("WARN", "CPU", message, "unset OMP_WAIT_POLICY"))
    else:
        checks.append(Check("PASS", "CPU", cores))
    return checks


def check_disk(output: Path) -> Check:
    """Check that the output folder, or its nearest existing parent, is writable and has free space."""
    subject, other_folder = f"disk at {output}", "choose a different folder: --output=..."
    folder = output.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check("FAIL", subject, f"{folder} is not writable.", other_folder)
    free = shutil.disk_usage(folder).free / _GIB
    message = f"{free:.0f} GiB free"
    if free < 1:
        return Check("FAIL", subject, f"Only {message}.", f"free some space, or {other_folder}")
    if free < 10:
        return Check("WARN", subject, f"Only {message}.", "large data sets need tens of GiB; see --output")
    return Check("PASS", subject, message)


def gpu_count() -> int:
    """Return the number of GPUs visible to torch."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_default_launch() -> Check:
    """Check how many processes `accelerate launch` starts without additional options."""
    try:
        from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    except (ImportError, OSError, RuntimeError) as error:
        message = f"accelerate cannot be imported: {error}."
        return Check("FAIL", "accelerate", message, TORCH_FIX)
    path = Path(default_config_file)
    if not path.is_file():
        hint = "" if gpu_count() else f"; for two processes on CPUs: {_TWO_ON_CPU}"
        return Check("PASS", "accelerate", f"no default configuration: one process per GPU; on CPUs, one process{hint}")
    try:
        values: Any = load_config_from_file(str(path))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Check("FAIL", "accelerate", f"{path} cannot be read: {error}.", f"accelerate config, or delete {path}")
    distributed_type = str(getattr(values.distributed_type, "value", values.distributed_type))
    return check_launch_file(
        path, distributed_type, values.num_processes or 1, use_cpu=bool(values.use_cpu), gpus=gpu_count()
    )


def check_launch_file(path: Path, distributed_type: str, num_processes: int, *, use_cpu: bool, gpus: int) -> Check:
    """Check that an Accelerate configuration with these values starts as many processes as `num_processes` states."""
    on_cpu = use_cpu or not gpus
    message = (
        f"{path}: {counted(num_processes, 'process', 'processes')}, {distributed_type}{', on CPUs' if on_cpu else ''}"
    )
    if num_processes > 1 and on_cpu:
        started = (
            "independent processes that do not communicate" if distributed_type == "MULTI_GPU" else "only one process"
        )
        fix = f"start two processes on CPUs with {_TWO_ON_CPU}"
        return Check("WARN", "accelerate", f"{message}: without GPUs this starts {started}.", fix)
    if num_processes > gpus > 0:
        available = counted(gpus, "GPU is available", "GPUs are available")
        fix = f"set num_processes: {gpus} in that file"
        return Check("FAIL", "accelerate", f"{message}, but only {available}.", fix)
    if gpus > 1 and num_processes == 1:
        fix = f"accelerate launch --multi_gpu --num_processes {gpus} ..., or accelerate config"
        return Check("WARN", "accelerate", f"{message}, which leaves {gpus - 1} of {gpus} GPUs idle.", fix)
    return Check("PASS", "accelerate", message)
