import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from clipit.config.run import BackboneConfig, LoraConfig
from clipit.errors import ModelError
from clipit.models.backbones import load_backbone
from clipit.models.lora import (
    add_lora,
    check_gradients,
    load_lora,
    merge_lora,
    merged_lora,
    save_adapter,
    target_modules,
)


def trunk(folder: Path) -> torch.nn.Module:
    return load_backbone(BackboneConfig(name=str(folder))).module


def randomise(module: torch.nn.Module) -> None:
    """Draw random LoRA weights; the initial update is zero."""
    for name, weight in module.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)


def test_targets_are_selected_by_kind_or_name(timm_folder: Path) -> None:
    vit = trunk(timm_folder)
    assert target_modules(vit, ("qkv",)) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert target_modules(vit, ("projection",)) == ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    assert target_modules(vit, ("mlp", "fc1")) == [f"blocks.{i}.mlp.fc{j}" for i in (0, 1) for j in (1, 2)]
    assert target_modules(vit, ("patch_embed",)) == ["patch_embed.proj"]
    assert target_modules(vit, ("blocks.1.attn.qkv",)) == ["blocks.1.attn.qkv"]


def test_target_kinds_of_other_timm_families() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1), num_heads=(2, 2))
    endings = {name.rpartition(".")[2] for name in target_modules(swin, ("qkv", "projection", "mlp", "patch_embed"))}
    assert endings == {"qkv", "proj", "fc1", "fc2"}
    eva = timm.create_model("eva02_base_patch14_224", embed_dim=64, num_heads=2, depth=1, num_classes=0)
    endings = {name.rpartition(".")[2] for name in target_modules(eva, ("qkv", "mlp"))}
    assert endings >= {"q_proj", "k_proj", "v_proj", "fc1_g", "fc1_x", "fc2"}


ALL_KINDS = ("qkv", "projection", "mlp", "patch_embed")


@pytest.mark.parametrize(
    ("family", "endings", "count"),
    [
        ("fused", {"qkv", "proj", "fc1", "fc2"}, 9),
        ("registers", {"qkv", "proj", "fc1", "fc2"}, 9),
        ("ViT", {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "projection"}, 13),
        ("Dinov2", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "projection"}, 15),
        ("Dinov2WithRegisters", {"q_proj", "o_proj", "gate_proj", "down_proj", "projection"}, 15),
        ("Dinov2 without SwiGLU", {"q_proj", "o_proj", "fc1", "fc2", "projection"}, 13),
    ],
)
def test_every_family_receives_gradients(
    vision_folders: dict[str, Path], family: str, endings: set[str], count: int
) -> None:
    adapted = add_lora(trunk(vision_folders[family]), LoraConfig(rank=2, targets=ALL_KINDS))
    names = adapted.peft_config["default"].target_modules
    assert len(names) == count and endings <= {name.rpartition(".")[2] for name in names}
    adapted(torch.randn(2, 3, 32, 32)).square().sum().backward()
    check_gradients(adapted)


def test_swiglu_with_separate_input_layers_receives_gradients() -> None:
    eva = timm.create_model("eva02_base_patch14_224", img_size=28, embed_dim=64, num_heads=2, depth=1, num_classes=0)
    adapted = add_lora(eva, LoraConfig(rank=2, targets=ALL_KINDS))
    assert {"fc1_g", "fc1_x", "fc2"} <= {n.rpartition(".")[2] for n in adapted.peft_config["default"].target_modules}
    adapted(torch.randn(2, 3, 28, 28)).square().sum().backward()
    check_gradients(adapted)


class NamedAsInTransformers4(torch.nn.Module):
    """Layer with the module names of transformers 4, which remote code still uses."""

    def __init__(self) -> None:
        super().__init__()
        for path in (
            "attention.attention.query", "attention.attention.key", "attention.attention.value",
            "attention.output.dense", "intermediate.dense", "output.dense", "mlp.weights_in", "mlp.weights_out",
            "pooler.dense",
        ):  # fmt: skip
            module: torch.nn.Module = self
            *parents, last = path.split(".")
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            module.add_module(last, torch.nn.Linear(4, 4))


def test_targets_with_names_of_transformers_4() -> None:
    layer = NamedAsInTransformers4()
    assert target_modules(layer, ("qkv",)) == [f"attention.attention.{part}" for part in ("query", "key", "value")]
    assert target_modules(layer, ("projection",)) == ["attention.output.dense"]
    assert set(target_modules(layer, ("mlp",))) == {
        "intermediate.dense", "output.dense", "mlp.weights_in", "mlp.weights_out",
    }  # fmt: skip


