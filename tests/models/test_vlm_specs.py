"""Test the table of VLMs against facts that are known without their weights."""

import open_clip
import pytest
import timm
import torch

from clipit.errors import ModelError
from clipit.models.backbone_specs import BACKBONES
from clipit.models.specs import COLUMNS, LICENCE_NOTE, check_spec, similar_models, spec_rows, spec_table
from clipit.models.vlm_specs import VLMS

BUILT_IN = ("clip-vit-b-32", "clip-vit-l-14", "pathgen-clip-b-16")
"""Architectures that are defined in open_clip. The configurations of QuiltNet, BiomedCLIP and BioCLIP are on the Hub
and compared with the table when they are loaded."""


def test_every_entry_is_complete() -> None:
    for name, spec in VLMS.items():
        assert spec.name == name and spec.kind == "vlm"
        assert spec.page.startswith("https://")
        assert (spec.context_length is None) == (spec.family == "image_only")
        assert all(0 < value < 1 for value in (*spec.mean, *spec.std))
        assert spec.raw_dim
    assert {VLMS[name].context_length for name in ("plip", "musk", "conch", "biomedclip")} == {77, 100, 127, 256}


@pytest.mark.parametrize("name", BUILT_IN)
def test_architectures_of_open_clip_match_the_table(name: str) -> None:
    spec = VLMS[name]
    architecture, _, tag = spec.source.partition("/")
    with torch.device("meta"):
        model = open_clip.create_model(architecture, pretrained=None, device="meta")
        pixels = torch.empty(1, 3, spec.pixels, spec.pixels)
        tokens = torch.zeros(1, spec.context_length, dtype=torch.long)
        assert model.encode_image(pixels).shape == model.encode_text(tokens).shape == (1, spec.dim)
    assert model.visual.proj.shape == (spec.raw_dim, spec.dim)
    assert model.visual.image_size == (spec.pixels, spec.pixels)
    assert open_clip.get_tokenizer(architecture).context_length == spec.context_length
    preprocessing = dict(model.visual.preprocess_cfg)
    if tag:
        published = open_clip.get_pretrained_cfg(architecture, tag)
        assert published["quick_gelu"] and open_clip.get_model_config(architecture)["quick_gelu"]
        preprocessing |= published
    check_spec(spec, {key: preprocessing[key] for key in ("mean", "std", "interpolation")}, name)


@pytest.mark.parametrize(
    ("name", "trunk"),
    [("biomedclip", "vit_base_patch16_224"), ("quiltnet-b-16-pmb", "vit_base_patch16_224"),
     ("keep", "vit_large_patch16_224")],
)  # fmt: skip
def test_raw_dimensions_of_timm_trunks(name: str, trunk: str) -> None:
    with torch.device("meta"):
        assert timm.create_model(trunk, num_classes=0).num_features == VLMS[name].raw_dim


def test_differences_from_the_table_are_errors_with_both_values() -> None:
    spec = VLMS["plip"]
    check_spec(spec, {"dim": 512, "mean": (0.4814547, 0.4578275, 0.4082107), "raw_dim": 768}, "here")
    with pytest.raises(ModelError, match=r"dim is 768, but the table says 512; mean is \(0\.5") as caught:
        check_spec(spec, {"dim": 768, "mean": (0.5, 0.5, 0.5), "pixels": 224}, "here")
    assert "huggingface.co/vinid/plip" in str(caught.value) and "pixels" not in str(caught.value)


def test_the_printed_table() -> None:
    rows = spec_rows(VLMS.values())
    assert len(rows) == len(VLMS) and {len(row) for row in rows} == {len(COLUMNS)}
    assert rows[list(VLMS).index("conch")][:6] == ("conch", "conch", "MahmoodLab/conch", "512", "448", "0.5")
    text = spec_table(VLMS.values())
    assert text.splitlines()[0].split() == list(COLUMNS) and text.endswith(LICENCE_NOTE)
    assert rows[list(VLMS).index("conch")][6:8] == ("127", "-")
    assert "keep: Runs code from its repository" in text and "quiltnet-b-32, quiltnet-b-16: Its configuration" in text
    assert "titan: Embeds whole slides" in text
    backbones = spec_table(BACKBONES.values())
    assert "virchow: Class token" in backbones and "  cls_mean  " in backbones
    assert "gated: https://huggingface.co/MahmoodLab/conch" in text


def test_similar_names() -> None:
    assert similar_models("Quiltnet_B32", VLMS)[0] == "quiltnet-b-32"
    assert similar_models("resnet", VLMS) == []


def test_hub_ids_are_known_names() -> None:
    assert similar_models("MahmoodLab/UNI", BACKBONES)[0] == "uni"
    assert similar_models("hf-hub:mahmoodlab/uni2-h@main", BACKBONES)[0] == "uni2-h"
    assert similar_models("clip:vinid/plip", VLMS)[0] == "plip"
