"""Students that read tiles at a different size than the VLM: runs, fingerprints and messages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged_lines import capture_log
from PIL import Image
from run_files import predictions

import clipit
from clipit.config.load import validate
from clipit.config.run import BackboneConfig, RunConfig
from clipit.errors import ConfigError, ModelError
from clipit.models.backbones import load_backbone
from clipit.runs.fingerprint import run_fingerprint
from clipit.runs.train import train_run
from clipit.tiles.tileset import TileSet
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

MakeConfig = Callable[..., RunConfig]


def test_fingerprints_depend_on_the_pixel_size(configure: MakeConfig) -> None:
    configs = [resolve_arm(configure({"backbone.pixels": pixels}, arm="clip_it_all")) for pixels in (None, 16)]
    workspace = [Workspace(config) for config in configs]
    backbones = [load_backbone(config.backbone) for config in configs]
    fingerprints = [
        run_fingerprint(c, m, b.fingerprint).value for c, m, b in zip(configs, workspace, backbones, strict=True)
    ]
    assert fingerprints[0] != fingerprints[1] and backbones[0].fingerprint != backbones[1].fingerprint
    # Pairs do not depend on the student: both configurations share them.
    assert workspace[0].pairs.artifact.folder == workspace[1].pairs.artifact.folder


@pytest.mark.parametrize(("pixels", "resolution"), [(None, "0.5"), (32, ""), (16, "2"), (48, "")])
def test_a_resolution_that_does_not_fit_the_backbone_triggers_a_warning(
    configure: MakeConfig, pixels: int | None, resolution: str
) -> None:
    """The 32 px tiles at 1 um/px are enlarged to 0.5 um/px by the bundled backbone (64 px, trained at 1 um/px)."""
    lines = capture_log()
    workspace = Workspace(configure({"tiles.mpp": 1.0}))
    backbone = load_backbone(BackboneConfig(pixels=pixels))
    for seed in (0, 1):  # runs of one comparison warn once
        run = workspace.for_config(workspace.config.model_copy(update={"seed": seed}))
        run.warn_about_view(backbone.name, backbone.expected_mpp, backbone.preprocess)
    warnings = [line for line in lines if "µm per pixel" in line]
    assert [f"are read at {resolution}: features" in line for line in warnings] == ([True] if resolution else [])


def test_tiles_that_are_not_square_are_noted_in_the_log_and_the_summary(configure: MakeConfig, tmp_path: Path) -> None:
    source = Path(configure().tiles.path).parent
    for path in source.rglob("*.png"):
        wide = tmp_path / path.relative_to(source)
        wide.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize((64, 32)).save(wide)
    keys = {"arm": "image_only", "training.steps": 1, "tiles.images": str(tmp_path)}
    lines, config = capture_log(), configure(keys, name="wide")
    folder = train_run(config, Workspace(config))
    expected = "16 of 16 sampled images are not square: images of 64 x 32 px are cropped"
    assert sum(expected in line and "50% of their pixels are lost" in line for line in lines) == 1
    summary = (folder / "summary.md").read_text()
    assert f"WARNING: {expected}" in summary.partition("## Tiles")[2].partition("##")[0]
    assert expected in json.loads((folder / "training.json").read_text())["notes"][-1]
    classifier, pictures = clipit.load_classifier(folder, "cpu"), [Image.new("RGB", (64, 32)), Image.new("RGB", (9, 9))]
    del lines[:]
    for _ in range(2):
        classifier.predict(pictures)
    assert [line[:37] for line in lines] == ["1 of 2 sampled images is not square: "], "warned once per classifier"


@pytest.mark.slow
def test_a_run_at_half_the_pixel_size(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure({"backbone.pixels": 16, "tiles.mpp": 1.0}, name="half", arm="clip_it_all")
    workspace = Workspace(config)
    folder = train_run(config, workspace)
    assert json.loads((folder / "results.json").read_text())["provenance"]["pixels"] == 16
    classifier = clipit.load_classifier(folder / "classifier", device="cpu")
    assert (classifier.spec.preprocess.size, classifier.spec.plain, classifier.spec.mpp) == (16, True, 1.0)
    tests: TileSet = workspace.all_tiles.of_split("test")
    pictures: list[Image.Image] = [tests.read(row) for row in range(len(tests))]
    stored = predictions(folder).to_pylist()
    by_id: dict[str, Any] = {row["id"]: row for row in stored}
    expected = [[by_id[tile][f"p_{name}"] for name in tests.classes] for tile in tests.ids.tolist()]
    np.testing.assert_allclose(classifier.predict_proba(pictures), expected, atol=1e-4)


def test_invalid_pixel_sizes_are_errors(configure: MakeConfig, world: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.pixels"):
        validate({**world, "output": str(tmp_path), "backbone": {"name": "embedded", "pixels": 0}}, "test")
    config = configure({"backbone.pixels": 12}, name="odd", arm="image_only")
    with pytest.raises(ModelError, match="12 is not a multiple of the patch size of 8 pixels"):
        train_run(config, Workspace(config))
