"""Notes under a comparison's main table: intervals, the choice of hyperparameters, and missing results."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from clipit.comparison.own_report_arms import report_probe_name, resolve_plan_arm
from clipit.comparison.plan import Plan
from clipit.comparison.published_scores import CAUTION
from clipit.comparison.report.comparison_tables import setting_label
from clipit.comparison.report_reference import STRENGTH_WITHOUT_VALIDATION
from clipit.comparison.search_grid import (
    RATE,
    STEPS,
    arm_values,
    format_value,
    grid_axes,
    is_tuned,
    tuning_keys,
)
from clipit.comparison.statistics import PERCENT, ArmKey, ArmResult
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, DataError, counted, counted_of
from clipit.evaluation.significance import MIN_SEEDS
from clipit.output_files.artifacts import read_json
from clipit.reporting.tables import LABELS
from clipit.runs.folder import read_training
from clipit.training.terms.term_table import uses_own_report_labels


def compose_notes(
    config: RunConfig,
    comparison: ComparisonConfig,
    plans: Sequence[Plan],
    results: Sequence[ArmResult],
    published_source: str,
) -> list[str]:
    """Compose all notes, in order.

    Args:
        config: Configuration that all runs share.
        comparison: Section `comparison`.
        plans: Plans, one per data set and backbone.
        published_source: Source of the published scores in the table; "" if there are none.

    Raises:
        DataError: The search record named in the configuration is missing.
    """
    n = len(comparison.seeds)
    metric = LABELS[comparison.metric]
    notes = [
        f"{metric[0].upper()}{metric[1:]} in %, mean and standard deviation over {counted(n, 'seed')} (no standard "
        "deviation for a reference row that does not depend on the seed). Differences "
        f"from {comparison.baseline} are paired by seed and have two 95% intervals: Student's t over seeds "
        f"({_varying_labels(config)}initialisation, batches and augmentation vary; tiles, VLM and backbone are fixed), "
        f"and a paired bootstrap over the independent units of the test sets ({_resampled_units(results)}; "
        f"{config.evaluation.bootstrap} resamples, the same for all seeds).",
        "p: paired t-test over seeds, Holm-corrected over all arms, data sets and backbones of a test set; undefined "
        f"with fewer than {MIN_SEEDS} seeds.",
    ]
    if n == 1:
        notes.append("With only one seed, there is neither an interval over seeds nor a p-value.")
    if any(arm not in comparison.arms for plan in plans for arm in plan.arms):
        notes.append(
            "..._at_N_steps: the same arm trained for as many steps as the arm with the most steps, so that arms can "
            "also be compared at equal training length."
        )
    notes += _describe_tuning(config, comparison, plans)
    notes += _below_reference(results)
    notes += [f"{' / '.join(result.key)}: {_undefined_reason(result)}" for result in results if result.mean is None]
    restricted = {
        (_setting_name(result, results), str(row.reason))
        for result in results
        for row in result.rows
        if str(row.reason).startswith("over ")
    }
    notes += [f"{f'{name}: ' if name else ''}{metric} {text}." for name, text in sorted(restricted)]
    if published_source:
        notes += [f"Published: {published_source}. {CAUTION}"]
    return notes


def _varying_labels(config: RunConfig) -> str:
    labels = config.tiles.labels
    return "labelled tiles, " if labels.kind in ("fraction", "per_class") and labels.seed is None else ""


def _resampled_units(results: Sequence[ArmResult]) -> str:
    units: dict[str, None] = {}
    for result in results:
        name = ", ".join(part for part in (_setting_name(result, results), result.key.test_set) if part)
        units |= {f"{name}: {row.resampled}": None for row in result.rows if row.resampled}
    return "; ".join(units) or "tiles, or groups where known"


def _setting_name(result: ArmResult, results: Sequence[ArmResult]) -> str:
    """Return the data set and backbone of a result if there are several, or ""."""
    return setting_label(result.key.setting, {other.key.setting for other in results})[2:-1]


def _describe_tuning(config: RunConfig, comparison: ComparisonConfig, plans: Sequence[Plan]) -> list[str]:
    """Describe how the learning rates, steps and weights of the arms were chosen."""
    first = plans[0].config
    axes = {arm: grid_axes(first, comparison, arm) for arm in comparison.arms}
    if not is_tuned(first, comparison, comparison.arms):
        common = {
            key: value for arm in comparison.arms for key, value in arm_values(first, arm, list(axes[arm])).items()
        }
        notes = [f"Not tuned: all arms use {', '.join(format_value(key, value) for key, value in common.items())}."]
    else:
        source, set_by_hand = _read_search(config, comparison, first)
        searched = [arm for arm in comparison.arms if arm not in set_by_hand]
        instead = (
            " (arms to which a key does not apply get intermediate learning rates instead)" if comparison.grid else ""
        )
        further = "".join(f" x {counted(len(values), 'value')} of {key}" for key, values in comparison.grid.items())
        notes = [
            f"Learning rates, steps and weights per arm: {source}, all within one grid of "
            f"{counted(len(comparison.learning_rates), 'learning rate')} x "
            f"{counted(len(comparison.steps), 'number')} of steps{further}{instead}.",
        ]
        if searched:
            counts = _format_counts({arm: prod(map(len, axes[arm].values())) for arm in searched})
            seeds = counted(len(comparison.tuning_seeds), "seed")
            notes.append(f"Trials per tuned arm: {counts}, each with {seeds}.")
        edges = {
            key: [arm for arm in comparison.arms if _at_edge(axes[arm], key, first, arm)]
            for key in (RATE, *comparison.grid)
        }
        notes += [
            f"{key} is at the edge of its grid for {', '.join(arms)}, so a wider grid might give a better value."
            for key, arms in edges.items()
            if arms
        ]
    per_plan = [{arm: arm_values(plan.config, arm, list(axes[arm])) for arm in comparison.arms} for plan in plans]
    if len(plans) > 1 and all(values == per_plan[0] for values in per_plan):
        notes.append("All data sets and backbones use the same hyperparameters: none was tuned separately.")
    per_arm = {
        arm: {k: v for k, v in config.arms.get(arm, {}).items() if k not in axes[arm] and k != "base"}
        for arm in comparison.arms
    }
    overrides = [f"{arm}: {', '.join(f'{k} {v}' for k, v in keys.items())}" for arm, keys in per_arm.items() if keys]
    if overrides:
        notes.append(f"Keys outside the grid that the configuration sets for individual arms: {'; '.join(overrides)}.")
    return notes


def _format_counts(trials: Mapping[str, int]) -> str:
    """Format the number of trials per arm; a single number if it is the same for all arms."""
    groups: dict[int, list[str]] = {}
    for arm, count in trials.items():
        groups.setdefault(count, []).append(arm)
    if len(groups) == 1:
        return str(next(iter(groups)))
    return "; ".join(f"{count} for {', '.join(arms)}" for count, arms in sorted(groups.items()))


def _read_search(config: RunConfig, comparison: ComparisonConfig, first: RunConfig) -> tuple[str, list[str]]:
    """Describe the source of the hyperparameters, and list the arms whose values the search did not choose."""
    file = Path(comparison.searched) if comparison.searched else config.output / "tuning" / f"{config.name}.json"
    if not file.is_file():
        if comparison.searched:
            raise DataError(
                "the record of the hyperparameter search is missing",
                where=f"comparison.searched: {file}",
                fix="tune again with clipit tune, or remove the key",
            )
        return "set in the configuration", list(comparison.arms)
    fix = "delete it and tune again"
    record = read_json(file, fix)
    searched, recorded, current = record.get("arms", {}), record.get("made_with", {}), tuning_keys(config)
    if (
        not isinstance(recorded, dict)
        or not isinstance(searched, dict)
        or not all(isinstance(keys, dict) for keys in searched.values())
    ):
        raise ArtifactError("this file is not the record of a hyperparameter search", where=file, fix=fix)
    axes = {arm: list(grid_axes(first, comparison, arm)) for arm in comparison.arms}
    # A number of steps outside the search applies to all arms, so it does not count as set by hand.
    steps = {keys.get(STEPS) for keys in searched.values()}
    ignored = {STEPS} if len(comparison.steps) == 1 and comparison.steps[0] not in steps else set()
    set_by_hand = [
        arm
        for arm in comparison.arms
        if any(
            searched.get(arm, {}).get(key) != value
            for key, value in arm_values(first, arm, axes[arm]).items()
            if key not in ignored
        )
    ]
    changed = [name for name, values in current.items() if name in recorded and _differs(recorded[name], values)]
    how = f"chosen by clipit tune on validation tiles ({file.name})"
    if changed:
        how += f", with different values of {', '.join(changed)}: the search was not repeated for this configuration"
    return how + (f"; overridden in the configuration for {', '.join(set_by_hand)}" if set_by_hand else ""), set_by_hand


def _differs(recorded: Any, current: Any) -> bool:
    """Check whether a configuration section has changed; keys that occur in only one of its versions are ignored.

    Earlier versions recorded keys that affect only speed or reporting, and lacked the keys that were added since.
    """
    if isinstance(recorded, Mapping) and isinstance(current, Mapping):
        return any(_differs(recorded[key], value) for key, value in current.items() if key in recorded)
    return bool(recorded != current)


def _at_edge(axes: Mapping[str, tuple[Any, ...]], key: str, config: RunConfig, arm: str) -> bool:
    """Check whether an arm's chosen value is the lowest or the highest of its grid."""
    values = axes.get(key, ())
    if len(values) < 2 or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return False
    return arm_values(config, arm, [key])[key] in (min(values), max(values))


