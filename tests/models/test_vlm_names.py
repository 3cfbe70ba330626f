"""Test named VLMs with and without local files, the raw space, and truncation of texts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_keep, save_open_clip_bert

from clipit.config.run import VLMConfig
from clipit.errors import ClipitError, ConfigError, ModelError
from clipit.models import open_clip_vlm
from clipit.models.loading import hub_file
from clipit.models.vlm import VLM, load_vlm
from clipit.models.vlm_specs import VLMS

TINY_CLIP: dict[str, Any] = {"dim": 24, "raw_dim": 32, "pixels": 32, "context_length": 16}


def load(name: str, path: Path | None = None, **keys: Any) -> VLM:
    return load_vlm(VLMConfig(name=name, path=None if path is None else str(path), **keys))


def stack(vlm: VLM, pictures: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([vlm.preprocess.pixels(picture) for picture in pictures]))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_open_clip_bert(tmp_path_factory.mktemp("bert"))


def test_named_models_are_checked_against_the_table(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="dim is 24, but the table says 512") as caught:
        load("plip", clip_folder)
    assert "raw_dim is 32, but the table says 768" in str(caught.value)
    assert "context_length is 16, but the table says 77" in str(caught.value)
    monkeypatch.setitem(VLMS, "plip", replace(VLMS["plip"], expected_mpp=0.5, **TINY_CLIP))
    named, plain = load("plip", clip_folder), load(str(clip_folder))
    assert (named.name, named.expected_mpp, plain.expected_mpp) == ("plip", 0.5, None)
    assert named.fingerprint == plain.fingerprint


def test_local_files_of_a_named_model_use_its_quick_gelu(
    open_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(VLMS["clip-vit-b-32"], dim=20, raw_dim=64, pixels=32, context_length=20)
    spec = replace(spec, mean=(0.7, 0.6, 0.7), std=(0.2, 0.25, 0.2))
    monkeypatch.setitem(VLMS, "clip-vit-b-32", spec)
    quick, plain = load("clip-vit-b-32", open_clip_folder), load(str(open_clip_folder))
    kinds = [type(vlm.towers.module.visual.transformer.resblocks[0].mlp.gelu).__name__ for vlm in (quick, plain)]  # type: ignore[union-attr, index]
    assert kinds == ["QuickGELU", "GELU"]
    assert not torch.allclose(quick.encode_texts(["mucin"]), plain.encode_texts(["mucin"]), atol=1e-5)


@pytest.mark.parametrize(("architecture", "quick"), [("ViT-B-32/openai", True), ("ViT-B-32/laion2b_e16", False)])
def test_openai_weights_use_quick_gelu(architecture: str, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {}

    def record(*names: object, **keys: object) -> None:
        arguments.update(keys)
        raise RuntimeError("no weights available")

    monkeypatch.setattr("open_clip.create_model", record)
    with pytest.raises(ModelError, match="no weights available"):
        open_clip_vlm.builtin_towers(architecture)
    assert arguments.get("force_quick_gelu", False) is quick


@pytest.mark.parametrize("kind", ["clip_folder", "open_clip_folder", "bert_folder"])
def test_the_raw_space_is_the_input_of_the_projection(
    kind: str, request: pytest.FixtureRequest, pictures: list[Image.Image]
) -> None:
    vlm = load(str(request.getfixturevalue(kind)))
    pixels = stack(vlm, pictures)
    raw, joint = vlm.encode_images(pixels, space="raw"), vlm.encode_images(pixels)
    assert raw.shape == (4, vlm.raw_dim) and joint.shape == (4, vlm.joint_dim)
    assert vlm.dim("raw") == vlm.raw_dim and vlm.dim("joint") == vlm.joint_dim
    weights = dict(vlm.towers.module.named_parameters())
    projection = {
        "clip_folder": lambda: weights["visual_projection.weight"].T,
        "open_clip_folder": lambda: weights["visual.proj"],
        "bert_folder": lambda: weights["visual.head.proj.weight"].T,
    }[kind]()
    torch.testing.assert_close(raw @ projection, joint, atol=1e-5, rtol=1e-4)


def test_models_without_a_separate_projection_have_no_raw_space(
    open_clip_folder: Path, pictures: list[Image.Image]
) -> None:
    import open_clip

    resnet = open_clip.modified_resnet.ModifiedResNet((1, 1, 1, 1), 16, 4, image_size=32, width=8)
    assert open_clip_vlm._before_projection(resnet) == (None, None)
    vlm = load(str(open_clip_folder))
    vlm = replace(vlm, raw_dim=None, towers=replace(vlm.towers, raw=None, raw_dim=None))
    with pytest.raises(ModelError, match="no image features before its projection"):
        vlm.encode_images(stack(vlm, pictures), space="raw")


def test_truncated_texts_and_tokens_are_counted(clip_folder: Path, bert_folder: Path) -> None:
    for folder, budget in ((clip_folder, 16), (bert_folder, 24)):
        vlm = load(str(folder))
        texts = ["mucin", "mucin " * (budget - 2), "mucin " * budget, "mucin " * (budget + 10)]
        assert vlm.context_length == budget
        assert vlm.count_truncated(texts) == (2, 2 + 12)
        assert vlm.count_truncated([]) == (0, 0)


def test_the_text_tower_is_loaded_from_files_in_the_folder(bert_folder: Path, tmp_path: Path) -> None:
    vlm = load(str(bert_folder))  # although its configuration contains a Hub id
    assert vlm.encode_texts(["necrosis of tissue"]).shape == (1, 12)
    incomplete = Path(shutil.copytree(bert_folder, tmp_path / "bare"))
    (incomplete / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json of somebody/some-bert: copy that file into this folder"):
        load(str(incomplete))
    (incomplete / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="missing: tokeniser of somebody/some-bert"):
        load(str(incomplete))


def test_weights_of_different_shapes_are_errors(clip_folder: Path, open_clip_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(open_clip_folder, tmp_path / "open_clip"))
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 28
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="its weights do not match its configuration"):
        load(str(copy))
    copy = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    config = json.loads((copy / "config.json").read_text())
    config["projection_dim"] = 28
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"weights do not match.*text_projection\.weight.*28, 32"):
        load(str(copy))


def test_all_missing_files_are_reported_together(clip_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"missing: the weights \(.*; the tokeniser \("):
        load(str(copy))


@pytest.mark.parametrize(
    ("name", "path", "kind", "words"),
    [
        ("quiltnet-b32", None, ModelError, "similar names: quiltnet-b-32"),
        ("conch-v1.5", None, ModelError, "Only the image tower was released"),
        ("vinid/plip", None, ModelError, "similar names: plip, clip:vinid/plip"),
        ("plip", "absent", ModelError, "does not exist"),
        ("plip", "timm", ModelError, "no plip in this folder.*test_vit"),
        ("embedded", "timm", ConfigError, "vlm.path can only be used with the name of a known VLM"),
        ("plip", None, ModelError, "https://huggingface.co/vinid/plip"),
        ("clip-vit-b-32", None, ModelError, "Hub cannot be reached"),
        ("biomedclip", None, ModelError, "BiomedCLIP.*text tower"),
        ("pathgen-clip-b-16", None, ModelError, "github.com/PathFoundation.*vlm.path"),
        ("quiltnet-b-16", "timm/config.json", ModelError, "a weights file alone is not enough to build"),
        ("keep", None, ModelError, "trust_remote_code: true"),
        ("keep", "timm", ModelError, "trust_remote_code: true"),
    ],
)
def test_errors_for_names_that_cannot_be_loaded(
    name: str, path: str | None, kind: type[ClipitError], words: str, tmp_path: Path
) -> None:
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text('{"architecture": "test_vit"}')
    with pytest.raises(kind, match=f"(?s){words}"):
        load(name, None if path is None else tmp_path / path)


def test_the_error_for_a_gated_model_names_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    def refuse(*names: object, **keys: object) -> None:
        raise GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", refuse)
    with pytest.raises(ModelError, match="gated") as caught:
        load("pathgen-clip-l-14")
    assert VLMS["pathgen-clip-l-14"].page in str(caught.value) and "hf auth login" in str(caught.value)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(GatedRepoError):  # not treated as a missing file
        hub_file("somebody/something", ("a.safetensors", "b.bin"))


def test_the_first_existing_file_of_a_repository_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def only_second(hub_id: str, name: str) -> str:
        if name == "b.bin":
            return f"/cache/{name}"
        raise LocalEntryNotFoundError(name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", only_second)
    assert hub_file("somebody/something", ("a.safetensors", "b.bin")) == Path("/cache/b.bin")
    with pytest.raises(LocalEntryNotFoundError, match=r"c\.bin"):
        hub_file("somebody/something", ("a.safetensors", "c.bin"))


def test_keep_runs_its_code_if_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[Image.Image]
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "keep").mkdir()
    folder = save_keep(tmp_path / "keep")
    monkeypatch.setitem(VLMS, "keep", replace(VLMS["keep"], dim=16, raw_dim=20, pixels=32, context_length=24))
    vlm = load("keep", folder, trust_remote_code=True)
    assert (vlm.joint_dim, vlm.raw_dim, vlm.context_length, vlm.expected_mpp) == (16, 20, 24, 0.5)
    assert vlm.logit_scale == pytest.approx(np.exp(2))
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    pixels = stack(vlm, pictures)
    raw = vlm.encode_images(pixels, space="raw")
    expected = torch.nn.functional.linear(raw, weights["visual_head.weight"], weights["visual_head.bias"])
    torch.testing.assert_close(vlm.encode_images(pixels), torch.nn.functional.normalize(expected, dim=1))
    assert vlm.encode_texts(["mucin", "mucin " * 40], truncate=True).shape == (2, 16)
    assert vlm.count_truncated(["mucin " * 40]) == (1, 18)
    del weights["visual_head.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"visual_head\.weight is missing"):
        load("keep", folder, trust_remote_code=True)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="the folder of keep is incomplete"):
        load("keep", folder, trust_remote_code=True)
