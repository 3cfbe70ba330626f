"""Label a report corpus with rules and a text classifier, and measure the agreement with known labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, DataError, counted, shortlist
from clipit.evaluation.report_agreement import Agreement, measure_agreement
from clipit.evaluation.report_classifier import cross_fitted_probabilities
from clipit.output_files.whole_files import text_array
from clipit.pairing.cases import CaseCounts, join_cases
from clipit.pairing.leaks import patient_of, report_leaks
from clipit.pairing.patient_spelling import describe_match, misspelled_reports
from clipit.patients import patients
from clipit.progress import progress
from clipit.reports.readers import Report, read_reports
from clipit.reports.rules import ReportLabel, RuleSet, label_report, load_rules
from clipit.tiles.hidden_labels import hide_labels
from clipit.tiles.tileset import TileSet
from clipit.workspace.report_vectors import report_vectors
from clipit.workspace.tile_reading import artefacts_of, read_with_overview, with_kept_size
from clipit.workspace.workspace import Workspace

FEATURES = {"tfidf": "TF-IDF of words and word pairs", "vlm": "the mean VLM embedding of a report's snippets"}
"""Descriptions of `own_report.features`."""


@dataclass(frozen=True)
class CorpusLabels:
    """Reports of a corpus with their own labels, and the labels from the rules and the text classifier.

    Attributes:
        reports: Reports, except those of patients with validation or test tiles.
        own: Class index of each report's own label; -1 if there is no label, or if it is not a class.
        tile_labels: Most common class index among the labelled training tiles of each report's patient; -1 without
            labels.
        rules: Rule set; None if none is configured.
        by_rules: Class that the rules assign to each report, and the mentions they found; empty without rules.
        probabilities: Cross-fitted class probabilities of the text classifier; None if it was not fitted.
        notes: Remarks on skipped reports, labels and the classifier, one line each.
    """

    reports: tuple[Report, ...]
    classes: tuple[str, ...]
    own: Int64[np.ndarray, " n"]
    tile_labels: Int64[np.ndarray, " n"]
    rules: RuleSet | None
    by_rules: tuple[ReportLabel, ...]
    probabilities: Float32[np.ndarray, "n c"] | None
    notes: tuple[str, ...]
    features: str = "tfidf"
    """Features of the text classifier, a key of `FEATURES`."""
    case_counts: CaseCounts | None = None
    """Numbers of training patients with and without a report; None without tiles, or if no training patient has one."""
    joined: bool = True
    """False if there are tiles, but no training patient has a report; a note then states the reason."""

    @property
    def patients(self) -> Shaped[np.ndarray, " n"]:
        """Patient of each report; "" if unknown."""
        return text_array(patient_of(report) for report in self.reports)

    @property
    def text_classes(self) -> list[str]:
        """Most probable class of each report according to the text classifier; empty if it was not fitted."""
        if self.probabilities is None:
            return []
        return [self.classes[number] for number in self.probabilities.argmax(axis=1).tolist()]


def label_corpus(config: RunConfig, *, tiles: bool, classifier: bool = True) -> CorpusLabels:
    """Label the reports of a configuration with `own_report.rules` and a text classifier.

    The classifier is fitted on `own_report.features` and the reports' own labels or, if there are none, the
    labels of their patients' tiles, cross-fitted by patient. Call this function in all processes.

    Args:
        tiles: Whether the configuration names tiles; reports of patients with validation or test tiles are then
            dropped.
        classifier: Whether to fit the text classifier, which takes minutes for thousands of labelled reports.

    Raises:
        ConfigError: No reports are configured, there are neither rules nor labels, or VLM embeddings are configured
            without tiles.
        DataError: The reports or the rule set cannot be read, or no label is a class.
    """
    if config.reports is None:
        raise ConfigError("this command needs reports", where="reports", fix="set reports.path")
    section = config.own_report
    if section.rules is None and config.reports.label_column is None and not tiles:
        raise ConfigError(
            "this command needs rules, report labels or tile labels",
            where="own_report.rules and reports.label_column",
            fix="set one of these keys, or both to compare the labels",
        )
    rules = load_rules(section.rules) if section.rules is not None else None
    corpus = read_reports(config.reports)
    notes = list(corpus.problems)
    reports, tile_set = corpus.reports, None
    case_counts: CaseCounts | None = None
    if tiles:
        tile_set = hide_labels(
            read_with_overview(
                with_kept_size(config.tiles, config), lambda _, read: read(), root=artefacts_of(config), check=False
            ),
            config.tiles.labels,
            config.seed,
        )
        case_counts = _count_cases(reports, tile_set, notes)
        reports = _drop_leaking_reports(reports, tile_set, config, notes)
    mapped = [map_label(report.label, section.class_map) for report in reports]
    classes = tuple(rules.classes) if rules else _label_classes(mapped, section.class_map)
    if not classes and tile_set is not None:
        classes = tile_set.classes
    own_labels = _class_numbers(reports, mapped, classes, notes)
    tile_labels = np.full(len(reports), -1, dtype=np.int64)
    if tile_set is not None:
        tile_labels = _tile_labels(reports, tile_set, classes, notes)
    labelled: list[ReportLabel] = []
    if rules is not None:
        with progress("labelling reports with rules", len(reports)) as advance:
            for report in reports:
                labelled.append(label_report(report.text, rules))
                advance()
        notes += _rule_notes(rules, labelled)
    probabilities = None
    targets = own_labels if (own_labels >= 0).any() else tile_labels
    if classifier and (targets >= 0).any():
        groups = text_array(patient_of(report) for report in reports)
        try:
            documents = _classifier_inputs(config, reports, tiles=tiles)
            fitted = cross_fitted_probabilities(documents, targets, groups, len(classes), seed=config.seed)
            probabilities = fitted.probabilities
            notes += [f"text classifier: {fitted.note}"] if fitted.note else []
        except DataError as error:
            notes.append(f"text classifier not fitted: {str(error).splitlines()[0]}")
    return CorpusLabels(
        tuple(reports),
        classes,
        own_labels,
        tile_labels,
        rules,
        tuple(labelled),
        probabilities,
        tuple(notes),
        section.features,
        case_counts,
        joined=case_counts is not None or tile_set is None,
    )


def measure_labels(labels: CorpusLabels, seed: int = 0) -> list[Agreement]:
    """Measure the agreement of the rules and the text classifier with report labels and tile labels.

    Report labels are read from `reports.label_column`. The tile label of a report is the most common class among the
    labelled training tiles of its patient. Kinds of labels that no report has are omitted.
    """
    agreements = []
    has_own = bool((labels.own >= 0).any())
    for reference, known in (("the reports' own labels", labels.own), ("the tile labels", labels.tile_labels)):
        if not (known >= 0).any():
            continue
        fitted = known is labels.own or not has_own
        classifier = f"Logistic regression on {FEATURES[labels.features]}. " + (
            "It is fitted on these labels, cross-fitted by patient: no label of a patient was used for the predictions "
            "of that patient's reports."
            if fitted
            else "It is fitted on the reports' own labels, cross-fitted by patient."
        )
        for title, predictions, note in (
            (f"Rules and {reference}", [label.class_name for label in labels.by_rules], ""),
            (f"Text classifier and {reference}", labels.text_classes, classifier),
        ):
            if predictions:
                agreements.append(
                    measure_agreement(title, known, predictions, labels.classes, labels.patients, note=note, seed=seed)
                )
    return agreements


def _classifier_inputs(
    config: RunConfig, reports: Sequence[Report], *, tiles: bool
) -> "list[str] | Float32[np.ndarray, 'n d']":
    if config.reports is None or config.own_report.features == "tfidf":
        return [report.text for report in reports]
    if not tiles:
        raise ConfigError(
            "VLM embeddings of reports need a configuration with tiles",
            where="own_report.features",
            fix="set features: tfidf, or add a `tiles` section",
        )
    return report_vectors(Workspace(config), reports, config.reports)


def _rule_notes(rules: RuleSet, by_rules: Sequence[ReportLabel]) -> list[str]:
    """List classes that the rules assign to no report, and texts that match phrases of several classes."""
    class_names = {label.class_name for label in by_rules}
    notes = [f"the rules assign the class {name} to no report" for name in rules.classes if name not in class_names]
    matched: dict[str, set[str]] = {}
    for label in by_rules:
        for first, second in pairwise(label.mentions):
            same_place = (first.start, first.end) == (second.start, second.end)
            if same_place and first.sentence is second.sentence and first.class_name != second.class_name:
                matched.setdefault(first.phrase, set()).update((first.class_name, second.class_name))
    return notes + [
        f"{phrase!r} matches phrases of several classes ({', '.join(sorted(classes))}), so reports with this text get "
        "the class 'both'"
        for phrase, classes in sorted(matched.items())
    ]


def _count_cases(reports: Sequence[Report], tiles: TileSet, notes: list[str]) -> CaseCounts | None:
    """Count the training patients with a report of their own; None, with a note, if there are none."""
    try:
        return join_cases(reports, tiles).counts
    except DataError as error:
        notes.append(f"the patients' own reports cannot be used: {error.what}; fix: {error.fix}")
        return None


def _drop_leaking_reports(
    reports: tuple[Report, ...], tiles: TileSet, config: RunConfig, notes: list[str]
) -> tuple[Report, ...]:
    """Drop the reports of patients with validation or test tiles."""
    notes += [*misspelled_reports(reports, tiles), *describe_match(reports, tiles)]
    leaks = {leak.id for leak in report_leaks(reports, tiles)}
    if leaks:
        notes.append(f"dropped {counted(len(leaks), 'report')} of patients with validation or test tiles")
    kept = tuple(report for report in reports if report.report_id not in leaks)
    if not kept:
        raise DataError(
            "all reports belong to patients with validation or test tiles",
            where=config.reports.path if config.reports else "reports",
            fix="add reports of training patients",
        )
    return kept


def _tile_labels(
    reports: Sequence[Report], tiles: TileSet, classes: Sequence[str], notes: list[str]
) -> Int64[np.ndarray, " n"]:
    """Return the most common class of the labelled training tiles of each report's patient; -1 without such tiles."""
    train = tiles.of_split("train")
    numbers = np.array([classes.index(name) if name in classes else -1 for name in train.classes], dtype=np.int64)
    counts: dict[str, Counter[int]] = {}
    for patient, label in zip(patients(train.groups, train.ids).tolist(), train.labels.tolist(), strict=True):
        if patient and label >= 0 and numbers[label] >= 0:
            counts.setdefault(patient, Counter())[int(numbers[label])] += 1
    if not counts:
        notes.append(
            "the agreement with tile labels is not measured: no labelled training tile has a known patient and one of "
            "these classes"
        )
    class_of = {patient: count.most_common(1)[0][0] for patient, count in counts.items()}
    return np.array([class_of.get(patient_of(report), -1) for report in reports], dtype=np.int64)


