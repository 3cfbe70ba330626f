"""Test that code in model files runs only if it is trusted, regardless of options in these files."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from tiny_models import save_open_clip_bert

import clipit
from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig, VLMConfig
from clipit.errors import ModelError
from clipit.models.backbones import load_backbone
from clipit.models.export_classifier import export_classifier
from clipit.models.remote_code import guard_remote_code
from clipit.models.student import build_student
from clipit.models.vlm import load_vlm

_TOKENISER = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path({marker!r}).write_text("ran")


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def save_with_code(folder: Path, marker: Path, options: Mapping[str, Any], own_class: bool = True) -> Path:
    """Write an open_clip folder with a tokeniser whose Python code creates the file `marker`."""
    save_open_clip_bert(folder)
    (folder / "own.py").write_text(_TOKENISER.format(marker=str(marker)))
    rules = json.loads((folder / "tokenizer_config.json").read_text())
    rules["auto_map"] = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    if own_class:
        rules["tokenizer_class"] = "OwnTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(rules))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = dict(options)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_options_that_run_code_are_errors(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    name = str(save_with_code(folder, marker, {"trust_remote_code": True}))
    with pytest.raises(ModelError, match=r"(?s)may run code: trust_remote_code.*vlm\.trust_remote_code: true"):
        load_vlm(VLMConfig(name=name))
    assert not marker.exists()
    assert load_vlm(VLMConfig(name=name, trust_remote_code=True)).count_tokens(["mucin"]) == [3]
    assert marker.exists()


@pytest.mark.parametrize("options", [{}, {"tokenizer_type": "bert"}, {"code_revision": "main"}, {"gguf_file": "x"}])
def test_there_is_no_prompt_on_the_terminal_and_other_options_are_errors(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Mapping[str, Any]
) -> None:
    marker = tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    name = str(save_with_code(folder, marker, options))
    with pytest.raises(ModelError, match="may run code") if options else nullcontext():
        load_vlm(VLMConfig(name=name))
    assert not marker.exists()


def test_harmless_options_are_passed_on(folder: Path) -> None:
    save_open_clip_bert(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert load_vlm(VLMConfig(name=str(folder))).count_tokens(["Mucin."]) == [3]


def test_cached_hub_models_are_checked_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, marker = tmp_path / "hub", tmp_path / "ran"
    snapshot = cache / "models--somebody--clip" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "models--somebody--clip" / "refs").mkdir()
    (cache / "models--somebody--clip" / "refs" / "main").write_text("0" * 40)
    save_with_code(snapshot, marker, {"trust_remote_code": True})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    with pytest.raises(ModelError, match="may run code: trust_remote_code"):
        load_vlm(VLMConfig(name="hf-hub:somebody/clip"))
    assert not marker.exists()


def test_kernels_and_modules_are_blocked_for_all_callers() -> None:
    from transformers import dynamic_module_utils
    from transformers.integrations import hub_kernels

    with guard_remote_code(False, "trust it"):
        with pytest.raises(ModelError, match=r"(?s)not trusted.*somebody/kernel.*trust it"):
            hub_kernels.get_kernel("somebody/kernel")
        with pytest.raises(ModelError, match="not trusted"):
            dynamic_module_utils.get_class_in_module("Own", "own.py")
    with guard_remote_code(True, ""):
        assert dynamic_module_utils.get_class_in_module.__module__ == "transformers.dynamic_module_utils"


def test_a_vlm_named_only_in_a_classifier_file_is_not_loaded(
    tmp_path: Path, timm_folder: Path, clip_folder: Path, pictures: list[Image.Image], folder: Path
) -> None:
    """Only the bundled VLM, those of the table, and those passed by the caller are loaded."""
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=str(timm_folder)))
    student = build_student(backbone, StudentConfig(), LoraConfig(rank=2), "lora", n_classes=2, joint_dim=24)
    info = load_vlm(VLMConfig(name=str(clip_folder))).describe()
    texts = {"a": "mucin", "b": "stroma"}
    export_classifier(student, backbone, tmp_path / "c", classes=("a", "b"), vlm_info=info)
    with pytest.raises(ModelError, match=r"(?s)is not loaded.*load_classifier\(\.\.\., vlm="):
        clipit.load_classifier(tmp_path / "c", "cpu").zero_shot(pictures, texts)
    classifier = clipit.load_classifier(tmp_path / "c", "cpu", vlm=str(clip_folder))
    assert classifier.zero_shot(pictures, texts).shape == (4, 2)
    config = VLMConfig(name=str(clip_folder))
    assert clipit.load_classifier(tmp_path / "c", "cpu", vlm=config).zero_shot(pictures, texts).shape == (4, 2)

    marker = tmp_path / "ran"
    untrusted = save_with_code(folder, marker, {"trust_remote_code": True})
    export_classifier(student, backbone, tmp_path / "d", classes=("a", "b"), vlm_info={**info, "name": str(untrusted)})
    with pytest.raises(ModelError, match="is not loaded"):
        clipit.load_classifier(tmp_path / "d", "cpu").zero_shot(pictures, texts)
    export_classifier(student, backbone, tmp_path / "e", classes=("a", "b"), vlm_info={**info, "name": "plip"})
    with pytest.raises(ModelError, match="vinid/plip"):  # loading is attempted for VLMs of the table
        clipit.load_classifier(tmp_path / "e", "cpu").zero_shot(pictures, texts)
    assert not marker.exists()


def test_commands_pass_on_trust_settings_of_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from clipit.config.load import validate
    from clipit.runs.predict_tiles import open_classifier

    arguments: dict[str, Any] = {}

    def load(*_: object, **keys: Any) -> Any:
        arguments.update(keys)
        return SimpleNamespace(spec=SimpleNamespace(provenance={}))

    monkeypatch.setattr("clipit.models.inference.load_classifier", load)
    vlm = {"name": "keep", "path": "/models/keep", "trust_remote_code": True}
    config = validate(
        {"tiles": {"source": "table", "path": "x"}, "vlm": vlm, "backbone": {"trust_remote_code": True}}, "test"
    )
    open_classifier(config, tmp_path)
    assert arguments == {"vlm": VLMConfig(**vlm), "trust_remote_code": True}
