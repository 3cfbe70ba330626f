"""Arms of a comparison that use reports of the patients that the tiles come from, and their controls."""

from collections.abc import Collection, Mapping
from typing import Any

from clipit.comparison.plan import Plan
from clipit.comparison.statistics import REFERENCE
from clipit.comparison.vlm_reference import PROBE
from clipit.config.effects import is_within, select_keys
from clipit.config.load import value_at
from clipit.config.run import RunConfig
from clipit.training.arms import resolve_arm
from clipit.training.terms.own_reports import own_label_inputs
from clipit.training.terms.term_table import learns_from_reports, unused_keys, uses_own_report_labels

ROLES = ("baseline", "image embedding", "case", "shuffled", "snippet", "report probe", "tile probe")
"""Roles of the controls for an arm that uses the patients' own reports, in table order."""
BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "image embedding": ("image_embedding",),
    "shuffled pairs": ("shuffled_pairs",),
    "case": ("own_case",),
    "shuffled": ("own_shuffled",),
    "snippet": ("other_snippet", "clip_it_all"),
}
"""Built-in arms that can serve as a control, by role, for messages; `find_control` compares configurations instead."""
_CONTROL_KEYS: Mapping[str, Mapping[str, Any]] = {
    "image embedding": {"distillation.target": "image"},
    "shuffled pairs": {"distillation.target": "shuffled_text"},
    "case": {"own_report.labels": "case"},
    "shuffled": {"own_report.shuffled": True},
    "snippet": {
        "distillation.target": "text",
        "distillation.tiles": "all",
        "distillation.text": "frozen",
        "soft_labels.source": "none",
        "pairing.reports": "any",
    },
}
"""Keys that define each control, by role: an arm with these values can serve as the control if it uses the keys."""


def own_report_arms(plan: Plan) -> dict[str, dict[str, str | None]]:
    """Return the arms that use the patients' own reports, and their controls by role; None for a missing control.

    These arms are trained on labels from the patients' own reports, or paired with snippets of these reports
    (`pairing.reports`). An arm of the second kind has no labels from reports, so `own_shuffled` and the probe on report
    labels are not its controls. A control that is also the baseline has only the baseline's role.
    """
    sources = label_sources(plan)
    configs = {arm: resolve_plan_arm(plan, arm) for arm in plan.arms}
    paired = [arm for arm in plan.arms if _reads_own_snippets(configs[arm])]
    comparisons = {}
    for arm in plan.arms:
        if arm not in sources and arm not in paired:
            continue
        controls: dict[str, str | None] = {"baseline": plan.comparison.baseline, "tile probe": PROBE}
        controls |= {role: find_control(plan, configs, arm, role, paired) for role in _CONTROL_KEYS if role in ROLES}
        if arm in sources:
            controls["report probe"] = report_probe_name(sources[arm])
        else:
            del controls["shuffled"]
        comparisons[arm] = {
            role: controls[role]
            for role in ROLES
            if role in controls
            and controls[role] != arm
            and (role == "baseline" or controls[role] != plan.comparison.baseline)
        }
    return comparisons


def find_control(
    plan: Plan, configs: Mapping[str, RunConfig], arm: str, role: str, excluded: Collection[str] = ()
) -> str | None:
    """Find an arm's control by comparing configurations, regardless of the arms' names; None if there is none.

    If several arms can serve as the control, the one with the fewest keys that differ from the arm's configuration is
    used, not counting hyperparameters; ties go to the first in the table. For the role `snippet`, arms that use only
    snippets of other patients take precedence.

    Args:
        configs: Resolved configuration of each arm.
        role: Role of the control, a key of `BUILT_IN`.
        excluded: Arms that cannot be controls.
    """
    candidates = [name for name in configs if name not in (arm, *excluded) and serves(configs[name], role)]
    arm_recipe = recipe(plan, configs[arm])

    def rank(name: str) -> tuple[bool, int]:
        other_patients = role == "snippet" and configs[name].pairing.exclude_same_group
        return not other_patients, len(arm_recipe - recipe(plan, configs[name]))

    return min(candidates, key=rank, default=None)


def serves(config: RunConfig, role: str) -> bool:
    """Check whether an arm, given its resolved configuration, can serve as the control with this role."""
    values, unused = config.model_dump(mode="json"), unused_keys(config)
    return all(
        value_at(values, key) == value and not is_within(key, unused) for key, value in _CONTROL_KEYS[role].items()
    )


def recipe(plan: Plan, config: RunConfig) -> set[tuple[str, str]]:
    """Return the keys of a resolved arm with their values, without hyperparameters that are tuned for each arm."""
    tuned = {"training", *plan.comparison.grid}
    keys = select_keys(config, "results", "data")
    return {(k, repr(value)) for k, value in keys.items() if not (is_within(k, tuned) or k.endswith(".weight"))}


def label_sources(plan: Plan) -> dict[str, str]:
    """Map each arm trained on labels from the patients' own reports to the first arm with the same labels.

    Controls (case labels, shuffled reports) are excluded. Arms that differ only in training, such as those at equal
    steps, have the same labels and share one reference row.
    """
    first: dict[str, str] = {}
    sources = {}
    for arm in plan.arms:
        config = resolve_plan_arm(plan, arm)
        if _learns_own_labels(config):
            sources[arm] = first.setdefault(own_label_inputs(config), arm)
    return sources


def report_probe_name(arm: str) -> str:
    """Return the name of the reference row of a VLM probe on the labels of an arm."""
    return f"{REFERENCE}: VLM probe on labels of {arm}"


def resolve_plan_arm(plan: Plan, arm: str) -> RunConfig:
    """Return the resolved configuration of an arm, for the first seed."""
    return resolve_arm(plan.run_config(arm, plan.comparison.seeds[0]))


def _learns_own_labels(config: RunConfig) -> bool:
    return uses_own_report_labels(config) and not (serves(config, "case") or serves(config, "shuffled"))


def _reads_own_snippets(config: RunConfig) -> bool:
    """Check whether an arm is paired with snippets of the patients' own reports, other than as a control."""
    return config.pairing.reports != "any" and learns_from_reports(config)