def map_label(label: str | None, class_map: dict[str, str]) -> str | None:
    """Map a report's own label to a class; None without a label, or if the class map does not contain it."""
    return label if label is None or not class_map else class_map.get(label)


def _label_classes(mapped: Sequence[str | None], class_map: dict[str, str]) -> tuple[str, ...]:
    """Return the classes of the labels, in the order of the class map, or sorted if there is no class map."""
    names = {name for name in mapped if name is not None}
    return tuple(dict.fromkeys(class_map.values())) if class_map else tuple(sorted(names))


def _class_numbers(
    reports: Sequence[Report], mapped: Sequence[str | None], classes: Sequence[str], notes: list[str]
) -> Int64[np.ndarray, " n"]:
    """Return the class index of each report's own label, and add a note on labels that are not classes."""
    numbers = {name: number for number, name in enumerate(classes)}
    own_labels = np.array([numbers.get(name or "", -1) for name in mapped], dtype=np.int64)
    labelled = [report.label for report in reports if report.label is not None]
    other = Counter(
        report.label for report, number in zip(reports, own_labels.tolist(), strict=True) if report.label and number < 0
    )
    if labelled and not (own_labels >= 0).any():
        raise DataError(
            "none of the reports' labels is one of the classes; "
            f"labels: {shortlist(sorted(other))}; classes: {shortlist(classes)}",
            where="reports.label_column",
            fix="map labels to classes with own_report.class_map",
        )
    if other:
        listed = shortlist([f"{label}: {count}" for label, count in other.most_common()])
        notes.append(f"{counted(sum(other.values()), 'report')} with labels that are not among the classes ({listed})")
    return own_labels
