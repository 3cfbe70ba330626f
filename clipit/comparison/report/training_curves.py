"""Training curves of a comparison's arms: loss and validation score over steps, mean over seeds."""

from collections.abc import Sequence
from math import isfinite
from statistics import mean

from clipit.comparison.report.cost_table import place_told
from clipit.comparison.statistics import ArmResult
from clipit.reporting.charts import line_chart
from clipit.reporting.curves import Series, read_curves
from clipit.reporting.html import Figure, Folded, Part, Section, Text

_PER_CHART = 7  # as many as there are colours; the baseline is one of them
_OPEN = 2  # charts that are shown at once; more are folded


def curve_sections(made: Sequence[ArmResult], baseline: str) -> list[Section]:
    """One section per data set and backbone; arms whose training logs are gone are left out, and named.

    Args:
        made: The comparison's lines.
        baseline: Drawn in every chart.
    """
    tested = [line for line in made if line.key.part == "test" and not line.reference]
    places = list(dict.fromkeys(line.key.place for line in tested))
    sections = []
    for place in places:
        arm_curves = {line.key.arm: mean_curves(_logs(line)) for line in tested if line.key.place == place}
        gone = [arm for arm, curves in arm_curves.items() if not curves]
        parts: list[Part] = [
            Text(
                "Means over seeds, at the steps that every seed has logged. Losses of arms with other terms are sums "
                "of other things: a lower curve is not a better student. Validation scores decide on the step that is "
                "kept."
            )
        ]
        figures = _figures(arm_curves, baseline)
        parts += figures[:_OPEN]
        if figures[_OPEN:]:
            more = len(figures) - _OPEN
            parts.append(Folded(f"{more} more chart{'s' * (more > 1)}", figures[_OPEN:]))
        if gone:
            parts.append(Text(f"No training log (metrics.jsonl): {', '.join(gone)}."))
        if figures:
            sections.append(Section(f"Training curves{place_told(place, places)}", parts))
    return sections


def _logs(line: ArmResult) -> list[Series]:
    logs = [row.run_folder() / "metrics.jsonl" for row in line.rows]
    return [read_curves(log) for log in logs if log.is_file()]


def mean_curves(curves: Sequence[Series]) -> dict[str, tuple[list[int], list[float]]]:
    """The mean over several trainings of what all of them logged, at the steps that all of them logged it.

    Args:
        curves: Name -> steps and values, one mapping per training. A value that is not finite makes no mean.
    """
    names = [name for name in (curves[0] if curves else {}) if all(name in one for one in curves)]
    found = {}
    for name in names:
        each = [dict(zip(*one[name], strict=True)) for one in curves]
        steps = [step for step in each[0] if all(isfinite(one.get(step, float("nan"))) for one in each)]
        if steps:
            found[name] = (steps, [mean(one[step] for one in each) for step in steps])
    return found


def _figures(arm_curves: dict[str, dict[str, tuple[list[int], list[float]]]], baseline: str) -> list[Figure]:
    """For each seven arms (the baseline always among them), loss and each kind of validation score."""
    others = [arm for arm in arm_curves if arm != baseline]
    groups = [others[i : i + _PER_CHART - 1] for i in range(0, len(others), _PER_CHART - 1)] or [[]]
    scores = dict.fromkeys(name for curves in arm_curves.values() for name in curves if name.startswith("validation"))
    figures = []
    for group in groups:
        for name in ("loss", *scores):
            arms = [arm for arm in (baseline, *group) if name in arm_curves.get(arm, {})]
            series = {arm: arm_curves[arm][name] for arm in arms}
            if not series or (arms == [baseline] and group):
                continue
            told = name.replace("_", " ")
            colours = {arm: i for i, arm in enumerate((baseline, *group))}
            chart = line_chart(
                series, label=f"{told} over steps", y_label=told, logarithmic=name == "loss", colours=colours
            )
            caption = f"{told} over steps, mean over seeds"
            figures.append(Figure(chart, caption, source=f"metrics.jsonl of the runs of these arms: {name}"))
    return figures
