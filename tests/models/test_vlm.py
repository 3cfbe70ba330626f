import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipit.config.run import VLMConfig
from clipit.errors import ModelError
from clipit.models.loading import EMBEDDED
from clipit.models.vlm import VLM, load_vlm


def load(name: object) -> VLM:
    return load_vlm(VLMConfig(name=str(name)))


def stack(vlm: VLM, pictures: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([vlm.preprocess.pixels(picture) for picture in pictures]))


def test_a_clip_folder_gives_the_embeddings_of_transformers(clip_folder: Path, pictures: list[Image.Image]) -> None:
    from transformers import CLIPModel

    vlm = load(clip_folder)
    assert (vlm.joint_dim, vlm.context_length, vlm.expected_mpp) == (24, 16, None)
    assert vlm.logit_scale == pytest.approx(np.exp(2.6592), rel=1e-4)
    texts = ["Tumour glands with necrosis.", "mucin"]
    assert vlm.count_tokens(texts) == [7, 3]
    pixels = stack(vlm, pictures)
    images, words = vlm.encode_images(pixels), vlm.encode_texts(texts)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    ids = torch.tensor(
        [[1, 4, 5, 6, 7, len(model.text_model.embeddings.token_embedding.weight) - 1, 2], [1, 9, 2, 0, 0, 0, 0]]
    )
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=vlm.preprocess.normalise(pixels), attention_mask=(ids > 0).long())
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(images, out.image_embeds), torch.ones(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(cosine(words, out.text_embeds), torch.ones(2), atol=1e-5, rtol=0)
    assert not torch.allclose(words.norm(dim=1), torch.ones(2), atol=1e-3)
    assert not words.requires_grad and not words.is_inference()


def test_an_open_clip_folder_gives_the_embeddings_of_open_clip(
    open_clip_folder: Path, pictures: list[Image.Image]
) -> None:
    import open_clip

    vlm = load(open_clip_folder)
    assert (vlm.joint_dim, vlm.context_length) == (20, 20)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{open_clip_folder}")
    model.eval()
    texts = ["Tumour glands, with necrosis; adenocarcinoma.", "mucin"]
    tokens = open_clip.get_tokenizer(f"local-dir:{open_clip_folder}")(texts)
    assert vlm.count_tokens(texts) == [int((row > 0).sum()) for row in tokens]
    assert vlm.count_tokens(["mucin " * 30]) == [2 + 30 * (vlm.count_tokens(["mucin"])[0] - 2)]
    with torch.no_grad():
        expected_images = model.encode_image(torch.stack([transform(p) for p in pictures]))
        expected_texts = model.encode_text(tokens)
    torch.testing.assert_close(vlm.encode_images(stack(vlm, pictures)), expected_images, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vlm.encode_texts(texts), expected_texts, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["clip_folder", "open_clip_folder"])
def test_token_budget_and_invalid_inputs(kind: str, request: pytest.FixtureRequest) -> None:
    vlm = load(request.getfixturevalue(kind))
    long = "tumour " * 40
    with pytest.raises(ModelError, match="more than"):
        vlm.encode_texts(["mucin", long])
    assert vlm.encode_texts(["mucin", long], truncate=True).shape == (2, vlm.joint_dim)
    assert vlm.encode_texts([]).shape == (0, vlm.joint_dim)
    assert vlm.count_tokens([]) == []
    with pytest.raises(ModelError, match="list of texts"):
        vlm.encode_texts("mucin")
    with pytest.raises(ModelError, match="list of texts"):
        vlm.count_tokens("mucin")
    with pytest.raises(ModelError, match="32 x 32"):
        vlm.encode_images(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))


def test_half_precision_gives_similar_embeddings(clip_folder: Path) -> None:
    full = load(clip_folder)
    half = load_vlm(VLMConfig(name=str(clip_folder), precision="bf16"))
    exact, rounded = full.encode_texts(["mucin"]), half.encode_texts(["mucin"])
    assert rounded.dtype == torch.float32 and full.fingerprint == half.fingerprint
    assert 0 < float((exact - rounded).abs().max()) < 0.05 * float(exact.abs().max())


def test_the_fingerprint_depends_on_the_vocabulary(clip_folder: Path, open_clip_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "clip"
    shutil.copytree(clip_folder, copy)
    file = copy / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    assert '"mucin"' in text
    file.write_text(text.replace('"mucin"', '"mucous"'), encoding="utf-8")
    assert load(copy).fingerprint != load(clip_folder).fingerprint
    assert load(open_clip_folder).towers.vocabulary


def test_the_fingerprint_depends_on_weights_and_preprocessing(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    original = load(clip_folder).fingerprint
    copy = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
    assert load(copy).fingerprint == original
    config = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**config, "image_mean": [0.5, 0.5, 0.5]}))
    changed = load(copy).fingerprint
    weights = load_file(copy / "model.safetensors")
    weights["visual_projection.weight"][0, 0] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert len({original, changed, load(copy).fingerprint}) == 3


