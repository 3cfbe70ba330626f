"""Time to show `--help`."""

import subprocess
import sys
from pathlib import Path

from benchmarks.harness import Figure, Options, alternate, seconds
from clipit.errors import LaunchError


def measure(options: Options) -> list[Figure]:
    """Measure the seconds of `python scripts/NAME.py --help`, for every script (two if quick) and for a bare Python."""
    home = Path(__file__).resolve().parent.parent
    scripts = sorted((home / "scripts").glob("*.py"))
    commands = {path.name: [str(path), "--help"] for path in (scripts[:2] if options.quick else scripts)}
    commands["bare python"] = ["-c", "pass"]
    workloads = {name: (lambda c=command: seconds(lambda: _run(home, c))) for name, command in commands.items()}
    samples = alternate(workloads, options)
    return [
        Figure(
            "start_up",
            name if name == "bare python" else f"{name} --help",
            times,
            "s",
            None if name == "bare python" else 1.5,
            samples={name: times},
        )
        for name, times in samples.items()
    ]


def _run(home: Path, command: list[str]) -> None:
    result = subprocess.run([sys.executable, *command], cwd=home, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LaunchError(
            f"a script's --help ended with status {result.returncode}",
            where=" ".join(command),
            fix=result.stderr.strip()[-2000:],
        )