def _undefined_reason(result: ArmResult) -> str:
    reasons = {row.reason for row in result.rows if row.reason}
    return "undefined" + (f" ({'; '.join(sorted(reasons))})" if reasons else "")


def _below_reference(results: Sequence[ArmResult]) -> list[str]:
    """Note, for each data set and backbone, which students score below the VLM on the test split."""
    notes = []
    for setting in dict.fromkeys(result.key.setting for result in results):
        tested = [
            result
            for result in results
            if result.key.setting == setting and result.key.test_set == "test" and result.mean is not None
        ]
        references = [result for result in tested if result.reference]
        if not references:
            continue
        best = max(references, key=lambda result: result.mean or 0.0)
        below = [
            result.key.arm for result in tested if not result.reference and (result.mean or 0.0) < (best.mean or 0.0)
        ]
        if below:
            best_score = PERCENT * (best.mean or 0.0)
            where = f"{name}: arms below" if (name := _setting_name(best, results)) else "Arms below"
            notes.append(f"{where} the best reference row ({best.key.arm}, {best_score:.1f}): {', '.join(below)}.")
    return list(dict.fromkeys(notes))


def own_report_notes(plans: Sequence[Plan], arms: Sequence[ArmResult]) -> list[str]:
    """Describe the labels of each arm that uses the patients' own reports, from training.json of its first seed.

    Runs without this file, for example because their folder was moved, get no note.
    """
    by_key, settings = {result.key: result for result in arms}, [(plan.data_set, plan.backbone) for plan in plans]
    notes: dict[str, list[str]] = {}
    for plan in plans:
        where = setting_label((plan.data_set, plan.backbone), settings)
        for arm in plan.arms:
            result = by_key.get(ArmKey(plan.data_set, plan.backbone, "test", arm))
            config = resolve_plan_arm(plan, arm)
            if result is None or not uses_own_report_labels(config):
                continue
            folder = result.rows[0].run_folder()
            if (folder / "training.json").is_file() and (facts := read_training(folder).get("own_reports")):
                prefix = "" if config.own_report.uses_tile_labels else "reports: "
                text = _describe(facts, result.rows[0].seed, prefix)
                notes.setdefault(f"{where}: {text}", []).append(arm)
            report_probe = by_key.get(result.key._replace(arm=report_probe_name(arm)))
            if report_probe is not None and report_probe.mean is not None and _without_validation(report_probe):
                text = (
                    f"{where}: fitted with C = {STRENGTH_WITHOUT_VALIDATION:g}, because no validation tile has a label"
                )
                notes.setdefault(text, []).append(report_probe.key.arm)
    return [f"{', '.join(names)}{text}." for text, names in notes.items()]


def _describe(facts: Mapping[str, Any], seed: int, prefix: str) -> str:
    """Describe the labels recorded in training.json: number, classes and agreement with labelled tiles.

    Args:
        prefix: Text before the counts by class: "reports: ", or "" if they count patients.
    """
    listed = ", ".join(f"{name} {count:,}" for name, count in facts["answers"].items()) or "none"
    labelled, cases = facts["labelled_cases"], facts["cases"]["cases"]
    known = counted_of(labelled, cases, "training patient has", "training patients have")
    text = f"{known} a label ({prefix}{listed})"
    if "compared_cases" not in facts:  # tile labels, propagated within patients
        return f"{text} (seed {seed})"
    if not facts["compared_cases"]:
        return f"{text}; none of them has a labelled tile to compare with (seed {seed})"
    return (
        f"{text}; labels agree with {facts['agreeing_tiles']:,} of {counted(facts['compared_tiles'], 'labelled tile')} "
        f"and {facts['agreeing_cases']:,} of {counted(facts['compared_cases'], 'patient')} (seed {seed})"
    )


def _without_validation(report_probe: ArmResult) -> bool:
    return any(row.provenance.validation_labels == 0 for row in report_probe.rows)
