import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image, ImageFile
from safetensors.torch import load_file
from slide_files import picture, write_ome, write_slide

import clipit
from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig, VLMConfig
from clipit.errors import ArtifactError, DataError, ModelError
from clipit.models.adapted_towers import adapt_towers
from clipit.models.backbones import Backbone, load_backbone
from clipit.models.classifier_network import parse_device, parse_dtype, require_pixels
from clipit.models.export_classifier import export_classifier
from clipit.models.inference import Classifier
from clipit.models.loading import public_name
from clipit.models.lora import check_gradients
from clipit.models.pictures import open_pictures
from clipit.models.student import Student, build_student
from clipit.models.vlm import VLM, load_vlm
from clipit.models.vlm_export import export_vlm
from clipit.prompts.prompt_set import PromptSet
from clipit.runs.tile_scorer import vlm_scorer

CLASSES = ("adipose", "mucin", "tumour")
LINEAR = StudentConfig()


@pytest.fixture(scope="module")
def vlm(clip_folder: Path) -> VLM:
    return load_vlm(VLMConfig(name=str(clip_folder)))


def perturbed_student(folder: Path | str, config: StudentConfig, tuning: str = "lora") -> tuple[Student, Backbone]:
    """Build a student with noise added to its LoRA weights and heads."""
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=str(folder), pretrained=isinstance(folder, Path)))
    student = build_student(backbone, config, LoraConfig(rank=2), tuning, n_classes=3, joint_dim=24)  # type: ignore[arg-type]
    for weight in student.parameters():
        if weight.requires_grad:
            weight.data.add_(0.1 * torch.randn_like(weight))
    return student.eval(), backbone


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def export(
    folder: Path, timm_folder: Path | str, config: StudentConfig, vlm: VLM, **more: object
) -> tuple[Student, Backbone, Classifier]:
    student, backbone = perturbed_student(timm_folder, config)
    rng = np.random.default_rng(0)
    text = {}
    if config.projector_layers:
        text = {
            "vlm_info": vlm.describe(),
            "text_mean": rng.normal(size=24).astype(np.float32) * 0.05,
            "prompts": {"tiny": (CLASSES, rng.normal(size=(3, 24)).astype(np.float32))},
        }
    export_classifier(student, backbone, folder, classes=CLASSES, **text, **more)  # type: ignore[arg-type]
    return student, backbone, clipit.load_classifier(folder, device="cpu")


