"""The chapters of a robustness measurement."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipit.config.studies import RobustnessConfig
from clipit.evaluation.adaptation_guard import LEAST_MISFIT
from clipit.reporting.html import Rows, Table, Text, facts_table
from clipit.reporting.tables import LABELS, UNDEFINED, difference, number, with_interval
from clipit.studies.report import Chapter, Plot, long_table, undefined_chapter

Row = Mapping[str, Any]
FILE = "robustness.parquet"
_MEASURES = {"ece": "ECE", "nll": "NLL", "brier": "Brier score"}
_TEST = (
    "All figures are of the test split (a shifted set's own test split where one is named). Nothing is chosen on test "
    "tiles here. In brackets: 95 % percentile bootstrap over test tiles, by group where known; changes are paired."
)
_PERTURBED = (
    "The stored tile is perturbed, then resized as each model wants it: all models see the same change. In each cell "
    "the score, and behind it the change against the tile as it is."
)
_SCALED = (
    "Temperature scaling (Guo et al. 2017): one number, fitted on the validation labels that the run was allowed to "
    "see. Training may have chosen its weights by the same labels. The predicted class never changes."
)
WHOLE, BATCH = "all whole sets", "batches, other shares of classes"
_ADAPTED = (
    "Transductive: every result here depends on all test tiles together; a single tile has none of it. Gains and "
    "losses stand side by side, whatever the guard says. Feature statistics take the classes to be as frequent as in "
    "training. The guard reads no label: it lets tiles be adapted to whose mean no mixture of the training classes "
    f"explains (misfit, about 1 where only the mixture is another, at least {LEAST_MISFIT:g}), and refuses where one "
    "does. Its verdict is of the tiles and the space, the same for each adaptation. It does not see pictures that "
    "change the spread alone, and takes a class that training lacks, or one unusual patient, for other pictures. Its "
    "errors stand in the next chapter."
)
_GUARD = (
    "A setting is one model (with its seed), one way to answer, and some tiles: a whole set (the test tiles, a shifted "
    "set, or the test tiles at one level of a perturbation), or a batch of one: up to 30, 100 or 200 tiles (as many as "
    "no class is used up by) with shares of the classes drawn from a Dirichlet law (concentration 0.3 or 1), of which "
    "the accuracy is told. Lost and gained: the paired 95 % interval of the change (over tiles, by group where known) "
    "lies below or above 0; by chance alone that happens to about 1 setting in 40 each. Two errors: an adaptation that "
    "lost was allowed, of all that lost; one that gained was refused, of all that gained (n/a: there is none). Labels "
    "are read here, to draw the batches and to measure the guard. Its limit was set on another synthetic world than "
    "the demo's (docs/method.md says how). Settings share tiles and models: they are no independent draws, so there is "
    "no interval of the shares."
)
_ROUNDED = 0.0005
"""Differences of a mean change that the table shows as 0."""
_NO_INTERVALS = (
    "Some changes have no interval (all of them with evaluation.bootstrap: 0): they count as neither lost nor gained, "
    "since a change cannot be told from chance without one."
)


def robustness_chapters(
    settings: RobustnessConfig, rows: Sequence[Row], provenance: Mapping[str, Any], plots: Sequence[str]
) -> list[Chapter]:
    """Curves, shifted sets, calibration, adaptation and its guard, and how they were made.

    Args:
        settings: Section of the study.
        rows: Of robustness.parquet.
        provenance: Facts beside them, with what `guard_study` found.
        plots: File names of the plots.
    """
    metric = LABELS[settings.metric]
    of = {
        what: [row for row in rows if row["what"] == what] for what in ("curve", "shifted", "calibration", "adaptation")
    }
    curves: list[Text | Table | Plot] = [Text(_TEST), Text(_PERTURBED)]
    for name in settings.perturbations:
        table = _curve_table(of["curve"], name)
        curves += [table] if table else []
        if f"curve_{name}.png" in plots:
            source = f"{FILE}: columns level, value, low, high, what = curve, perturbation = {name} or none"
            drawn = f"{name}: {metric} over the level; bands: 95 % interval; dotted: the tiles as they are"
            curves.append(Plot(f"curve_{name}.png", drawn, source))
    calibration: list[Text | Table | Plot] = [Text(_SCALED), *_calibration_tables(of["calibration"])]
    if "calibration.png" in plots:
        source = f"{FILE}: column reliability, what = calibration, metric = ece"
        calibration.append(Plot("calibration.png", "Reliability before and after temperature scaling", source))
    chapters = [
        Chapter(f"Perturbations ({metric})", curves),
        Chapter(f"Shifted sets ({metric})", [_shifted_table(of["shifted"])]),
        Chapter("Calibration on all test tiles", calibration),
    ]
    if of["adaptation"]:
        whole = [row for row in of["adaptation"] if row["perturbation"] is None]
        chapters.append(Chapter(f"Test-time adaptation ({metric})", [Text(_ADAPTED), _adaptation_table(whole)]))
    if provenance["guard"]:
        told: list[Text | Table] = [Text(_GUARD), _guard_table(provenance["guard"]), *_guard_worth(provenance["guard"])]
        chapters.append(Chapter("How often the guard is wrong", told))
    chapters.append(Chapter("How it was measured", [facts_table(_facts(provenance), "robustness.json")]))
    notes = [Text(f"{name}: {note}") for name, lines in provenance["notes"].items() for note in lines]
    chapters += [Chapter("Notes on the tiles", notes)] if notes else []
    reasons = [(_who(row), row["reason"]) for row in rows if row.get("reason") and row["what"] != "batch"]
    return chapters + undefined_chapter(reasons, f"{FILE}: column reason")


def _who(row: Row) -> str:
    told = [row["subject"], row["reading"], row["what"], row.get("method"), row["part"]]
    return ", ".join(str(part) for part in told if part)


def _curve_table(rows: Sequence[Row], name: str) -> Table | None:
    mine = [row for row in rows if row["perturbation"] == name]
    if not mine:
        return None
    levels = list(dict.fromkeys(row["level"] for row in mine))
    lines = []
    for subject, reading in dict.fromkeys((row["subject"], row["reading"]) for row in rows):
        of_key = [row for row in rows if (row["subject"], row["reading"]) == (subject, reading)]
        clean = next(row for row in of_key if row["perturbation"] == "none")
        cells = {row["level"]: row for row in of_key if row["perturbation"] == name}
        shown = [f"{number(cells[x]['value'])} ({number(cells[x].get('change'), signed=True)})" for x in levels]
        lines.append([subject, reading, number(clean["value"]), *shown])
    header = ["model", "answers", "as it is", *(f"{level:g}" for level in levels)]
    untouched = max(row["untouched"] for row in mine)
    told = f" Left as they are, since their stains cannot be estimated: {untouched} of {mine[0]['n']} tiles."
    caption = f"{name}: {mine[0]['unit']}.{told if untouched else ''}"
    source = f"{FILE}: columns value, change, what = curve, perturbation = {name}"
    return Table(header, lines, caption=caption, source=source, left=2)


def _shifted_table(rows: Sequence[Row]) -> Table:
    parts = list(dict.fromkeys(row["part"] for row in rows))
    lines = []
    for subject, reading in dict.fromkeys((row["subject"], row["reading"]) for row in rows):
        of_key = {row["part"]: row for row in rows if (row["subject"], row["reading"]) == (subject, reading)}
        cells = [with_interval(of_key[part]["value"], of_key[part]["low"], of_key[part]["high"]) for part in parts]
        lines.append([subject, reading, *cells])
    sizes = {row["part"]: row["n"] for row in rows}
    header = ["model", "answers", *(f"{part} (n = {sizes[part]})" for part in parts)]
    return Table(header, lines, source=f"{FILE}: columns value, low, high, what = shifted", left=2)


def _calibration_tables(rows: Sequence[Row]) -> list[Table]:
    """A table per measure: with their intervals more would not fit on a page."""
    found = {(row["subject"], row["reading"], row["state"], row["metric"]): row for row in rows}
    tables = []
    for name, title in _MEASURES.items():
        lines = []
        for subject, reading in dict.fromkeys((row["subject"], row["reading"]) for row in rows):
            old, new = (found[subject, reading, state, name] for state in ("before", "after"))
            bounds = [with_interval(row["value"], row.get("low"), row.get("high")) for row in (old, new)]
            temperature = number(found[subject, reading, "after", "ece"].get("level"), 2)
            lines.append([subject, reading, old["labels"], temperature, *bounds])
        header = ["model", "answers", "validation labels", "T", f"{title} before", f"{title} after"]
        source = f"{FILE}: columns value, low, high, level (T), labels, what = calibration, metric = {name}"
        tables.append(Table(header, lines, source=source, left=2))
    return tables


def _adaptation_table(rows: Sequence[Row]) -> Table | Rows:
    lines = []
    for row in rows:
        change, bounds = row.get("change"), None
        if row.get("change_low") is not None and row.get("change_high") is not None:
            bounds = (row["change_low"], row["change_high"])
        verdict, misfit = row.get("guard") or "", row.get("misfit")
        if not verdict or misfit is None:
            verdict = ": ".join(text for text in (verdict, row.get("guard_reasons") or row.get("reason")) if text)
        cells = [number(row["unadapted"]), number(row.get("value")), difference(change, bounds)]
        lines.append([row["subject"], row["reading"], row["part"], row["method"], verdict, number(misfit, 1), *cells])
    header = ["model", "answers", "set", "adaptation", "guard", "misfit", "without", "with", "change"]
    source = f"{FILE}: columns unadapted, value, change, guard, misfit, what = adaptation, perturbation empty"
    return long_table(header, lines, "Adaptation on the test tiles and on the shifted sets", source, left=5)


def _guard_table(found: Sequence[Row]) -> Table:
    lines = []
    for row in found:
        line = [row["method"], row["settings"], row["cases"], row["accepted"]]
        line += [_share(row["let_through"], row["harmful"], row["share_let_through"])]
        line += [_share(row["refused"], row["helpful"], row["share_refused"])]
        line += [number(row[key], signed=True) for key in ("change_always", "change_guarded")]
        lines.append(line)
    header = ["adaptation", "tiles", "settings", "allowed", "allowed, of those that lost"]
    header += ["refused, of those that gained", "mean change, always used", "mean change, guarded"]
    source = (
        f"robustness.json: guard; {FILE}: columns change, change_low, change_high, guard, what = adaptation or batch"
    )
    return Table(header, lines, source=source, left=2)


def _guard_worth(found: Sequence[Row]) -> list[Text]:
    """Per adaptation, whether the guard was worth having: better than using it always, and than never (0)."""
    told = [Text(_NO_INTERVALS)] if any(row["without_interval"] for row in found) else []
    for row in (row for row in found if row["settings"] in (WHOLE, BATCH)):
        always, guarded = row["change_always"], row["change_guarded"]
        worth = guarded - always
        did = "changed" if abs(worth) < _ROUNDED else "gained" if worth > 0 else "cost"
        if abs(worth) < _ROUNDED and guarded > _ROUNDED:
            verdict = "Using it always would have been as good here."
        elif guarded < _ROUNDED:
            verdict = "Never adapting would have been as good or better here."
        else:
            verdict = "It was worth having here." if worth > 0 else "Using it always would have been better here."
        told.append(
            Text(
                f"{row['method']}, {row['settings']} ({LABELS[row['metric']]}): over {row['cases']} settings the guard "
                f"{did} {number(abs(worth))} of the score on average, against using the adaptation always "
                f"({number(always, signed=True)}; never: 0; guarded: {number(guarded, signed=True)}); it stopped "
                f"{row['harmful'] - row['let_through']} of {row['harmful']} that lost and {row['refused']} of "
                f"{row['helpful']} that gained. {verdict}"
            )
        )
    return told


def _share(count: int, of: int, share: float | None) -> str:
    return f"{count} of {of} ({UNDEFINED if share is None else f'{share:.1%}'})"


def _facts(provenance: Mapping[str, Any]) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name, told in provenance["subjects"].items():
        facts[name] = ", ".join(f"{key} {value}" for key, value in told.items() if value is not None)
    prompts = provenance["prompts"]
    return facts | {
        "prompts": f"{prompts} ({provenance['prompts_hash']})" if prompts else "none",
        "classes": ", ".join(provenance["class_names"]),
        "tiles": ", ".join(f"{name} {mark}" for name, mark in provenance["tiles"].items()),
        "seed of the stain jitter": provenance["perturbation_seed"],
        "command": provenance["command"],
        "commit": provenance["commit"],
    }
