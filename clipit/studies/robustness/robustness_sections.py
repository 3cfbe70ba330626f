"""Sections of the robustness page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clipit.config.studies import RobustnessConfig
from clipit.errors import counted
from clipit.evaluation.adaptation_guard import MIN_MISFIT
from clipit.reporting.html import Figure, PageSection, Part, Rows, Table, Text, facts_table
from clipit.reporting.study_page import (
    iter_groups,
    iter_rows,
    long_table,
    pivot_cells,
    undefined_section,
)
from clipit.reporting.tables import ECE_INTERVAL, LABELS, UNDEFINED, difference, number, with_interval
from clipit.studies.robustness.guard_errors import BATCHES, WHOLE_SETS, GuardSummary

FILE = "robustness.parquet"
_MEASURES = {"ece": "ECE", "nll": "NLL", "brier": "Brier score"}
_TEST = (
    "All scores are computed on the test split (or the test split of a shifted set). Nothing is selected on test "
    "tiles. In brackets: 95% percentile bootstrap intervals over test tiles, clustered by group where known; "
    "changes are paired."
)
_PERTURBED = (
    "The stored tile is perturbed and then resized for each model, so the change is the same for all models. Each cell "
    "shows the score and, in parentheses, its change from the unperturbed tile."
)
_CALIBRATED = (
    "Temperature scaling (Guo et al. 2017): a single parameter, fitted on the validation labels that the run was "
    "allowed to use. The same labels may already have been used to select the checkpoint. The predicted class never "
    f"changes. {ECE_INTERVAL}"
)
_ADAPTED = (
    "Transductive: every result depends on all test tiles together and is undefined for a single tile. Gains and "
    "losses are shown regardless of the guard. Feature statistics assume the class proportions of training. The guard "
    "uses no labels: it estimates the mixture of training classes that explains the tiles best, and compares the mean "
    "of this mixture with that of the tiles. It accepts the adaptation if the misfit, which is the squared distance "
    f"between the two means in units of its sampling variance, is at least {MIN_MISFIT:g} (about 1 is expected if only "
    "the class proportions differ). Its verdict depends on the tiles and the feature space, not on the adaptation. It "
    "does not detect changes in spread alone, and it also accepts the adaptation if a class is absent from training or "
    "a single patient is unusual. The next section reports its errors."
)
_GUARD = (
    "A setting is one model (with its seed), one output (head or zero-shot), and a set of tiles: a whole set (the test "
    "tiles, a shifted set, or the test tiles at one level of a perturbation), or a batch drawn from one: up to 30, 100 "
    "or 200 tiles (fewer if a class would be exhausted) with class proportions from a Dirichlet distribution "
    "(concentration 0.3 or 1), scored by accuracy. An adaptation is harmful or helpful if the paired 95% interval of "
    "its change (over tiles, clustered by group where known) is below or above 0; by chance alone, each happens in "
    "about 1 in 40 settings. The guard can make two kinds of error: accepting a harmful adaptation, or refusing a "
    "helpful one (n/a if there is none). Labels are used here to draw the batches and to evaluate the "
    "guard. The guard's threshold was chosen on a synthetic world other than the demo's (see Results: single runs in "
    "the documentation). Settings share tiles and models and are not independent, so no intervals are given for these "
    "fractions."
)
_NO_INTERVALS = (
    "Some changes have no interval (all of them with evaluation.bootstrap=0) and count as neither harmful nor "
    "helpful, because they cannot be distinguished from chance."
)
_ROUNDED = 0.0005
"""Mean changes in score below this are reported as neither gain nor loss."""


def robustness_sections(
    robustness: RobustnessConfig,
    frame: pd.DataFrame,
    guard: Sequence[GuardSummary],
    provenance: Mapping[str, Any],
    plots: Sequence[str],
) -> list[PageSection]:
    """Build the sections: perturbation curves, shifted sets, calibration, adaptation, guard errors, provenance."""
    metric = LABELS[robustness.metric]
    curves, adapted = frame[frame.analysis == "curve"], frame[frame.analysis == "adaptation"]
    curve_parts: list[Part] = [Text(_TEST), Text(_PERTURBED)]
    for name in robustness.perturbations:
        if name in set(curves.perturbation):
            curve_parts.append(_curve_table(curves, name))
        if f"curve_{name}.png" in plots:
            source = f"{FILE}: columns level, value, low, high, analysis = curve, perturbation = {name} or none"
            caption = f"{name}: {metric} by level; bands: 95% interval; dotted: unperturbed tiles"
            curve_parts.append(Figure(Path(f"curve_{name}.png"), caption, source=source))
    calibration: list[Part] = [
        Text(_CALIBRATED), *_calibration_tables(frame[frame.analysis == "calibration"])
    ]  # fmt: skip
    if "calibration.png" in plots:
        source = f"{FILE}: column reliability, analysis = calibration, metric = ece"
        caption = "Reliability before and after temperature scaling"
        calibration.append(Figure(Path("calibration.png"), caption, source=source))
    sections = [
        PageSection(f"Perturbations ({metric})", curve_parts),
        PageSection(f"Shifted sets ({metric})", [_shifted_table(frame[frame.analysis == "shifted"])]),
        PageSection("Calibration on all test tiles", calibration),
    ]
    if len(adapted):
        table = _adaptation_table(adapted[adapted.perturbation.isna()])
        sections.append(PageSection(f"Test-time adaptation ({metric})", [Text(_ADAPTED), table]))
    if guard:
        parts: list[Text | Table] = [Text(_GUARD), _guard_table(guard), *_guard_benefit(guard)]
        sections.append(PageSection("Errors of the guard", parts))
    sections.append(PageSection("Provenance", [facts_table(_facts(provenance), "robustness.json")]))
    notes = [Text(f"{name}: {note}") for name, lines in provenance["notes"].items() for note in lines]
    sections += [PageSection("Notes on the tiles", notes)] if notes else []
    undefined = frame[(frame.analysis != "batch") & frame.reason.astype(bool)]
    reasons = [(_describe(row), row.reason) for row in iter_rows(undefined)]
    return sections + undefined_section(reasons, f"{FILE}: column reason")


def _describe(row: Any) -> str:
    return ", ".join(part for part in (row.subject, row.output, row.analysis, row.method, row.test_set) if part)


def _curve_table(curves: pd.DataFrame, name: str) -> Table:
    perturbed, clean = curves[curves.perturbation == name], curves[curves.perturbation == "none"]
    scores = {(row.subject, row.output): number(row.value) for row in iter_rows(clean)}
    keys = zip(perturbed.subject, perturbed.output, strict=True)
    levels, lines = pivot_cells(
        perturbed.assign(unperturbed=[scores[key] for key in keys]), ["subject", "output", "unperturbed"], "level",
        lambda row: f"{number(row.value)} ({number(row.change, signed=True)})",
    )  # fmt: skip
    first, untouched = perturbed.iloc[0], max(perturbed.untouched)
    skipped = f" Left unchanged because their stains cannot be estimated: {untouched} of {counted(first.n, 'tile')}."
    caption = f"{name}: {first.unit}.{skipped if untouched else ''}"
    source = f"{FILE}: columns value, change, analysis = curve, perturbation = {name}"
    header = ["model", "output", "unperturbed", *(f"{level:g}" for level in levels)]
    return Table(header, lines, caption=caption, source=source, left=2)


def _shifted_table(shifted: pd.DataFrame) -> Table:
    names, lines = pivot_cells(
        shifted, ["subject", "output"], "test_set", lambda row: with_interval(row.value, row.low, row.high)
    )
    sizes = dict(zip(shifted.test_set, shifted.n, strict=True))
    header = ["model", "output", *(f"{name} (n = {sizes[name]})" for name in names)]
    return Table(header, lines, source=f"{FILE}: columns value, low, high, analysis = shifted", left=2)


def _calibration_tables(calibrations: pd.DataFrame) -> list[Table]:
    """Build one table per measure, because the intervals of all measures would not fit side by side."""
    tables = []
    for name, title in _MEASURES.items():
        lines = []
        measure_rows = calibrations[calibrations.metric == name]
        for (subject, output), pair in iter_groups(measure_rows, ["subject", "output"]):
            before, after = iter_rows(pair)
            scores = [with_interval(row.value, row.low, row.high) for row in (before, after)]
            lines.append([subject, output, before.labels, number(after.level, 2), *scores])
        header = ["model", "output", "validation labels", "T", f"{title} before", f"{title} after"]
        source = f"{FILE}: columns value, low, high, level (T), labels, analysis = calibration, metric = {name}"
        tables.append(Table(header, lines, source=source, left=2))
    return tables


def _adaptation_table(adapted: pd.DataFrame) -> Table | Rows:
    lines = []
    for row in iter_rows(adapted):
        bounds = None if row.change_low is None or row.change_high is None else (row.change_low, row.change_high)
        verdict = row.guard
        if row.misfit is None:
            verdict = ": ".join(text for text in (row.guard, row.guard_reasons or row.reason) if text)
        scores = [number(row.unadapted), number(row.value), difference(row.change, bounds)]
        lines.append([row.subject, row.output, row.test_set, row.method, verdict, number(row.misfit, 1), *scores])
    header = ["model", "output", "set", "adaptation", "guard", "misfit", "without", "with", "change"]
    source = f"{FILE}: columns unadapted, value, change, guard, misfit, analysis = adaptation, perturbation empty"
    return long_table(header, lines, "Adaptation on the test tiles and on the shifted sets", source, left=5)


def _guard_table(guard: Sequence[GuardSummary]) -> Table:
    lines = []
    for summary in guard:
        errors = summary.errors
        lines.append(
            [
                summary.method,
                summary.settings,
                errors.cases,
                errors.accepted,
                _format_share(errors.let_through, errors.harmful, errors.share_let_through),
                _format_share(errors.refused, errors.helpful, errors.share_refused),
                number(errors.change_always, signed=True),
                number(errors.change_guarded, signed=True),
            ]
        )
    header = ["adaptation", "tiles", "settings", "accepted", "harmful, accepted", "helpful, refused"]
    header += ["mean change, always applied", "mean change, guarded"]
    source = (
        f"robustness.json: guard; {FILE}: columns change, change_low, change_high, guard, "
        "analysis = adaptation or batch"
    )
    return Table(header, lines, source=source, left=2)


def _guard_benefit(guard: Sequence[GuardSummary]) -> list[Text]:
    """Compare the guard with always adapting and never adapting (a change of 0), per adaptation method."""
    texts = [Text(_NO_INTERVALS)] if any(summary.errors.without_interval for summary in guard) else []
    for summary in guard:
        errors = summary.errors
        always, guarded = errors.change_always, errors.change_guarded
        if summary.settings not in (WHOLE_SETS, BATCHES) or always is None or guarded is None:
            continue
        benefit = guarded - always
        change = f"{'gained' if benefit > 0 else 'lost'} {number(abs(benefit))} in score"
        effect = "neither gained nor lost" if abs(benefit) < _ROUNDED else change
        if benefit <= -_ROUNDED and always >= _ROUNDED:
            verdict = "Always adapting would have been better here."
        elif guarded < _ROUNDED:
            verdict = "Never adapting would have been as good or better here."
        else:
            verdict = "Always adapting would have been as good" if benefit < _ROUNDED else "The guard was useful"
            verdict += " here."
        texts.append(
            Text(
                f"{summary.method}, {summary.settings} ({LABELS[summary.metric]}): over "
                f"{counted(errors.cases, 'setting')}, the guard {effect} on average, compared with always adapting "
                f"({number(always, signed=True)}; never: 0; guarded: "
                f"{number(guarded, signed=True)}); it refused {errors.harmful - errors.let_through} of "
                f"{errors.harmful} harmful and {errors.refused} of {counted(errors.helpful, 'helpful adaptation')}. "
                f"{verdict}"
            )
        )
    return texts


def _format_share(count: int, total: int, share: float | None) -> str:
    return f"{count} of {total} ({UNDEFINED if share is None else f'{share:.1%}'})"


def _facts(provenance: Mapping[str, Any]) -> dict[str, object]:
    facts: dict[str, object] = {
        name: ", ".join(f"{key} {value}" for key, value in model.items() if value is not None)
        for name, model in provenance["subjects"].items()
    }
    prompts = provenance["prompts"]
    return facts | {
        "prompts": f"{prompts} ({provenance['prompts_hash']})" if prompts else "none",
        "classes": ", ".join(provenance["class_names"]),
        "tiles": ", ".join(f"{name} {fingerprint}" for name, fingerprint in provenance["tiles"].items()),
        "seed for stain jitter": provenance["perturbation_seed"],
        "command": provenance["command"],
        "commit": provenance["commit"],
    }
