"""Page sections and summary texts of an external evaluation."""

from collections.abc import Mapping
from typing import Any

from clipit.errors import counted
from clipit.reporting.html import PageSection, Part, Table, Text
from clipit.reporting.tables import LABELS, interval, markdown_table, metrics_table, number, with_interval

OWN = "own test tiles"
"""Name of the run's own test tiles in tables."""
_MEASURES = {"ece": "calibration error (ECE)", "nll": "negative log-likelihood", "brier": "Brier score"}


def add_own_scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """Add the scores on the run's own test tiles to the results as another split, for tables."""
    run_results = results["own"]
    return {**results, "splits": results["splits"] | ({OWN: run_results} if run_results else {})}


def external_texts(results: Mapping[str, Any]) -> dict[str, str]:
    """Compose the sections of the summary: comparison with the run's own test tiles, calibration and checks."""
    texts = {"Compared with the run's own test tiles": metrics_table(add_own_scores(results))}
    if results["calibration"]["measures"]:
        rows = [(row["measure"], row["before"], row["after"]) for row in _calibration_rows(results)]
        texts["Calibration"] = markdown_table(("measure", "before", "after"), rows) + f"\n\n{_temperature(results)}"
    return texts | {"Checks": "\n".join(results["external"]["notes"]) or "No tile was dropped."}


def external_sections(results: Mapping[str, Any]) -> list[PageSection]:
    """Compose the sections of the page that follow the scores."""
    name, run_results = results["external"]["name"], results["own"]
    parts: list[Part] = []
    new = results["splits"][name]
    for key, title in (("", "the classifier's head"), ("zero_shot", "zero-shot with the class prompts")):
        scores, run_scores = (new[key], (run_results or {}).get(key)) if key in new else (new, run_results)
        if run_scores is None or (key and key not in new):
            continue
        rows = []
        for metric, score in scores["metrics"].items():
            other = run_scores["metrics"][metric]
            cells = [[number(each["value"]), interval(each["low"], each["high"])] for each in (score, other)]
            rows.append((LABELS.get(metric, metric), *cells[0], *cells[1]))
        header = ("score", name, "95% interval", OWN, "95% interval")
        parts.append(Table(header, rows, caption=title, source="results.json: splits and own"))
    sections = [PageSection("Compared with the run's own test tiles", parts or [Text("The run has no test scores.")])]
    notes = [Text(line) for line in results["external"]["notes"]]
    sections.append(PageSection("Checks", notes or [Text("No tile was dropped.")]))
    if results["calibration"]["measures"]:
        rows = [(row["measure"], row["before"], row["after"]) for row in _calibration_rows(results)]
        table = Table(("measure", "before", "after scaling"), rows, source="results.json: calibration")
        sections.append(PageSection("Calibration", [table, Text(_temperature(results))]))
    return sections


def _calibration_rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for measure, states in results["calibration"]["measures"].items():
        row = {"measure": _MEASURES[measure]}
        for state in ("before", "after"):
            score = states.get(state)
            row[state] = "" if score is None else with_interval(score["value"], score["low"], score["high"])
        rows.append(row)
    return rows


def _temperature(results: Mapping[str, Any]) -> str:
    calibration = results["calibration"]
    if calibration["temperature"] is None:
        return f"No temperature was fitted: {calibration['reason']}."
    return (
        f"Temperature {calibration['temperature']:.3f}, fitted on {counted(calibration['labels'], 'validation label')} "
        "of the run; labels of the new set were not used."
    )
