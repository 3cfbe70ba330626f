"""The sentences under a comparison's table: intervals, how arms were searched, and what is missing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipit.artifacts import read_json
from clipit.comparison.grid import RATE, STEPS, axes_of, chosen, is_tuned, made_with, shown, trials_of
from clipit.comparison.plan import Plan
from clipit.comparison.published import CAUTION
from clipit.comparison.report.cost_table import place_told
from clipit.comparison.statistics import PERCENT, ArmResult
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.errors import DataError, explain
from clipit.evaluation.significance import MIN_SEEDS
from clipit.reporting.tables import LABELS


def notes_of(
    config: RunConfig, comparison: ComparisonConfig, plans: Sequence[Plan], made: Sequence[ArmResult], beside: str
) -> list[str]:
    """All sentences, in order.

    Args:
        config: Configuration that all runs share.
        comparison: Section of the comparison.
        plans: Its data sets and backbones.
        made: Lines of its table.
        beside: Where published figures beside the table come from; empty for none.

    Raises:
        DataError: The record of the search that the configuration names is missing.
    """
    c = comparison
    n = len(c.seeds)
    metric = LABELS[c.metric]
    notes = [
        f"{metric[0].upper()}{metric[1:]} in %, mean and standard deviation over {n} seed{'s' * (n > 1)} (none for a "
        "reference row that depends on no seed). Differences are "
        f"paired by seed, against {c.baseline}, with two 95 % intervals: Student's t over seeds ({_varies(config)}"
        "initialisation, batches and augmentation vary; tiles, VLM and backbone are fixed), and a paired bootstrap "
        f"over what is independent in the test sets ({_resampled(made)}; {config.evaluation.bootstrap} resamples, the "
        "same for all seeds).",
        f"p: paired t-test over seeds, Holm-corrected over all arms, data sets and backbones of a test set; none under "
        f"{MIN_SEEDS} seeds.",
    ]
    if n == 1:
        notes.append("One seed only: no interval over seeds, and no p.")
    if any("_at_" in arm for s in plans for arm in s.arms):
        notes.append(
            "..._at_N_steps: the same arm at the steps of the longest one, so that no arm is shown with less training."
        )
    notes += _tuning(config, comparison, plans)
    notes += _below_reference(made)
    notes += [f"{' / '.join(line.key)}: {_reason(line)}" for line in made if line.mean is None]
    over = {
        (_name(line, made), str(row.reason))
        for line in made
        for row in line.rows
        if str(row.reason).startswith("over ")
    }
    notes += [f"{f'{name}: ' if name else ''}{metric} {text}." for name, text in sorted(over)]
    if beside:
        notes += [f"Published: {beside}. {CAUTION}"]
    return notes


def _varies(config: RunConfig) -> str:
    labels = config.tiles.labels
    return "labelled tiles, " if labels.kind in ("fraction", "per_class") and labels.seed is None else ""


def _resampled(made: Sequence[ArmResult]) -> str:
    found: dict[str, None] = {}
    for line in made:
        name = ", ".join(part for part in (_name(line, made), line.key.part) if part)
        found |= {f"{name}: {row.resampled}": None for row in line.rows if row.resampled}
    return "; ".join(found) or "tiles, or groups where known"


def _name(line: ArmResult, made: Sequence[ArmResult]) -> str:
    """What tells a line's data set and backbone from the others'; "" where there is one only."""
    return place_told(line.key.place, {other.key.place for other in made})[2:-1]


def _tuning(config: RunConfig, c: ComparisonConfig, plans: Sequence[Plan]) -> list[str]:
    """How the arms came by their learning rates, steps and weights: what is known of it, and no more."""
    first = plans[0].config
    axes = {arm: axes_of(first, c, arm) for arm in c.arms}
    if not is_tuned(first, c, c.arms):
        every = {key: value for arm in c.arms for key, value in chosen(first, arm, list(axes[arm])).items()}
        notes = [f"Not tuned: all arms at {', '.join(shown(key, value) for key, value in every.items())}."]
    else:
        how, other = _searched(config, c, first)
        searched = [arm for arm in c.arms if arm not in other]
        further = "".join(f" x {len(values)} of {key}" for key, values in c.grid.items())
        notes = [
            f"Learning rates, steps and weights per arm: {how}, all within one grid of "
            f"{len(c.learning_rates)} learning rates x {len(c.steps)} number{'s' * (len(c.steps) > 1)} of steps"
            f"{further}" + (" (an arm without a term has learning rates between these instead)." if c.grid else "."),
        ]
        if searched:
            counts = _counts({arm: len(trials_of(first, c, arm)) for arm in searched})
            notes.append(
                f"Trials per searched arm: {counts}, each on {len(c.tuning_seeds)} seed"
                f"{'s' * (len(c.tuning_seeds) > 1)}."
            )
        edges = {key: [arm for arm in c.arms if _at_edge(axes[arm], key, first, arm)] for key in (RATE, *c.grid)}
        notes += [
            f"At the edge of the grid of {key}, where a wider one might do better: {', '.join(arms)}."
            for key, arms in edges.items()
            if arms
        ]
    same = [{arm: chosen(s.config, arm, list(axes[arm])) for arm in c.arms} for s in plans]
    if len(plans) > 1 and all(one == same[0] for one in same):
        notes.append("The same keys on every data set and backbone: nothing was chosen anew for any of them.")
    own = {
        arm: {k: v for k, v in config.arms.get(arm, {}).items() if k not in axes[arm] and k != "base"} for arm in c.arms
    }
    told = [f"{arm}: {', '.join(f'{k} {v}' for k, v in keys.items())}" for arm, keys in own.items() if keys]
    if told:
        notes.append(f"Keys beside the grid that the configuration gives to single arms: {'; '.join(told)}.")
    return notes


def _counts(trials: Mapping[str, int]) -> str:
    """How many trials the arms had: one number where it is the same for all."""
    groups: dict[int, list[str]] = {}
    for arm, count in trials.items():
        groups.setdefault(count, []).append(arm)
    if len(groups) == 1:
        return str(next(iter(groups)))
    return "; ".join(f"{count} for {', '.join(arms)}" for count, arms in sorted(groups.items()))


def _searched(config: RunConfig, c: ComparisonConfig, first: RunConfig) -> tuple[str, list[str]]:
    """Where the arms' keys come from, and the arms whose keys are not those that a search chose."""
    file = Path(c.searched) if c.searched else config.output / "tuning" / f"{config.name}.json"
    if not file.is_file():
        if c.searched:
            raise DataError(
                explain(
                    "the record of the search is missing",
                    where=f"comparison.searched: {file}",
                    fix="tune again with scripts/tune.py, or leave the key out",
                )
            )
        return "set in the configuration", list(c.arms)
    record = read_json(file, "delete it and tune again")
    found, before, now = record.get("arms", {}), record.get("made_with", {}), made_with(config)
    axes = {arm: list(axes_of(first, c, arm)) for arm in c.arms}
    # A number of steps that no arm was searched at is the same change for all, and no arm's own choice.
    steps = {keys.get(STEPS) for keys in found.values()}
    elsewhere = {STEPS} if len(c.steps) == 1 and c.steps[0] not in steps else set()
    other = [
        arm
        for arm in c.arms
        if any(found.get(arm, {}).get(k) != v for k, v in chosen(first, arm, axes[arm]).items() if k not in elsewhere)
    ]
    changed = [name for name, values in now.items() if _differs(before.get(name), values)]
    how = f"chosen by scripts/tune.py on validation tiles ({file.name})"
    if changed:
        how += f", where {', '.join(changed)} had other values: nothing was searched anew here"
    return how + (f"; set in the configuration, and not as it chose, for {', '.join(other)}" if other else ""), other


