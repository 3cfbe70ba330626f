"""Labels of training tiles from the reports of the same patients."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from clipit.config.run import OwnReportConfig, RunConfig
from clipit.errors import ConfigError, DataError, counted, counted_of, shortlist
from clipit.evaluation.multiple_instance import assign_instances
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.output_files.artifacts import fingerprint
from clipit.pairing.cases import Cases
from clipit.prompts.prompt_set import load_prompts
from clipit.reports.build import snippet_keys
from clipit.reports.rules import load_rules
from clipit.tiles.tileset import TileSet
from clipit.training.terms.case_labels import CaseLabels, label_agreement, label_cases, shuffle_case_labels
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_WHERE = "own_report"


@dataclass(frozen=True)
class OwnLabels:
    """Class probabilities of the training tiles, from the reports of the same patients.

    Attributes:
        probabilities: Class probabilities, one row per training tile; uniform where the weight is 0.
        weights: Weight of each tile, between 0 and 1; 0 without a label.
        facts: Counts and estimated label noise, for training.json.
        text: The same facts as text, for the summary.
    """

    probabilities: Float32[np.ndarray, "n classes"]
    weights: Float32[np.ndarray, "n"]
    facts: dict[str, Any]
    text: str

    @property
    def classes(self) -> Int64[np.ndarray, "n"]:
        """Most probable class of each tile; -1 where the weight is 0."""
        return np.where(self.weights > 0, self.probabilities.argmax(axis=1), -1).astype(np.int64)


def own_report_labels(config: RunConfig, workspace: Workspace, tiles: TileSet) -> OwnLabels:
    """Compute the labels of the training tiles from the reports of the same patients.

    Only patients whose tiles are all in training are used. The control `case` needs no reports, so it includes
    patients without a report.

    Args:
        config: Run configuration, with its arm resolved.
        tiles: All tiles, with the labels that the run may use.

    Raises:
        DataError: No training patient has a report, no report yields a class, or the tiles lack a class in the rules.
    """
    options, train = config.own_report, tiles.of_split("train")
    cases = workspace.cases.latest() if options.several == "latest" else workspace.cases
    if options.labels == "case":
        cases = cases.with_all_patients()
    case_labels = label_cases(config, workspace, cases, train.labels, train.classes)
    if not case_labels.known.any() and options.labels == "case":
        raise DataError(
            "no labelled training tile belongs to a known patient, so there is no label to assign to other tiles",
            where=f"{_WHERE}.labels",
            fix="provide the patients of labelled tiles (column `group`), or keep more labels: tiles.labels",
        )
    if not case_labels.known.any():
        raise DataError(
            f"no report yields a label: {_format_counts(case_labels.counts)}",
            where=f"{_WHERE}.{'rules' if options.labels == 'rules' else 'labels'}",
            fix="check the classes, class_map or rules against the reports: clipit report-labels --config ...",
        )
    if options.shuffled:
        case_labels = shuffle_case_labels(case_labels, cases.organs, config.seed)
    agreement = {} if options.labels == "case" else label_agreement(case_labels, cases, train.labels)
    row = np.maximum(cases.case_of, 0)
    weights = ((cases.case_of >= 0) & case_labels.known[row]).astype(np.float32)
    probabilities = np.where(weights[:, None] > 0, case_labels.probabilities[row], 1 / len(tiles.classes))
    if options.tiles == "tissue":
        weights = weights * _tissue_probability(options, workspace, train)
    elif options.tiles == "at_least_one":
        probabilities = _choose_tiles(options, workspace, train, cases, case_labels, weights > 0, probabilities)
    unreported = _classes_without_label(case_labels, tiles.classes, options)
    if unreported:
        logger.warning("%s: the student learns what such tiles look like from labelled tiles alone", unreported)
    unlabelled = train.labels < 0
    n_unlabelled, n_targets = int(unlabelled.sum()), int(((weights > 0) & unlabelled).sum())
    if not n_targets:
        logger.warning("the patients' own reports have no effect: no unlabelled training tile gets a label from them")
    facts = {
        "cases": cases.counts.__dict__,
        "answers": case_labels.counts,
        "labelled_cases": int(case_labels.known.sum()),
        "weighted_tiles": float(weights.sum()),
        "unlabelled_tiles": n_targets,
        **agreement,
    }
    labelled = counted_of(n_targets, n_unlabelled, "unlabelled training tile gets", "unlabelled training tiles get")
    lines = [
        cases.counts.text(),
        f"labels of {'patients' if options.uses_tile_labels else 'reports'}: "
        f"{_format_counts(case_labels.counts)}; "
        f"{counted(int(case_labels.known.sum()), 'patient has', 'patients have')} a label",
        f"{labelled} one of these labels",
        *([unreported] if unreported else []),
        *([_format_agreement(agreement)] if agreement else []),
        *([f"text classifier: {case_labels.note}"] if case_labels.note else []),
    ]
    return OwnLabels(probabilities.astype(np.float32), weights.astype(np.float32), facts, "\n".join(lines))


def own_label_inputs(config: RunConfig) -> str:
    """Return a fingerprint of the sections from which `own_report_labels` computes the labels, without reading data."""
    sections = {"own_report", "tiles", "reports", "leaks", "vlm"}
    return fingerprint(config.model_dump(mode="json", include=sections))


def own_report_fingerprints(config: RunConfig, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of the inputs in use: reports of training patients, rules and tissue prompts."""
    options = config.own_report
    inputs = {"own reports": workspace.cases.fingerprint}
    if options.labels == "rules":
        inputs["rules"] = load_rules(options.rules or "").hash
    if options.tiles == "tissue":
        inputs["tissue prompts"] = load_prompts(options.tissue_prompts or "").hash
    if config.reports is not None and options.labels == "text" and options.features == "vlm":
        inputs["snippets of own reports"] = fingerprint(snippet_keys(config.reports))
    return inputs


