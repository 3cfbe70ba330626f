"""Class labels of patients, from their own reports (label column, rules, text classifier) or their tiles (control)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from clipit.config.run import OwnReportConfig, RunConfig
from clipit.errors import ConfigError, DataError, shortlist
from clipit.evaluation.report_classifier import cross_fitted_probabilities
from clipit.pairing.cases import Cases
from clipit.reports.rules import NONE, load_rules
from clipit.training.terms.target_vectors import derangement
from clipit.workspace.report_labels import map_label
from clipit.workspace.report_vectors import report_vectors
from clipit.workspace.workspace import Workspace

_CONFIDENCE = 0.95

_ReadLabel = tuple[str, int]
"""Label read from one report, and the index of its class; -1 if it is not a class."""


@dataclass(frozen=True)
class CaseLabels:
    """Class probabilities of each patient, from the patient's reports or, for `case`, labelled tiles.

    Attributes:
        probabilities: Class probabilities, one row per patient; zeros where unknown.
        known: Mask of the patients with a label.
        counts: Number of reports (for `text` and `case`: patients) by label, including labels that are not classes.
        note: Note on the calibration of the text classifier; "" if there is none.
    """

    probabilities: Float32[np.ndarray, "cases classes"]
    known: Bool[np.ndarray, "cases"]
    counts: dict[str, int]
    note: str = ""


def label_cases(
    config: RunConfig, workspace: Workspace, cases: Cases, labels: Int64[np.ndarray, " n"], classes: Sequence[str]
) -> CaseLabels:
    """Compute the class probabilities of each patient with the method `own_report.labels`.

    Args:
        config: Run configuration, with its arm resolved.
        cases: Patients with their reports and rows (training tiles or slides).
        labels: Class index of each row; -1 if it has no label that the run may use.
        classes: Class names.
    """
    options = config.own_report
    if options.labels == "label":
        report_labels = [
            [_mapped_class(report.label, options, classes) for report in reports] for reports in cases.reports
        ]
        _check_labels(report_labels, cases, options, classes)
        return _average_labels(report_labels, len(classes))
    if options.labels == "rules":
        rules = load_rules(options.rules or "")
        unknown = sorted(set(rules.classes) - set(classes))
        if unknown:
            raise DataError(
                f"the rules name classes that the tiles lack: {shortlist(unknown)}; the tiles have "
                f"{shortlist(classes, 20)}",
                where=options.rules,
                fix="use the tiles' class names in the rules, or rename the classes with tiles.class_map",
            )
        class_of = {name: classes.index(name) for name in rules.classes}
        rule_classes = workspace.rule_classes(rules, cases)
        classes_of_case = [[rule_classes[report.report_id] for report in reports] for reports in cases.reports]
        return _average_labels(
            [
                [(class_name, class_of.get(class_name, -1)) for class_name in patient_labels]
                for patient_labels in classes_of_case
            ],
            len(classes),
        )
    tile_labels = _case_histogram(cases, labels, len(classes))
    if options.labels == "case":
        counts = tile_labels.sum(axis=1)
        known = counts > 0
        probabilities = (tile_labels / np.maximum(counts, 1)[:, None]).astype(np.float32)
        return CaseLabels(probabilities, known, _count_classes(probabilities, known, classes))
    labelled = tile_labels.sum(axis=1) > 0
    case_labels = np.where(labelled, tile_labels.argmax(axis=1), -1).astype(np.int64)
    fitted = cross_fitted_probabilities(
        _documents(config, workspace, cases), case_labels, np.asarray(cases.names, dtype=object), len(classes)
    )
    known = np.ones(len(cases.names), dtype=np.bool_)
    return CaseLabels(fitted.probabilities, known, _count_classes(fitted.probabilities, known, classes), fitted.note)


def shuffle_case_labels(labels: CaseLabels, organs: Sequence[str], seed: int) -> CaseLabels:
    """Shuffle the labels across labelled patients with the same organ: each gets another patient's label (control).

    Patients who are the only ones with their organ form one group, whose labels are shuffled. If there is only one such
    patient, this patient joins the patients with the most frequent organ.

    Raises:
        DataError: Fewer than two patients have a label.
    """
    if labels.known.sum() < 2:
        raise DataError(
            "fewer than two patients have a label from a report, so labels cannot be shuffled",
            where="own_report.shuffled",
            fix="add reports of training patients",
        )
    return replace(labels, probabilities=labels.probabilities[shuffled_order(labels.known, organs, seed)])


def shuffled_order(known: Bool[np.ndarray, "cases"], organs: Sequence[str], seed: int) -> Int64[np.ndarray, "cases"]:
    """Draw a permutation that shuffles labelled patients as `shuffle_case_labels` does; others stay in place."""
    order = np.arange(len(organs), dtype=np.int64)
    counts = Counter(organ for organ, is_known in zip(organs, known.tolist(), strict=True) if is_known)
    n_single = sum(count for organ, count in counts.items() if count == 1 or not organ)
    shared_pool = counts.most_common(1)[0][0] if n_single == 1 else ""
    pools = np.asarray([organ if counts[organ] > 1 else shared_pool for organ in organs], dtype=object)
    for pool in sorted(set(pools[known].tolist())):
        members = np.flatnonzero(known & (pools == pool))
        if len(members) > 1:
            order[members] = members[derangement(len(members), seed)]
    return order


def label_agreement(case_labels: CaseLabels, cases: Cases, labels: Int64[np.ndarray, " n"]) -> dict[str, Any]:
    """Measure the agreement between patients' labels and the labels of their tiles or slides.

    Args:
        labels: Class index of each tile or slide; -1 if it has no label that the run may use.

    Returns:
        `agreeing_tiles` out of `compared_tiles`; `agreeing_cases` out of `compared_cases`, where a patient's label is
        compared with the most frequent label of the patient's tiles; and `agreement_interval`, the Wilson interval of
        the fraction of agreeing cases.
    """
    from scipy.stats import binomtest

    histogram = _case_histogram(cases, labels, case_labels.probabilities.shape[1])
    predicted = case_labels.probabilities.argmax(axis=1)
    compared = case_labels.known & (histogram.sum(axis=1) > 0)
    agreeing = compared & (histogram.argmax(axis=1) == predicted)
    k, n = int(agreeing.sum()), int(compared.sum())
    interval = binomtest(k, n).proportion_ci(_CONFIDENCE, method="wilson") if n else None
    return {
        "agreeing_tiles": int(histogram[np.arange(len(predicted)), predicted][compared].sum()),
        "compared_tiles": int(histogram[compared].sum()),
        "agreeing_cases": k,
        "compared_cases": n,
        "agreement_interval": None if interval is None else [float(interval.low), float(interval.high)],
    }


def _mapped_class(label: str | None, options: OwnReportConfig, classes: Sequence[str]) -> _ReadLabel:
    """Return the name under which a report's label is counted, and its class index; -1 if it is not a class."""
    if label is None:
        return NONE, -1
    mapped = map_label(label, options.class_map)
    if mapped is None:
        return f"{label} (not in class_map)", -1
    return mapped, classes.index(mapped) if mapped in classes else -1


