"""Privileged information for bags: labels and embeddings from the patients' own reports, and controls.

Only reports of patients whose bags are all in the training split are read, and only to make targets for training bags.
Learning using privileged information, that is, information that is not available at inference, was introduced by Vapnik
and Vashist (Neural Networks, 2009).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32

from clipit.config.run import RunConfig
from clipit.errors import DataError, counted, counted_of
from clipit.evaluation.predictions import NO_LABEL
from clipit.mil.mil_bags import MilBags
from clipit.mil.targets import BagTargets, label_targets, vector_targets
from clipit.pairing.cases import Cases
from clipit.training.terms.case_labels import (
    case_vectors,
    label_agreement,
    label_cases,
    shuffle_case_labels,
    shuffled_order,
)
from clipit.vectors import centred
from clipit.workspace.workspace import Workspace

_WHERE = "own_report"
_SHUFFLED_NOTE = "reports were shuffled across patients with the same organ"


def report_labels(
    config: RunConfig, workspace: Workspace, bags: MilBags, seed: int, *, shuffled: bool = False
) -> BagTargets:
    """Label each unlabelled training bag with the class of its patient's report.

    Reports are converted to labels in the same way as for tiles, according to `own_report`.

    Args:
        config: Run configuration with `reports`.
        bags: Bags of all splits, with the labels that training may use.
        shuffled: Whether labels are shuffled across patients with the same organ (control).

    Raises:
        ConfigError: No reports are configured.
        DataError: No training patient has a report, or no report yields a class.
    """
    train, cases = bags.of_split("train"), _cases(config, workspace, bags)
    if config.own_report.labels == "case":
        cases = cases.with_all_patients()
    case_labels = label_cases(config, workspace, cases, train.labels, bags.classes)
    listed = ", ".join(f"{name} {count:,}" for name, count in case_labels.counts.items())
    if not case_labels.known.any():
        raise DataError(
            f"no report yields a label: {listed}",
            where=f"{_WHERE}.labels",
            fix="check the classes, class_map or rules against the reports: clipit report-labels --config ...",
        )
    agreement = label_agreement(case_labels, cases, train.labels)
    is_shuffled = shuffled or config.own_report.shuffled
    if is_shuffled:
        case_labels = shuffle_case_labels(case_labels, cases.organs, seed)
    row = np.maximum(cases.case_of, 0)
    unlabelled = train.labels == NO_LABEL
    has_target = (cases.case_of >= 0) & case_labels.known[row] & unlabelled
    probabilities = np.where(has_target[:, None], case_labels.probabilities[row], 1 / len(bags.classes)).astype(
        np.float32
    )
    n_targets, n_unlabelled = int(has_target.sum()), int(unlabelled.sum())
    labelled = counted_of(n_targets, n_unlabelled, "unlabelled training bag gets", "unlabelled training bags get")
    notes = [
        cases.counts.text(),
        f"labels from reports: {listed}",
        f"{labelled} a label from a report",
        f"{agreement['agreeing_cases']:,} of {counted(agreement['compared_cases'], 'label')} from reports agree with "
        "the label of the patient's bags, where that is known" + (", before shuffling" if is_shuffled else ""),
    ]
    notes += [_SHUFFLED_NOTE] if is_shuffled else []
    return label_targets(train.names, probabilities, has_target.astype(np.float32), notes)


def report_embeddings(
    config: RunConfig, workspace: Workspace, bags: MilBags, seed: int, *, shuffled: bool = False
) -> BagTargets:
    """Return, for each training bag, the VLM embedding of its patient's reports.

    A patient's embedding is the mean over the snippets of all reports, minus the mean over all patients, normalised.
    For arguments and errors, see `report_labels`.
    """
    train, cases = bags.of_split("train"), _cases(config, workspace, bags)
    vectors = case_vectors(config, workspace, cases)
    known = np.asarray(np.linalg.norm(vectors, axis=1) > 0, dtype=np.bool_)
    if known.sum() < 2:
        raise DataError(
            f"{counted(int(known.sum()), 'training patient has', 'training patients have')} a report with a snippet; "
            "at least 2 are needed",
            where="reports",
            fix="add reports, or check how they are split into snippets: clipit index --config ...",
        )
    vectors = _centre(vectors, known)
    is_shuffled = shuffled or config.own_report.shuffled
    if is_shuffled:
        vectors = vectors[shuffled_order(known, cases.organs, seed)]
    row = np.maximum(cases.case_of, 0)
    has_target = np.asarray((cases.case_of >= 0) & known[row], dtype=np.bool_)
    notes = [
        cases.counts.text(),
        f"{counted_of(int(has_target.sum()), len(train), 'training bag has', 'training bags have')} the embedding of a "
        "report as a target",
    ]
    notes += [_SHUFFLED_NOTE] if is_shuffled else []
    return vector_targets(
        train.names, np.where(has_target[:, None], vectors[row], 0), has_target, len(bags.classes), notes
    )


def image_embeddings(bags: MilBags, reported: BagTargets | None = None) -> BagTargets:
    """Return the mean feature vector of each training bag, minus the mean over bags, normalised (control without text).

    With VLM features, the result differs from that of `report_embeddings` only in the modality.

    Args:
        reported: Targets of `report_embeddings` for the same bags. Only bags that have one of these targets get a
            vector, so that the control has no more targets than the arm with text. None for all training bags.
    """
    train = bags.of_split("train")
    has_target = np.ones(len(train), dtype=np.bool_) if reported is None else reported.distilled
    means = np.zeros((len(train), bags.dim), dtype=np.float32)
    for bag in np.flatnonzero(has_target).tolist():
        means[bag] = train.features(bag).mean(axis=0)
    vectors = np.where(has_target[:, None], _centre(means, has_target), 0).astype(np.float32)
    note = (
        f"{counted_of(int(has_target.sum()), len(train), 'training bag has its', 'training bags have their')} mean "
        "feature vector as a target"
    )
    return vector_targets(train.names, vectors, has_target, len(bags.classes), [note])


def predicted_labels(predict: Callable[[MilBags], Float32[np.ndarray, "b c"]], bags: MilBags) -> BagTargets:
    """Return the class probabilities that a model predicts for unlabelled training bags (self-training, without text).

    Args:
        predict: Function from bags to class probabilities, such as `MilModel.predict` of a model that was trained on
            the same labels.
        bags: Bags of all splits, with the labels that training may use.
    """
    train = bags.of_split("train")
    unlabelled = train.labels == NO_LABEL
    probabilities = np.full((len(train), len(bags.classes)), 1 / len(bags.classes), dtype=np.float32)
    if unlabelled.any():
        probabilities[unlabelled] = predict(train.select(unlabelled))
    notes = [
        f"{counted(int(unlabelled.sum()), 'unlabelled training bag has', 'unlabelled training bags have')} a predicted "
        "label as a target"
    ]
    return label_targets(train.names, probabilities, unlabelled.astype(np.float32), notes)


def _cases(config: RunConfig, workspace: Workspace, bags: MilBags) -> Cases:
    cases = workspace.cases_of(bags.patients, bags.splits)
    return cases.latest() if config.own_report.several == "latest" else cases


def _centre(vectors: Float32[np.ndarray, "n d"], known: Bool[np.ndarray, " n"]) -> Float32[np.ndarray, "n d"]:
    """Subtract the mean of the known vectors, and normalise."""
    return centred(vectors, vectors[known].mean(axis=0))
