"""Means, paired differences, intervals, holm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from clipit.evaluation.intervals import Difference, t_interval
from clipit.evaluation.significance import Significance, holm, paired_t_test

PERCENT = 100.0


REFERENCE = "reference"


Key = tuple[str, str, str, str]
"""Data set, backbone, test set, arm."""


@dataclass(frozen=True)
class Line:
    """One arm on one test set.

    Attributes:
        key: Which.
        scores: Seed -> score in 0..1; None where it is not defined.
        differences: Seed -> score minus the baseline's; empty for the baseline and for reference rows that lack a seed.
        over_seeds: 95 % t-interval of the mean difference; None under 2 seeds.
        over_tiles: Paired bootstrap over test tiles (groups, where known) of the mean difference; None without one.
        p: Of the paired t-test over seeds, before the correction ...
        p_holm: ... and corrected over all arms, data sets and backbones of the same test set.
        rows: The rows that it was made from.
    """

    key: Key
    scores: dict[int, float | None]
    differences: dict[int, float]
    over_seeds: tuple[float, float] | None
    over_tiles: Difference | None
    p: Significance
    p_holm: Significance
    rows: tuple[Mapping[str, Any], ...]

    @property
    def reference(self) -> bool:
        """Whether it is the VLM itself, not a student."""
        return self.key[3].startswith(REFERENCE)

    @property
    def mean(self) -> float | None:
        """Mean score over seeds; None where one is not defined."""
        values = [value for value in self.scores.values() if value is not None]
        return mean(values) if values and len(values) == len(self.scores) else None


OverTiles = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], Difference | None]
"""Rows of the baseline and of an arm, the same seeds in the same order, to the paired bootstrap over tiles."""


def lines(rows: Sequence[Mapping[str, Any]], baseline: str, over_tiles: OverTiles) -> list[Line]:
    """Lines in the order of the rows.

    Args:
        rows: Of a comparison.
        baseline: Arm that differences are taken against.
        over_tiles: See `OverTiles`.
    """
    groups: dict[Key, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data_set"], row["backbone"], row["part"], row["arm"]), []).append(row)
    made = []
    for key, own in groups.items():
        base = groups.get((*key[:3], baseline), [])
        made.append(_line(key, own, base if key[3] != baseline else [], over_tiles))
    corrected: dict[Key, Significance] = {}
    for part in dict.fromkeys(key[2] for key in groups):
        students = {line.key: line.p for line in made if line.key[2] == part and not line.reference}
        corrected |= holm(students)
        corrected |= {
            line.key: Significance(None, "reference row") for line in made if line.key[2] == part and line.reference
        }
    return [
        Line(
            line.key,
            line.scores,
            line.differences,
            line.over_seeds,
            line.over_tiles,
            line.p,
            corrected.get(line.key, line.p),
            line.rows,
        )
        for line in made
    ]


def _line(key: Key, own: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], over_tiles: OverTiles) -> Line:
    scores = {row["seed"]: row["score"] for row in own}
    of_base = {row["seed"]: row["score"] for row in base}
    paired = [s for s in scores if scores[s] is not None and of_base.get(s) is not None]
    differences = {s: scores[s] - of_base[s] for s in paired} if len(paired) == len(scores) else {}
    values = list(differences.values())
    drawn = None
    if values and all(row.get("predictions") for row in own):
        by_seed = {row["seed"]: row for row in base}
        drawn = over_tiles([by_seed[row["seed"]] for row in own], own)
    p = paired_t_test(values) if values else Significance(None, "nothing to compare with")
    return Line(key, scores, differences, t_interval(values) if values else None, drawn, p, p, tuple(own))
