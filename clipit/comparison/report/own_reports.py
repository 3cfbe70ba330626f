"""Notes of a comparison on labels from own reports: number, classes, and agreement with labelled tiles."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipit.comparison.own_reports import report_probe_name, resolve_plan_arm
from clipit.comparison.plan import Plan
from clipit.comparison.report.tables import setting_label
from clipit.comparison.report_reference import STRENGTH_WITHOUT_VALIDATION
from clipit.comparison.statistics import ArmKey, ArmResult
from clipit.errors import counted, counted_of
from clipit.runs.folder import read_training


def own_report_notes(plans: Sequence[Plan], arms: Sequence[ArmResult]) -> list[str]:
    """Write a note on the labels of each arm with own reports, from training.json of its first seed.

    Runs without that record, for example because their folder was moved, have no note.
    """
    by_key, settings = {result.key: result for result in arms}, [(plan.data_set, plan.backbone) for plan in plans]
    notes: dict[str, list[str]] = {}
    for plan in plans:
        where = setting_label((plan.data_set, plan.backbone), settings)
        for arm in plan.arms:
            result = by_key.get(ArmKey(plan.data_set, plan.backbone, "test", arm))
            if result is None or resolve_plan_arm(plan, arm).soft_labels.source != "own_report":
                continue
            folder = result.rows[0].run_folder()
            if (folder / "training.json").is_file() and (facts := read_training(folder).get("own_reports")):
                notes.setdefault(f"{where}: {_describe(facts, result.rows[0].seed)}", []).append(arm)
            report_probe = by_key.get(result.key._replace(arm=report_probe_name(arm)))
            if report_probe is not None and report_probe.mean is not None and _without_validation(report_probe):
                text = (
                    f"{where}: fitted with C = {STRENGTH_WITHOUT_VALIDATION:g}, because no validation tile has a label"
                )
                notes.setdefault(text, []).append(report_probe.key.arm)
    return [f"{', '.join(names)}{text}." for text, names in notes.items()]


def _describe(facts: Mapping[str, Any], seed: int) -> str:
    """Describe the labels recorded in training.json: number, classes and agreement with labelled tiles."""
    listed = ", ".join(f"{name} {count:,}" for name, count in facts["answers"].items()) or "none"
    labelled, cases = facts["labelled_cases"], facts["cases"]["cases"]
    text = f"{counted_of(labelled, cases, 'training patient has', 'training patients have')} a label ({listed})"
    if "compared_cases" not in facts:  # labels of tiles, spread over their patients
        return f"{text} (seed {seed})"
    if not facts["compared_cases"]:
        return f"{text}; none of them has a labelled tile to compare with (seed {seed})"
    return (
        f"{text}; it agrees with {facts['agreeing_tiles']:,} of {counted(facts['compared_tiles'], 'labelled tile')} "
        f"and {facts['agreeing_cases']:,} of {counted(facts['compared_cases'], 'patient')} (seed {seed})"
    )


def _without_validation(report_probe: ArmResult) -> bool:
    return any(row.provenance.validation_labels == 0 for row in report_probe.rows)
