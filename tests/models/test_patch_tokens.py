"""Test patch tokens against the original packages, and their position in the image."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from tiny_backbones import save_vit
from tiny_classifier import save_classifier
from torch import nn

from clipit import load_classifier
from clipit.config.run import BackboneConfig, VLMConfig
from clipit.errors import ModelError
from clipit.models.backbones import load_backbone
from clipit.models.conch_vlm import patch_tokens
from clipit.models.patch_tokens import backbone_tokens, classifier_tokens, vlm_tokens
from clipit.models.token_grids import open_clip_tokens, pool_each, trunk_grid
from clipit.models.trunks import inner_model
from clipit.models.vlm import load_vlm


def test_tokens_of_a_timm_vit_match_forward_features(timm_folder: Path) -> None:
    backbone = load_backbone(BackboneConfig(name=str(timm_folder)))
    tokens = backbone_tokens(backbone)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    reference = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        features = reference.forward_features(backbone.preprocess.normalise(pixels))[:, 1:]
    assert (tokens.side, tokens.dim, tokens.mpp) == (4, 32, 0.5)
    torch.testing.assert_close(tokens.encode(pixels), features.reshape(3, 4, 4, 32), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit4"])
def test_the_mean_of_the_tokens_matches_mean_pooling(name: str) -> None:
    options = {"fc_norm": False} if name == "test_vit4" else {}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, global_pool="avg", **options).eval()
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        grid = trunk_grid(model, pixels)
        torch.testing.assert_close(grid.mean(dim=(1, 2)), model(pixels), rtol=1e-4, atol=1e-4)


def test_tokens_of_a_transformers_backbone_match_its_hidden_states(tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(name=str(save_vit(tmp_path, "ViT"))))
    tokens = backbone_tokens(backbone)
    pixels = torch.randint(0, 256, (2, 3, backbone.preprocess.size, backbone.preprocess.size), dtype=torch.uint8)
    with torch.no_grad():
        normalised = backbone.preprocess.normalise(pixels)
        hidden = inner_model(backbone.module)(pixel_values=normalised).last_hidden_state[:, 1:]
    torch.testing.assert_close(tokens.encode(pixels).flatten(1, 2), hidden, rtol=1e-4, atol=1e-4)


def test_tokens_of_a_clip_model_are_projected_like_its_class_token(clip_folder: Path) -> None:
    vlm = load_vlm(VLMConfig(name=str(clip_folder)))
    tokens = vlm_tokens(vlm)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    model = vlm.towers.module
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=vlm.preprocess.normalise(pixels)).last_hidden_state
        projected = model.visual_projection(model.vision_model.post_layernorm(hidden))
    torch.testing.assert_close(projected[:, 0], vlm.encode_images(pixels))
    torch.testing.assert_close(tokens.encode(pixels).flatten(1, 2), projected[:, 1:])
    assert (tokens.side, tokens.dim) == (4, 24)


def test_tokens_of_bundled_models_are_in_the_order_of_the_patches() -> None:
    for tokens in (vlm_tokens(load_vlm(VLMConfig())), backbone_tokens(load_backbone(BackboneConfig(name="embedded")))):
        size, side = tokens.preprocess.size, tokens.side
        plain = torch.full((1, 3, size, size), 230, dtype=torch.uint8)
        marked = plain.clone()
        edge = size // side
        marked[:, :, edge : 2 * edge, 2 * edge : 3 * edge] = torch.tensor([90, 20, 120]).view(1, 3, 1, 1)
        change = (tokens.encode(marked) - tokens.encode(plain)).norm(dim=-1)[0]
        assert divmod(int(change.argmax()), side) == (1, 2)


@pytest.mark.parametrize("pool", ["avg", "tok"])
def test_open_clip_towers_project_every_token(pool: str) -> None:
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    visual = VisionTransformer(
        image_size=32, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2, output_dim=12, pool_type=pool
    ).eval()
    nn.init.normal_(visual.proj)
    pixels = torch.randn(2, 3, 32, 32)
    compute = open_clip_tokens(visual)
    assert compute is not None
    with torch.no_grad():
        tokens = compute(pixels)
        assert tokens.shape == (2, 4, 4, 12)
        if pool == "avg":
            torch.testing.assert_close(tokens.mean(dim=(1, 2)), visual(pixels), rtol=1e-4, atol=1e-4)


def test_pooling_one_token_matches_pooling_an_image_of_equal_tokens() -> None:
    torch.manual_seed(0)
    for pool in ("token", "avg", "map"):
        model = timm.create_model("test_vit", num_classes=5, global_pool=pool).eval()
        token = torch.randn(1, 1, 1, model.embed_dim)
        repeated = token.reshape(1, 1, -1).expand(1, 17, -1)
        with torch.no_grad():
            torch.testing.assert_close(pool_each(model, token)[0, 0], model.forward_head(repeated))


def test_timm_towers_of_open_clip_project_a_feature_map() -> None:
    from open_clip.timm_model import TimmModel

    torch.manual_seed(0)
    visual = TimmModel("test_resnet", embed_dim=6, image_size=160, pool="avg", proj="linear").eval()
    compute = open_clip_tokens(visual)
    assert compute is not None
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(compute(pixels).mean(dim=(1, 2)), visual(pixels), rtol=1e-4, atol=1e-4)


def test_attention_pooling_of_conch_is_applied_to_single_tokens() -> None:
    torch.manual_seed(0)
    trunk = timm.create_model("test_vit", num_classes=0, global_pool="").eval()
    attention = nn.MultiheadAttention(trunk.embed_dim, 2, batch_first=True).eval()
    query = torch.randn(1, 1, trunk.embed_dim)

    def pool(tokens: torch.Tensor) -> torch.Tensor:
        return attention(query.expand(len(tokens), -1, -1), tokens, tokens)[0]

    visual = SimpleNamespace(
        trunk=trunk, attn_pool_contrast=pool, ln_contrast=nn.LayerNorm(trunk.embed_dim),
        proj_contrast=torch.randn(trunk.embed_dim, 7),
    )  # fmt: skip
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        tokens = patch_tokens(visual, pixels)
        last = trunk.forward_features(pixels)[1:2, -1:]
        expected = visual.ln_contrast(pool(last)[:, 0]) @ visual.proj_contrast
    assert tokens.shape == (2, 10, 10, 7)
    torch.testing.assert_close(tokens[1, -1, -1], expected[0], rtol=1e-4, atol=1e-4)


def test_tokens_of_a_classifier_match_its_adapted_backbone(tmp_path: Path) -> None:
    classifier = load_classifier(save_classifier(tmp_path) / "run/classifier", "cpu")
    tokens = classifier_tokens(classifier)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        normalised = classifier.spec.preprocess.normalise(pixels)
        features = classifier.network.backbone.forward_features(normalised)[:, 1:]
    torch.testing.assert_close(tokens.encode(pixels).flatten(1, 2), features)
    assert (tokens.kind, tokens.side, tokens.mpp) == ("classifier", 4, 1.0)


def test_models_without_a_token_grid_and_wrong_image_sizes_are_errors(clip_folder: Path) -> None:
    vlm = load_vlm(VLMConfig(name=str(clip_folder)))
    with pytest.raises(ModelError, match="no patch tokens: its pooling"):
        vlm_tokens(replace(vlm, towers=replace(vlm.towers, tokens=None)))
    with pytest.raises(ModelError, match="no patch tokens: its tokens have 5 dimensions, but the joint space has 24"):
        vlm_tokens(replace(vlm, towers=replace(vlm.towers, tokens=lambda pixels: torch.zeros(1, 2, 2, 5))))
    with pytest.raises(ModelError, match=r"images of 32 x 32 pixels, got \(40, 32\)"):
        vlm_tokens(vlm).encode(torch.zeros(1, 3, 40, 32, dtype=torch.uint8))
    with pytest.raises(ModelError, match="neither patch tokens nor a feature map"):
        trunk_grid(nn.Linear(3, 3), torch.zeros(1, 3, 8, 8))