def _check_labels(
    read_labels: Sequence[Sequence[_ReadLabel]], cases: Cases, options: OwnReportConfig, classes: Sequence[str]
) -> None:
    unknown = sorted(set(options.class_map.values()) - set(classes))
    if unknown:
        raise ConfigError(
            f"class_map names classes that the tiles lack: {shortlist(unknown)}",
            where="own_report.class_map",
            fix=f"use {shortlist(classes, 20)}",
        )
    report_labels = {report.label for reports in cases.reports for report in reports if report.label is not None}
    if report_labels and not any(code >= 0 for patient_labels in read_labels for _, code in patient_labels):
        raise DataError(
            f"no report label is a class: the labels are {shortlist(sorted(report_labels), 10)}, and the classes are "
            f"{shortlist(classes, 20)}",
            where="reports.label_column",
            fix="map the labels to classes in own_report.class_map",
        )


def _average_labels(report_labels: Sequence[Sequence[_ReadLabel]], n_classes: int) -> CaseLabels:
    """Average the labels of each patient's reports; labels that are not classes are ignored."""
    votes = np.zeros((len(report_labels), n_classes), dtype=np.float32)
    for row, patient_labels in enumerate(report_labels):
        for _, code in patient_labels:
            if code >= 0:
                votes[row, code] += 1
    total = votes.sum(axis=1)
    counts = Counter(name for patient_labels in report_labels for name, _ in patient_labels)
    return CaseLabels(votes / np.maximum(total, 1)[:, None], total > 0, dict(sorted(counts.items())))


def _case_histogram(
    cases: Cases, labels: Int64[np.ndarray, " n"], n_classes: int
) -> Int64[np.ndarray, "cases classes"]:
    """Count the labelled tiles or slides of each patient by class."""
    counts = np.zeros((len(cases.names), n_classes), dtype=np.int64)
    rows = np.flatnonzero((cases.case_of >= 0) & (labels >= 0))
    np.add.at(counts, (cases.case_of[rows], labels[rows]), 1)
    return counts


def _count_classes(
    probabilities: Float32[np.ndarray, "cases classes"], known: Bool[np.ndarray, "cases"], classes: Sequence[str]
) -> dict[str, int]:
    counts = Counter(classes[index] for index in probabilities[known].argmax(axis=1).tolist())
    return dict(sorted(counts.items())) | {"none": int((~known).sum())}


def _documents(config: RunConfig, workspace: Workspace, cases: Cases) -> Any:
    """Return the inputs of the text classifier: one text, or one mean VLM embedding, per patient."""
    if config.own_report.features == "tfidf":
        return ["\n\n".join(report.text for report in reports) for reports in cases.reports]
    return case_vectors(config, workspace, cases)


def case_vectors(config: RunConfig, workspace: Workspace, cases: Cases) -> Float32[np.ndarray, "cases dim"]:
    """Compute the mean VLM embedding of each patient's reports; every patient must have a report."""
    flat = [report for reports in cases.reports for report in reports]
    if config.reports is None:
        raise ConfigError("labels from the patients' own reports need reports", where="reports", fix="set reports.path")
    vectors = report_vectors(workspace, flat, config.reports)
    case = np.repeat(np.arange(len(cases.reports)), [len(reports) for reports in cases.reports])
    means = np.zeros((len(cases.reports), vectors.shape[1]), dtype=np.float32)
    np.add.at(means, case, vectors)
    return means / np.bincount(case)[:, None].astype(np.float32)
