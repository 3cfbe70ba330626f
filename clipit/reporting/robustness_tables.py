"""The page of a robustness measurement, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipit.config import Config
from clipit.reporting.tables import LABELS, difference, key_value_table, markdown_table, number, with_interval

Row = Mapping[str, Any]
_MEASURES = {"ece": "ECE", "nll": "NLL", "brier": "Brier score"}


def robustness_text(config: Config, rows: Sequence[Row], provenance: Mapping[str, Any], plots: Sequence[str]) -> str:
    """Tables of curves, shifted sets, calibration and adaptation, and how they were made.

    Args:
        config: Its `robustness` section.
        rows: Of `experiments.robustness`.
        provenance: Facts beside them.
        plots: File names of the plots, beside the page.
    """
    metric = LABELS[config.robustness.metric]
    of = {
        what: [row for row in rows if row["what"] == what] for what in ("curve", "shifted", "calibration", "adaptation")
    }
    parts = [
        f"# {config.name}: robustness",
        "All figures are of the test split (a shifted set's own test split where one is named). Nothing was chosen on "
        "test tiles. In brackets: 95 % percentile bootstrap over test tiles, by group where known; changes are paired.",
        _caution(config),
        f"## Perturbations ({metric})",
        "The stored tile is perturbed, then resized as each model wants it: all models see the same change. In each "
        "cell the score, and behind it the change against the tile as it is.",
        *(_curve_table(of["curve"], name) for name in config.robustness.perturbations),
        *(f"![{name.removesuffix('.png')}]({name})" for name in plots if name.startswith("curve_")),
        f"## Shifted sets ({metric})",
        _shifted_table(of["shifted"]),
        "## Calibration on all test tiles",
        "Temperature scaling (Guo et al. 2017): one number, fitted on the validation labels that the run was allowed "
        "to see. Training may have chosen its weights by the same labels. The predicted class never changes.",
        _calibration_table(of["calibration"]),
        *(f"![calibration]({name})" for name in plots if name == "calibration.png"),
        f"## Test-time adaptation ({metric})",
        "Transductive: every result here depends on all test tiles together; a single tile has none of it. Gains and "
        "losses stand side by side, whatever the guard says; the guard reads no label. Feature statistics take the "
        "classes to be as frequent as in training.",
        _adaptation_table(of["adaptation"]),
        _guard_text(provenance["guard"]),
        "## How it was measured",
        key_value_table(_facts(provenance)),
    ]
    notes = [f"- {name}: {note}" for name, told in provenance["notes"].items() for note in told]
    if notes:
        parts += ["## Notes on the tiles", "\n".join(notes)]
    reasons = sorted({f"{_who(row)}: {row['reason']}" for row in rows if row.get("reason")})
    if reasons:
        parts += ["## Not defined", "\n".join(f"- {reason}" for reason in reasons)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _caution(config: Config) -> str:
    """What the reader must know before the figures."""
    used = [what for what in ("backbone", "vlm") if getattr(config, what).name == "embedded"]
    told = f"The embedded {' and '.join(used)} only saw synthetic tiles: on real tiles these figures prove the path."
    return " ".join(part for part in (told if used else "", config.note.strip()) if part)


def _who(row: Row) -> str:
    told = [row["subject"], row["reading"], row["what"], row.get("method"), row["part"]]
    return ", ".join(str(part) for part in told if part)


def _curve_table(rows: Sequence[Row], name: str) -> str:
    mine = [row for row in rows if row["perturbation"] == name]
    if not mine:
        return ""
    levels = list(dict.fromkeys(row["level"] for row in mine))
    lines = []
    for subject, reading in dict.fromkeys((row["subject"], row["reading"]) for row in rows):
        of_key = [row for row in rows if (row["subject"], row["reading"]) == (subject, reading)]
        clean = next(row for row in of_key if row["perturbation"] == "none")
        cells = {row["level"]: row for row in of_key if row["perturbation"] == name}
        shown = [f"{number(cells[x]['value'])} ({number(cells[x].get('change'), signed=True)})" for x in levels]
        lines.append([subject, reading, number(clean["value"]), *shown])
    table = markdown_table(["model", "answers", "as it is", *(f"{level:g}" for level in levels)], lines, left=2)
    untouched = max(row["untouched"] for row in mine)
    told = f" Left as they are, since their stains cannot be estimated: {untouched} of {mine[0]['n']} tiles."
    return f"**{name}**: {mine[0]['unit']}.{told if untouched else ''}\n\n{table}"


def _shifted_table(rows: Sequence[Row]) -> str:
    parts = list(dict.fromkeys(row["part"] for row in rows))
    lines = []
    for subject, reading in dict.fromkeys((row["subject"], row["reading"]) for row in rows):
        of_key = {row["part"]: row for row in rows if (row["subject"], row["reading"]) == (subject, reading)}
        cells = [with_interval(of_key[part]["value"], of_key[part]["low"], of_key[part]["high"]) for part in parts]
        lines.append([subject, reading, *cells])
    sizes = {row["part"]: row["n"] for row in rows}
    return markdown_table(["model", "answers", *(f"{part} (n = {sizes[part]})" for part in parts)], lines, left=2)


def _calibration_table(rows: Sequence[Row]) -> str:
    lines = []
    for subject, reading in dict.fromkeys((row["subject"], row["reading"]) for row in rows):
        of_key = {
            (row["state"], row["metric"]): row for row in rows if (row["subject"], row["reading"]) == (subject, reading)
        }
        after = of_key["after", "ece"]
        line = [subject, reading, of_key["before", "ece"]["labels"], number(after.get("level"), 2)]
        for name in _MEASURES:
            old, new = of_key["before", name], of_key["after", name]
            line += [with_interval(old["value"], old["low"], old["high"])]
            line += [with_interval(new["value"], new.get("low"), new.get("high"))]
        lines.append(line)
    header = ["model", "answers", "validation labels", "T"]
    header += [f"{title} {state}" for title in _MEASURES.values() for state in ("before", "after")]
    return markdown_table(header, lines, left=2)


def _adaptation_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        change, bounds = row.get("change"), None
        if row.get("change_low") is not None and row.get("change_high") is not None:
            bounds = (row["change_low"], row["change_high"])
        verdict = row.get("guard") or ""
        why = row.get("guard_reasons") or row.get("reason") or ""
        cells = [number(row["unadapted"]), number(row.get("value")), difference(change, bounds)]
        lines.append([row["subject"], row["reading"], row["part"], row["method"], *cells, verdict, why])
    header = ["model", "answers", "set", "adaptation", "without", "with", "change", "guard", "why"]
    return markdown_table(header, lines, left=4)


def _guard_text(errors: Mapping[str, Any]) -> str:
    if not errors["cases"]:
        return ""
    always, guarded = (number(errors[key], signed=True) for key in ("change_always", "change_guarded"))
    return (
        f"The guard over these {errors['cases']} adaptations: it let through {errors['let_through']} of "
        f"{errors['harmful']} harmful ones (a loss of more than 0.005) and refused {errors['refused']} of "
        f"{errors['helpful']} helpful ones. Mean change when every adaptation is used: {always}; when only accepted "
        f"ones are: {guarded}."
    )


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
