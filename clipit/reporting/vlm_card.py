"""Card of an adapted VLM: README.md in Hugging Face's format, without report texts, patient ids or paths."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipit.errors import counted
from clipit.models.adapted_base import base_of_adapted
from clipit.models.licences import ModelLicence, vlm_licence
from clipit.models.specs import LICENCE_NOTE
from clipit.models.vlm import VLM
from clipit.output_files.whole_files import write_text
from clipit.reporting.adapt_facts import fact_label, training_counts
from clipit.reporting.model_card import licence_fields, plain_text
from clipit.reporting.tables import markdown_table, number

_DATA = {
    "pairs": "images, each with a text",
    "bags": "unlabelled tiles with their nearest tiles, report snippets and prompts",
    "cases": "tiles of patients with snippets of their own reports",
}
_ARMS = {
    "text": "image-text contrast",
    "shuffled_text": "control: image-text contrast with the texts of other patients",
    "images": "control: image-image contrast without any text",
}
_SCORES = re.compile(r"## Scores\n.*?(?=## )", re.DOTALL)
_TUNING = {
    "lora": "low-rank updates (LoRA)",
    "projection": "the projections into the joint space",
    "full": "all weights",
}


@dataclass(frozen=True)
class AdaptationFacts:
    """Facts about an adaptation, for its card.

    Attributes:
        arm: Arm of the study: `text` or a control.
        data: Kind of data that the VLM was trained on (`adapt.data`).
        tuning: Weights that were trained.
        towers: Names of the adapted towers.
        weights: Number of trained weights.
        settings: Training settings, such as steps and batch size, by name.
        counts: Numbers of images, texts and patients, by name; only integers are shown.
        logit_scale: Logit scale after training.
    """

    arm: str
    seed: int
    data: str
    tuning: str
    towers: Sequence[str]
    weights: int
    settings: Mapping[str, int | float]
    counts: Mapping[str, Any]
    logit_scale: float


def vlm_card(vlm: VLM, facts: AdaptationFacts) -> str:
    """Compose the card of an adapted VLM: YAML front matter for the Hub, and the text for readers."""
    licence = vlm_licence(vlm.name)
    sections = {
        "Data": _data(facts),
        "Training": _training(vlm, facts, licence),
        "Limits": _limits(vlm, facts),
        "Licence": _licence(licence),
        "Use": _usage(licence),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    intro = (
        f"Vision-language model for histology: {plain_text(licence.model)}, adapted with clipit. "
        "**For research use only: not a medical device, and not for diagnosis or treatment.**"
    )
    return f"---\n{_front_matter(licence)}---\n\n# Adapted {plain_text(licence.model)}\n\n{intro}\n\n{body}\n"


def _front_matter(licence: ModelLicence) -> str:
    from huggingface_hub import ModelCardData

    values: dict[str, Any] = {
        "license": licence.identifier,
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "histopathology", "pathology", "clipit"],
        **licence_fields(licence),
    }
    return f"{ModelCardData(**values).to_yaml()}\n"


def _data(facts: AdaptationFacts) -> str:
    counts = {name: value for name, value in training_counts(facts.counts, facts.arm).items() if _is_count(value)}
    lines = [f"- Kind: {_DATA.get(facts.data, plain_text(facts.data))}"]
    return "\n".join([*lines, *(f"- {plain_text(_words(name))}: {value:,}" for name, value in counts.items() if value)])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _words(name: str) -> str:
    text = fact_label(name)
    return text[:1].upper() + text[1:]


def _training(vlm: VLM, facts: AdaptationFacts, licence: ModelLicence) -> str:
    lines = [
        f"- Base model: {plain_text(licence.model)}, fingerprint {vlm.fingerprint}",
        f"- Objective: {_ARMS.get(facts.arm, plain_text(facts.arm))}, seed {facts.seed}",
        f"- Trained: {_TUNING.get(facts.tuning, plain_text(facts.tuning))} of the {' and '.join(facts.towers)} "
        f"tower{'s' if len(facts.towers) > 1 else ''}, {counted(facts.weights, 'weight')}",
        *(f"- {plain_text(_words(_setting(name, facts.data)))}: {value:g}" for name, value in facts.settings.items()),
        f"- Logit scale: {vlm.logit_scale:.4g} before, {facts.logit_scale:.4g} after",
        f"- Input: {vlm.preprocess.describe()}; "
        + (f"{vlm.expected_mpp:g} µm per pixel" if vlm.expected_mpp else "micrometres per pixel unknown"),
    ]
    return "\n".join(lines)


def _setting(name: str, data: str) -> str:
    return "pairs_per_step" if name == "bags_per_step" and data == "pairs" else name


def write_card_scores(folder: Path, scores: Sequence[tuple[str, float | None, float | None]]) -> None:
    """Write a study's scores into the cards of an adaptation, replacing those of an earlier study.

    Args:
        folder: Folder of the adaptation, which contains folders with cards.
        scores: Name of each metric, with its scores before and after the adaptation.
    """
    for card in sorted(folder.glob("*/README.md")):
        text = card.read_text(encoding="utf-8")
        before, limits, after = _SCORES.sub("", text).partition("## Limits\n")
        rows = [(plain_text(name), _score(old), _score(new)) for name, old, new in scores]
        table = markdown_table(("", "before", "after"), rows, left=1)
        section = f"## Scores\n\n{table}\n\nScores on held-out images and texts.\n\n" if rows and limits else ""
        write_text(card, f"{before}{section}{limits}{after}")


def _score(value: float | None) -> str:
    return number(None if value is None or not math.isfinite(value) else value)


def _limits(vlm: VLM, facts: AdaptationFacts) -> str:
    lines = [
        "- Adaptation can lower performance on other data: compare both models on tiles unlike the training data.",
        "- Other scanners, stains, magnifications and centres can lower the scores: test the model on your own tiles "
        "first.",
    ]
    if facts.arm != "text":
        lines.insert(0, "- This model is a control in a study: it was not trained on images with their own texts.")
    if base_of_adapted(vlm.name) == "embedded":
        lines.append(
            "- The bundled VLM of clipit was trained on synthetic tiles: scores on real tiles say nothing about "
            "pathology."
        )
    return "\n".join(lines)


def _licence(licence: ModelLicence) -> str:
    name = licence.licence if licence.known else "unknown: ask its publisher"
    forbids = (
        " It forbids derivatives: this adapter is for your own use, and needs the original weights."
        if licence.forbids_derivatives
        else ""
    )
    page = f" ({licence.page})" if licence.page else ""
    return f"The licence of the base model applies: {name}{page}.{forbids} {LICENCE_NOTE}"


def _usage(licence: ModelLicence) -> str:
    adapter = (
        "`vlm.adapter: FOLDER` applies the folder `adapter/` to the base model that `vlm.name` and `vlm.path` specify"
    )
    if licence.forbids_derivatives:
        return f"In a clipit configuration, {adapter}."
    return (
        "In a clipit configuration, `vlm.name: FOLDER` opens the merged folder `vlm/`. The base model's package "
        f"(open_clip or transformers) can also open this folder. {adapter}."
    )
