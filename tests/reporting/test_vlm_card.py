"""Test the model card of an adapted VLM, which must not reveal reports or patients."""

import json
from dataclasses import replace
from pathlib import Path

import yaml

from clipit.config.run import VLMConfig
from clipit.models.vlm import load_vlm
from clipit.reporting.page_note import compose_note
from clipit.reporting.vlm_card import AdaptationFacts, vlm_card

FACTS = AdaptationFacts(
    arm="text", seed=3, data="cases", tuning="lora", towers=("image", "text"), weights=82944,
    settings={"steps": 500, "learning_rate": 1e-4},
    counts={"tiles": 1200, "texts": 340, "longest": "carcinoma of Jane Doe", "by_patient": {"P-17": 3}, "ok": True},
    logit_scale=21.5,
)  # fmt: skip


def test_the_card_contains_the_base_model_and_facts() -> None:
    vlm = load_vlm(VLMConfig(name="embedded"))
    card = vlm_card(vlm, FACTS)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    for text in (
        "82,944 weights",
        "Images: 1,200",
        vlm.fingerprint,
        "Learning rate: 0.0001",
        "synthetic",
    ):
        assert text in body
    assert "Jane" not in card and "P-17" not in card and "Ok" not in body
    assert "control" not in body
    control = vlm_card(vlm, replace(FACTS, arm="images"))
    assert "is a control in a study" in control and "340" not in control, "no texts were used"


def test_the_note_on_synthetic_tiles_is_kept_after_adaptation(tmp_path: Path) -> None:
    note = compose_note("", vlms=["embedded"])
    assert compose_note("", vlms=[str(tmp_path)]) == ""
    (tmp_path / "config.json").write_text(json.dumps({"adapted_from": "embedded"}))
    assert compose_note("", vlms=[str(tmp_path)]) == note != ""
    assert "synthetic" in vlm_card(replace(load_vlm(VLMConfig(name="embedded")), name=str(tmp_path)), FACTS)


def test_a_licence_without_derivatives_allows_only_the_adapter() -> None:
    vlm = replace(load_vlm(VLMConfig(name="embedded")), name="conch")
    card = vlm_card(vlm, FACTS)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-nc-nd-4.0"
    assert "forbids derivatives" in card and "vlm.adapter" in card and "merged folder" not in card
    local = vlm_card(replace(vlm, name="/data/hospital/clip"), FACTS)
    assert "hospital" not in local and "a local model" in local
