"""Verdict on each arm under test, based on the arm's contrasts with its controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from clipit.comparison.contrasts import Contrast, compare_with
from clipit.comparison.judged_arms import OWN_REPORTS, Text, judged_arms
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import ArmKey, ArmResult
from clipit.errors import counted
from clipit.evaluation.intervals import Interval
from clipit.evaluation.significance import holm

Outcome = Literal["helps", "no gain", "no gain from text", "harms", "not decided"]
"""Outcome of the contrasts of an arm; an arm without text helps if it is better than the baseline."""
_USE_PROBE = {
    "report probe": "Use the VLM's linear probe on the report labels instead: no student is needed. The gain comes "
    "from the labels; the student adds at most speed and independence from the VLM.",
    "tile probe": "Use the VLM's linear probe on the tile labels instead: no student and no reports are needed.",
}
_UNDECIDED_PROBE = {
    "report probe": "Not shown to be better than the VLM's linear probe on the report labels, which needs no student: "
    "use the probe, or run more seeds to decide.",
    "tile probe": "Not shown to be better than the VLM's linear probe on the tile labels, which needs neither student "
    "nor reports: use the probe, or run more seeds to decide.",
}
"""Verdicts if the student scores higher than the probe, but the interval of the difference includes 0."""
PROBE_ROLES = frozenset(_USE_PROBE)
"""Roles of the VLM's linear probes, on the labels from reports and on the tile labels."""


@dataclass(frozen=True)
class ArmVerdict:
    """Contrasts of one arm on one data set and backbone, and the verdict that follows from them.

    Attributes:
        key: Data set, backbone, test set and arm.
        text: Source of the text that the arm learns from.
        limit: Role of the control that decides the verdict, because the arm is not better than it; "" for none.
    """

    key: ArmKey
    text: Text
    contrasts: tuple[Contrast, ...]
    outcome: Outcome = "not decided"
    limit: str = ""
    verdict: str = ""

    def contrast(self, role: str) -> Contrast | None:
        """Return the contrast with the control in this role; None if the arm has no such control."""
        return next((contrast for contrast in self.contrasts if contrast.role == role), None)


def judge_arms(plans: Sequence[Plan], arms: Sequence[ArmResult]) -> list[ArmVerdict]:
    """Compare every arm under test with its controls on the test split, and derive its verdict.

    Args:
        plans: Plans, one per data set and backbone.
    """
    by_key = {result.key: result for result in arms}
    verdicts, gains = list[ArmVerdict](), dict[ArmKey, dict[str, Interval | None]]()
    for plan in plans:
        for arm, judged in judged_arms(plan).items():
            key = ArmKey(plan.data_set, plan.backbone, "test", arm)
            if key not in by_key:
                continue
            results = {role: by_key.get(key._replace(arm=name or "")) for role, name in judged.controls.items()}
            contrasts = tuple(compare_with(role, by_key[key], control) for role, control in results.items())
            verdicts.append(ArmVerdict(key, judged.text, contrasts))
            gains[key] = {role: result.over_seeds for role, result in results.items() if result is not None}
    corrected = holm({(result.key, c.role): c.p for result in verdicts for c in result.contrasts})
    decided = []
    for result in verdicts:
        contrasts = tuple(replace(c, p_holm=corrected[result.key, c.role]) for c in result.contrasts)
        decided.append(decide_verdict(replace(result, contrasts=contrasts), gains[result.key]))
    return decided


