"""Test CONCH and MUSK against their packages, and the errors if these are not installed."""

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CONCH, save_conch

from clipit.config.run import LoraConfig, VLMConfig
from clipit.errors import ModelError
from clipit.models.adapted_towers import Tuning, adapt_towers
from clipit.models.conch_vlm import conch_tokenizer, token_ids
from clipit.models.loading import optional_module
from clipit.models.towers import Towers
from clipit.models.vlm import VLM, load_vlm
from clipit.models.vlm_export import export_vlm
from clipit.models.vlm_sources import check_vlm_name
from clipit.models.vlm_specs import VLMS

needs_conch = pytest.mark.skipif(importlib.util.find_spec("conch") is None, reason="the package conch is not installed")
needs_musk = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("musk", "fairscale", "einops", "sentencepiece")),
    reason="the package musk or one of its dependencies is not installed",
)
LONG = "well differentiated adenocarcinoma of the colon " * 40


def load(name: str, path: Path | None = None) -> VLM:
    return load_vlm(VLMConfig(name=name, path=None if path is None else str(path)))


@pytest.mark.parametrize(
    ("name", "package", "address"),
    [("conch", "conch", "git+https://github.com/mahmoodlab/CONCH.git"),
     ("musk", "musk", "git+https://github.com/lilab-stanford/MUSK.git")],
)  # fmt: skip
def test_a_missing_package_is_an_error(name: str, package: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None if module == package else find(module))
    with pytest.raises(ModelError, match="not installed") as caught:
        load(name)
    assert address in str(caught.value) and VLMS[name].page in str(caught.value)
    with pytest.raises(ModelError, match="not installed"):  # before any data is read
        check_vlm_name(VLMConfig(name=name))


@pytest.fixture
def conch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    spec = replace(VLMS["conch"], dim=16, raw_dim=16, pixels=32, loader={"config": CONCH})
    monkeypatch.setitem(VLMS, "conch", spec)
    return save_conch(tmp_path, CONCH)


@needs_conch
def test_conch_gives_the_embeddings_of_its_package(conch_folder: Path, pictures: list[Image.Image]) -> None:
    factory = optional_module("conch.open_clip_custom")
    file = conch_folder / "pytorch_model.bin"
    model, transform = factory.create_model_from_pretrained(copy.deepcopy(CONCH), str(file))
    model.eval()
    vlm = load("conch", conch_folder)
    assert (vlm.joint_dim, vlm.raw_dim, vlm.context_length, vlm.expected_mpp) == (16, 16, 127, 0.5)
    assert load("conch", file).fingerprint == vlm.fingerprint
    pixels = torch.from_numpy(np.stack([vlm.preprocess.pixels(picture) for picture in pictures]))
    expected_pixels = torch.stack([transform(picture) for picture in pictures])
    torch.testing.assert_close(vlm.preprocess.normalise(pixels), expected_pixels, atol=1e-5, rtol=0)
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        joint = model.encode_image(expected_pixels, proj_contrast=True, normalize=True)
        raw = model.encode_image(expected_pixels, proj_contrast=False, normalize=False)
        texts = model.encode_text(token_ids(conch_tokenizer(), ["adenocarcinoma", LONG], 128), normalize=True)
    torch.testing.assert_close(unit(vlm.encode_images(pixels), dim=1), joint, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vlm.encode_images(pixels, space="raw"), raw, atol=1e-5, rtol=1e-4)
    embeddings = vlm.encode_texts(["adenocarcinoma", LONG], truncate=True)
    torch.testing.assert_close(unit(embeddings, dim=1), texts, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-3)


@needs_conch
def test_token_counts_of_conch(conch_folder: Path) -> None:
    vlm = load("conch", conch_folder)
    tokenizer = conch_tokenizer()
    ids = token_ids(tokenizer, ["adenocarcinoma", LONG], 128)
    assert ids.shape == (2, 128) and ids[:, -1].tolist() == [tokenizer.pad_token_id] * 2
    assert ids[1, 0] == tokenizer.bos_token_id and ids[1, 126] == tokenizer.eos_token_id
    count = int((ids[0] != tokenizer.pad_token_id).sum())
    assert vlm.count_tokens(["adenocarcinoma"]) == [count]
    assert vlm.count_truncated(["adenocarcinoma", LONG]) == (1, vlm.count_tokens([LONG])[0] - 127)
    with pytest.raises(ModelError, match="more than 127 tokens"):
        vlm.encode_texts([LONG])


@needs_conch
def test_incomplete_or_different_conch_files_are_errors(conch_folder: Path, tmp_path: Path) -> None:
    file = conch_folder / "pytorch_model.bin"
    weights = torch.load(file, weights_only=True)
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "wrapped.pt")
    assert load("conch", tmp_path / "wrapped.pt").fingerprint == load("conch", file).fingerprint
    incomplete = {name: value for name, value in weights.items() if name != "visual.proj_contrast"}
    torch.save(incomplete, tmp_path / "lacking.pt")
    with pytest.raises(ModelError, match=r"visual\.proj_contrast is missing"):
        load("conch", tmp_path / "lacking.pt")
    torch.save({**weights, "text.ln_final.weight": torch.zeros(5)}, tmp_path / "shapes.pt")
    with pytest.raises(ModelError, match="weights do not match its configuration"):
        load("conch", tmp_path / "shapes.pt")
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match=r"no file pytorch_model\.bin of conch"):
        load("conch", tmp_path / "other")


