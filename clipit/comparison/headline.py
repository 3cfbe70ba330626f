"""Headline of a comparison: whether text helps, by how much, against which control, and with what certainty."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from clipit.comparison.contrasts import Contrast
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import PERCENT, ArmResult
from clipit.comparison.verdict import PROBE_ROLES, ArmVerdict, Outcome, judge_arms
from clipit.errors import counted
from clipit.reporting.tables import LABELS, interval, number

_OUTCOME_TEXT: dict[Outcome, str] = {
    "helps": "helps", "no gain": "no gain shown", "no gain from text": "no gain from text shown", "harms": "harms",
    "not decided": "not decided",
}  # fmt: skip
_USE_PROBE, _NOT_SHOWN = "use the VLM's linear probe instead", "not shown to be better than the VLM's linear probe"
"""Phrases for an arm that does not score higher than the VLM's linear probe, or not clearly higher."""


@dataclass(frozen=True)
class ComparisonVerdict:
    """Verdict on a comparison in one sentence, and on each arm by data set and backbone."""

    headline: str
    arms: tuple[ArmVerdict, ...]


def judge_comparison(plans: Sequence[Plan], arms: Sequence[ArmResult], metric: str) -> ComparisonVerdict:
    """Compare every arm that gets a verdict with its controls, and summarise the verdicts in one sentence.

    Args:
        plans: Plans, one per data set and backbone.
    """
    verdicts = judge_arms(plans, arms)
    return ComparisonVerdict(compose_headline(verdicts, arms, metric), tuple(verdicts))


def compose_headline(verdicts: Sequence[ArmVerdict], arms: Sequence[ArmResult], metric: str) -> str:
    """Summarise the verdict on a comparison in one sentence.

    The sentence describes the first arm with a verdict, in the order of the configuration, so that the choice does not
    depend on scores, and lists the others that help. Differences are in percentage points.

    Args:
        verdicts: Verdicts on the arms, by data set and backbone.
        arms: Statistics of every arm, for the intervals over test tiles.
    """
    judged = [verdict for verdict in verdicts if verdict.contrast("baseline") is not None]
    if not judged:
        return "Nothing is compared: there is no arm besides the baseline."
    first = judged[0].key.arm
    first_verdicts = [verdict for verdict in judged if verdict.key.arm == first]
    others = [verdict for verdict in judged if verdict.key.arm != first]
    if len(first_verdicts) == 1:
        text = _describe_one(first_verdicts[0], arms, LABELS[metric])
    else:
        text = _describe_several(first_verdicts, LABELS[metric])
    if others:
        helpful = dict.fromkeys(verdict.key.arm for verdict in others if verdict.outcome == "helps")
        names = f"{', '.join(helpful)} {'are' if len(helpful) > 1 else 'is'}" if helpful else "none is shown to be"
        text += f"; of the other arms, {names} better than the baseline and every control"
    return f"{text}."


def _describe_one(verdict: ArmVerdict, arms: Sequence[ArmResult], metric: str) -> str:
    base, arm = verdict.contrasts[0], verdict.key.arm
    if base.difference is None:
        return f"{arm}: not decided, because {base.interval.reason}"
    over_base = f"{_amount(base)} {base.control}"
    over_tiles = _over_tiles(verdict, arms)
    if verdict.outcome == "not decided":
        reason = "one seed" if len(base.differences) == 1 else base.interval.reason
        return f"{arm}: not decided ({reason}): {metric} {over_base}" + (f" ({over_tiles})" if over_tiles else "")
    limit = verdict.contrast(verdict.limit) if verdict.limit not in ("", "baseline") else None
    shown = [base]
    if verdict.outcome == "helps":
        text = f"{arm} helps: {metric} {over_base}"
        if controls := [contrast for contrast in verdict.contrasts[1:] if contrast.tested]:
            closest = min(controls, key=lambda contrast: contrast.difference or 0.0)
            text += f" and {_amount(closest)} its closest control, {closest.describe()}"
            shown.append(closest)
    elif verdict.outcome == "harms":
        text = f"{arm} harms: {metric} {over_base}"
    elif limit is not None:
        text = f"{arm}: {_outcome_text(verdict)}: {metric} {_amount(limit)} {limit.describe()}, {over_base}"
        shown.insert(0, limit)
    elif verdict.outcome == "no gain":
        text = f"{arm}: no gain shown: {metric} {over_base}"
    else:
        untested = " or ".join(contrast.describe() for contrast in verdict.contrasts if not contrast.tested)
        text = f"{arm}: no gain from text shown: {metric} {over_base}, but not compared with {untested}"
    seeds = f"95% {'intervals' if len(shown) > 1 else 'interval'} over {counted(len(base.differences), 'seed')}"
    values = [contrast.p_holm.p for contrast in shown]
    tests = " and ".join("< 0.001" if p < 0.001 else f"{p:.3f}" for p in values if p is not None)
    certainty = [seeds, f"p {tests}, Holm-corrected" if tests else f"no p-value: {base.p.reason}", over_tiles]
    return f"{text} ({'; '.join(part for part in certainty if part)})"


