"""Python, torch, devices, disk and the launcher."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from clipit.doctor.findings import Finding

_GIB = 2**30
_TIGHT, _SCARCE = 10 * _GIB, 1 * _GIB
_TWO_ON_CPU = "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 scripts/train.py --config ..."


def machine_findings(output: Path) -> list[Finding]:
    """Everything about the machine itself; `output` is where runs would be written."""
    return [python_finding(), *torch_findings(), *device_findings(), disk_finding(output), *accelerate_findings()]


def python_finding(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """3.11 or later."""
    found = ".".join(map(str, version))
    if tuple(version) >= (3, 11):
        return Finding("PASS", "Python", f"{found}, {sys.executable}")
    return Finding("FAIL", "Python", found, "make an environment with Python 3.11 or later: PYTHON=python3.12 make env")


def torch_findings() -> list[Finding]:
    """Torch, and whether torchvision belongs to it."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Finding("FAIL", "torch", f"cannot be imported: {error}", "make env (or pip install -e '.[cpu]')")]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return [Finding("PASS", "torch", f"{torch.__version__}, {build} build"), torchvision_finding()]


def torchvision_finding() -> Finding:
    """Whether it can be imported, and whether its compiled operators belong to this torch.

    Imported in a program of its own: a failed import leaves half a module behind.
    """
    code = "import torchvision; from torchvision.extension import _has_ops; print(torchvision.__version__, _has_ops())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        error = (done.stderr.strip().splitlines() or ["no message"])[-1]
        mixed = "torchvision::nms" in error
        fix = "python -m tools.torchvision_hook" if mixed else "install the torchvision that belongs to this torch"
        return Finding("FAIL", "torchvision", f"cannot be imported: {error}", fix)
    version, _, whole = done.stdout.strip().rpartition(" ")
    if whole == "True":
        return Finding("PASS", "torchvision", version)
    return Finding(
        "PASS",
        "torchvision",
        f"{version}, of another build than torch; clipit's site hook declares the operators that it lacks, and nothing "
        "here needs them",
    )


def device_findings() -> list[Finding]:
    """GPUs with memory and bf16, or the CPU's cores and how its threads wait."""
    try:
        import torch
    except (ImportError, OSError):
        return []
    findings = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts: Any = torch.cuda.get_device_properties(number)
            bf16 = "bf16" if facts.major >= 8 else "no bf16: use fp16 or fp32"
            findings.append(
                Finding("PASS", f"GPU {number}", f"{facts.name}, {facts.total_memory / _GIB:.0f} GiB, {bf16}")
            )
    elif torch.version.cuda:
        findings.append(
            Finding(
                "WARN",
                "GPU",
                "torch has a CUDA build but sees no GPU: everything runs on the CPU",
                "see what nvidia-smi says and that CUDA_VISIBLE_DEVICES is not empty; without a GPU, ignore this",
            )
        )
    else:
        findings.append(Finding("PASS", "GPU", "none, and a torch for CPUs"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    policy = os.environ.get("OMP_WAIT_POLICY", "")  # set to passive by `import clipit`, unless the user did otherwise
    if policy.lower() == "active":
        findings.append(
            Finding(
                "WARN",
                "CPU",
                f"{cores} cores; OMP_WAIT_POLICY=active: threads that spin while they wait slow small "
                "models many times as soon as anything else runs",
                "unset OMP_WAIT_POLICY",
            )
        )
    else:
        findings.append(Finding("PASS", "CPU", f"{cores} cores, OMP_WAIT_POLICY={policy or '(unset)'}"))
    return findings


def disk_finding(output: Path) -> Finding:
    """Room and permission where the output goes (or its nearest folder that exists)."""
    place = output.expanduser().absolute()
    while not place.exists():
        place = place.parent
    what = f"disk at {output}"
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Finding("FAIL", what, f"{place} cannot be written to", "choose another folder: --output=...")
    free = shutil.disk_usage(place).free
    found = f"{free / _GIB:.0f} GiB free"
    if free < _SCARCE:
        return Finding("FAIL", what, found, "free some space, or choose another folder: --output=...")
    if free < _TIGHT:
        return Finding("WARN", what, found, "stores and checkpoints of large sets need tens of GiB; see --output")
    return Finding("PASS", what, found)


def gpu_count() -> int:
    """GPUs that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def accelerate_findings() -> list[Finding]:
    """What `accelerate launch` would start without further options."""
    try:
        from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    except (ImportError, OSError, RuntimeError) as error:
        return [
            Finding("FAIL", "accelerate", f"cannot be imported: {error}", "make env; python -m tools.torchvision_hook")
        ]
    gpus = gpu_count()
    path = Path(default_config_file)
    if not path.is_file():
        return [launch_finding(None, gpus)]
    try:
        loaded: Any = load_config_from_file(str(path))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [
            Finding("FAIL", "accelerate", f"{path} cannot be read: {error}", f"accelerate config, or delete {path}")
        ]
    kind = str(getattr(loaded.distributed_type, "value", loaded.distributed_type))
    values = {"kind": kind, "count": loaded.num_processes or 1, "cpu": bool(loaded.use_cpu), "path": path}
    return [launch_finding(values, gpus)]


def launch_finding(values: dict[str, Any] | None, gpus: int) -> Finding:
    """Whether the default configuration starts the processes that it promises.

    Args:
        values: kind (distributed_type), count (num_processes), cpu (use_cpu) and path of the file; None: no file.
        gpus: GPUs that torch sees.
    """
    if values is None:
        each = f"one process per GPU ({gpus})" if gpus > 1 else "one process"
        hint = "" if gpus else f"; two processes on CPUs need {_TWO_ON_CPU}"
        return Finding("PASS", "accelerate", f"no default configuration: `accelerate launch` starts {each}{hint}")
    count, kind, on_cpu = values["count"], values["kind"], values["cpu"] or not gpus
    found = f"{values['path']}: {count} process{'es' * (count > 1)}, {kind}{', on CPUs' if on_cpu else ''}"
    if count > 1 and on_cpu:
        what = "starts processes that do not know of each other" if kind == "MULTI_GPU" else "starts one process only"
        return Finding(
            "WARN",
            "accelerate",
            f"{found}: without GPUs this {what}",
            f"start two processes on CPUs with {_TWO_ON_CPU}",
        )
    if count > gpus > 0:
        return Finding("FAIL", "accelerate", f"{found}, but {gpus} GPUs", f"set num_processes: {gpus} in that file")
    if gpus > 1 and count == 1:
        return Finding(
            "WARN", "accelerate", f"{found}: {gpus - 1} of {gpus} GPUs stay idle",
            f"accelerate launch --multi_gpu --num_processes {gpus} ..., or accelerate config",
        )  # fmt: skip
    return Finding("PASS", "accelerate", found)
