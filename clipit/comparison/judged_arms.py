"""Arms that receive a verdict, the controls of each, and a check that controls get no text unnoticed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from clipit.comparison.own_report_arms import BUILT_IN, find_control, own_report_arms, resolve_plan_arm, serves
from clipit.comparison.plan import Plan
from clipit.config.comparison import ComparisonConfig
from clipit.config.load import nested
from clipit.config.run import RunConfig
from clipit.errors import ConfigError
from clipit.training.arms import arm_keys
from clipit.training.terms.term_table import active_terms, learns_from_reports, uses_reports

OWN_REPORTS: Final = "patients' own reports"
Text = Literal["patients' own reports", "reports", ""]
"""Text that an arm learns from: reports of the patients that the tiles come from, any reports, or none."""
TEXT_CONTROLS = ("image embedding", "shuffled pairs")
"""Roles of the controls for arms that learn from any reports, besides the baseline."""


@dataclass(frozen=True)
class JudgedArm:
    """An arm's source of text and, by role, the name of each control; None for controls that were not run."""

    text: Text
    controls: Mapping[str, str | None]


def judged_arms(plan: Plan) -> dict[str, JudgedArm]:
    """Return the arms that receive a verdict, in the order of the table.

    These are the arms that learn from text, except those that serve as a control for another arm. For arms that learn
    from the patients' own reports, `own_report_arms` lists the controls; other arms are compared with the baseline and
    with `TEXT_CONTROLS`. If no arm learns from text, all arms are compared with the baseline alone.
    """
    with_own_reports, baseline = own_report_arms(plan), plan.comparison.baseline
    used = {name for controls in with_own_reports.values() for name in controls.values()}
    configs = {arm: resolve_plan_arm(plan, arm) for arm in plan.arms}
    judged: dict[str, JudgedArm] = {}
    for arm in plan.arms:
        if arm in with_own_reports:
            judged[arm] = JudgedArm(OWN_REPORTS, with_own_reports[arm])
        elif arm not in used and arm != baseline and learns_from_reports(configs[arm]):
            controls: dict[str, str | None] = {"baseline": baseline}
            for role in TEXT_CONTROLS:
                name = find_control(plan, configs, arm, role)
                if name != baseline:
                    controls[role] = name
            judged[arm] = JudgedArm("reports", controls)
    others = [arm for arm in plan.arms if arm != baseline]
    return judged or {arm: JudgedArm("", {"baseline": baseline}) for arm in others}


def check_controls(
    configs: Mapping[str, RunConfig], comparison: ComparisonConfig, recipes: Mapping[str, Mapping[str, Any]]
) -> None:
    """Check that no baseline or control without text reads reports through a loss term under `terms` for all arms.

    A control that sets keys of the term itself is accepted.

    Args:
        configs: Configuration of each arm, with the arm resolved.
        recipes: Section `arms` of the configuration.

    Raises:
        ConfigError: A control reads reports.
    """
    for arm, config in configs.items():
        is_control = arm in (comparison.baseline, *comparison.controls)
        if not (is_control or any(serves(config, role) for role in BUILT_IN)):
            continue
        if uses_reports(config.model_copy(update={"terms": {}})):
            continue
        shared = config.terms.keys() - nested(arm_keys(arm, recipes)).get("terms", {}).keys()
        for term in active_terms(config):
            if term.name in shared and term.uses_reports:
                raise ConfigError(
                    f"the loss term '{term.name}' reads reports and is active in every arm, also in the control {arm}, "
                    "which would otherwise be trained without text",
                    where=term.section,
                    fix=f"disable it there ({term.section}.{term.switch}: 0), and enable it in arms of your own: "
                    f"arms.<name>.{term.section}.{term.switch}",
                )
