"""The shipped weights match their recorded hashes, are small and load offline with plain timm and transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from launching import run_program

from clipit.config.run import BackboneConfig, VLMConfig
from clipit.models.backbones import load_backbone
from clipit.models.loading import EMBEDDED
from clipit.models.vlm import load_vlm
from clipit.synthetic.latents import CLASSES
from clipit.synthetic.tile_draws import MPP
from clipit.synthetic.vocabulary import PROMPT_NAMES
from tools.embedded.make_weights import GATE, MEASURED, SUMS, hash_models
from tools.embedded.train_backbone import image_statistics

PLAIN_TIMM_AND_TRANSFORMERS = f"""
import torch, timm
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
folder = {str(EMBEDDED)!r}
model = CLIPModel.from_pretrained(folder + "/vlm").eval()
texts = ["adipose tissue", "Zürich: 3 x 4 mm"]
tokens = AutoTokenizer.from_pretrained(folder + "/vlm")(texts, padding=True, return_tensors="pt")
size = CLIPImageProcessor.from_pretrained(folder + "/vlm").crop_size["height"]
print(tuple(model(**tokens, pixel_values=torch.zeros(3, 3, size, size)).logits_per_image.shape))
backbone = timm.create_model("local-dir:" + folder + "/backbone", pretrained=True, num_classes=0).eval()
print(tuple(backbone(torch.zeros(1, 3, 64, 64)).shape))
"""


def test_hashes_match_the_recorded_ones() -> None:
    assert hash_models(EMBEDDED) == json.loads((EMBEDDED / SUMS).read_text())


def test_a_changed_weight_changes_the_hash(tmp_path: Path) -> None:
    for part in ("vlm", "backbone"):
        (tmp_path / part).mkdir()
        for path in (EMBEDDED / part).iterdir():
            (tmp_path / part / path.name).write_bytes(path.read_bytes())
    assert hash_models(tmp_path) == hash_models(EMBEDDED)
    weights = tmp_path / "vlm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert hash_models(tmp_path) != hash_models(EMBEDDED)


def test_files_are_small_and_not_pickled() -> None:
    files = [path for part in ("vlm", "backbone") for path in (EMBEDDED / part).iterdir()]
    assert sum(path.stat().st_size for path in files) <= 10 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors"}


def test_plain_transformers_and_timm_load_the_weights_offline() -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PLAIN_TIMM_AND_TRANSFORMERS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n")[:2] == ["(3, 2)", "(1, 128)"]


def test_recorded_scores_pass_the_gate() -> None:
    card = json.loads((EMBEDDED / MEASURED).read_text())
    assert card["scores"]["zero_shot_test"] >= GATE
    assert card["scores"]["backbone_probe"]["test"] < card["scores"]["vlm_probe"]["test"]
    assert set(card["world"]["centres"]).isdisjoint({0, 1, 2, 3, 4, 5})


def test_input_sizes_and_tokenizer_of_the_shipped_models() -> None:
    vlm, backbone = load_vlm(VLMConfig()), load_backbone(BackboneConfig())
    assert (vlm.preprocess.size, vlm.joint_dim, vlm.expected_mpp) == (64, 64, MPP)
    assert (backbone.preprocess.size, backbone.dim, backbone.expected_mpp) == (64, 128, MPP)
    assert backbone.plain_head
    names = [PROMPT_NAMES[label][0] for label in CLASSES]
    assert max(vlm.count_tokens(names)) <= 12
    counts = vlm.count_tokens(["", "Ωmega"])
    assert counts[0] == 2
    assert counts[1] > 3  # byte-level tokens, not an unknown token that could pass for the end of text
    vectors = torch.nn.functional.normalize(vlm.encode_texts(names), dim=1)
    assert float((vectors @ vectors.T - 2 * torch.eye(len(names))).max()) < 0.95


def test_image_statistics_are_finite_and_invariant_to_flips() -> None:
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    values = image_statistics(images)
    assert values.shape == (4, 38)
    assert torch.isfinite(image_statistics(torch.ones(1, 3, 64, 64))).all()
    assert torch.allclose(values[:, :3], images.mean((2, 3)))
    flipped = image_statistics(images.flip(3))
    assert torch.allclose(values, flipped, atol=1e-4)


def test_help_lists_the_options() -> None:
    result = run_program("-m", "tools.embedded.make_weights", "--help")
    assert result.returncode == 0
    assert "--world-seed" in result.stdout
