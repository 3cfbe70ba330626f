"""Test exported VLMs: merged folders opened in the original library, and adapters added to the VLM."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from tiny_models import save_keep, save_open_clip_bert
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from clipit.config.run import LoraConfig, VLMConfig
from clipit.errors import ArtifactError, ConfigError, ModelError
from clipit.models.adapted_base import base_of_adapted
from clipit.models.adapted_towers import AdaptedTowers, Tuning, adapt_towers
from clipit.models.licences import ModelLicence
from clipit.models.loading import public_name
from clipit.models.vlm import VLM, load_vlm
from clipit.models.vlm_adapter import RECORD
from clipit.models.vlm_export import ExportedVLM, adapted_vlm, check_adaptable, export_vlm
from clipit.models.vlm_specs import VLMS
from clipit.output_files.artifacts import write_record

TEXTS = ["a tumour with mucin", "normal mucosa", "necrosis and a gland of grade"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_open_clip_bert(tmp_path_factory.mktemp("bert"))


def adapt_and_export(config: VLMConfig, folder: Path, tuning: Tuning = "lora") -> tuple[ExportedVLM, AdaptedTowers]:
    torch.manual_seed(0)
    vlm = load_vlm(config)
    adapted = adapt_towers(vlm.towers, tuning, ("image", "text"), LoraConfig(rank=2, alpha=4), True)
    for weight in adapted.trainable().values():
        weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    return export_vlm(vlm, config, adapted, folder, "A card."), adapted


def pixels_of(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_all_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for actual_value, expected_value in zip(actual, expected, strict=True):
        torch.testing.assert_close(actual_value, expected_value, atol=1e-5, rtol=1e-5)


def embeddings_of(towers: Any, size: int) -> list[Tensor]:
    inner = towers.towers if isinstance(towers, AdaptedTowers | VLM) else towers
    with torch.no_grad():
        return [inner.image(pixels_of(size)), inner.text(inner.tokenise(TEXTS))]


def test_open_clip_can_open_the_merged_folder(open_clip_folder: Path, tmp_path: Path) -> None:
    written, adapted = adapt_and_export(VLMConfig(name=str(open_clip_folder)), tmp_path)
    assert written.merged is not None
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{written.merged}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{written.merged}")
    model.eval()
    with torch.no_grad():
        assert_all_close(
            [model.encode_image(pixels_of(32)), model.encode_text(tokenizer(TEXTS))], embeddings_of(adapted, 32)
        )
    assert transform.transforms[-1].mean == pytest.approx((0.7, 0.6, 0.7))
    assert float(model.logit_scale.detach()) == pytest.approx(float(adapted.logit_scale.detach()))
    added = load_vlm(VLMConfig(name=str(open_clip_folder), adapter=str(written.adapter)))
    assert added.fingerprint == written.fingerprint  # the VLM with the adapter is equivalent


def test_open_clip_can_open_a_merged_folder_with_a_transformers_text_tower(bert_folder: Path, tmp_path: Path) -> None:
    written, adapted = adapt_and_export(VLMConfig(name=str(bert_folder)), tmp_path)
    assert written.merged is not None
    model_config = json.loads((written.merged / "open_clip_config.json").read_text())["model_cfg"]
    assert model_config["text_cfg"]["hf_model_name"] == "somebody/some-bert"  # unchanged id on the Hub
    text = {**model_config["text_cfg"], "hf_model_name": str(written.merged)}
    model = open_clip.create_model(f"local-dir:{written.merged}", text_cfg=text).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{written.merged}")(TEXTS)
    with torch.no_grad():
        assert_all_close([model.encode_image(pixels_of(160)), model.encode_text(tokens)], embeddings_of(adapted, 160))


@pytest.mark.parametrize("name", ["clip_folder", "embedded"])
def test_transformers_can_open_the_merged_folder(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = name if name == "embedded" else str(request.getfixturevalue(name))
    written, adapted = adapt_and_export(VLMConfig(name=source), tmp_path)
    assert written.merged is not None
    size = adapted.towers.preprocess.size
    model = CLIPModel.from_pretrained(written.merged)
    tokens = AutoTokenizer.from_pretrained(written.merged)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = [model.get_image_features(pixel_values=pixels_of(size)), model.get_text_features(**tokens)]
    assert_all_close(
        [output if isinstance(output, Tensor) else output.pooler_output for output in outputs],
        embeddings_of(adapted, size),
    )
    assert load_vlm(written.config).expected_mpp == load_vlm(VLMConfig(name=source)).expected_mpp
    assert base_of_adapted(written.config.name) == public_name(source)
    assert (written.merged / "README.md").read_text() == "A card."


@pytest.mark.parametrize(("family", "tuning"), [("bert_folder", "projection"), ("clip_folder", "full")])
def test_a_vlm_with_the_adapter_matches_the_merged_vlm(
    family: str, tuning: Tuning, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = VLMConfig(name=str(request.getfixturevalue(family)))
    written, _ = adapt_and_export(config, tmp_path, tuning)
    torch.manual_seed(5)
    base, drawn = load_vlm(config), torch.rand(1)
    torch.manual_seed(5)
    added = load_vlm(config.model_copy(update={"adapter": str(written.adapter)}))
    assert torch.rand(1) == drawn  # loading an adapter should not change the random state
    merged = load_vlm(adapted_vlm(config, tmp_path))
    size = merged.preprocess.size
    assert_all_close(embeddings_of(added, size), embeddings_of(merged, size))
    assert added.fingerprint == merged.fingerprint == written.fingerprint != base.fingerprint
    assert added.logit_scale == pytest.approx(merged.logit_scale)
    assert added.describe()["adapter"]["tuning"] == tuning and "adapter" not in merged.describe()


def test_adapters_of_other_vlms_and_damaged_ones_are_errors(
    clip_folder: Path, open_clip_folder: Path, tmp_path: Path
) -> None:
    config = VLMConfig(name=str(clip_folder))
    adapter = adapt_and_export(config, tmp_path)[0].adapter

    def assert_error(words: str, folder: Path = adapter, name: Path = clip_folder) -> None:
        with pytest.raises(ModelError, match=words):
            load_vlm(VLMConfig(name=str(name), adapter=str(folder)))

    assert_error(r"(?s)belongs to a different VLM: local .*set vlm\.name", name=open_clip_folder)
    assert_error(r"vlm.adapter does not exist(?s:.*); /.* contains ", tmp_path / "none")
    assert_error(f"no adapter in this folder: {RECORD} is missing", clip_folder)
    for name, change in (("adapter_model.safetensors", b"x"), ("weights.safetensors", b""), (RECORD, b"{}")):
        broken = shutil.copytree(adapter, tmp_path / f"broken-{name}")
        (broken / name).write_bytes((broken / name).read_bytes()[:-20] + change)
        assert_error("damaged", broken)
    (broken / RECORD).unlink()
    shutil.copyfile(adapter / RECORD, broken / RECORD)
    (broken / "weights.safetensors").unlink()
    assert_error("missing: weights.safetensors", broken)


def test_an_adapter_in_the_folder_of_a_different_run_is_an_error(clip_folder: Path, tmp_path: Path) -> None:
    config = VLMConfig(name=str(clip_folder))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name / "run.json", {"fingerprint": name})
    adapter = adapt_and_export(config, tmp_path / "a")[0].adapter
    separate, other = (shutil.copytree(adapter, tmp_path / parent / adapter.name) for parent in ("alone", "b"))
    for folder in (adapter, separate):
        load_vlm(config.model_copy(update={"adapter": str(folder)}))
    with pytest.raises(ArtifactError, match=r"(?s)belongs to a different run: its fingerprint is a, .*adapt again"):
        load_vlm(config.model_copy(update={"adapter": str(other)}))


def test_only_an_adapter_is_written_if_the_licence_forbids_derivatives(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"(?s)forbids derivatives.*lora or projection"):
        check_adaptable(VLMConfig(name="conch"), "full")
    with caplog.at_level(logging.WARNING):
        check_adaptable(VLMConfig(name="musk"), "lora")
        check_adaptable(VLMConfig(name="hf-hub:MahmoodLab/conch"), "projection")
    assert caplog.text.count("only an adapter is written") == 2
    config = VLMConfig(name=str(clip_folder))
    forbidding = ModelLicence("VLM", "conch", "CC-BY-NC-ND-4.0")
    with monkeypatch.context() as patched:
        patched.setattr("clipit.models.vlm_export.vlm_licence", lambda name: forbidding)
        written, adapted = adapt_and_export(config, tmp_path)
    assert written.merged is None and "forbids derivatives" in written.reason and not (tmp_path / "vlm").exists()
    assert written.config == adapted_vlm(config, tmp_path)
    assert_all_close(embeddings_of(load_vlm(written.config), 32), embeddings_of(adapted, 32))


def test_a_changed_file_of_a_merged_folder_is_an_error(clip_folder: Path, tmp_path: Path) -> None:
    written, adapted = adapt_and_export(VLMConfig(name=str(clip_folder)), tmp_path)
    assert written.merged is not None
    (written.merged / "README.md").write_text("another card", encoding="utf-8")
    assert_all_close(embeddings_of(load_vlm(written.config), 32), embeddings_of(adapted, 32))
    weights, record = written.merged / "model.safetensors", written.merged / "clipit_files.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(ModelError, match=r"missing or have changed: model\.safetensors[\s\S]*copy the folder again"):
        load_vlm(written.config)
    weights.write_bytes(content)
    for damaged in ('{"files": 3}', "[]", "{"):
        record.write_text(damaged, encoding="utf-8")
        with pytest.raises(ModelError, match="the list of file hashes is damaged"):
            load_vlm(written.config)
    record.unlink()  # changed on purpose, or written by an earlier version
    assert_all_close(embeddings_of(load_vlm(written.config), 32), embeddings_of(adapted, 32))


def test_a_second_adaptation_requires_that_the_first_can_be_merged(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers = load_vlm(VLMConfig(name=str(clip_folder))).towers
    python_vlm = VLMConfig(name="python:hospital.models:towers", adapter="adapter")
    monkeypatch.setattr("clipit.models.vlm_export.python_towers", lambda path: replace(towers, save=None))
    for config in (python_vlm, VLMConfig(name="conch", adapter="adapter")):
        with pytest.raises(ConfigError, match=r"(?s)already has an adapter.*remove vlm\.adapter"):
            check_adaptable(config, "lora")
    check_adaptable(python_vlm.model_copy(update={"adapter": None}), "lora")
    monkeypatch.setattr("clipit.models.vlm_export.python_towers", lambda path: towers)
    check_adaptable(python_vlm, "lora")


def test_a_merged_folder_that_gives_different_embeddings_is_deleted(clip_folder: Path, tmp_path: Path) -> None:
    config = VLMConfig(name=str(clip_folder))
    vlm = load_vlm(config)
    save = vlm.towers.save
    assert save is not None

    def save_wrongly(folder: Path) -> None:
        save(folder)
        values = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps({**values, "image_mean": [0.1, 0.1, 0.1]}))

    towers = replace(vlm.towers, save=save_wrongly)
    adapted = adapt_towers(towers, "projection", ("image", "text"), LoraConfig(), True)
    with pytest.raises(ModelError, match=r"(?s)differ when it is read again.*vlm\.adapter"):
        export_vlm(vlm, config, adapted, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_merged_keep_contains_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setitem(VLMS, "keep", replace(VLMS["keep"], dim=16, raw_dim=20, pixels=32, context_length=24))
    (tmp_path / "keep_written").mkdir()
    config = VLMConfig(name="keep", path=str(save_keep(tmp_path / "keep_written")), trust_remote_code=True)
    written, adapted = adapt_and_export(config, tmp_path / "out")
    assert written.merged is not None and written.config.path == str(written.merged)
    assert_all_close(embeddings_of(load_vlm(written.config), 32), embeddings_of(adapted, 32))
