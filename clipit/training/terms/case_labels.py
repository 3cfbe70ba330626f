"""Class of each patient from the patient's own reports: a label column, rules, a text classifier; and a control."""

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

_Answer = tuple[str, int]
"""Answer for one report, and the index of its class; -1 if it is not a class."""


@dataclass(frozen=True)
class CaseLabels:
    """Class probabilities of each patient's tiles, from the patient's reports.

    Attributes:
        probabilities: Class probabilities, one row per patient with a report; 0 where unknown.
        known: Mask of the patients with a label.
        answers: Number of reports (for `text` and `case`: patients) by answer, including unused ones.
        note: Remark on the calibration of the text classifier; empty for none.
    """

    probabilities: Float32[np.ndarray, "cases classes"]
    known: Bool[np.ndarray, "cases"]
    answers: dict[str, int]
    note: str = ""


def label_cases(
    config: RunConfig, workspace: Workspace, cases: Cases, labels: Int64[np.ndarray, " n"], classes: Sequence[str]
) -> CaseLabels:
    """Compute the class probabilities of each patient by the method of `soft_labels.own_report.labels`.

    Args:
        config: Run configuration, with its arm resolved.
        workspace: Workspace of this configuration.
        cases: Patients and their reports.
        labels: Labels that may be used, one per row of the cases (training tile or slide); -1 if unlabelled.
        classes: Class names.
    """
    options = config.soft_labels.own_report
    if options.labels == "label":
        answers = [[_answer(report.label, options, classes) for report in reports] for reports in cases.reports]
        _check_answers(answers, cases, options, classes)
        return _average_answers(answers, len(classes))
    if options.labels == "rules":
        rules = load_rules(options.rules or "")
        unknown = sorted(set(rules.classes) - set(classes))
        if unknown:
            raise DataError(
                f"the rules have classes that the tiles lack: {shortlist(unknown)}; the tiles have "
                f"{shortlist(classes, 20)}",
                where=options.rules,
                fix="use the names of the tiles' classes in the rules, or rename those in tiles.class_map",
            )
        number = {name: classes.index(name) for name in rules.classes}
        answer_of = workspace.rule_answers(rules, cases)
        answers_of_case = [[answer_of[report.report_id] for report in reports] for reports in cases.reports]
        return _average_answers(
            [[(answer, number.get(answer, -1)) for answer in each] for each in answers_of_case], len(classes)
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


def exchange_labels(labels: CaseLabels, organs: Sequence[str], seed: int) -> CaseLabels:
    """Give each labelled patient the label of another one of the same organ (control).

    Patients who are alone in their organ exchange labels with each other; a single one joins the largest organ.

    Raises:
        DataError: Fewer than two patients have a label.
    """
    if labels.known.sum() < 2:
        raise DataError(
            "fewer than two patients have a label from a report, so labels cannot be exchanged",
            where="soft_labels.own_report.shuffled",
            fix="add reports of training patients",
        )
    return replace(labels, probabilities=labels.probabilities[exchange_order(labels.known, organs, seed)])


def exchange_order(known: Bool[np.ndarray, "cases"], organs: Sequence[str], seed: int) -> Int64[np.ndarray, "cases"]:
    """Draw the patient whose report each known patient gets in a control; others keep their own."""
    order = np.arange(len(organs), dtype=np.int64)
    counts = Counter(organ for organ, has in zip(organs, known.tolist(), strict=True) if has)
    loose = sum(count for organ, count in counts.items() if count == 1 or not organ)
    alone = counts.most_common(1)[0][0] if loose == 1 else ""
    pools = np.asarray([organ if counts[organ] > 1 else alone for organ in organs], dtype=object)
    for pool in sorted(set(pools[known].tolist())):
        members = np.flatnonzero(known & (pools == pool))
        if len(members) > 1:
            order[members] = members[derangement(len(members), seed)]
    return order


def label_agreement(case_labels: CaseLabels, cases: Cases, labels: Int64[np.ndarray, " n"]) -> dict[str, Any]:
    """Compare the patients' labels with those of their tiles or slides, where the run may use them (-1: it may not).

    Returns:
        `agreeing_tiles` of `compared_tiles`, and for patients (the majority of their labelled tiles): `agreeing_cases`
        of `compared_cases`, with the Wilson interval of their share.
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


def _answer(label: str | None, options: OwnReportConfig, classes: Sequence[str]) -> _Answer:
    """Return the answer that a report's label gives, and its class."""
    if label is None:
        return NONE, -1
    mapped = map_label(label, options.class_map)
    if mapped is None:
        return f"{label} (not in class_map)", -1
    return mapped, classes.index(mapped) if mapped in classes else -1


def _check_answers(
    answers: Sequence[Sequence[_Answer]], cases: Cases, options: OwnReportConfig, classes: Sequence[str]
) -> None:
    unknown = sorted(set(options.class_map.values()) - set(classes))
    if unknown:
        raise ConfigError(
            f"class_map names classes that the tiles lack: {shortlist(unknown)}",
            where="soft_labels.own_report.class_map",
            fix=f"use {shortlist(classes, 20)}",
        )
    given = {report.label for reports in cases.reports for report in reports if report.label is not None}
    if given and not any(number >= 0 for of_case in answers for _, number in of_case):
        raise DataError(
            f"no label of a report is a class: the labels are {shortlist(sorted(given), 10)}, the classes "
            f"{shortlist(classes, 20)}",
            where="reports.label_column",
            fix="map the labels in soft_labels.own_report.class_map",
        )


def _average_answers(answers: Sequence[Sequence[_Answer]], n_classes: int) -> CaseLabels:
    """Average the answers of each patient's reports that are classes."""
    votes = np.zeros((len(answers), n_classes), dtype=np.float32)
    for row, of_case in enumerate(answers):
        for _, number in of_case:
            if number >= 0:
                votes[row, number] += 1
    total = votes.sum(axis=1)
    counts = Counter(answer for of_case in answers for answer, _ in of_case)
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
    if config.soft_labels.own_report.features == "tfidf":
        return ["\n\n".join(report.text for report in reports) for reports in cases.reports]
    return case_vectors(config, workspace, cases)


def case_vectors(config: RunConfig, workspace: Workspace, cases: Cases) -> Float32[np.ndarray, "cases dim"]:
    """Compute the mean VLM embedding of the reports of each patient, all of whom have reports."""
    flat = [report for reports in cases.reports for report in reports]
    if config.reports is None:
        raise ConfigError("own reports need reports", where="reports", fix="set reports.path")
    vectors = report_vectors(workspace, flat, config.reports)
    case = np.repeat(np.arange(len(cases.reports)), [len(reports) for reports in cases.reports])
    means = np.zeros((len(cases.reports), vectors.shape[1]), dtype=np.float32)
    np.add.at(means, case, vectors)
    return means / np.bincount(case)[:, None].astype(np.float32)
