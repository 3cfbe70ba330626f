"""Measure alternatives in turn, compare them round by round, and print a table."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipit.errors import LaunchError

Workload = Callable[[], float]
"""Function that runs a workload once, and returns its time in seconds, excluding preparation."""


@dataclass(frozen=True)
class Options:
    """Options of a measurement.

    Attributes:
        folder: Empty folder for inputs and outputs.
        quick: Whether to use tiny sizes, as a smoke test whose measurements are meaningless.
        repeats: Number of measured rounds.
        gpu: Whether to use sizes for a GPU: large models in bfloat16, more rows.
        slides: Slides to read tiles from, instead of the default one.
    """

    folder: Path
    quick: bool
    repeats: int
    gpu: bool = False
    slides: tuple[Path, ...] = ()

    def size(self, full: int, quick: int, gpu: int | None = None) -> int:
        """Return `quick` in quick runs, `gpu` (if given) if GPU sizes are used, and `full` otherwise."""
        if self.quick:
            return quick
        return gpu if self.gpu and gpu is not None else full

    @property
    def vit(self) -> str:
        """timm name of the backbone to benchmark: ViT-S/16; on a GPU, ViT-L/16; with `quick`, timm's smallest ViT."""
        return "test_vit" if self.quick else f"vit_{'large' if self.gpu else 'small'}_patch16_224"

    @property
    def pixels(self) -> int:
        """Edge length of the tiles in pixels: 224, or 32 with `quick`."""
        return self.size(224, 32)

    @property
    def precision(self) -> Literal["no", "bf16"]:
        """Mixed precision of a training step, as in Accelerate."""
        return "bf16" if self.gpu else "no"


@dataclass(frozen=True)
class Measurement:
    """A measured quantity or comparison: one line of the table.

    Attributes:
        benchmark: Name of the benchmark.
        name: Quantity or comparison, as shown in the table.
        values: One value per round.
        unit: Unit of the values; empty for a ratio.
        goal: Largest (with `at_least`: smallest) acceptable median; None for no goal.
        at_least: Whether larger values are better.
        samples: Run time in seconds (or memory in bytes) of each workload, one value per round.
        facts: Sizes, and checks that all workloads computed the same result.
    """

    benchmark: str
    name: str
    values: Sequence[float]
    unit: str = ""
    goal: float | None = None
    at_least: bool = False
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without a goal."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.at_least else self.median <= self.goal

    def as_dict(self) -> dict[str, Any]:
        """Return the measurement as a JSON-serialisable dictionary."""
        summary = {"median": self.median, "min": min(self.values), "max": max(self.values), "met": self.met}
        return asdict(self) | summary


def seconds(function: Callable[[], object]) -> float:
    """Measure the time in seconds of a call, including pending GPU work."""
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    """Wait for pending GPU work; without a GPU, do nothing."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(function: Callable[[], object]) -> int | None:
    """Return the peak GPU memory in bytes during a call; None without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        function()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    function()
    return int(torch.cuda.max_memory_allocated())


def run_python(arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
    """Run Python in a new process from the folder of the checkout, and return what it prints.

    Args:
        arguments: Arguments of the interpreter, such as `-m` and the name of a module.
        environment: Environment variables that replace those of this process.

    Raises:
        LaunchError: The process failed.
    """
    home = Path(__file__).resolve().parent.parent
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LaunchError(
            f"a benchmark process exited with status {result.returncode}",
            where=" ".join(arguments)[:200],
            fix=f"see its output: {result.stderr.strip()[-2000:]}",
        )
    return result.stdout


def alternate(workloads: Mapping[str, Workload], options: Options, *, warm_up: bool = True) -> dict[str, list[float]]:
    """Run all workloads in turn for several rounds, after a warm-up round (none if quick); return times in seconds."""
    samples: dict[str, list[float]] = {name: [] for name in workloads}
    for turn in range(-options.size(1, 0) if warm_up else 0, options.repeats):
        for name, workload in workloads.items():
            elapsed = workload()
            if turn >= 0:
                samples[name].append(elapsed)
    return samples


def ratios(samples: Mapping[str, Sequence[float]], numerator: str, denominator: str) -> list[float]:
    """Return the ratio of two workloads' samples, round by round."""
    return [a / b for a, b in zip(samples[numerator], samples[denominator], strict=True)]


def table(measurements: Sequence[Measurement], *, quick: bool) -> str:
    """Format the measurements as a text table; if `quick`, omit whether the goals are met."""
    lines = [("benchmark", "measurement", "median", "min - max", "goal", "")]
    for measurement in measurements:
        goal = "" if measurement.goal is None else f"{'>=' if measurement.at_least else '<='} {measurement.goal:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[None if quick else measurement.met]
        spread = f"{min(measurement.values):.3f} - {max(measurement.values):.3f}"
        lines.append(
            (
                measurement.benchmark,
                measurement.name,
                f"{measurement.median:.3f} {measurement.unit}",
                spread,
                goal,
                verdict,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
