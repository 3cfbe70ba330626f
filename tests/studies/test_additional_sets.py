"""Additional sets of a study of adapted VLMs, checked for patients and images of the adaptation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from clipit.config.file import ConfigFile
from clipit.config.load import merge, nested, validate_file
from clipit.config.run import RunConfig
from clipit.errors import DataError
from clipit.studies.adapted_vlms.additional_sets import AdditionalSet, check_additional_sets, read_additional_sets
from clipit.vlm_training.examples import make_examples, validation_examples
from clipit.workspace.workspace import Workspace

OVERLAPPING_SPLITS = {"train": "validation", "test": ["train", "test"]}
"""Splits whose test split also contains the training tiles of the small world."""


def study_file(world: dict[str, Any], folder: Path, tiles: dict[str, Any], **keys: Any) -> ConfigFile:
    """Configuration with a report for each training and validation patient, and an additional set of `tiles`."""
    other = {"tiles": {"source": "table", "labels": {"kind": "all"}, **tiles}, "prompts": world["prompts"]}
    (folder / "other.yaml").write_text(yaml.safe_dump(other | {"name": "other", "leaks": {"policy": "off"}}))
    rows = [
        {"id": f"{group}", "text": f"Case {group} shows mucin.", "group": group}
        for group in (*(f"train-{n}" for n in range(18)), *(f"validation-{n}" for n in range(6)), "elsewhere-1")
    ]
    (folder / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "reports.path": str(folder / "reports.jsonl"), "reports.group_column": "group", "reports.label_column": None,
        "output": str(folder / "out"), "adapt.batch_size": 4, "leaks.policy": "exclude",
        "adapt.forgetting": {"x": {"config": str(folder / "other.yaml")}},
    }  # fmt: skip
    return validate_file(merge(world, nested(changes | keys)), "test")


def check_set(file: ConfigFile, config: RunConfig | None = None) -> AdditionalSet:
    config, section = config or file.run, file.adapt
    workspace = Workspace(config)
    examples = [] if section.data == "bags" else [make_examples(config, section, "text", 0, "train", workspace)]
    if examples and (held_out := validation_examples(config, section, "text", 0, workspace)) is not None:
        examples.append(held_out)
    return check_additional_sets(config, section, workspace, read_additional_sets(config, section), examples)["x"]


def test_patients_of_the_adaptation_follow_the_leaks_policy(world: dict[str, Any], tmp_path: Path) -> None:
    tiles = {"path": world["tiles"]["path"], "splits": OVERLAPPING_SPLITS, "validation_fraction": 0.3}
    file = study_file(world, tmp_path, tiles)
    checked = check_set(file)
    assert len(checked.tests) == 24 and all("test-" in name for name in checked.tests.tolist())
    (note,) = checked.notes
    assert note.startswith("adapt.forgetting.x: 72 of 96 new tiles") and note.endswith("dropped")
    for policy, count in (("note", 96), ("off", 96)):
        leaks = file.run.leaks.model_copy(update={"policy": policy})
        kept = check_set(file, file.run.model_copy(update={"leaks": leaks}))
        assert len(kept.tests) == count and bool(kept.notes) == (policy == "note")
    strict = file.run.leaks.model_copy(update={"policy": "error"})
    with pytest.raises(DataError, match=r"(?s)72 of 96 new tiles.*adapt\.forgetting\.x.*leaks\.policy=exclude"):
        check_set(file, file.run.model_copy(update={"leaks": strict}))


def test_leaks_by_pixels_and_by_patients_of_mined_reports(world: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    source = Path(world["tiles"]["path"]).parent / "images"
    (tmp_path / "a.png").write_bytes((source / "train-000.png").read_bytes())
    for name in ("b", "c"):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(tmp_path / f"{name}.png")
    rows = ["path,label,split,group", "a.png,gland,test,", "b.png,stroma,test,elsewhere-1", "c.png,tumour,test,apart"]
    (tmp_path / "other.csv").write_text("\n".join(rows) + "\n")
    tiles = {"path": str(tmp_path / "other.csv")}
    cases = check_set(study_file(world, tmp_path, tiles))
    assert cases.tests.tolist() == ["b.png", "c.png"] and "with the same pixels" in cases.notes[0]
    bags = check_set(study_file(world, tmp_path, tiles, **{"adapt.data": "bags", "adapt.bags.snippets": 1}))
    assert bags.tests.tolist() == ["a.png", "c.png"] and "adapt.forgetting.x" in bags.notes[0]
