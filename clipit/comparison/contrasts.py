"""Contrasts of an arm with its controls on the test split, paired by seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from clipit.comparison.own_report_arms import BUILT_IN
from clipit.comparison.statistics import ArmResult
from clipit.evaluation.intervals import Interval, t_interval
from clipit.evaluation.significance import Significance, paired_t_test

_MEANING = {
    "image embedding": "the VLM's embedding of the tile instead of text",
    "shuffled pairs": "the snippets of other tiles",
    "case": "tile labels propagated within each patient, without text",
    "shuffled": "reports shuffled across patients",
    "snippet": "the nearest snippet of any other report",
    "report probe": "the VLM's linear probe on the same labels",
    "tile probe": "the VLM's linear probe on the tile labels",
}


@dataclass(frozen=True)
class Contrast:
    """An arm minus one of its controls on the test split, paired by seed.

    Attributes:
        role: Role of the control, from `own_report_arms.ROLES` or `judged_arms.TEXT_CONTROLS`.
        control: Name of the control, an arm or reference row; None if the comparison lacks it.
        differences: Score of the arm minus that of the control by seed; empty if any score is undefined.
        interval: 95% t-interval of the mean difference over seeds, or the reason why there is none.
        p: Uncorrected p-value of a paired t-test over seeds.
        p_holm: The same p-value, Holm-corrected over all contrasts of the comparison.
    """

    role: str
    control: str | None
    differences: Mapping[int, float]
    interval: Interval
    p: Significance
    p_holm: Significance

    @property
    def tested(self) -> bool:
        """Whether both sides have scores."""
        return bool(self.differences)

    @property
    def better(self) -> bool:
        """Whether the interval lies above 0."""
        return self.interval.low is not None and self.interval.low > 0

    @property
    def worse(self) -> bool:
        """Whether the interval lies below 0."""
        return self.interval.high is not None and self.interval.high < 0

    @property
    def not_better(self) -> bool:
        """Whether the interval includes 0 or lies below it."""
        return self.interval.low is not None and self.interval.low <= 0

    @property
    def undecided_but_higher(self) -> bool:
        """Whether the interval includes 0, but the arm scores at least 0.05 points higher (shown as 0.1)."""
        return not self.better and not self.worse and self.difference is not None and self.difference >= 0.0005

    @property
    def difference(self) -> float | None:
        """Mean difference over seeds; None if it is undefined."""
        return fmean(self.differences.values()) if self.differences else None

    def describe(self) -> str:
        """Describe the control by its name and meaning."""
        meaning = _MEANING.get(self.role, "")
        names = BUILT_IN.get(self.role)
        if names:
            return f"{self.control or ' or '.join(names)} ({meaning})"
        return meaning or str(self.control)


def compare_with(role: str, arm: ArmResult, control: ArmResult | None) -> Contrast:
    """Contrast an arm with one of its controls; the contrast is untested if the control has no result.

    Args:
        role: Role of the control, as in `Contrast.role`.
        control: Results of the control; None if the comparison lacks it.
    """
    if control is None:
        return _without_test(role, None, "not tested")
    pairs = {seed: (score, control.scores.get(seed)) for seed, score in arm.scores.items()}
    differences = {seed: a - b for seed, (a, b) in pairs.items() if a is not None and b is not None}
    if len(differences) < len(pairs):
        return _without_test(role, control.key.arm, "a score is undefined")
    values = list(differences.values())
    p = paired_t_test(values)
    return Contrast(role, control.key.arm, differences, t_interval(values), p, p)


def _without_test(role: str, control: str | None, reason: str) -> Contrast:
    none = Significance(None, reason)
    return Contrast(role, control, {}, Interval(None, None, reason), none, none)