def _tissue_probability(options: OwnReportConfig, workspace: Workspace, train: TileSet) -> Float32[np.ndarray, "n"]:
    """Compute the VLM's zero-shot probability that each tile shows tissue of `tissue_classes`."""
    prompts = load_prompts(options.tissue_prompts or "")
    names = list(prompts.classes)
    missing = sorted(set(options.tissue_classes) - set(names))
    if missing:
        raise ConfigError(
            f"these classes are not in the prompt set: {shortlist(missing)}",
            where=f"{_WHERE}.tissue_classes",
            fix=f"use some of {shortlist(names, 20)}",
        )
    store = workspace.tile_store("train")
    embeddings = prompt_embeddings(prompts, workspace.encode)
    probabilities = zero_shot_probabilities(
        store.rows(store.positions(train.ids)), embeddings, workspace.vlm.logit_scale
    )
    columns = [names.index(name) for name in options.tissue_classes]
    return np.asarray(probabilities[:, columns].sum(axis=1).clip(0, 1), dtype=np.float32)


def _choose_tiles(
    options: OwnReportConfig,
    workspace: Workspace,
    train: TileSet,
    cases: Cases,
    case_labels: CaseLabels,
    with_label: Bool[np.ndarray, "n"],
    probabilities: Float32[np.ndarray, "n classes"],
) -> Float32[np.ndarray, "n classes"]:
    """Assign each patient's most probable class to at least one tile of the patient, and background to the rest."""
    if options.background not in train.classes:
        raise ConfigError(
            f"the background class {options.background!r} is not a class of the tiles",
            where=f"{_WHERE}.background",
            fix=f"use one of {shortlist(train.classes, 20)}",
        )
    store = workspace.tile_store("train")
    rows = np.flatnonzero(with_label)
    features = store.rows(store.positions(train.ids[rows]))
    labels = case_labels.probabilities.argmax(axis=1).astype(np.int64)
    background = train.classes.index(options.background)
    assigned = assign_instances(features, cases.case_of[rows], labels, background)
    chosen = probabilities.astype(np.float32).copy()
    chosen[rows] = np.eye(len(train.classes), dtype=np.float32)[assigned]
    return chosen


def _format_agreement(agreement: dict[str, Any]) -> str:
    if not agreement["compared_cases"]:
        return "label noise: not estimated, because no patient with a label from a report has a labelled tile"
    low, high = agreement["agreement_interval"]
    return (
        f"label noise: labels from reports agree with {agreement['agreeing_tiles']} of "
        f"{counted(agreement['compared_tiles'], 'labelled tile')} and {agreement['agreeing_cases']} of "
        f"{counted(agreement['compared_cases'], 'patient')} (95% interval {low:.0%} to {high:.0%})"
    )


def _classes_without_label(case_labels: CaseLabels, classes: Sequence[str], options: OwnReportConfig) -> str:
    """List the classes that do not occur among the patients' labels, as text; "" if there are none."""
    reported = case_labels.probabilities[case_labels.known].max(axis=0) > 0
    missing = [name for name, is_reported in zip(classes, reported.tolist(), strict=True) if not is_reported]
    if not missing:
        return ""
    source = "labelled tile of a known patient" if options.labels == "case" else "report"
    return f"no {source} yields the {'class' if len(missing) == 1 else 'classes'} {shortlist(missing, 10)}"


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