def forward(
    student: Student, backbone: Backbone, pictures: list[Image.Image]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    pixels = torch.from_numpy(np.stack([backbone.preprocess.pixels(p) for p in pictures]))
    with torch.no_grad():
        output = student(backbone.preprocess.normalise(pixels))
    return output.logits, output.projected


@pytest.mark.parametrize(
    "config",
    [
        StudentConfig(projector_layers=0),
        LINEAR,
        StudentConfig(head="late_fusion", projector_layers=1),
        StudentConfig(head="late_fusion", projector_layers=2),
    ],
)
def test_an_exported_classifier_gives_the_outputs_of_the_student(
    tmp_path: Path, timm_folder: Path, vlm: VLM, pictures: list[Image.Image], config: StudentConfig
) -> None:
    student, backbone, classifier = export(tmp_path / "c", timm_folder, config, vlm)
    logits, projected = forward(student, backbone, pictures)
    probabilities = classifier.predict_proba(pictures, batch_size=3)
    np.testing.assert_allclose(probabilities, logits.double().softmax(1).numpy(), atol=1e-5)
    assert classifier.predict(pictures) == [CLASSES[i] for i in logits.argmax(1)]
    if projected is None:
        with pytest.raises(ModelError, match="without text"):
            classifier.zero_shot(pictures)
        return
    np.testing.assert_allclose(classifier.project(pictures), projected.numpy(), atol=1e-4)
    prompts = np.random.default_rng(0)
    prompts.normal(size=24)
    embeddings = prompts.normal(size=(3, 24)).astype(np.float32)
    scores = vlm.logit_scale * unit(projected.double().numpy()) @ unit(embeddings.astype(float)).T
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(classifier.zero_shot(pictures), expected, atol=1e-4)


def test_a_classifier_can_be_opened_in_timm_and_transformers(
    tmp_path: Path, timm_folder: Path, vlm: VLM, pictures: list[Image.Image]
) -> None:
    from transformers import pipeline

    student, backbone, _ = export(tmp_path / "c", timm_folder, LINEAR, vlm)
    model = timm.create_model(f"local-dir:{tmp_path / 'c'}", pretrained=True).eval()
    pixels = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), student(pixels).logits, atol=1e-4, rtol=1e-4)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg), is_training=False)
    logits, _ = forward(student, backbone, pictures)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.stack([transform(p) for p in pictures])), logits, atol=1e-4, rtol=1e-4)
    square = pictures[2]
    scores = {row["label"]: row["score"] for row in pipeline("image-classification", model=str(tmp_path / "c"))(square)}
    expected = dict(zip(CLASSES, forward(student, backbone, [square])[0].softmax(1)[0].tolist(), strict=True))
    assert scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_fully_tuned_convolutional_networks_can_be_opened_in_timm(tmp_path: Path, vlm: VLM, name: str) -> None:
    student, backbone = perturbed_student(name, LINEAR, "full")
    export_classifier(student, backbone, tmp_path / "c", classes=CLASSES, vlm_info=vlm.describe())
    model = timm.create_model(f"local-dir:{tmp_path / 'c'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, backbone.preprocess.size, backbone.preprocess.size)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), student(pixels).logits, atol=1e-3, rtol=1e-3)


def test_a_linear_head_is_stored_separately_for_other_backbones(tmp_path: Path, timm_folder: Path, vlm: VLM) -> None:
    from dataclasses import replace

    student, backbone = perturbed_student(timm_folder, LINEAR)
    export_classifier(
        student, replace(backbone, plain_head=False), tmp_path / "c", classes=CLASSES, vlm_info=vlm.describe()
    )
    assert set(load_file(tmp_path / "c" / "heads.safetensors")) == {"image_head.weight", "image_head.bias"}


def test_files_of_an_exported_classifier(tmp_path: Path, timm_folder: Path, vlm: VLM) -> None:
    import peft

    folder = tmp_path / "c"
    student, _, classifier = export(folder, timm_folder, LINEAR, vlm, provenance={"run": "x"}, mpp=0.25)
    assert {path.name for path in folder.iterdir()} == {
        "adapter", "clipit.json", "config.json", "model.safetensors", "zero_shot.safetensors",
    }  # fmt: skip
    assert set(load_file(folder / "zero_shot.safetensors")) == {
        "projector.weight",
        "projector.bias",
        "text_mean",
        "prompts.tiny",
    }
    config = json.loads((folder / "config.json").read_text())
    assert "num_classes" not in config["model_args"] and config["label_names"] == list(CLASSES)
    assert (classifier.spec.mpp, classifier.spec.provenance["run"]) == (0.25, "x")
    fresh = load_backbone(BackboneConfig(name=str(timm_folder))).module
    adapted = peft.PeftModel.from_pretrained(fresh, folder / "adapter").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(adapted(pixels), student(pixels).features)
    assert str(timm_folder) not in (folder / "adapter" / "adapter_config.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_zero_shot_with_new_prompts(tmp_path: Path, timm_folder: Path, vlm: VLM, pictures: list[Image.Image]) -> None:
    export(tmp_path / "c", timm_folder, LINEAR, vlm)
    classifier = clipit.load_classifier(tmp_path / "c", "cpu", vlm=vlm.name)
    texts = {"fat": ["adipose tissue", "an image of adipose tissue"], "slime": "mucin"}
    mean = load_file(tmp_path / "c" / "zero_shot.safetensors")["text_mean"].numpy()
    raw = {name: vlm.encode_texts([t] if isinstance(t, str) else t).numpy() for name, t in texts.items()}
    expected = np.stack([unit(unit(unit(vectors) - mean).mean(0)) for vectors in raw.values()])
    np.testing.assert_allclose(classifier.prompt_embeddings(texts), expected, atol=1e-5)
    from_texts = classifier.zero_shot(pictures, texts)
    assert from_texts.shape == (4, 2)
    arrays = {name: np.array([text] if isinstance(text, str) else text) for name, text in texts.items()}
    np.testing.assert_array_equal(classifier.zero_shot(pictures, arrays), from_texts)
    np.testing.assert_allclose(from_texts.sum(1), 1)
    np.testing.assert_allclose(classifier.zero_shot(pictures, raw), from_texts, atol=1e-5)
    np.testing.assert_allclose(classifier.zero_shot(pictures, "tiny"), classifier.zero_shot(pictures))
    with pytest.raises(ModelError, match="tiny"):
        classifier.zero_shot(pictures, "absent")
    with pytest.raises(DataError, match="24 dimensions"):
        classifier.zero_shot(pictures, {"a": np.zeros(5)})
    with pytest.raises(DataError, match=r"(?s)not a string.*prompts\['classes'\].*prompt file by its path"):
        # `__wrapped__` bypasses jaxtyping's run-time checks.
        Classifier._embed_class.__wrapped__(classifier, "classes", {"tumour": ["carcinoma"]})
    for value in (0, np.nan):
        with pytest.raises(DataError, match="zero or not finite"):
            classifier.zero_shot(pictures, {"a": np.full(classifier.joint_dim, value)})
    with pytest.raises(DataError, match="at least one text"):
        classifier.zero_shot(pictures, {"a": []})


def test_truncated_prompts_are_counted(
    tmp_path: Path, timm_folder: Path, vlm: VLM, pictures: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    export(tmp_path / "c", timm_folder, LINEAR, vlm)
    classifier = clipit.load_classifier(tmp_path / "c", "cpu", vlm=vlm.name)
    long = "mucin " * 2 * vlm.context_length
    with caplog.at_level(logging.WARNING, "clipit"):
        classifier.zero_shot(pictures[:1], {"fat": "adipose tissue", "slime": [long, "mucin"]})
        vlm_scorer(vlm, PromptSet("p", "1", (long + "{}",), {"fat": ("adipose",), "slime": ("mucin",)}))
    assert [message.split(" the ")[0] for message in caplog.messages] == [
        "1 of 2 texts exceeds",
        "2 of 2 texts exceed",
    ]


def test_a_missing_or_different_vlm_is_an_error(
    tmp_path: Path, timm_folder: Path, open_clip_folder: Path, vlm: VLM, pictures: list[Image.Image]
) -> None:
    export(tmp_path / "c", timm_folder, LINEAR, vlm)
    texts = {"fat": ["adipose"], "slime": ["mucin"]}
    without_vlm = clipit.load_classifier(tmp_path / "c", "cpu")
    assert without_vlm.zero_shot(pictures).shape == (4, 3)
    with pytest.raises(ModelError, match="vlm=NAME_OR_FOLDER"):
        without_vlm.zero_shot(pictures, texts)
    with_missing_vlm = clipit.load_classifier(tmp_path / "c", "cpu", vlm=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"(?s)gone, which cannot be loaded.*vlm=NAME_OR_FOLDER"):
        with_missing_vlm.zero_shot(pictures, texts)
    with pytest.raises(ModelError, match="is not the VLM used in training"):
        clipit.load_classifier(tmp_path / "c", "cpu", vlm=str(open_clip_folder)).zero_shot(pictures, texts)
    assert clipit.load_classifier(tmp_path / "c", "cpu", vlm=vlm.name).zero_shot(pictures, texts).shape == (4, 2)


def test_new_prompts_use_the_gelu_of_training(
    tmp_path: Path, timm_folder: Path, open_clip_folder: Path, pictures: list[Image.Image]
) -> None:
    quick = load_vlm(VLMConfig(name=str(open_clip_folder), quick_gelu=True))
    backbone = load_backbone(BackboneConfig(name=str(timm_folder)))
    student = build_student(backbone, LINEAR, LoraConfig(rank=2), "lora", n_classes=3, joint_dim=quick.joint_dim)
    student.eval()
    export_classifier(student, backbone, tmp_path / "c", classes=CLASSES, vlm_info=quick.describe())
    classifier = clipit.load_classifier(tmp_path / "c", "cpu", vlm=quick.name)
    scores = classifier.zero_shot(pictures, {"a": "mucin", "b": "stroma"})
    assert scores.shape == (4, 2)  # with a different GELU, the fingerprint would differ and be rejected


def test_new_prompts_for_a_vlm_with_an_adapter(tmp_path: Path, timm_folder: Path, pictures: list[Image.Image]) -> None:
    base = load_vlm(VLMConfig(name="embedded"))
    towers = adapt_towers(base.towers, "projection", ("text",), LoraConfig(), True)
    for weight in towers.trainable().values():
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    adapter = export_vlm(base, VLMConfig(name="embedded"), towers, tmp_path / "adapted", "A card.").adapter
    vlm = load_vlm(VLMConfig(name="embedded", adapter=str(adapter)))
    backbone = load_backbone(BackboneConfig(name=str(timm_folder)))
    student = build_student(backbone, LINEAR, LoraConfig(rank=2), "lora", n_classes=3, joint_dim=vlm.joint_dim)
    export_classifier(student.eval(), backbone, tmp_path / "c", classes=CLASSES, vlm_info=vlm.describe())
    texts = {"a": "mucin", "b": "stroma"}

    def embed(vlm: str | VLMConfig | None) -> np.ndarray:
        return clipit.load_classifier(tmp_path / "c", "cpu", vlm=vlm).prompt_embeddings(texts)

    expected = np.stack([unit(vlm.encode_texts([text]).numpy())[0] for text in texts.values()])
    np.testing.assert_allclose(embed(str(adapter)), expected, atol=1e-5)
    np.testing.assert_allclose(embed(VLMConfig(name="embedded", adapter=str(adapter))), expected, atol=1e-5)
    with pytest.raises(
        ModelError, match=r"(?s)embedded with an adapter, which is not part.*--vlm FOLDER.*of the adapter"
    ):
        embed(None)
    with pytest.raises(ModelError, match=r"(?s)embedded \(.*in training \(embedded with an adapter, .*of the adapter"):
        embed("embedded")


def test_images_may_be_paths_arrays_or_pillow_images(
    tmp_path: Path, timm_folder: Path, vlm: VLM, pictures: list[Image.Image]
) -> None:
    _, _, classifier = export(tmp_path / "c", timm_folder, LINEAR, vlm)
    picture = pictures[2]
    picture.save(tmp_path / "a.png")
    mixed = [picture, str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(picture)]
    rows = classifier.predict_proba(mixed)
    assert np.abs(rows - rows[0]).max() < 1e-6
    assert classifier.predict_proba([]).shape == (0, 3)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    for invalid, words in [
        (tmp_path / "cut.png", r"cut\.png"),
        (tmp_path / "gone.png", r"gone\.png"),
        (np.zeros((4, 4)), r"images\[1\]"),
    ]:
        with pytest.raises(DataError, match=words):
            classifier.predict([picture, invalid])
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(DataError, match=r"cut\.png"):
        classifier.predict([opened])
    with pytest.raises(DataError, match="list"):
        classifier.predict(str(tmp_path / "a.png"))  # type: ignore[arg-type]


def test_arguments_of_the_wrong_type_are_errors() -> None:
    # `__wrapped__` bypasses jaxtyping's run-time checks.
    pixels = np.zeros((2, 3, 32, 32), dtype=np.float32)
    assert require_pixels(torch.from_numpy(pixels)).shape == (2, 3, 32, 32)
    for wrong in (pixels, torch.zeros(3, 32, 32), [pixels], "a.png", None, {"pixels": pixels}):
        with pytest.raises(DataError, match=r"(?s)tensor of normalised pixels of shape \[images, 3, .*predict_proba"):
            require_pixels.__wrapped__(wrong)
    for value in ({}, [], pixels, 1.5):
        with pytest.raises(ModelError, match="device must be a name, not"):
            parse_device.__wrapped__(value)
        with pytest.raises(ModelError, match="unsupported data type"):
            parse_dtype.__wrapped__(value)


def test_series_and_iterators_are_read_in_order(pictures: list[Image.Image]) -> None:
    for images in (pd.Series(pictures[:3], index=[2, 0, 1]), iter(pictures[:3])):
        count, read = open_pictures(images)
        assert count == 3
        assert [read(row).tobytes() for row in range(3)] == [p.convert("RGB").tobytes() for p in pictures[:3]]


def test_images_that_are_already_loaded_are_validated_from_their_file(
    tmp_path: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded Pillow images no longer have the bit depth of the file, or may have skipped missing data."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    pictures[0].convert("RGB").resize((200, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-2000])
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(range(24)) for _ in range(4))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    for name, words in (("cut.jpg", "truncated"), ("deep.png", "16 bits per channel"), ("whole.jpg", "")):
        image = Image.open(tmp_path / name)
        image.load()
        _, read = open_pictures([image])
        if words:
            with pytest.raises(DataError, match=words):
                read(0)
        else:
            assert read(0).size == (200, 200)


@pytest.mark.parametrize("images", [{"a": "a.png"}, {"a.png", "b.png"}])
def test_sets_and_mappings_of_images_are_errors(images: Any) -> None:
    with pytest.raises(DataError, match="expected a list of images"):
        open_pictures(images)


@pytest.mark.parametrize("empty", [np.zeros((0, 4, 3), np.uint8), Image.new("RGB", (4, 0))])
def test_an_image_without_pixels_is_an_error(empty: Any) -> None:
    with pytest.raises(DataError, match=r"shape \(0, 4, 3\)|no pixels \(4 x 0\)"):
        open_pictures([empty])[1](0)


def test_empty_prompts_are_errors(tmp_path: Path, timm_folder: Path, vlm: VLM, pictures: list[Image.Image]) -> None:
    export(tmp_path / "c", timm_folder, LINEAR, vlm)
    classifier = clipit.load_classifier(tmp_path / "c", "cpu", vlm=vlm.name)
    for texts in ("", ["gland", " "]):
        with pytest.raises(DataError, match=r"(?s)text is empty.*prompts\['gland'\]"):
            classifier.zero_shot(pictures, {"gland": texts, "stroma": ["x"]})


def test_folders_and_zips_are_read_in_sorted_order(
    tmp_path: Path, timm_folder: Path, vlm: VLM, pictures: list[Image.Image]
) -> None:
    _, _, classifier = export(tmp_path / "c", timm_folder, LINEAR, vlm)
    (tmp_path / "tiles/b").mkdir(parents=True)
    names = ["z.png", "b/1.png", "a.png", "b/0.png"]
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for picture, name in zip(pictures, names, strict=True):
            picture.save(tmp_path / "tiles" / name)
            archive.write(tmp_path / "tiles" / name, name)
    order = [names.index(name) for name in sorted(names)]
    listed = [pictures[i] for i in order]
    for source in (tmp_path / "tiles", str(tmp_path / "tiles.zip")):
        np.testing.assert_array_equal(classifier.predict_proba(source), classifier.predict_proba(listed))
        np.testing.assert_array_equal(classifier.zero_shot(source, workers=2), classifier.zero_shot(listed))
        assert classifier.predict(source) == classifier.predict(listed)


def test_slides_are_errors_with_advice(tmp_path: Path) -> None:
    slide = tmp_path / "a.svs"
    slide.touch()
    for images in (slide, str(slide), [slide], tmp_path):
        with pytest.raises(DataError, match=r"(?s)be classified as one image: a.svs.*clipit.predict\(classifier"):
            open_pictures(images)
    with pytest.raises(DataError, match="does not exist"):
        open_pictures(tmp_path / "absent.svs")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert open_pictures(tmp_path)[0] == 1, "a slide among images should be skipped"
    write_slide(tmp_path / "p.tif", picture())
    write_ome(tmp_path / "o.tif", picture())
    write_slide(tmp_path / "flat.tif", picture(), levels=1)
    for images in ([tmp_path / "b.png", tmp_path / "p.tif", tmp_path / "o.tif"], tmp_path):
        with pytest.raises(DataError, match=r"cannot be classified as one image: (p|o).tif, (p|o).tif"):
            open_pictures(images)
    assert open_pictures([tmp_path / "b.png", tmp_path / "flat.tif"])[0] == 2


def test_inconsistent_exports_are_errors(tmp_path: Path, timm_folder: Path, vlm: VLM) -> None:
    student, backbone = perturbed_student(timm_folder, LINEAR)
    with pytest.raises(ModelError, match="2 class names"):
        export_classifier(student, backbone, tmp_path / "c", classes=("a", "b"))
    with pytest.raises(ModelError, match="prompt set x"):
        export_classifier(
            student, backbone, tmp_path / "c", classes=CLASSES, prompts={"x": (["a"], np.zeros((1, 9), np.float32))}
        )
    with pytest.raises(ModelError, match="joint space has 9 dimensions, but the projector has 24 outputs"):
        export_classifier(student, backbone, tmp_path / "c", classes=CLASSES, vlm_info={"joint_dim": 9})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ArtifactError, match="other than a classifier"):
        export_classifier(student, backbone, tmp_path / "mine", classes=CLASSES)
    student.image_head.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"(?s)not finite: image_head\.weight.*learning_rate"):
        export_classifier(student, backbone, tmp_path / "c", classes=CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_exporting_again_replaces_the_folder_and_keeps_the_student(tmp_path: Path, timm_folder: Path, vlm: VLM) -> None:
    student, backbone = perturbed_student(timm_folder, LINEAR)
    student.train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    for _ in range(2):
        export_classifier(student, backbone, tmp_path / "c", classes=CLASSES)
    assert student.training and all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert set(before) == set(student.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_importing_clipit_does_not_import_torch() -> None:
    code = "import clipit, sys; clipit.errors if hasattr(clipit, 'errors') else 0; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "load_classifier" in dir(clipit)
    with pytest.raises(AttributeError):
        clipit.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("family", "pooling", "head", "plain"),
    [
        ("fused", "default", "linear", True),
        ("fused", "default", "late_fusion", False),
        ("registers", "cls_mean", "linear", False),
        ("tokens", "cls", "linear", True),
        ("ViT", "default", "linear", False),
        ("ViT", "cls_mean", "linear", False),
        ("ViT", "cls_mean", "late_fusion", False),
        ("DeiT", "cls", "linear", False),
        ("Beit", "cls", "linear", False),
        ("Dinov2", "cls", "late_fusion", False),
        ("Dinov2", "cls", "linear", False),
        ("Dinov2", "cls_mean", "linear", False),
        ("Dinov2WithRegisters", "cls", "linear", False),
        ("Dinov2WithRegisters", "cls_mean", "linear", False),
        ("Dinov2WithRegisters", "cls_mean", "late_fusion", False),
        ("Hibou", "cls", "linear", False),
        ("Hibou", "cls_mean", "linear", False),
        ("Hibou", "cls", "late_fusion", False),
    ],
)
def test_every_family_can_be_adapted_exported_and_loaded(
    tmp_path: Path, vision_folders: dict[str, Path], family: str, pooling: str, head: str, plain: bool
) -> None:
    """Logits are unchanged after one training step, export and reload, without a network.

    The pipeline of transformers gives equal scores, or rejects the folder.
    """
    import transformers
    from transformers import pipeline

    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=str(vision_folders[family]), pooling=pooling))  # type: ignore[arg-type]
    student = build_student(
        backbone, StudentConfig(head=head), LoraConfig(rank=2), "lora", n_classes=3, joint_dim=24  # type: ignore[arg-type]
    )  # fmt: skip
    pixels = torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.SGD((weight for weight in student.parameters() if weight.requires_grad), lr=1.0)
    before = student.eval()(pixels).logits.detach()
    torch.nn.functional.cross_entropy(student(pixels).logits, torch.tensor([0, 1, 2, 0])).backward()
    check_gradients(student.backbone)
    optimizer.step()
    with torch.no_grad():
        trained = student(pixels)
    assert not torch.allclose(before, trained.logits, atol=1e-3)
    folder = export_classifier(student, backbone, tmp_path / "c", classes=CLASSES)
    classifier = clipit.load_classifier(folder, device="cpu")
    logits, projected = classifier.forward(pixels)
    torch.testing.assert_close(logits, trained.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(projected, trained.projected, atol=1e-4, rtol=1e-4)
    spec = classifier.spec
    assert spec.plain == plain and (folder / "heads.safetensors").exists() != plain
    assert spec.loader == ("timm" if family in ("fused", "registers", "tokens") else "transformers")
    differs = (family, pooling) in (("ViT", "cls_mean"), ("Beit", "cls"))  # transformers pools differently
    opens = head == "linear" and (plain or spec.loader == "transformers") and not differs
    assert ("load_classifier" not in spec.export_note) == opens and spec.loader in spec.export_note
    if opens:
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        rows = pipeline("image-classification", model=str(folder))(picture)
        scores = {row["label"]: row["score"] for row in rows}
        expected = dict(zip(CLASSES, classifier.predict_proba([picture])[0].tolist(), strict=True))
        assert scores == pytest.approx(expected, abs=1e-3)
    else:
        reason = "no classifier head" if spec.loader == "timm" else r"model type .open with clipit\.load_classifier."
        with pytest.raises(ValueError, match=reason):
            pipeline("image-classification", model=str(folder))
    texts = "".join(path.read_text() for path in folder.glob("**/*config.json"))
    assert str(vision_folders[family]) not in texts
    inner = getattr(student.backbone.base_model.model, "trunk", None)
    if plain:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(pixels), trained.logits, atol=1e-4, rtol=1e-4)
    elif spec.loader == "transformers":
        name = type(inner).__name__
        assert opens or f"transformers.{name}.from_pretrained(FOLDER) loads only the adapted" in spec.export_note
        model = getattr(transformers, name).from_pretrained(folder).eval()
        with torch.no_grad():
            tokens = inner(pixel_values=pixels).last_hidden_state
            torch.testing.assert_close(model(pixel_values=pixels).last_hidden_state, tokens, atol=1e-4, rtol=1e-4)
        reloaded = load_backbone(BackboneConfig(name=str(folder)))
        assert reloaded.preprocess == backbone.preprocess


