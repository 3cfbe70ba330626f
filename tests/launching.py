"""Scripts started by Accelerate's launcher, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TWO = ("--multi_gpu", "--num_processes", "2")


def environment(**more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")}
    return inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def launch(
    options: tuple[str, ...], script: Path, *arguments: str, cpu: bool = True
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), *arguments]
    with_cpu = {"ACCELERATE_USE_CPU": "1"} if cpu else {}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(**with_cpu), timeout=300, check=False
    )