def test_processors_saved_by_transformers_5_can_be_read(clip_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPProcessor

    copy = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
    (copy / "preprocessor_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    CLIPProcessor(AutoImageProcessor.from_pretrained(clip_folder), tokenizer).save_pretrained(copy)
    assert not (copy / "preprocessor_config.json").exists()
    model = load(copy)
    assert model.preprocess == load(clip_folder).preprocess
    save = model.towers.save
    assert save is not None
    (tmp_path / "saved").mkdir()
    save(tmp_path / "saved")
    assert load(tmp_path / "saved").fingerprint == model.fingerprint
    # The file takes precedence, as in transformers.
    (copy / "preprocessor_config.json").write_text("{}")
    assert load(copy).fingerprint == model.fingerprint
    (copy / "preprocessor_config.json").unlink()
    (copy / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    with pytest.raises(ModelError, match=r"(?s)no key image_processor.*CLIPProcessor\.save_pretrained"):
        load(copy)


def test_an_image_tower_that_returns_tokens_is_an_error(open_clip_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(open_clip_folder, tmp_path / "copy"))
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["output_tokens"] = True
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"(?s)does not return one vector of .* dimensions.*output_tokens"):
        load(copy)


def test_a_processor_for_a_different_input_size_is_an_error(clip_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
    config = json.loads((copy / "preprocessor_config.json").read_text())
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}
    (copy / "preprocessor_config.json").write_text(json.dumps(config | sizes))
    with pytest.raises(ModelError, match="sets 40 x 40 pixels"):
        load(copy)


def test_errors_for_incomplete_folders(
    clip_folder: Path, open_clip_folder: Path, timm_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"open_clip_config\.json"):
        load(tmp_path)
    with pytest.raises(ModelError, match="vit_tiny_patch16_224"):
        load(timm_folder)
    with pytest.raises(ModelError, match="nor a folder"):
        load(tmp_path / "absent")
    for name, file in [
        ("tokeniser", "tokenizer.json"),
        ("weights", "model.safetensors"),
        ("processor", "preprocessor_config.json"),
    ]:
        copy = Path(shutil.copytree(clip_folder, tmp_path / name))
        (copy / file).unlink()
        with pytest.raises(ModelError, match=f"the {name}"):
            load(copy)
    copy = Path(shutil.copytree(open_clip_folder, tmp_path / "bare"))
    (copy / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match="files are missing: weights"):
        load(copy)


def test_git_lfs_pointers_are_recognised(
    clip_folder: Path, open_clip_folder: Path, timm_folder: Path, tmp_path: Path
) -> None:
    from clipit.config.run import BackboneConfig
    from clipit.models.backbones import load_backbone

    def load_student(path: Path) -> object:
        return load_backbone(BackboneConfig(name=str(path)))

    for opener, folder, name in (
        (load, clip_folder, "model.safetensors"),
        (load, clip_folder, "tokenizer.json"),
        (load, open_clip_folder, "open_clip_model.safetensors"),
        (load_student, timm_folder, "model.safetensors"),
    ):
        copy = Path(shutil.copytree(folder, tmp_path / f"{folder.name}-{name}"))
        (copy / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 9\n")
        with pytest.raises(ModelError, match=rf"(?s)Git LFS pointer.*{re.escape(name)}.*run git lfs pull"):
            opener(copy)


def test_missing_weights_are_not_initialised_randomly(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"text_projection\.weight"):
        load(copy)


def test_unused_weights_are_errors_or_logged(
    clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    for tower in ("vision_config", "text_config"):
        shallow = {**config[tower], "num_hidden_layers": config[tower]["num_hidden_layers"] - 1}
        (copy / "config.json").write_text(json.dumps({**config, tower: shallow}))
        with pytest.raises(ModelError, match=rf"do not match a CLIP.* {tower[:4]}.* is not in the model of"):
            load(copy)
    (copy / "config.json").write_text(json.dumps(config))
    weights = load_file(copy / "model.safetensors")
    positions = {"text_model.embeddings.position_ids": torch.arange(20)[None]}
    save_file({**weights, **positions, "head.weight": torch.ones(2)}, copy / "model.safetensors", {"format": "pt"})
    load(copy)
    assert "weights that the CLIP model does not use: head.weight" in caplog.text
    update = {"vision_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 4)}
    save_file({**weights, **update}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lora_A\.default\.weight is not in the model"):
        load(copy)


def test_missing_normalisation_constants_are_logged(
    open_clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(open_clip_folder)
    assert "preprocess_cfg" not in caplog.text
    copy = Path(shutil.copytree(open_clip_folder, tmp_path / "copy"))
    written = json.loads((copy / "open_clip_config.json").read_text())
    (copy / "open_clip_config.json").write_text(json.dumps({"model_cfg": written["model_cfg"]}))
    load(copy)
    assert "preprocess_cfg contains no mean and no std; open_clip's default is used" in caplog.text


def test_position_embeddings_of_open_clip_are_not_resampled_silently(open_clip_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(open_clip_folder, tmp_path / "copy"))
    file = copy / "open_clip_config.json"
    written = json.loads(file.read_text())
    for part, key, value, sizes in (
        ("vision_cfg", "image_size", 64, r"visual.positional_embedding is \(17, 64\) in the file, but \(65, 64\)"),
        ("text_cfg", "context_length", 10, r"positional_embedding is \(20, 16\) in the file, but \(10, 16\)"),
    ):
        model = written["model_cfg"]
        changed = {**written, "model_cfg": {**model, part: {**model[part], key: value}}}
        file.write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=rf"(?s)do not fit the configuration: {sizes}.*context_length in open"):
            load(copy)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip:ViT-B-32", "laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32/random", "laion2b_s34b_b79k"),
        ("open_clip:ViT-B-23/openai", "ViT-B-32"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "Hub cannot be reached"),
        ("hf-hub:wisdomik/QuiltNet-B-32", "https://huggingface.co/wisdomik/QuiltNet-B-32"),
        ("clip:vinid/plip", "https://huggingface.co/vinid/plip"),
    ],
)
def test_names_without_local_weights_are_errors(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(name)


@pytest.mark.skipif(not (EMBEDDED / "vlm" / "config.json").is_file(), reason="the bundled VLM is missing")
def test_the_bundled_vlm() -> None:
    vlm = load("embedded")
    assert vlm.encode_texts(["adipose tissue"]).shape == (1, vlm.joint_dim)