@needs_conch
def test_the_published_conch_matches_the_table() -> None:
    from clipit.models.conch_vlm import _config

    config = _config(VLMS["conch"].loader["config"])
    with torch.device("meta"):
        model = optional_module("conch.open_clip_custom.coca_model").CoCa(**config)
    spec = VLMS["conch"]
    assert model.visual.proj_contrast.shape == (spec.raw_dim, spec.dim)
    assert (model.visual.image_size[0], model.context_length - 1) == (spec.pixels, spec.context_length)
    assert len(conch_tokenizer()) == config["text_cfg"]["vocab_size"]


@pytest.fixture
def musk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Build a small model with the package, and write its weights to `tmp_path`."""
    from safetensors.torch import save_file
    from timm.models import register_model

    modeling = optional_module("musk.modeling")
    sizes = {"img_size": 32, "patch_size": 16, "vocab_size": 64010, "multiway": True, "layernorm_embedding": False,
             "normalize_output": True, "no_output_layer": True, "encoder_embed_dim": 16, "encoder_attention_heads": 2,
             "encoder_ffn_embed_dim": 32, "encoder_layers": 1}  # fmt: skip

    def musk_tiny(pretrained: bool = False, **keys: object) -> torch.nn.Module:
        return modeling.MUSK(modeling.EncoderConfig(**sizes))

    musk_tiny.__module__ = modeling.__name__
    register_model(musk_tiny)
    torch.manual_seed(0)
    model = musk_tiny().eval()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    spec = replace(VLMS["musk"], dim=16, raw_dim=16, pixels=32, loader={"architecture": "musk_tiny"})
    monkeypatch.setitem(VLMS, "musk", spec)
    return model


@needs_musk
def test_musk_gives_the_embeddings_of_its_package(
    tmp_path: Path, musk: torch.nn.Module, pictures: list[Image.Image]
) -> None:
    model, vlm = musk, load("musk", tmp_path)
    assert (vlm.joint_dim, vlm.raw_dim, vlm.context_length) == (16, 16, 100)
    pixels = torch.from_numpy(np.stack([vlm.preprocess.pixels(picture) for picture in pictures]))
    with torch.no_grad():
        joint = model(image=vlm.preprocess.normalise(pixels), with_head=True, out_norm=True)[0]
        raw = model(image=vlm.preprocess.normalise(pixels), with_head=False, out_norm=False)[0]
    torch.testing.assert_close(torch.nn.functional.normalize(vlm.encode_images(pixels), dim=1), joint)
    torch.testing.assert_close(vlm.encode_images(pixels, space="raw"), raw)
    tokens = vlm.towers.tokenise(["adenocarcinoma", LONG])
    assert tokens["text"].shape == tokens["padding"].shape == (2, 100)
    assert tokens["text"][:, 0].tolist() == [0, 0] and tokens["text"][1, 99] == 2 and tokens["text"][0, -1] == 1
    counts = vlm.count_tokens(["adenocarcinoma", LONG])
    assert tokens["padding"].sum(dim=1).tolist() == [100 - counts[0], 0] and counts[1] > 100
    assert vlm.encode_texts(["adenocarcinoma"]).shape == (1, 16)
    assert 0 < vlm.image_parameters < sum(p.numel() for p in model.parameters()) / 2


@needs_conch
@pytest.mark.parametrize("tuning", ["lora", "projection"])
def test_an_adapter_of_conch_can_be_written_and_loaded(conch_folder: Path, tuning: Tuning) -> None:
    check_adapter(VLMConfig(name="conch", path=str(conch_folder)), conch_folder, tuning)


@needs_musk
@pytest.mark.usefixtures("musk")
@pytest.mark.parametrize("tuning", ["lora", "projection"])
def test_an_adapter_of_musk_can_be_written_and_loaded(tmp_path: Path, tuning: Tuning) -> None:
    check_adapter(VLMConfig(name="musk", path=str(tmp_path)), tmp_path, tuning)


def check_adapter(config: VLMConfig, folder: Path, tuning: Tuning) -> None:
    """Check that both towers are adapted, and that only an adapter is written that gives equal embeddings."""
    vlm = load_vlm(config)
    pixels = torch.randn(2, 3, vlm.preprocess.size, vlm.preprocess.size)

    def embed(towers: Towers) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return towers.image(pixels), towers.text(towers.tokenise(["mucin", LONG]))

    before = embed(vlm.towers)
    adapted = adapt_towers(vlm.towers, tuning, ("image", "text"), LoraConfig(rank=2), True)
    for weight in adapted.trainable().values():
        weight.data += torch.randn_like(weight) * 0.05
    expected = embed(vlm.towers)
    assert all((embedding - other).abs().max() > 1e-3 for embedding, other in zip(expected, before, strict=True))
    written = export_vlm(vlm, config, adapted, folder / "adapted")
    assert written.merged is None
    torch.testing.assert_close(embed(load_vlm(written.config).towers), expected, atol=1e-5, rtol=1e-5)
