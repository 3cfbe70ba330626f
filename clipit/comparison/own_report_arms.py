"""Arms of a comparison that use reports of the tiles' own patients, and the controls of each."""

from collections.abc import Mapping

from clipit.comparison.plan import Plan
from clipit.comparison.statistics import REFERENCE
from clipit.comparison.vlm_reference import PROBE
from clipit.config.run import RunConfig
from clipit.output_files.artifacts import fingerprint
from clipit.training.arms import resolve_arm
from clipit.training.terms.term_table import uses_reports

ROLES = ("baseline", "image embedding", "case", "shuffled", "snippet", "report probe", "tile probe")
"""Roles of the controls of an arm with own reports, in the order of the table."""
ARM_CONTROLS: Mapping[str, tuple[str, ...]] = {
    "image embedding": ("image_embedding",),
    "case": ("own_case",),
    "shuffled": ("own_shuffled",),
    "snippet": ("other_snippet", "clip_it_all"),
}
"""Arms that can serve as each control, by role; the first one in the comparison is used."""
CONTROL_TARGETS = ("shuffled_text", "random_text", "random_codes")
_LABEL_SECTIONS = ("tiles", "reports", "leaks", "vlm")
"""Sections that determine the labels from own reports, in addition to `soft_labels.own_report`."""


def own_report_arms(plan: Plan) -> dict[str, dict[str, str | None]]:
    """Return the arms with own reports and their controls by role; None for a control that the comparison lacks.

    These arms learn labels from own reports, or are paired with snippets of own reports (`pairing.reports`). An arm of
    the second kind has no labels from reports, so `own_shuffled` and the probe on report labels are not its controls.
    A control that is also the baseline only has the role of the baseline.
    """
    sources = label_sources(plan)
    paired = [arm for arm in plan.arms if _reads_own_snippets(resolve_plan_arm(plan, arm))]
    comparisons = {}
    for arm in plan.arms:
        if arm not in sources and arm not in paired:
            continue
        controls: dict[str, str | None] = {"baseline": plan.comparison.baseline, "tile probe": PROBE}
        for role, names in ARM_CONTROLS.items():
            controls[role] = next((name for name in names if name in plan.arms and name not in paired), None)
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


def label_sources(plan: Plan) -> dict[str, str]:
    """Map each arm that learns labels from own reports to the first arm with the same labels.

    Controls (labels of cases, shuffled reports) are excluded. Arms that differ only in training, such as those at equal
    steps, have the same labels and share one reference row.
    """
    first: dict[str, str] = {}
    sources = {}
    for arm in plan.arms:
        config = resolve_plan_arm(plan, arm)
        if _learns_own_labels(config):
            values = config.model_dump(mode="json")
            labels = fingerprint([values["soft_labels"]["own_report"], *(values[key] for key in _LABEL_SECTIONS)])
            sources[arm] = first.setdefault(labels, arm)
    return sources


def report_probe_name(arm: str) -> str:
    """Return the name of the reference row of a VLM probe on the labels of an arm."""
    return f"{REFERENCE}: VLM probe on labels of {arm}"


def resolve_plan_arm(plan: Plan, arm: str) -> RunConfig:
    """Return the resolved configuration of an arm, for the first seed."""
    return resolve_arm(plan.run_config(arm, plan.comparison.seeds[0]))


def _learns_own_labels(config: RunConfig) -> bool:
    own_report = config.soft_labels.own_report
    return config.soft_labels.source == "own_report" and own_report.labels != "case" and not own_report.shuffled


def _reads_own_snippets(config: RunConfig) -> bool:
    """Check whether an arm is paired with snippets of own reports, other than as a control."""
    paired = config.pairing.reports != "any" and uses_reports(config)
    return paired and config.distillation.target not in CONTROL_TARGETS
