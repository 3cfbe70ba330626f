"""The slide demo: masks are read at the resolution of the maps, and scores are compared with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_classifier import save_classifier

from clipit.config.run import BackboneConfig, RunConfig, TilesConfig
from clipit.runs.predict_tiles import open_exported
from clipit.slide_tasks import slides_demo as demo_module
from clipit.slide_tasks.slides_demo import demo_slides, read_mask
from clipit.synthetic.latents import CLASSES
from clipit.synthetic.slide_world import SlideWorldConfig


def test_masks_are_read_at_the_pixel_centres_of_the_map_with_class_names(tmp_path: Path) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:16, 16:32] = CLASSES.index("stroma") + 1
    Image.fromarray(labels).save(tmp_path / "mask.png")
    classes = sorted(CLASSES)  # in a different order from the mask
    mask = read_mask(tmp_path / "mask.png", classes)
    assert mask.shape == (4, 4) and classes[mask[0, 1]] == "stroma"
    assert (np.delete(mask.ravel(), 1) == -1).all()


def test_slides_are_scored_by_classifier_and_prompts_and_compared_with_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, "WORLD", SlideWorldConfig(train=0, validation=0, test=1, size=320))
    run = save_classifier(tmp_path / "models", sorted(CLASSES)) / "run"
    opened, config = (
        [],
        RunConfig(tiles=TilesConfig(source="table", path="t.csv"), backbone=BackboneConfig(trust_remote_code=True)),
    )

    def record_and_open(*arguments: Any, **options: Any) -> Any:
        opened.append(options)
        return open_exported(*arguments, **options)

    monkeypatch.setattr(demo_module, "open_exported", record_and_open)
    text = demo_slides(run, tmp_path / "slides", config)
    assert opened == [{"vlm": config.vlm, "trust_remote_code": True}]
    assert "1 synthetic slide, 8 tissue classes" in text
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in text.splitlines() if line.startswith("|")}
    majority = float(rows["majority tissue per tile"][0])
    by_prompts = next(float(cells[0]) for title, cells in rows.items() if "VLM embedded, zero-shot" in title)
    floor = float(rows["most frequent tissue everywhere"][0])
    assert floor < by_prompts < majority
    for name in ("classifier", "prompts"):
        assert (tmp_path / "slides" / name / "slides/test-S000/index.html").is_file()
