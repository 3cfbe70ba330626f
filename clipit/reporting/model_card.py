"""Model card of a classifier: README.md in Hugging Face's format, without report texts, patient ids or paths."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipit.errors import counted, printable
from clipit.models.classifier_spec import ClassifierSpec
from clipit.models.licences import OTHER, ModelLicence, model_licences
from clipit.models.specs import LICENCE_NOTE
from clipit.reporting.tables import (
    ECE_INTERVAL,
    LABELS,
    difference,
    from_groups,
    markdown_line,
    markdown_table,
    metrics_table,
    number,
)

_MAX_CLASSES = 40
_GROUP = ("patient or slide", "patients or slides")
_METRIC_TYPES = {"accuracy": "accuracy", "macro_f1": "f1", "auroc": "roc_auc"}
"""Hugging Face's names for the metrics in a card's `model-index`, by clipit's names."""


@dataclass(frozen=True)
class CardArm:
    """Row of the table of arms on a card.

    Attributes:
        role: `this classifier`, `baseline`, `control` or "".
        mean: Mean score over seeds; None if undefined.
        difference: Mean difference from the baseline; None for the baseline.
        interval: 95% interval of the difference, over test tiles or groups.
    """

    name: str
    role: str
    mean: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class CardComparison:
    """Comparison with other arms, shown on a classifier's card.

    Attributes:
        seeds: Number of seeds.
        arms: Arms on the card.
        further: Number of arms that are not on the card.
    """

    metric: str
    seeds: int
    baseline: str
    arms: Sequence[CardArm]
    further: int = 0


@dataclass(frozen=True)
class CardFacts:
    """Facts about a run, for the card of its classifier.

    Attributes:
        arm: Name of the arm; "" for a user-defined arm or custom settings.
        data: Description of the tiles, without file names.
        training_labels: Number of training labels that the run used.
        validation_labels: Number of validation labels that the run used.
        loss_terms: Descriptions of the loss terms.
        results: Content of results.json.
        external: Content of results.json of each external evaluation; names of test sets are not shown.
        compared: Comparison that includes the run, if any.
        reports: Number of reports whose snippets were paired with the tiles; None without reports.
    """

    arm: str
    seed: int
    data: str
    training_tiles: int | None
    training_labels: int | None
    validation_labels: int | None
    loss_terms: Sequence[str]
    results: Mapping[str, Any] = field(default_factory=dict)
    external: Sequence[Mapping[str, Any]] = ()
    compared: CardComparison | None = None
    reports: int | None = None
    snippets: int | None = None


