"""Test which weights of a VLM are trained in each family and tuning mode."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import save_open_clip_bert
from torch import Tensor, nn

from clipit.config.run import LoraConfig, VLMConfig
from clipit.errors import ModelError
from clipit.models.adapted_towers import AdaptedTowers, Tower, Tuning, adapt_towers
from clipit.models.preprocess import Preprocess
from clipit.models.towers import Tokens, Towers
from clipit.models.vlm import load_vlm

BOTH: tuple[Tower, ...] = ("image", "text")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_open_clip_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(params=["open_clip_folder", "bert_folder", "clip_folder", "embedded"])
def vlm_name(request: pytest.FixtureRequest) -> str:
    return "embedded" if request.param == "embedded" else str(request.getfixturevalue(request.param))


def adapted(name: str, tuning: Tuning = "lora", which: tuple[Tower, ...] = BOTH) -> AdaptedTowers:
    torch.manual_seed(0)
    return adapt_towers(load_vlm(VLMConfig(name=name)).towers, tuning, which, LoraConfig(rank=2), True)


def randomise(module: AdaptedTowers, std: float = 0.1) -> None:
    """Add noise to the trained weights."""
    for name, weight in module.trainable().items():
        if name != "logit_scale" and not name.endswith(".logit_scale"):
            weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * std


def embeddings(towers: Towers | AdaptedTowers) -> tuple[Tensor, Tensor]:
    inner = towers.towers if isinstance(towers, AdaptedTowers) else towers
    size = inner.preprocess.size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return towers.image(pixels), towers.text(inner.tokenise(["a tumour with mucin", "normal mucosa"]))


@pytest.mark.filterwarnings("error::FutureWarning")
def test_lora_adapts_both_towers_and_can_be_merged(vlm_name: str) -> None:
    before = embeddings(load_vlm(VLMConfig(name=vlm_name)).towers)
    model = adapted(vlm_name)
    torch.testing.assert_close(embeddings(model), before)
    assert {"image" if ".vis" in name else "text" for name in model.trainable() if "lora_" in name} == set(BOTH)
    assert all("lora_" in name or name.endswith("logit_scale") for name in model.trainable())
    randomise(model)
    model.logit_scale.data += 0.5
    changed = embeddings(model)
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(changed, before, strict=True))
    frozen = copy.deepcopy({n: w for n, w in model.named_parameters() if not w.requires_grad})
    model.train()
    size = model.towers.preprocess.size
    model.image(torch.randn(2, 3, size, size)).sum().backward()
    assert all(bool((w == frozen[n]).all()) for n, w in model.named_parameters() if n in frozen)
    scale = model.towers.logit_scale
    merged = model.merge()
    torch.testing.assert_close(embeddings(merged), changed, atol=1e-5, rtol=1e-5)
    assert merged.logit_scale == pytest.approx(scale * torch.tensor(0.5).exp().item(), rel=1e-5)
    assert list(merged.module.state_dict()) == list(load_vlm(VLMConfig(name=vlm_name)).towers.module.state_dict())


@pytest.mark.parametrize(
    ("vlm_name", "tuning"),
    [("open_clip_folder", "lora"), ("bert_folder", "projection"), ("clip_folder", "full")],
    indirect=["vlm_name"],
)
def test_towers_that_are_not_adapted_keep_their_embeddings(vlm_name: str, tuning: Tuning) -> None:
    image, text = embeddings(load_vlm(VLMConfig(name=vlm_name)).towers)
    model = adapted(vlm_name, tuning, ("text",))
    randomise(model)
    new_image, new_text = embeddings(model)
    torch.testing.assert_close(new_image, image)
    assert (new_text - text).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("open_clip_folder", {"visual.proj", "text_projection"}),
        ("bert_folder", {"visual.head.proj.weight", "text.proj.0.weight", "text.proj.2.weight"}),
        ("clip_folder", {"visual_projection.weight", "text_projection.weight"}),
    ],
)
def test_projection_tuning_trains_the_projections_only(
    family: str, names: set[str], request: pytest.FixtureRequest
) -> None:
    model = adapted(str(request.getfixturevalue(family)), "projection")
    assert {name.removeprefix("network.") for name in model.trainable()} - {"logit_scale"} == names


class PlainTowers(nn.Module):
    """Towers without layers that LoRA or projection tuning can adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.image_weight, self.text_weight = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(8, 4))
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)


def plain_towers() -> Towers:
    module = PlainTowers()
    return Towers(
        module=module,
        preprocess=Preprocess(
            size=8, resize_to=8, mode="shortest", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
        ),
        context_length=8,
        logit_scale=20.0,
        source="python:plain:towers",
        count_tokens=lambda texts: [len(text.split()) for text in texts],
        tokenise=lambda texts: {"ids": torch.tensor([len(text) % 8 for text in texts])},
        vocabulary={},
        image=lambda pixels: module.drop(module.norm(pixels.mean((2, 3)) @ module.image_weight)),
        text=lambda tokens: module.text_weight[tokens["ids"]],
    )


