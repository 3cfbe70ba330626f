"""Test model cards of classifiers: licences, loading instructions, and escaped or private names."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from clipit.evaluation.predictions import Predictions
from clipit.evaluation.run_scores import evaluate_predictions
from clipit.models.classifier_spec import ClassifierSpec
from clipit.models.licences import model_licences
from clipit.models.preprocess import Preprocess
from clipit.reporting.model_card import CardFacts, model_card

PREPROCESS = Preprocess(224, 224, "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FACTS = CardFacts("clip_it_all", 3, "a table of images", 100, 12, 5, ["labels (cross-entropy, weight 1)"])


def spec(backbone: str, vlms: list[str] | None = None, **changes: Any) -> ClassifierSpec:
    values: dict[str, Any] = {
        "classes": ("gland", "stroma"), "head": "linear", "projector_layers": 0, "plain": True, "dim": 8,
        "preprocess": PREPROCESS, "mpp": 0.5, "vlm": None, "prompts": {},
    }  # fmt: skip
    provenance = {"backbone": {"name": backbone, "fingerprint": "0"}, "vlms": vlms or []}
    return ClassifierSpec(**{**values, "provenance": provenance, **changes})


def front_matter(text: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    assert ModelCard(text).data.to_dict().keys() == values.keys()
    return values


@pytest.mark.parametrize(
    ("backbone", "licence", "base"),
    [
        ("uni", "cc-by-nc-nd-4.0", "MahmoodLab/UNI"),
        ("MahmoodLab/UNI", "cc-by-nc-nd-4.0", "MahmoodLab/UNI"),
        ("hf-hub:MahmoodLab/UNI", "cc-by-nc-nd-4.0", "MahmoodLab/UNI"),
        ("midnight", "mit", "kaiko-ai/midnight"),
        ("dinov2-vits14", "apache-2.0", "timm/vit_small_patch14_dinov2.lvd142m"),
        ("embedded", "apache-2.0", None),
        ("phikon", "other", "owkin/phikon"),
        ("prov-gigapath", "other", "prov-gigapath/prov-gigapath"),
        ("vit_small_patch16_224", "other", None),
        ("local secret-patient-9", "other", None),
        ("transformers:local secret-patient-9", "other", None),
    ],
)
def test_the_licence_field_is_that_of_the_backbone(backbone: str, licence: str, base: str | None) -> None:
    text = model_card(spec(backbone, ["conch"]), FACTS, transformers_opens=True)
    values = front_matter(text)
    assert values["license"] == licence and values.get("base_model") == base
    assert ("license_name" in values) == (licence == "other")
    assert "CC-BY-NC-ND-4.0" in text and "secret-patient" not in text
    if backbone == "phikon":
        assert values["license_name"] == "owkin-non-commercial"
        assert values["license_link"] == "https://huggingface.co/owkin/phikon"
    if "secret" in backbone:
        assert values["license_name"] == "unknown" and "ask its publisher" in text


@pytest.mark.parametrize(
    ("plain", "opens", "library", "words"),
    [
        (True, True, "timm", ("timm.create_model", "transformers.pipeline")),
        (False, True, "transformers", ("transformers.pipeline",)),
        (False, False, "clipit", ("cannot open",)),
    ],
)
def test_loading_instructions_match_the_exported_folder(
    plain: bool, opens: bool, library: str, words: tuple[str, ...]
) -> None:
    text = model_card(spec("uni", plain=plain), FACTS, transformers_opens=opens)
    assert front_matter(text)["library_name"] == library and 'clipit.load_classifier("' in text
    calls = ("timm.create_model", "transformers.pipeline", "cannot open")
    assert tuple(call for call in calls if call in text) == words
    note = "transformers.ViTModel.from_pretrained(FOLDER) loads only the adapted backbone."
    text = model_card(spec("uni", plain=plain, export_note=note), FACTS, transformers_opens=opens)
    assert (note in text) != opens


def test_snippets_are_counted_only_if_reports_were_used() -> None:
    text = model_card(spec("uni"), replace(FACTS, reports=1, snippets=2000), transformers_opens=True)
    assert "- Text: 2,000 snippets from 1 report;" in text
    assert "- Text:" not in model_card(spec("uni"), FACTS, transformers_opens=True)


@pytest.mark.parametrize(("resamples", "words"), [(0, "without intervals"), (9, "95% percentile bootstrap intervals")])
def test_intervals_are_described_only_if_they_were_computed(resamples: int, words: str) -> None:
    table = Predictions(
        np.arange(4).astype(str), np.array(["test"] * 2 + ["validation"] * 2), np.array([0, 1, -1, -1]),
        np.array(["a", "b", "c", "d"]), ("gland", "stroma"), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]],
    )  # fmt: skip
    results = evaluate_predictions(table, ["test", "validation"], bootstrap=resamples)
    text = model_card(spec("uni"), replace(FACTS, results=results), transformers_opens=True)
    assert words in text and "none over patients" not in text
    assert "Scored, test: 2 labelled tiles from 2 patients or slides\n" in text
    assert ("its interval is shifted upwards" in text) == bool(resamples)
    assert "Not scored, validation: 2 tiles without labels" in text


def test_hostile_names_cannot_break_the_front_matter_or_add_markup() -> None:
    hostile = ("a\n---\n# Fake", "<script>x</script>", "[x](http://evil)", "`rm`|*b*", "\x1b[31m", "c\\")
    facts = replace(FACTS, arm="x\n---\nlicense: mit", data="tiles")
    text = model_card(spec("local <script>", classes=hostile), facts, transformers_opens=True)
    assert front_matter(text)["license"] == "other"
    assert [line for line in text.splitlines() if line.startswith("---")] == ["---", "---"]
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1
    assert "<script" not in text and "](http://evil)" not in text.replace("\\](", "") and "\x1b" not in text
    many = model_card(spec("uni", classes=tuple(map(str, range(100)))), FACTS, transformers_opens=True)
    assert "39 and 60 more" in many


def test_licences_of_classifiers_of_earlier_versions_include_their_vlm() -> None:
    earlier = spec("uni", projector_layers=1, vlm={"name": "conch"})
    earlier.provenance.pop("vlms")
    assert [(entry.role, entry.model) for entry in model_licences(earlier)] == [("backbone", "uni"), ("VLM", "conch")]
    assert len(model_licences(spec("embedded", ["embedded"]))) == 2
    objections = {name: bool(model_licences(spec(name))[0].objection) for name in ("uni", "prov-gigapath", "midnight")}
    assert objections == {"uni": True, "prov-gigapath": True, "midnight": False}