def test_exports_contain_no_local_paths_and_respect_the_umask(
    tmp_path: Path, vision_folders: dict[str, Path], clip_folder: Path, vlm: VLM
) -> None:
    for family, name in (("fused", "{}"), ("ViT", "transformers:{}"), ("Dinov2", "{}")):
        backbone = load_backbone(BackboneConfig(name=name.format(vision_folders[family])))
        student = build_student(backbone, LINEAR, LoraConfig(rank=2), "lora", n_classes=3, joint_dim=24)
        before = os.umask(0o027)
        try:
            folder = export_classifier(student, backbone, tmp_path / family, classes=CLASSES, vlm_info=vlm.describe())
        finally:
            os.umask(before)
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}
        texts = "".join(path.read_text() for path in files if path.suffix != ".safetensors")
        assert str(vision_folders[family].parent) not in texts and str(clip_folder.parent) not in texts
        assert clipit.load_classifier(folder, "cpu").spec.vlm["name"] == f"local {clip_folder.name}"  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("embedded", "embedded"), ("plip", "plip"), ("hf-hub:a/b", "hf-hub:a/b"), ("clip:/x/y/z", "clip:local z"),
        ("transformers:~/models/vit", "transformers:local vit"), ("/x/y/z", "local z"),
        ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai"),
        ("open_clip:ViT-B-32//x/w.pt", "open_clip:ViT-B-32/local w.pt"), ("../models/vit", "local vit"),
    ],
)  # fmt: skip
def test_public_names(name: str, public: str) -> None:
    assert public_name(name) == public


def test_remote_code_is_exported_and_requires_trust(tmp_path: Path, remote_code_folder: Path) -> None:
    from transformers import pipeline

    torch.manual_seed(0)
    config = json.loads((remote_code_folder / "config.json").read_text())
    config["auto_map"]["AutoModelForImageClassification"] = "own.OwnClassifier"
    (remote_code_folder / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(BackboneConfig(name=str(remote_code_folder), trust_remote_code=True))
    student = build_student(backbone, LINEAR, LoraConfig(rank=2), "lora", n_classes=3, joint_dim=24)
    folder = export_classifier(student, backbone, tmp_path / "c", classes=CLASSES)
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        clipit.load_classifier(folder, device="cpu")
    # An error is better than a classifier with a random head.
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        pipeline("image-classification", model=str(folder), trust_remote_code=True)
    shutil.rmtree(remote_code_folder)
    pixels = torch.randn(2, 3, 32, 32)
    logits, _ = clipit.load_classifier(folder, device="cpu", trust_remote_code=True).forward(pixels)
    with torch.no_grad():
        torch.testing.assert_close(logits, student.eval()(pixels).logits, atol=1e-4, rtol=1e-4)