def model_card(spec: ClassifierSpec, facts: CardFacts, *, transformers_opens: bool) -> str:
    """Compose the card of a classifier: YAML front matter for the Hub, and the text for readers.

    Args:
        transformers_opens: Whether transformers can open the folder as an image classifier.
    """
    licences = model_licences(spec)
    sections = {
        "Data and labels": _data(spec, facts),
        "Training": _training(spec, facts, licences),
        "Scores": _scores(facts),
        "Scores on other test sets": _external_scores(facts.external),
        "Comparison": _comparison(facts.compared),
        "Limits": _limits(spec, licences),
        "Licences": _licences(licences),
        "Use": _usage(spec, transformers_opens),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    intro = (
        f"Image classifier for histology tiles with {len(spec.classes)} classes, trained with clipit. "
        "**For research use only: not a medical device, and not for diagnosis or treatment.**"
    )
    front_matter = _front_matter(spec, facts, licences, transformers_opens)
    return f"---\n{front_matter}---\n\n# {_title(facts)}\n\n{intro}\n\n{body}\n"


def plain_text(text: object) -> str:
    """Escape a name for one line of Markdown: control characters, HTML, links, emphasis and code."""
    line = printable(" ".join(str(text).split()))
    return re.sub(r"([`*_~#])", r"\\\1", markdown_line(line.replace("\\", "\\\\")))


def _title(facts: CardFacts) -> str:
    return f"Histology tile classifier ({plain_text(facts.arm)})" if facts.arm else "Histology tile classifier"


def licence_fields(licence: ModelLicence) -> dict[str, str]:
    """Return a card's metadata on the base model and, if the Hub does not list its licence, on the licence."""
    fields = {}
    if licence.identifier == OTHER:
        fields["license_name"] = re.sub(r"[^a-z0-9.]+", "-", licence.licence.lower()).strip("-")
        if licence.page:
            fields["license_link"] = licence.page
    if licence.source:
        fields |= {"base_model": licence.source, "base_model_relation": "finetune"}
    return fields


def _front_matter(
    spec: ClassifierSpec, facts: CardFacts, licences: Sequence[ModelLicence], transformers_opens: bool
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    backbone = licences[0]
    values: dict[str, Any] = {
        "license": backbone.identifier,
        "library_name": "timm" if spec.plain else "transformers" if transformers_opens else "clipit",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "histopathology", "pathology", "clipit", *(["timm"] if spec.plain else [])],
    }
    values |= licence_fields(backbone)
    scores = facts.results.get("splits", {}).get("test", {}).get("metrics", {})
    eval_results = [
        EvalResult(
            task_type="image-classification", dataset_type="histology-tiles", dataset_name="test tiles of the run",
            dataset_split="test", metric_type=kind, metric_name=LABELS[name], metric_value=round(value, 4),
        )
        for name, kind in _METRIC_TYPES.items()
        if isinstance(value := scores.get(name, {}).get("value"), float | int)
    ]  # fmt: skip
    if eval_results:
        values |= {"eval_results": eval_results, "model_name": "clipit classifier"}
    return f"{ModelCardData(**values).to_yaml()}\n"


def _data(spec: ClassifierSpec, facts: CardFacts) -> str:
    names = [plain_text(name) for name in spec.classes[:_MAX_CLASSES]]
    more = f" and {len(spec.classes) - len(names)} more" if len(spec.classes) > len(names) else ""
    lines = [f"- Tiles: {facts.data}", f"- Classes: {', '.join(names)}{more}"]
    if facts.training_tiles is not None and facts.training_labels is not None:
        tiles, labels = counted(facts.training_tiles, "tile"), counted(facts.training_labels, "label")
        lines.append(f"- Training: {tiles}, {labels} used")
    if facts.validation_labels is not None:
        lines.append(f"- Validation: {counted(facts.validation_labels, 'label')} used")
    if facts.reports and facts.snippets:
        lines.append(
            f"- Text: {counted(facts.snippets, 'snippet')} from {counted(facts.reports, 'report')}; this folder "
            "contains no report text"
        )
    for split, scored in facts.results.get("splits", {}).items():
        groups = from_groups(scored, *_GROUP) or ", patients unknown"
        lines.append(
            f"- Scored, {split}: {counted(scored['labelled'], 'labelled tile')}{groups}"
            if scored["labelled"]
            else f"- Not scored, {split}: {counted(scored['n'], 'tile')} without labels"
        )
    scale = f"micrometres per pixel: {f'{spec.mpp:g}' if spec.mpp else 'unknown'}"
    if spec.mpp_assumed:
        scale += " (assumed from the backbone; not specified by the training tiles)"
    return "\n".join([*lines, f"- Input: {spec.preprocess.describe()}; {scale}"])


def _training(spec: ClassifierSpec, facts: CardFacts, licences: Sequence[ModelLicence]) -> str:
    teachers = [plain_text(licence.model) for licence in licences if licence.role == "VLM"]
    lines = [
        f"- Arm: {plain_text(facts.arm) if facts.arm else 'none (custom settings)'}, seed {facts.seed}",
        f"- Backbone: {plain_text(licences[0].model)}",
        f"- Teacher: {'VLM ' + ' and '.join(teachers) if teachers else 'none'}",
        *(f"- Learns from {plain_text(text)}" for text in facts.loss_terms),
    ]
    if spec.projector_layers:
        lines.append("- Also predicts the text embedding of a tile, for zero-shot classification in clipit")
    return "\n".join(lines)


def _scores(facts: CardFacts) -> str:
    if not facts.results.get("splits"):
        return ""
    protocol = facts.results.get("protocol", {})
    intervals = "One run with one seed, without intervals."
    if protocol.get("resamples"):
        intervals = (
            f"In brackets: {protocol['interval']} intervals, over patients or slides where known, otherwise over "
            f"tiles. {ECE_INTERVAL} One run with one seed: the intervals do not cover the variation between seeds."
        )
    return f"{metrics_table(facts.results)}\n\n{intervals}"


def _external_scores(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Format the scores on new test sets. Sets are numbered, because their names may identify hospitals or files."""
    if not evaluations:
        return ""
    splits = {f"set {number}": next(iter(results["splits"].values())) for number, results in enumerate(evaluations, 1)}
    counts = [
        f"{name}: {counted(scored['n'], 'tile')}{from_groups(scored, *_GROUP)}" for name, scored in splits.items()
    ]
    return (
        f"{metrics_table({'splits': splits})}\n\n{'; '.join(counts)}. These sets were evaluated after training; "
        "they were not used for model selection."
    )


def _comparison(compared: CardComparison | None) -> str:
    if compared is None:
        return ""
    rows = [
        (
            plain_text(arm.name),
            arm.role,
            number(arm.mean),
            "" if arm.difference is None else difference(arm.difference, arm.interval),
        )
        for arm in compared.arms
    ]
    table = markdown_table(("arm", "", LABELS[compared.metric], f"minus {plain_text(compared.baseline)}"), rows, left=2)
    further = f" {counted(compared.further, 'other arm is', 'other arms are')} not shown." if compared.further else ""
    seeds = counted(compared.seeds, "seed")
    return (
        f"{table}\n\nTest tiles, mean over {seeds}; differences with 95% intervals over test tiles or groups. "
        f"If a control scores just as high, the gain is not due to the text.{further}"
    )


def _limits(spec: ClassifierSpec, licences: Sequence[ModelLicence]) -> str:
    lines = [
        "- Every image is assigned to one of these classes, even if it shows something else.",
        "- Other scanners, stains, magnifications and centres can lower the scores: test the classifier on your own "
        "tiles first.",
        "- Scores are per tile; they say nothing about patients or slides.",
    ]
    embedded = [licence.role for licence in licences if licence.model.startswith("embedded")]
    if embedded:
        lines.append(
            f"- The bundled {' and '.join(embedded)} of clipit {'was' if len(embedded) == 1 else 'were'} trained on "
            "synthetic tiles: scores on real tiles say nothing about pathology."
        )
    if spec.remote_code:
        lines.append("- Python code in this folder defines the backbone; read it before you trust it.")
    return "\n".join(lines)


def _licences(licences: Sequence[ModelLicence]) -> str:
    rows = [
        (
            licence.role,
            plain_text(licence.model),
            licence.licence if licence.known else "unknown: ask its publisher",
            licence.page,
        )
        for licence in licences
    ]
    return (
        f"{markdown_table(('model', 'name', 'licence', 'page'), rows, left=4)}\n\nThe weights are adapted from "
        f"those of the backbone, so its licence applies. {LICENCE_NOTE}"
    )


def _usage(spec: ClassifierSpec, transformers_opens: bool) -> str:
    trust = ", trust_remote_code=True" if spec.remote_code else ""
    lines = [
        "FOLDER is this folder, REPO the id of its repository on the Hub. clipit verifies the checksums of the files.",
        f'```python\nimport clipit\n\nclassifier = clipit.load_classifier("FOLDER or REPO"{trust})\n'
        'classifier.predict(["tile.png"])\n```',
    ]
    if spec.plain:
        lines.append(
            "```python\nimport timm\n\n"
            'model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:REPO"\n```'
        )
    if transformers_opens:
        lines.append(
            "```python\nimport transformers\n\n"
            'classify = transformers.pipeline("image-classification", model="FOLDER or REPO")\n```'
        )
    if not spec.plain and not transformers_opens:
        lines.append(f"timm and transformers cannot open this classifier without clipit. {spec.export_note}".rstrip())
    return "\n\n".join(lines)
