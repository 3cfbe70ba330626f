"""Write the report labels of a corpus: report_labels.html, .json and .csv."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, counted
from clipit.output_files.artifacts import locked, write_json
from clipit.output_files.whole_files import write_rows, write_text
from clipit.reporting.page_note import compose_note
from clipit.reporting.report_labels_page import SampledReport, count_rule_classes, report_labels_page
from clipit.reports.rules import read_text
from clipit.workspace.report_labels import FEATURES, CorpusLabels, measure_labels

_COLUMNS = (
    "report_id", "group", "label", "rule_class", "uncertain_only", "text_class", "text_probability", "mentions",
)  # fmt: skip


def write_report_labels(config: RunConfig, labels: CorpusLabels, *, per_answer: int = 5) -> Path:
    """Write the page, and the classes as JSON and CSV, to `<output>/report_labels/<name>/`.

    Args:
        labels: Labels from `label_corpus`.
        per_answer: Number of reports on the page for each class assigned by the rules, to be checked by eye.

    Returns:
        Path of the page, report_labels.html; report_labels.json and report_labels.csv are in the same folder.

    Raises:
        ConfigError: `per_answer` is negative.
    """
    if per_answer < 0:
        raise ConfigError(f"cannot draw {per_answer} reports", where="--per-answer", fix="use 0 or more")
    folder = config.output / "report_labels" / config.name
    agreements = measure_labels(labels, config.seed)
    facts = _facts(config, labels)
    records = [_record(labels, row) for row in range(len(labels.reports))]
    rows = (record | {"mentions": _format_mentions(record["mentions"])} for record in records)
    path = folder / "report_labels.html"
    uses_vlm = labels.probabilities is not None and labels.features == "vlm"
    text = report_labels_page(
        f"{config.name}: labels from reports",
        compose_note(config.note, vlms=[config.vlm.name] if uses_vlm else []),
        facts,
        labels.by_rules,
        labels.classes,
        agreements,
        sample_reports(labels, per_answer, config.seed),
        labels.notes,
    )
    with locked(folder):  # another command may be writing the same files
        write_json(
            folder / "report_labels.json",
            {
                "facts": facts,
                "classes": list(labels.classes),
                "rules": labels.rules.hash if labels.rules else None,
                "rule_classes": count_rule_classes(labels.by_rules, labels.classes) if labels.by_rules else {},
                "agreements": [agreement.as_dict() for agreement in agreements],
                "notes": list(labels.notes),
                "reports": records,
            },
        )
        write_rows(folder / "report_labels.csv", _COLUMNS, rows)
        write_text(path, text)
    return path


def sample_reports(labels: CorpusLabels, per_answer: int, seed: int) -> list[SampledReport]:
    """Draw reports for each class that the rules assign; reports with only uncertain mentions form a separate class."""
    strata: dict[str, list[int]] = {}
    for row in sorted(range(len(labels.by_rules)), key=lambda row: labels.reports[row].report_id):
        label = labels.by_rules[row]
        strata.setdefault("uncertain" if label.uncertain_only else label.class_name, []).append(row)
    order = [*labels.classes, "both", "uncertain", "none"]
    generator = np.random.default_rng(seed)
    sample: list[SampledReport] = []
    for stratum in sorted(strata, key=order.index):
        rows = strata[stratum]
        for row in sorted(generator.permutation(rows)[:per_answer].tolist()):
            record = _record(labels, row)
            facts = (
                {} if not record["group"] or record["group"] in record["report_id"] else {"patient": record["group"]}
            )
            facts["own label"] = record["label"] or "unknown"
            if record["text_class"]:
                facts["text classifier"] = f"{record['text_class']} ({record['text_probability']:.2f})"
            report = labels.reports[row]
            text = report.text if labels.rules is None else read_text(report.text, labels.rules)
            sample.append(SampledReport(report.report_id, labels.by_rules[row], facts, text))
    return sample


def _facts(config: RunConfig, labels: CorpusLabels) -> dict[str, Any]:
    patients = set(labels.patients.tolist()) - {""}
    facts: dict[str, Any] = {
        "reports": len(labels.reports),
        "patients": len(patients),
        "source": Path(config.reports.path).name if config.reports else "",
    }
    facts |= _describe_cases(labels)
    if config.reports and config.reports.label_column:
        facts[f"reports with a class in the column {config.reports.label_column}"] = int((labels.own >= 0).sum())
    if labels.rules is not None:
        facts["rule set"] = f"{labels.rules.name} ({labels.rules.hash})"
        facts["sections read"] = ", ".join(labels.rules.sections) or "all"
    facts["text classifier"] = (
        "not fitted" if labels.probabilities is None else f"{FEATURES[labels.features]}, cross-fitted by patient"
    )
    return facts


def _describe_cases(labels: CorpusLabels) -> dict[str, Any]:
    """Describe the join of reports and training tiles by patient; empty without tiles."""
    counts = labels.case_counts
    if counts is None:
        return {} if labels.joined else {"training patients with a report": "none (see the remarks)"}
    used = f"{counted(counts.own, 'report')}; {counted(counts.cases_with_several, 'patient has', 'patients have')}"
    facts: dict[str, Any] = {
        "training patients with a report": f"{counts.cases_with_report:,} of {counts.cases:,} ({used} several)",
        "reports of patients with validation or test tiles": f"{counts.later_splits:,} (dropped, not counted above)",
        "reports of patients without tiles": counts.external,
    }
    if counts.without_patient:
        facts["reports without a group"] = counts.without_patient
    if counts.tiles_without_patient:
        facts["training tiles without a group"] = f"{counts.tiles_without_patient:,} of {counts.tiles:,}"
    if counts.both_sides:
        facts["patients with tiles in training and in a later split"] = (
            f"{counts.both_sides:,} (their reports are not used)"
        )
    return facts


def _record(labels: CorpusLabels, row: int) -> dict[str, Any]:
    """Return the labels and mentions of one report as JSON-serialisable values."""
    report = labels.reports[row]
    label = labels.by_rules[row] if labels.by_rules else None
    record: dict[str, Any] = {
        "report_id": report.report_id,
        "group": report.group,
        "label": labels.classes[labels.own[row]] if labels.own[row] >= 0 else None,
        "rule_class": label.class_name if label else None,
        "uncertain_only": label.uncertain_only if label else None,
        "text_class": None,
        "text_probability": None,
        "mentions": [asdict(mention) for mention in label.mentions] if label else [],
    }
    if labels.probabilities is not None:
        best = int(labels.probabilities[row].argmax())
        record["text_class"] = labels.classes[best]
        record["text_probability"] = round(float(labels.probabilities[row, best]), 4)
    return record


def _format_mentions(mentions: Sequence[dict[str, Any]]) -> str:
    """Format mentions as one cell: "MSI-H, negated, diagnosis: microsatellite instability; ..."."""
    return "; ".join(
        f"{m['class_name']}, {m['status']}, {m['section']}: {m['sentence'][m['start'] : m['end']]}" for m in mentions
    )