@pytest.mark.parametrize("target", ["nonsense", "norm1", "blocks.7.attn.qkv", ""])
def test_an_unknown_target_lists_the_kinds_of_the_backbone(timm_folder: Path, target: str) -> None:
    with pytest.raises(ModelError, match=r"qkv \(2\).*mlp \(4\)"):
        add_lora(trunk(timm_folder), LoraConfig(targets=(target,)))


def test_kinds_without_layers_and_no_targets_are_errors() -> None:
    with pytest.raises(ModelError, match="'qkv' matches no"):
        add_lora(timm.create_model("test_resnet", num_classes=0), LoraConfig(targets=("qkv",)))
    with pytest.raises(ModelError, match="no LoRA targets"):
        add_lora(timm.create_model("test_resnet", num_classes=0), LoraConfig(targets=()))


def test_only_lora_is_trainable_and_the_initial_update_is_zero(timm_folder: Path) -> None:
    plain = trunk(timm_folder)
    adapted = add_lora(copy.deepcopy(plain), LoraConfig(rank=2, targets=("qkv", "patch_embed"))).eval()
    trainable = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert len(trainable) == 6 and all("lora_" in name for name in trainable)
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(adapted(pixels), plain(pixels))


def test_merging_does_not_change_the_output(timm_folder: Path) -> None:
    adapted = add_lora(
        trunk(timm_folder), LoraConfig(rank=2, targets=("qkv", "projection", "mlp", "patch_embed"))
    ).eval()
    randomise(adapted)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = adapted(pixels)
        merged = merge_lora(adapted)
        torch.testing.assert_close(merged(pixels), before, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(before, trunk(timm_folder)(pixels), atol=1e-2)
    assert set(merged.state_dict()) == set(trunk(timm_folder).state_dict())


def test_temporary_merging_restores_the_weights(timm_folder: Path) -> None:
    targets = ("qkv", "projection", "mlp", "patch_embed")
    adapted = add_lora(trunk(timm_folder), LoraConfig(rank=2, targets=targets)).eval()
    randomise(adapted)
    pixels = torch.randn(2, 3, 32, 32)
    values = {name: weight.clone() for name, weight in adapted.named_parameters()}
    with torch.no_grad():
        expected = adapted(pixels)
        called: list[str] = []
        for name, part in adapted.named_modules():
            if name.endswith("lora_A.default"):
                part.register_forward_hook(lambda *_, name=name: called.append(name))
        with pytest.raises(KeyboardInterrupt), merged_lora(adapted):
            torch.testing.assert_close(adapted(pixels), expected, atol=1e-5, rtol=1e-4)
            assert not called
            raise KeyboardInterrupt
        assert torch.equal(adapted(pixels), expected) and called
    assert all(torch.equal(weight, values[name]) for name, weight in adapted.named_parameters())


@pytest.mark.parametrize(("dropout", "dtype"), [(0.5, torch.float32), (0.0, torch.bfloat16)])
def test_updates_are_not_merged_with_dropout_or_in_half_precision(
    timm_folder: Path, dropout: float, dtype: torch.dtype
) -> None:
    adapted = add_lora(trunk(timm_folder), LoraConfig(rank=2, dropout=dropout)).to(dtype).train()
    randomise(adapted)
    values = {name: weight.clone() for name, weight in adapted.named_parameters()}
    with merged_lora(adapted):
        assert all(torch.equal(weight, values[name]) for name, weight in adapted.named_parameters())


def test_check_gradients(timm_folder: Path) -> None:
    adapted = add_lora(trunk(timm_folder), LoraConfig(rank=2))
    with pytest.raises(ModelError, match="16 of 16"):
        check_gradients(adapted)
    adapted(torch.randn(2, 3, 32, 32)).square().sum().backward()
    check_gradients(adapted)
    with pytest.raises(ModelError, match="no LoRA"):
        check_gradients(trunk(timm_folder))
    with pytest.raises(ModelError, match="no LoRA"):
        save_adapter(trunk(timm_folder), timm_folder)


def test_an_unused_layer_is_named(timm_folder: Path) -> None:
    plain = trunk(timm_folder)
    plain.unused_mlp = torch.nn.ModuleDict({"fc1": torch.nn.Linear(4, 4)})
    adapted = add_lora(plain, LoraConfig(rank=2, targets=("mlp",)))
    adapted(torch.randn(2, 3, 32, 32)).square().sum().backward()
    with pytest.raises(ModelError, match=r"2 of 10 .*unused_mlp"):
        check_gradients(adapted)


def test_peft_can_load_the_adapter(timm_folder: Path, tmp_path: Path) -> None:
    import peft

    adapted = add_lora(trunk(timm_folder), LoraConfig(rank=2), base_name="tiny")
    randomise(adapted)
    save_adapter(adapted, tmp_path)
    loaded = peft.PeftModel.from_pretrained(trunk(timm_folder), tmp_path).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), adapted.eval()(pixels))
    assert set(peft.get_peft_model_state_dict(adapted)) == set(peft.get_peft_model_state_dict(loaded))
    description = json.loads((tmp_path / "adapter_config.json").read_text())
    assert description["base_model_name_or_path"] == "tiny"
    assert not (tmp_path / "README.md").exists(), "the empty model card of peft should be removed"
    assert description["target_modules"] == sorted(description["target_modules"]), (
        "the file should not depend on the order of a set"
    )
    assert len(description["target_modules"]) > 6


