"""Test VLM folders: incomplete tokeniser files, other model families, and the GELU option."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_keep, save_open_clip_bert

from clipit.config.run import VLMConfig
from clipit.errors import ConfigError, ModelError
from clipit.models.vlm import VLM, load_vlm


def load(name: str, **keys: Any) -> VLM:
    return load_vlm(VLMConfig(name=name, **keys))


def copy_folder(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_a_missing_tokeniser_configuration_is_an_error(clip_folder: Path, tmp_path: Path) -> None:
    clip = copy_folder(clip_folder, tmp_path / "clip")
    (tmp_path / "bert").mkdir()
    bert = save_open_clip_bert(tmp_path / "bert")
    for folder in (clip, bert):
        assert load(str(folder)).count_tokens(["mucin"]) == [3]
        (folder / "tokenizer_config.json").unlink()
        with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
            load(str(folder))


def test_a_tokeniser_that_fails_is_an_error(clip_folder: Path, tmp_path: Path) -> None:
    folder = copy_folder(clip_folder, tmp_path / "clip")
    rules = json.loads((folder / "tokenizer_config.json").read_text())
    del rules["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(rules))
    with pytest.raises(ModelError, match=r"(?s)model .*tokeniser files may be incomplete"):
        load(str(folder))


def test_a_folder_of_another_model_family_is_not_loaded_as_keep(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"not keep: .*auto_map.*model type is clip"):
        load("keep", path=str(clip_folder), trust_remote_code=True)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "keep").mkdir()
    folder = save_keep(tmp_path / "keep")
    code = (folder / "modeling_keep.py").read_text()
    (folder / "modeling_keep.py").write_text(code.replace("encode_text", "encode_words"))
    with pytest.raises(ModelError, match="not keep: KeepModel has no encode_text"):
        load("keep", path=str(folder), trust_remote_code=True)


def test_the_quick_gelu_option(open_clip_folder: Path, tmp_path: Path) -> None:
    name = str(open_clip_folder)
    plain, quick = load(name), load(name, quick_gelu=True)
    assert load(name, quick_gelu=False).fingerprint == plain.fingerprint != quick.fingerprint
    gelu = plain.towers.module.transformer.resblocks[0].mlp.gelu  # type: ignore[union-attr, index]
    quick_gelu = quick.towers.module.transformer.resblocks[0].mlp.gelu  # type: ignore[union-attr, index]
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(gelu(x), x * torch.special.ndtr(x))
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    assert (plain.describe()["quick_gelu"], quick.describe()["quick_gelu"]) == (None, True)
    folder = copy_folder(open_clip_folder, tmp_path / "quick")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert load(str(folder)).fingerprint == quick.fingerprint
    assert load(str(folder), quick_gelu=False).fingerprint == plain.fingerprint


def test_the_quick_gelu_option_is_an_error_for_other_families(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (str(clip_folder), "plip", "conch", "clip:vinid/plip"):
        with pytest.raises(ConfigError, match=r"vlm\.quick_gelu applies only to models that open_clip loads"):
            load(name, quick_gelu=False)


def test_prefixes_before_a_local_folder(open_clip_folder: Path, clip_folder: Path) -> None:
    assert load(f"hf-hub:{open_clip_folder}").fingerprint == load(str(open_clip_folder)).fingerprint
    assert load(f"hf-hub:{clip_folder}").source == load(f"clip:{clip_folder}").source == str(clip_folder)


def test_the_description_of_a_named_model_contains_its_note(
    open_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from clipit.models.vlm_specs import VLMS

    spec = VLMS["quiltnet-b-32"]
    tiny = replace(spec, dim=20, raw_dim=64, pixels=32, context_length=20, mean=(0.7, 0.6, 0.7), std=(0.2, 0.25, 0.2))
    monkeypatch.setitem(VLMS, spec.name, tiny)
    assert "quick GELU" in load(spec.name, path=str(open_clip_folder)).describe()["note"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("highest_pad", [False, True])
@pytest.mark.parametrize("end", [2, 3])
def test_text_embeddings_do_not_depend_on_the_batch(
    clip_folder: Path, tmp_path: Path, side: str, highest_pad: bool, end: int
) -> None:
    """Test both padding sides, padding ids above the end token, and both rules that locate the end token."""
    folder = copy_folder(clip_folder, tmp_path / "clip")
    rules = json.loads((folder / "tokenizer_config.json").read_text()) | {"padding_side": side}
    if highest_pad:
        rules["pad_token"] = "grade"  # the second highest id
    (folder / "tokenizer_config.json").write_text(json.dumps(rules))
    if end != 2:  # transformers searches for this id; if it is 2, the token with the highest id ends the text
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["eos_token_id"] = end
        (folder / "config.json").write_text(json.dumps(config))
        text = (folder / "tokenizer.json").read_text()
        tokeniser = json.loads(text)
        tokeniser["post_processor"]["special_tokens"]["</s>"]["ids"] = [end]
        (folder / "tokenizer.json").write_text(json.dumps(tokeniser))
    vlm = load(str(folder))
    single = vlm.encode_texts(["mucin"])
    in_batch = vlm.encode_texts(["mucin", "tumour glands with necrosis and lymphocytes"])[:1]
    torch.testing.assert_close(single, in_batch, atol=1e-6, rtol=1e-5)


def test_tokenisers_without_a_mask_by_default_are_supported(clip_folder: Path, tmp_path: Path) -> None:
    folder = copy_folder(clip_folder, tmp_path / "clip")
    rules = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_input_names": ["input_ids"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(rules))
    texts = ["mucin", "tumour glands with necrosis"]
    torch.testing.assert_close(load(str(folder)).encode_texts(texts), load(str(clip_folder)).encode_texts(texts))


def test_embeddings_that_depend_on_the_batch_are_an_error(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipit.models import clip_vlm

    def tokenise_with_left_padding(tokenizer: Any, context_length: int) -> Any:
        def tokenise(texts: Any) -> Any:
            tokenizer.padding_side = "left"
            return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=16, return_tensors="pt"))

        return tokenise

    monkeypatch.setattr(clip_vlm, "transformers_tokenise", tokenise_with_left_padding)
    with pytest.raises(ModelError, match="depends on the other texts in its batch"):
        load(str(clip_folder))


@pytest.mark.parametrize("end", [1, 49407])  # the begin token, and an id outside the vocabulary
def test_a_text_tower_that_finds_no_end_token_is_an_error(clip_folder: Path, tmp_path: Path, end: int) -> None:
    folder = copy_folder(clip_folder, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = end
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="different texts have the same embedding"):
        load(str(folder))


def test_a_token_without_an_embedding_is_an_error(clip_folder: Path, tmp_path: Path) -> None:
    folder = copy_folder(clip_folder, tmp_path / "clip")
    rules = json.loads((folder / "tokenizer.json").read_text())
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    rules["added_tokens"].append({"id": len(rules["model"]["vocab"]), "content": "xyzzy", **added})
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    vlm = load(str(folder))
    assert vlm.encode_texts(["mucin"]).shape == (1, vlm.joint_dim)
    with pytest.raises(ModelError, match="has no embedding"):
        vlm.encode_texts(["mucin xyzzy"])
