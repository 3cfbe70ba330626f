"""Contrasts of arms with own reports against their controls, and the verdict that follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from clipit.comparison.own_reports import ARM_CONTROLS, own_report_arms
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import ArmKey, ArmResult
from clipit.evaluation.intervals import Interval, t_interval
from clipit.evaluation.significance import Significance, holm, paired_t_test

_MEANING = {
    "image embedding": "the VLM's embedding of the tile in place of text",
    "case": "labels of the same patients' tiles, without text",
    "shuffled": "reports exchanged between patients",
    "snippet": "the nearest snippet of any other report",
    "report probe": "the VLM's linear probe on the same labels",
    "tile probe": "the VLM's linear probe on the labels of tiles",
}
_USE_PROBE = {
    "report probe": "Use the VLM's linear probe on the report labels instead: no student needed. The gain lies in the "
    "labels; the student adds speed and independence of the VLM at most.",
    "tile probe": "Use the VLM's linear probe on the labels of tiles instead: no student and no report needed.",
}


@dataclass(frozen=True)
class Contrast:
    """An arm minus one of its controls on the test split, paired by seed.

    Attributes:
        role: What the control tests: one of `own_reports.ROLES`.
        control: Name of the arm or reference row; None if the comparison has none.
        differences: Seed -> score of the arm minus score of the control; empty if one of them is undefined.
        interval: 95 % t-interval of the mean difference over seeds, or the reason why there is none.
        p: Paired t-test over seeds, uncorrected.
        p_holm: The same, Holm-corrected over all contrasts of the comparison.
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
    def difference(self) -> float | None:
        """Mean difference over seeds; None if it is undefined."""
        return fmean(self.differences.values()) if self.differences else None

    def describe(self) -> str:
        """Name the control, with its meaning."""
        meaning = _MEANING.get(self.role, "")
        if self.role in ARM_CONTROLS:
            return f"{self.control or ' or '.join(ARM_CONTROLS[self.role])} ({meaning})"
        return meaning or str(self.control)


@dataclass(frozen=True)
class OwnReportResult:
    """Contrasts of one arm with own reports on one data set and backbone, and their verdict."""

    key: ArmKey
    contrasts: tuple[Contrast, ...]
    verdict: str


def compare_own_reports(plans: Sequence[Plan], arms: Sequence[ArmResult]) -> list[OwnReportResult]:
    """Compare every arm with own reports with its controls on the test split, and decide on a verdict.

    Args:
        plans: Plans, one per data set and backbone.
        arms: Every arm and reference row.
    """
    by_key = {result.key: result for result in arms}
    found, gains = list[OwnReportResult](), dict[ArmKey, dict[str, Interval | None]]()
    for plan in plans:
        for arm, controls in own_report_arms(plan).items():
            key = ArmKey(plan.data_set, plan.backbone, "test", arm)
            if key not in by_key:
                continue
            results = {role: by_key.get(key._replace(arm=name or "")) for role, name in controls.items()}
            contrasts = tuple(_contrast(role, by_key[key], control) for role, control in results.items())
            found.append(OwnReportResult(key, contrasts, ""))
            gains[key] = {role: result.over_seeds for role, result in results.items() if result is not None}
    corrected = holm({(result.key, c.role): c.p for result in found for c in result.contrasts})
    decided = []
    for result in found:
        contrasts = tuple(replace(c, p_holm=corrected[result.key, c.role]) for c in result.contrasts)
        decided.append(OwnReportResult(result.key, contrasts, decide_verdict(contrasts, gains[result.key])))
    return decided


def decide_verdict(contrasts: Sequence[Contrast], gains: Mapping[str, Interval | None]) -> str:
    """Decide what the contrasts of an arm with own reports say.

    An arm is better than a control if the 95 % interval of the difference lies above 0, worse if it lies below 0. The
    first rule that applies gives the verdict:

    1. Without an interval against the baseline (one seed, an undefined score): not decided.
    2. Not better than the VLM's linear probe on the same labels from reports, while the arm or this probe is better
       than the baseline: use the probe.
    3. The same for the VLM's linear probe on the labels of tiles.
    4. Worse than the baseline: worse. Not better than the baseline: no gain.
    5. Not better than labels of the same patients' tiles (`own_case`): the gain is due to knowing which tiles belong to
       one patient.
    6. Better than every control that was run, one of which tests the text: text from own reports adds information.
       Labels from reports are tested by `own_case` or `own_shuffled`, snippets by `own_case` or other snippets.
    7. Otherwise there is a gain, but it is not shown to be due to text.

    Except after rules 1 and 4, the verdict also lists the controls that the arm is not better than, those without an
    interval, and those that were not run.

    Args:
        contrasts: Contrasts of the arm.
        gains: Role of a control -> interval of the control minus the baseline.
    """
    by_role = {contrast.role: contrast for contrast in contrasts}
    base = by_role.get("baseline")
    if base is None:
        return "Not decided: this arm is the baseline."
    if base.interval.low is None:
        seeds = len(base.differences)
        return f"Not decided: {'one seed' if seeds == 1 else base.interval.reason}."
    tested = [contrast for contrast in contrasts if contrast.tested]
    for role, verdict in _USE_PROBE.items():
        probe, gain = by_role.get(role), gains.get(role)
        helps = base.better or (gain is not None and gain.low is not None and gain.low > 0)
        if probe is not None and probe.not_better and helps:
            return " ".join([verdict, *_details(contrasts, role)])
    if not base.better:
        return (
            f"Worse than {base.control}."
            if base.worse
            else f"No gain shown: the interval against {base.control} includes 0."
        )
    if "case" in by_role and by_role["case"].not_better:
        verdict = "The gain is due to knowing which tiles belong to one patient, not to text."
        return " ".join([verdict, *_details(contrasts, "case")])
    tests_of_text = {"case", "shuffled" if "shuffled" in by_role else "snippet"}
    if all(contrast.better for contrast in tested) and any(contrast.role in tests_of_text for contrast in tested):
        verdict = f"Text from own reports adds information: better than {_listed(tested)}."
        return " ".join([verdict, *_details(contrasts)])
    verdict = f"Better than {base.control}, but the gain is not shown to be due to text from own reports."
    return " ".join([verdict, *_details(contrasts)])


def _details(contrasts: Sequence[Contrast], named: str = "") -> list[str]:
    """List the controls that an arm is not better than, except the one already named, and those without a test."""
    others = [contrast for contrast in contrasts if contrast.role != named]
    groups = {
        "Not better than": [c for c in others if c.not_better],
        "Not decided against": [c for c in others if c.tested and c.interval.low is None],
        "Not tested against": [c for c in others if not c.tested],
    }
    return [f"{start} {_listed(members)}." for start, members in groups.items() if members]


def _listed(contrasts: Sequence[Contrast]) -> str:
    names = [contrast.describe() for contrast in contrasts]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _contrast(role: str, arm: ArmResult, control: ArmResult | None) -> Contrast:
    if control is None:
        return _without_test(role, None, "not tested")
    pairs = {seed: (score, control.scores.get(seed)) for seed, score in arm.scores.items()}
    differences = {seed: a - b for seed, (a, b) in pairs.items() if a is not None and b is not None}
    if len(differences) < len(pairs):
        return _without_test(role, control.key.arm, "a score is not defined")
    values = list(differences.values())
    p = paired_t_test(values)
    return Contrast(role, control.key.arm, differences, t_interval(values), p, p)


def _without_test(role: str, control: str | None, reason: str) -> Contrast:
    none = Significance(None, reason)
    return Contrast(role, control, {}, Interval(None, None, reason), none, none)