def _describe_several(verdicts: Sequence[ArmVerdict], metric: str) -> str:
    """Count the outcomes over data sets and backbones, with the range of the differences."""
    counts = Counter(_outcome_text(verdict) for verdict in verdicts)
    n = len(verdicts)
    several = len({verdict.key.backbone for verdict in verdicts}) > 1
    units = f"data sets{' and backbones' if several else ''}"
    words = [word for word in (*_OUTCOME_TEXT.values(), _NOT_SHOWN, _USE_PROBE) if counts[word]]
    outcomes = [f"{word} on {counts[word]}" + ("" if i else f" of {n} {units}") for i, word in enumerate(words)]
    text = f"{verdicts[0].key.arm}{'' if words[0] in ('helps', 'harms') else ':'} {', '.join(outcomes)}"
    ranges = []
    for role in dict.fromkeys(contrast.role for verdict in verdicts for contrast in verdict.contrasts):
        contrasts = [contrast for verdict in verdicts if (contrast := verdict.contrast(role)) is not None]
        points = [PERCENT * contrast.difference for contrast in contrasts if contrast.difference is not None]
        if points and role in ("baseline", "image embedding", "case", "report probe"):
            name = contrasts[0].describe() if role in PROBE_ROLES else contrasts[0].control or role
            low, high = (number(bound, 1, signed=True) for bound in (min(points), max(points)))
            ranges.append(f"{low} to {high} points against {name}")
    seeds = len(verdicts[0].contrasts[0].differences)
    certainty = f"{counted(seeds, 'seed')} each; intervals and p-values under Verdicts"
    return f"{text}: {metric} {', '.join(ranges)} ({certainty})" if ranges else text


def _outcome_text(verdict: ArmVerdict) -> str:
    """Describe the outcome of an arm; if the VLM's linear probe is the limit, refer to the probe."""
    probe = verdict.contrast(verdict.limit) if verdict.limit in PROBE_ROLES else None
    if verdict.outcome != "no gain" or probe is None:
        return _OUTCOME_TEXT[verdict.outcome]
    return _NOT_SHOWN if probe.undecided_but_higher else _USE_PROBE


def _amount(contrast: Contrast) -> str:
    """Format a difference in percentage points with its interval over seeds and a preposition for the control."""
    if contrast.difference is None:
        return "an undefined difference from"
    low, high = (
        None if bound is None else PERCENT * bound for bound in (contrast.interval.low, contrast.interval.high)
    )
    points = f"{number(PERCENT * contrast.difference, 1, signed=True)} points"
    preposition = "over" if contrast.difference >= 0 else "against"
    return " ".join(part for part in (points, interval(low, high, 1, signed=True), preposition) if part)


def _over_tiles(verdict: ArmVerdict, arms: Sequence[ArmResult]) -> str:
    """Format the bootstrap interval over test tiles of the difference from the baseline; "" if it is undefined."""
    arm_result = next((result for result in arms if result.key == verdict.key), None)
    if arm_result is None or arm_result.over_tiles is None or arm_result.over_tiles.interval.low is None:
        return ""
    bounds = arm_result.over_tiles.interval
    low, high = (PERCENT * bound for bound in (bounds.low or 0.0, bounds.high or 0.0))
    units = arm_result.rows[0].resampled or "test tiles"
    return f"resampling {units}: {interval(low, high, 1, signed=True)} against {verdict.contrasts[0].control}"
