"""Add a comparison's results to the model cards of the compared classifiers."""

import os
from collections.abc import Sequence

from clipit.comparison.plan import Plan
from clipit.comparison.statistics import ArmResult, ComparisonResults
from clipit.reporting.model_card import CardArm, CardComparison
from clipit.runs.card import record_comparison, write_card
from clipit.runs.folder import read_results
from clipit.training.arms import resolve_arm

_MAX_ARMS = 8


def write_cards(plans: Sequence[Plan], results: ComparisonResults) -> None:
    """Write the model card of every run's classifier, with the comparison's arms on the same data set and backbone.

    Read-only folders, such as another user's, are skipped.
    """
    for plan in plans:
        arms = [arm for arm in results.arms if arm.key.setting == (plan.data_set, plan.backbone)]
        arms = [arm for arm in arms if arm.key.test_set == "test"]
        for arm in arms:
            for row in arm.rows:
                if row.run is None or not os.access(row.run / "classifier", os.W_OK):
                    continue
                record_comparison(row.run, _comparison_for_card(plan, arms, arm))
                config = resolve_arm(plan.run_config(arm.key.arm, row.seed))
                write_card(row.run, config, read_results(row.run))


def _comparison_for_card(plan: Plan, arms: Sequence[ArmResult], run_arm: ArmResult) -> CardComparison:
    """Choose the arms on a card: the classifier's own, the baseline and the controls, then the others in order."""
    comparison = plan.comparison
    roles = {comparison.baseline: "baseline", run_arm.key.arm: "this classifier"}
    if run_arm.key.arm == comparison.baseline:
        roles[run_arm.key.arm] = "this classifier, the baseline"
    roles |= {control: "control" for control in comparison.controls if control not in roles}
    first = sorted(arms, key=lambda arm: arm.key.arm not in roles)[:_MAX_ARMS]  # stable
    card_arms = [_card_arm(arm, roles.get(arm.key.arm, "reference" if arm.reference else "")) for arm in first]
    return CardComparison(
        metric=comparison.metric,
        seeds=len(comparison.seeds),
        baseline=comparison.baseline,
        arms=card_arms,
        further=len(arms) - len(first),
    )


def _card_arm(arm: ArmResult, role: str) -> CardArm:
    paired = arm.over_tiles
    if paired is None or paired.value is None:
        return CardArm(arm.key.arm, role, arm.mean)
    low, high = paired.interval.low, paired.interval.high
    return CardArm(arm.key.arm, role, arm.mean, paired.value, None if low is None or high is None else (low, high))
