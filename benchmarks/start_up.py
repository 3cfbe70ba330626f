"""Time to show `--help`."""

from pathlib import Path

from benchmarks.harness import Measurement, Options, alternate, run_python, seconds


def measure(options: Options) -> list[Measurement]:
    """Time `python scripts/NAME.py --help` for every script (two if quick), and Python without a script."""
    home = Path(__file__).resolve().parent.parent
    scripts = sorted((home / "scripts").glob("*.py"))
    commands = {path.name: [str(path), "--help"] for path in (scripts[:2] if options.quick else scripts)}
    commands["bare python"] = ["-c", "pass"]
    workloads = {name: (lambda c=command: seconds(lambda: run_python(c))) for name, command in commands.items()}
    samples = alternate(workloads, options)
    return [
        Measurement(
            "start_up",
            name if name == "bare python" else f"{name} --help",
            times,
            "s",
            None if name == "bare python" else 1.5,
            samples={name: times},
        )
        for name, times in samples.items()
    ]