def decide_verdict(arm: ArmVerdict, gains: Mapping[str, Interval | None]) -> ArmVerdict:
    """Derive the verdict on an arm from its contrasts.

    An arm is better than a control if the 95% interval of the difference is above 0, and worse if it is below 0. The
    first rule that applies decides:

    1. Without an interval against the baseline (one seed, an undefined score): not decided.
    2. Not better than the VLM's linear probe on the same labels from reports, although the arm or this probe is better
       than the baseline: use the probe.
    3. The same for the VLM's linear probe on the tile labels.
    4. Worse than the baseline: harms. Not better than the baseline: no gain.
    5. Not better than propagated tile labels (`own_case`): the gain is due to knowing which tiles belong to
       the same patient.
    6. Better than every control that was run, including one that shows whether the gain is due to text: text adds
       information. For labels from the patients' own reports, this control is `own_case` or `own_shuffled`; for
       snippets from these reports, `own_case` or other snippets; for text from any reports, `image_embedding`. An arm
       without text needs no such control.
    7. Otherwise there is a gain, but it is not shown to be due to text.

    Rules 2, 3 and 5 apply only to arms that use the patients' own reports, because other arms lack these controls.
    Except after rules 1 and 4, the verdict also lists the controls that the arm is not better than, those without an
    interval, and those that were not run.

    Args:
        gains: Interval of each control minus the baseline, by role.
    """
    contrasts, base = arm.contrasts, arm.contrast("baseline")
    if base is None:
        return replace(arm, verdict="Not decided: this arm is the baseline.")
    if base.interval.low is None:
        seeds = len(base.differences)
        return replace(arm, verdict=f"Not decided: {'one seed' if seeds == 1 else base.interval.reason}.")

    def decide(outcome: Outcome, verdict: str, limit: str = "") -> ArmVerdict:
        return replace(arm, outcome=outcome, limit=limit, verdict=" ".join([verdict, *_details(contrasts, limit)]))

    tested = [contrast for contrast in contrasts if contrast.tested]
    for role, verdict in _USE_PROBE.items():
        probe, gain = arm.contrast(role), gains.get(role)
        helps = base.better or (gain is not None and gain.low is not None and gain.low > 0)
        if probe is not None and probe.not_better and helps:
            return decide("no gain", _UNDECIDED_PROBE[role] if probe.undecided_but_higher else verdict, role)
    if base.worse:
        return replace(arm, outcome="harms", limit="baseline", verdict=f"Worse than {base.control}.")
    if not base.better:
        seed_count = counted(len(base.differences), "seed")
        verdict = (
            f"No gain shown: the interval of the difference from {base.control} over {seed_count} includes 0, even if "
            "the interval over test tiles or patients does not."
        )
        return replace(arm, outcome="no gain", limit="baseline", verdict=verdict)
    case = arm.contrast("case")
    if case is not None and case.not_better:
        verdict = "The gain is due to knowing which tiles belong to the same patient, not to text."
        return decide("no gain from text", verdict, "case")
    if all(contrast.better for contrast in tested) and (not arm.text or _tests_text(arm)):
        opening = f"Text from the {arm.text} adds information: better than"
        return decide("helps", f"{opening if arm.text else 'Better than'} {_join_names(tested)}.")
    text_source = f"text from the {arm.text}" if arm.text == OWN_REPORTS else "text"
    result = decide(
        "no gain from text",
        f"Better than {base.control}, but the gain is not shown to be due to {text_source}.",
    )
    limits = [contrast for contrast in tested if not contrast.better]
    return replace(result, limit=min(limits, key=lambda c: c.difference or 0.0).role if limits else "")


def _tests_text(arm: ArmVerdict) -> bool:
    """Check whether any control that was run tests if the gain is due to text."""
    tested = {contrast.role for contrast in arm.contrasts if contrast.tested}
    if arm.text == OWN_REPORTS:
        return bool(tested & {"case", "shuffled" if arm.contrast("shuffled") is not None else "snippet"})
    # The role is missing if the baseline is itself the arm `image_embedding`.
    return arm.contrast("image embedding") is None or "image embedding" in tested


def _details(contrasts: Sequence[Contrast], excluded_role: str) -> list[str]:
    """List the controls that an arm is not better than, or not tested against; one role is excluded."""
    others = [contrast for contrast in contrasts if contrast.role != excluded_role]
    groups = {
        "Not better than": [c for c in others if c.not_better],
        "Not decided against": [c for c in others if c.tested and c.interval.low is None],
        "Not tested against": [c for c in others if not c.tested],
    }
    return [f"{opening} {_join_names(members)}." for opening, members in groups.items() if members]


def _join_names(contrasts: Sequence[Contrast]) -> str:
    names = [contrast.describe() for contrast in contrasts]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