def _differs(before: Any, now: Any) -> bool:
    """Whether a section has another value; a key that did not exist at the time of the search does not count."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return any(_differs(value, now.get(key)) for key, value in before.items())
    return bool(before != now)


def _at_edge(axes: Mapping[str, tuple[Any, ...]], key: str, config: RunConfig, arm: str) -> bool:
    """Whether an arm's value is the lowest or the highest of several numbers."""
    values = axes.get(key, ())
    if len(values) < 2 or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return False
    return chosen(config, arm, [key])[key] in (min(values), max(values))


def _reason(line: ArmResult) -> str:
    reasons = {row.reason for row in line.rows if row.reason}
    return "not defined" + (f" ({'; '.join(sorted(reasons))})" if reasons else "")


def _below_reference(made: Sequence[ArmResult]) -> list[str]:
    """A sentence per plan where students stay below the VLM itself on the test split."""
    notes = []
    for place in dict.fromkeys(line.key.place for line in made):
        shown_lines = [
            line for line in made if line.key.place == place and line.key.part == "test" and line.mean is not None
        ]
        references = [line for line in shown_lines if line.reference]
        if not references:
            continue
        best = max(references, key=lambda line: line.mean or 0.0)
        below = [line.key.arm for line in shown_lines if not line.reference and (line.mean or 0.0) < (best.mean or 0.0)]
        if below:
            shown = PERCENT * (best.mean or 0.0)
            where = f"{name}: below" if (name := _name(best, made)) else "Below"
            notes.append(f"{where} the best reference row ({best.key.arm}, {shown:.1f}): {', '.join(below)}.")
    return list(dict.fromkeys(notes))