def test_merging_updates_that_are_not_finite_is_an_error(timm_folder: Path) -> None:
    adapted = add_lora(trunk(timm_folder), LoraConfig(rank=2))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, float("nan"))
    with pytest.raises(ModelError, match=r"(?s)cannot be added.*training\.learning_rate"):
        merge_lora(adapted)


def make_timm_model(name: str) -> torch.nn.Module:
    return timm.create_model(name, num_classes=0).eval()


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("test_convnext", "conv_dw", r"conv_dw \(a convolution with 24 groups\)"),
        ("resnext26ts", "conv2_kxk.conv", r"convolution with 2 groups"),
        ("test_efficientnet", "blocks.3.0.conv_dw", "with 128 groups"),
        ("nf_resnet26", "conv1", "a ScaledStdConv2d"),
    ],
)
def test_layers_that_cannot_be_merged_are_errors(name: str, target: str, words: str) -> None:
    with pytest.raises(ModelError, match=f"(?s)could not be exported: .*{words}.*select other layers, or use kinds"):
        target_modules(make_timm_model(name), (target,))


@pytest.mark.parametrize(
    ("name", "kinds"), [("test_resnet", {"conv"}), ("test_convnext", {"mlp"}), ("test_efficientnet", {"conv"})]
)
def test_default_targets_of_convolutional_networks(name: str, kinds: set[str]) -> None:
    """Default targets of convolutional networks can be adapted and merged."""
    model = make_timm_model(name)
    names = target_modules(model, LoraConfig().targets)
    assert names == [name for kind in kinds for name in target_modules(model, (kind,))]
    assert all(getattr(model.get_submodule(name), "groups", 1) == 1 for name in names)
    adapted = add_lora(model, LoraConfig(rank=2)).eval()
    randomise(adapted)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = adapted(pixels)
        torch.testing.assert_close(merge_lora(adapted)(pixels), expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(ModelError, match=r"(?s)'qkv' matches no .*use a kind of layer \((conv|mlp)"):
        target_modules(make_timm_model(name), ("qkv",))


@pytest.mark.parametrize("kind", ["CLIPVision", "DINOv3ViT"])
def test_patch_embeddings_of_transformers_models(kind: str) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = getattr(transformers, f"{kind}Model")(config)
    (name,) = target_modules(model, ("patch_embed",))
    assert isinstance(model.get_submodule(name), torch.nn.Conv2d)
    with pytest.raises(ModelError, match="'conv' matches no"):
        target_modules(model, ("conv",))


@pytest.mark.parametrize("family", ["ViT", "Dinov2WithRegisters", "tokens"])
def test_peft_can_load_adapters_of_backbones_with_token_pooling(
    vision_folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    import peft
    from transformers import AutoModel

    folder = vision_folders[family]
    pooled = load_backbone(BackboneConfig(name=str(folder), pooling="cls_mean")).module
    adapted = add_lora(pooled, LoraConfig(rank=2))
    randomise(adapted)
    save_adapter(adapted.eval(), tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    if family == "tokens":
        base: torch.nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        base = AutoModel.from_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        if family == "tokens":
            tokens = loaded.get_base_model().forward_features(pixels)
        else:
            tokens = loaded(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(tokens[:, 0], adapted(pixels)[:, :32])
    assert "trunk" not in (tmp_path / "adapter_config.json").read_text()


def test_a_quantised_adapter_is_an_error(timm_folder: Path, tmp_path: Path) -> None:
    adapted = add_lora(trunk(timm_folder), LoraConfig(rank=2))
    save_adapter(adapted, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: (100 * value).to(torch.int8) for name, value in load_file(file).items()}, file)
    with pytest.raises(ModelError, match=r"(?s)quantised.*lora_A\.weight is torch\.int8.*adapter_model"):
        load_lora(trunk(timm_folder), tmp_path)