def test_errors_for_towers_that_cannot_be_adapted_suggest_another_tuning() -> None:
    with pytest.raises(ModelError, match=r"(?s)no layer of the image and the text tower.*adapt.tuning: projection"):
        adapt_towers(plain_towers(), "lora", BOTH, LoraConfig(), True)
    with pytest.raises(ModelError, match=r"(?s)image tower has no known projection.*adapt.tuning: full"):
        adapt_towers(plain_towers(), "projection", BOTH, LoraConfig(), True)


def test_full_tuning_enables_dropout_but_not_batch_statistics() -> None:
    model = adapt_towers(plain_towers(), "full", BOTH, LoraConfig(), True)
    assert set(model.trainable()) == {
        "logit_scale", *(f"network.{name}" for name in ("image_weight", "text_weight", "norm.weight", "norm.bias"))
    }  # fmt: skip
    model.train()
    assert model.network.drop.training and not model.network.norm.training
    assert model.merge().logit_scale == pytest.approx(20.0)


def test_dropout_of_frozen_layers_stays_off(open_clip_folder: Path) -> None:
    towers = load_vlm(VLMConfig(name=str(open_clip_folder))).towers
    model = adapt_towers(towers, "lora", BOTH, LoraConfig(rank=2, dropout=0.5), False).train()
    active = {name for name, part in model.network.named_modules() if part.training}
    assert active and all(".lora_dropout" in name for name in active)
    assert not any(name.endswith("logit_scale") for name in model.trainable())


def test_full_tuning_enables_dropout_in_the_trained_tower_only(clip_folder: Path, open_clip_folder: Path) -> None:
    towers = load_vlm(VLMConfig(name=str(clip_folder))).towers
    towers.module.vision_model.encoder.add_module("drop", nn.Dropout(0.5))  # type: ignore[union-attr, operator]
    towers.module.text_model.encoder.add_module("drop", nn.Dropout(0.5))  # type: ignore[union-attr, operator]
    model = adapt_towers(towers, "full", ("text",), LoraConfig(), True).train()
    active = {name for name, part in model.network.named_modules() if part.training}
    assert {"text_model.encoder.drop", "text_model.encoder.layers.0.self_attn", "text_projection"} <= active
    assert not any("vis" in name for name in active)
    image = adapted(str(open_clip_folder), "full", ("image",)).train()
    inside = {name for name, part in image.network.named_modules() if part.training and "." in name}
    assert inside and all(name.startswith("visual.") for name in inside)


def test_layers_that_do_not_affect_embeddings_are_not_adapted(clip_folder: Path) -> None:
    towers = load_vlm(VLMConfig(name=str(clip_folder))).towers
    towers.module.add_module("attention", nn.ModuleDict({"query": nn.Linear(4, 4)}))
    idle: Callable[[Tensor], Tensor] = lambda pixels: towers.module.attention["query"](pixels[..., :4])  # noqa: E731

    def image(pixels: Tensor) -> Tensor:
        idle(pixels)
        return towers.image(pixels)

    model = adapt_towers(replace(towers, image=image), "lora", BOTH, LoraConfig(rank=2), True)
    assert not any("attention.query" in name for name in model.trainable())
    with pytest.raises(ModelError, match=r"adapt\.lora\.targets"):
        adapt_towers(
            load_vlm(VLMConfig(name=str(clip_folder))).towers, "lora", BOTH, LoraConfig(targets=("out_of_this",)), True
        )


def test_frozen_layers_save_no_activations(clip_folder: Path) -> None:
    """If the trunks are frozen, autograd saves only the inputs of the projections."""
    model = adapted(str(clip_folder), "projection")
    saved: list[int] = []

    def record(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        model.image(torch.randn(5, 3, 32, 32))
        model.text(model.towers.tokenise(["a tumour"] * 5))
    assert sum(saved) <= 2 * 5 * 32  # five pooled feature vectors per tower


class Encoder(nn.Module):
    """Text tower of PyTorch's encoder layers, whose fast path bypasses the forward methods of sublayers."""

    def __init__(self) -> None:
        super().__init__()
        self.image_weight, self.words = nn.Parameter(torch.randn(3, 8)), nn.Embedding(9, 8)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)


def test_layers_bypassed_by_the_fast_path_cannot_be_adapted() -> None:
    def adapt() -> AdaptedTowers:
        module = Encoder()

        def text(tokens: Tokens) -> Tensor:
            return module.layers(module.words(tokens["ids"][:, None]))[:, 0]

        towers = replace(plain_towers(), module=module, text=text, image=lambda x: x.mean((2, 3)) @ module.image_weight)
        return adapt_towers(towers, "lora", ("text",), LoraConfig(targets=("linear1",)), True)

    with pytest.raises(ModelError, match=r"(?s)does not affect any embedding.*set_fastpath_enabled\(False\)"):
        adapt()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert any("linear1" in name for name in adapt().trainable())
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_merging_weights_that_are_not_finite_is_an_error(clip_folder: Path) -> None:
    model = adapted(str(clip_folder))
    next(iter(model.trainable().values())).data.fill_(float("nan"))
    with pytest.raises(ModelError, match="finite"):
        model.merge()
