"""Overlap of test patients with those whose data adapted a VLM or trained a backbone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_models import MakeConfig

from clipit.config.data import TilesConfig
from clipit.config.run import BackboneConfig, VLMConfig
from clipit.errors import ArtifactError
from clipit.pairing.leaks import SeenTiles
from clipit.slide_tasks.slide_inputs import list_inputs
from clipit.slide_tasks.slide_runs import check_patients
from clipit.workspace.adapted_patients import TRAINING_TILES, adaptation_notes
from clipit.workspace.workspace import Workspace

PATIENTS = {"patients": ["P1", "P2", "P9"], "problem": ""}
SHARED = "data of test patients, so its scores on them may be too high"


@pytest.fixture
def adapted(world: dict[str, Any], tmp_path: Path) -> Path:
    """Write a small VLM adapted to three patients and return its folder `vlm`."""
    folder = Path(shutil.copytree(world["vlm"]["name"].removeprefix("clip:"), tmp_path / "text-seed0" / "vlm"))
    description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**description, "adapted_from": "embedded"}), encoding="utf-8")
    (tmp_path / "text-seed0" / "adapted_patients.json").write_text(json.dumps(PATIENTS), encoding="utf-8")
    return folder


def make_seen_tiles(*groups: str) -> SeenTiles:
    ids = np.asarray([f"t{number}" for number in range(len(groups))], dtype=object)
    return SeenTiles(ids, np.full(len(ids), "test", dtype=object), np.asarray(groups, dtype=object))


def write_tiles(folder: Path) -> TilesConfig:
    """Write four labelled test tiles of the patients P1 and P7."""
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    patients, classes = ["P1", "P7", "P1", "P7"], ["gland", "stroma", "tumour", "gland"]
    rows = [f"{number}.png,{classes[number]},test,{patients[number]}" for number in range(4)]
    (folder / "tiles.csv").write_text("path,label,split,group\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return TilesConfig.model_validate({"source": "table", "path": str(folder / "tiles.csv")})


def test_patients_of_shifted_sets_are_compared(configure: MakeConfig, adapted: Path, tmp_path: Path) -> None:
    config = configure({"output": str(tmp_path / "out")}).model_copy(update={"vlm": VLMConfig(name=f"clip:{adapted}")})
    workspace = Workspace(config)
    assert not any("adapted" in note for note in workspace.all_tiles.notes)
    (note,) = [note for note in workspace.shifted_tiles("far", write_tiles(tmp_path / "far")).notes if SHARED in note]
    assert note.endswith("2 of 4 labelled 'far' tiles belong to 1 such patient (P1)")


def test_runs_with_other_models_have_their_own_warnings(configure: MakeConfig, adapted: Path, tmp_path: Path) -> None:
    config = configure({"output": str(tmp_path / "out")})
    own, test = Workspace(config), Workspace(config).all_tiles.of_split("test")
    record = {**PATIENTS, "patients": sorted({*test.groups.tolist()})}
    (adapted.parent / "adapted_patients.json").write_text(json.dumps(record), encoding="utf-8")
    vlm, backbone = VLMConfig(name=f"clip:{adapted}"), BackboneConfig(name=str(adapted.parent))
    for changes in ({"second_vlm": vlm}, {"backbone": backbone}):
        notes = [own.for_config(config.model_copy(update=changes)).tiles(0).notes, own.tiles(0).notes]
        assert [sum(SHARED in note for note in each) for each in notes] == [1, 0], changes


def test_patients_of_slides_are_compared_with_those_of_the_vlm(adapted: Path, tmp_path: Path) -> None:
    for number in (2, 3):
        Image.new("RGB", (64, 64)).save(tmp_path / f"s{number}.tiff")
    table = "slide,label,split,group\ns2.tiff,a,test,P2\ns3.tiff,b,test,P3\n"
    (tmp_path / "slides.csv").write_text(table, encoding="utf-8")
    listed = list_inputs([tmp_path / "slides.csv"], 1.0, None)
    (note,) = check_patients(listed, [], "error", VLMConfig(name=f"clip:{adapted}"))
    assert f"the VLM text-seed0/vlm was adapted to {SHARED}: 1 of 2 test slides belongs to 1 such patient (P2)" in note


def test_patients_of_adapted_and_trained_backbones_are_compared(adapted: Path, tmp_path: Path) -> None:
    tower = adapted.parent / "image_tower"
    tower.mkdir()
    (note,) = adaptation_notes(
        make_seen_tiles("P9", "P5"), [BackboneConfig(name=str(tower))], "test tile", "mine-seed0"
    )
    assert note.startswith(
        "WARNING: the backbone text-seed0/image_tower of the run mine-seed0 belongs to a VLM that was"
    )
    assert SHARED in note and "(P9)" in note
    assert not adaptation_notes(make_seen_tiles("P5"), [BackboneConfig(name=str(tower))], "test tile")

    classifier = tmp_path / "text-seed1" / "classifier"
    classifier.mkdir(parents=True)
    (classifier / "clipit.json").write_text("{}", encoding="utf-8")
    backbone = BackboneConfig(name=str(classifier))
    (note,) = adaptation_notes(make_seen_tiles("P5"), [backbone], "test tile")
    assert "was trained on data of patients, which cannot be compared" in note and "no training_tiles.parquet" in note
    seen = pd.DataFrame({"id": ["a", "b"], "split": ["train", "validation"], "group": ["P5", "P6"]})
    seen.replace({"group": {"P6": None}}).to_parquet(classifier.parent / TRAINING_TILES)
    with pytest.raises(ArtifactError, match="empty cells in group: the file has changed"):
        adaptation_notes(make_seen_tiles("P5"), [backbone], "test tile")
    seen.to_parquet(classifier.parent / TRAINING_TILES)
    (note,) = adaptation_notes(make_seen_tiles("P5", "P6", "P7"), [backbone], "test tile")
    assert f"the backbone text-seed1/classifier was trained on {SHARED}: 2 of 3 test tiles belong to 2 such" in note
    assert not adaptation_notes(make_seen_tiles("P7"), [backbone], "test tile")
    assert not adaptation_notes(
        make_seen_tiles("P5"), [BackboneConfig(name=str(classifier), pretrained=False)], "test tile"
    )
