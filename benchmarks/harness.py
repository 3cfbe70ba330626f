"""Measure alternately, compare repeat by repeat, print a table."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Work = Callable[[], float]
"""Does something once and says how many seconds count (its preparations need not)."""


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        folder: Empty folder for inputs and outputs.
        quick: Sizes so small that the figures mean nothing, to see that everything runs.
        repeats: Rounds that count.
    """

    folder: Path
    quick: bool
    repeats: int

    def size(self, full: int, quick: int) -> int:
        """The one of two sizes that is to be used."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        benchmark: What it belongs to.
        name: What was compared.
        values: One per repeat.
        unit: Empty for a ratio.
        goal: Largest (or with `at_least` smallest) median that is good; None: no goal.
        at_least: Whether more is better.
        samples: Seconds (or bytes) of each side, one per repeat.
        facts: Sizes, and checks that both sides computed the same.
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
        """Median over the repeats."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without a goal."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.at_least else self.median <= self.goal

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {"median": self.median, "min": min(self.values), "max": max(self.values), "met": self.met}
        return asdict(self) | found


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, until the device has finished."""
    settle()
    start = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - start


def settle() -> None:
    """Wait for what a GPU still has to do; nothing without one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(works: Mapping[str, Work], options: Options) -> dict[str, list[float]]:
    """Seconds of each work, one after the other, round after round; a first round does not count (none when quick)."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(-options.size(1, 0), options.repeats):
        for name, work in works.items():
            taken = work()
            if turn >= 0:
                found[name].append(taken)
    return found


def ratios(samples: Mapping[str, Sequence[float]], over: str, under: str) -> list[float]:
    """One side divided by the other, repeat by repeat."""
    return [a / b for a, b in zip(samples[over], samples[under], strict=True)]


def table(figures: Sequence[Figure], *, quick: bool) -> str:
    """The figures for people; with quick sizes no goal is judged."""
    lines = [("benchmark", "figure", "median", "min - max", "goal", "")]
    for figure in figures:
        goal = "" if figure.goal is None else f"{'>=' if figure.at_least else '<='} {figure.goal:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[None if quick else figure.met]
        spread = f"{min(figure.values):.3f} - {max(figure.values):.3f}"
        lines.append((figure.benchmark, figure.name, f"{figure.median:.3f} {figure.unit}", spread, goal, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
