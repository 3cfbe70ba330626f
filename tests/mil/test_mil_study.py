"""Test MIL studies on slides with masks, and on feature files through the command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mil_bags import bags_with_signal, write_features
from PIL import Image
from slide_files import picture, write_slide
from tiny_models import MakeConfig

import clipit
from clipit.api.mil import MilResult
from clipit.config.load import NO_TILES
from clipit.errors import ConfigError, DataError
from clipit.mil import train_network
from clipit.runs.train import train_run

CLASSES = ("gland", "stroma")
TRAINING = {"hidden": 16, "attention": 8, "epochs": 2}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two slides per class and split; all but the last have a mask."""
    root = tmp_path_factory.mktemp("slides")
    generator, rows = np.random.default_rng(0), []
    for number in range(12):
        pixels = np.clip(picture(240, 200).astype(int) + generator.integers(-20, 20, (200, 240, 3)), 0, 255)
        name, split = f"s{number:02d}", ("train", "validation", "test")[number % 3]
        write_slide(root / f"{name}.tiff", pixels.astype(np.uint8), levels=2)
        rows.append({"slide": name, "label": CLASSES[number // 3 % 2], "split": split, "group": f"P{split}{number}"})
        mask = np.full((100, 120), 9, dtype=np.uint8)
        mask[40:, 50:90] = 3 + number // 3 % 2
        if number < 11:
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    pd.DataFrame(rows).to_csv(root / "slides.csv", index=False)
    return root


@pytest.fixture(scope="module")
def values(slides: Path, world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Configuration values for these slides."""
    root = tmp_path_factory.mktemp("study")
    prompts = root / "prompts.yaml"
    text = {"name": "two", "version": 1, "templates": ["{}."], "classes": {name: [name] for name in CLASSES}}
    prompts.write_text(yaml.safe_dump(text), encoding="utf-8")
    grids = {"mpp": 1.0, "pixels": 32, "grids": str(root / "grids")}
    return {
        "name": "slides",
        "output": str(root / "out"),
        "tiles": {"source": "slides", "path": str(slides / "slides.csv"), "slides": grids},
        "vlm": world["vlm"],
        "backbone": world["backbone"],
        "prompts": str(prompts),
        "mil": {
            "training": TRAINING, "seeds": [0, 1], "maps": 2, "resamples": 20,
            "masks": str(slides / "masks"), "mask_values": {"gland": 3, "stroma": 4},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def study(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> MilResult:
    path = tmp_path_factory.mktemp("config") / "slides.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return clipit.train_mil(path)


def test_all_arms_and_the_floor_are_compared_on_the_test_slides(study: MilResult) -> None:
    rows = study.table.query("split == 'test' and level == 'slide' and metric == 'balanced_accuracy'")
    arms = ["attention", "mean", "max", "zero_shot", "shuffled_labels", "class frequencies"]
    assert rows["arm"].tolist() == arms
    assert rows["seeds"].tolist() == [2, 2, 2, 1, 2, 1] and set(rows["labelled"]) == {4}
    assert rows["mean"].iloc[-1] == 0.5
    assert set(study.table["split"]) == {"test"}
    scores = study.scores
    assert len(scores) == 12 * (4 * 2 + 2)  # all slides: four trained arms with two seeds each, zero-shot and the floor
    trained = scores[scores["arm"] == "attention"]
    assert np.allclose(trained["score_gland"] + trained["score_stroma"], 1, atol=1e-5)


def test_maps_are_scored_between_their_floor_and_ceiling(study: MilResult) -> None:
    scores = study.map_scores
    kinds = scores[["arm", "map"]].drop_duplicates().to_numpy().tolist()
    assert ["attention", "attention"] in kinds and ["zero_shot", "cosines"] in kinds
    assert not (scores["arm"] == "shuffled_labels").any()
    assert set(scores["slides"]) == {3}  # the last test slide has no mask
    ceiling = scores.loc[scores["map"].str.startswith("ceiling"), "dice"].item()
    floor = scores.loc[scores["map"].str.startswith("floor"), "dice"].item()
    assert 0 < floor < ceiling and scores["dice"].max() <= ceiling


def test_the_page_shows_maps_attended_tiles_and_missing_masks(study: MilResult) -> None:
    page = study.page.read_text(encoding="utf-8")
    for text in (
        "Maps compared with masks",
        "s02: attention, relative to the highest",
        "highest attention",
        "1 test slide",
    ):
        assert text in page
    assert page.count("data:image/png;base64") == 4 and "data:image/jpeg;base64" in page
    report = study.report.read_text(encoding="utf-8")
    assert "class frequencies: floor" in report and "permuted labels" in report
    assert (
        "difference from `shuffled_labels`" in report and "fraction of bags that keep their label: train 50%" in report
    )
    rows = study.table.query("arm in ['shuffled_labels', 'class frequencies']")
    assert rows["p_holm"].isna().all() and (rows["p_reason"] == "control").all()
    slides = pd.read_csv(study.folder / "map_scores_slides.csv")
    assert set(slides["slide"]) == {"s02", "s05", "s08"} and slides["dice"].between(0, 1).all()
    assert (study.folder / "maps" / "s02" / "attention.png").is_file()


def test_trained_models_are_reused_and_patient_bags_give_patient_scores(
    study: MilResult, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slides.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    trained_seeds: list[int] = []
    fit = train_network._fit

    def counted(*arguments: Any) -> Any:
        trained_seeds.append(arguments[2])
        return fit(*arguments)

    monkeypatch.setattr(train_network, "_fit", counted)
    before = study.scores
    again = clipit.train_mil(clipit.load_config(path, {"mil.maps": 0, "mil.masks": None, "mil.mask_values": {}}))
    assert trained_seeds == [] and again.scores.equals(before)
    keys = {"mil.bags": "patient", "mil.features": "backbone", "mil.arms": ["mean"], "mil.seeds": [0], "name": "p"}
    keys |= {"mil.masks": None, "mil.mask_values": {}, "mil.maps": 1}
    patients = clipit.train_mil(clipit.load_config(path, keys))
    assert set(patients.table["level"]) == {"patient"} and trained_seeds == [0]
    assert "of 4 patients" not in patients.report.read_text(encoding="utf-8")
    assert len(patients.map_scores) == 0


def test_bags_of_a_trained_student_are_scored_and_mapped_against_masks(
    values: dict[str, Any], configure: MakeConfig, tmp_path: Path
) -> None:
    run = train_run(configure({"training.steps": 2, "training.evaluate_every": 2}, name="for_bags"))
    path = tmp_path / "slides.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    keys = {"mil.features": "run", "mil.run": str(run), "mil.arms": ["attention"], "name": "student"}
    keys |= {"mil.reference": "attention", "mil.seeds": [0]}
    result = clipit.train_mil(clipit.load_config(path, keys))
    assert f"classifier {run.name}" in result.report.read_text(encoding="utf-8")
    row = result.table.query("arm == 'attention' and level == 'slide' and metric == 'balanced_accuracy'")
    assert row["labelled"].tolist() == [4] and row["mean"].between(0, 1).all()
    maps = result.map_scores
    assert set(maps["slides"]) == {3} and maps.query("arm == 'attention'")["dice"].between(0, 1).all()
    assert set(maps.query("arm == 'attention'")["map"]) >= {"attention"}


def test_masks_are_validated_before_training(
    study: MilResult, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slides.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    fit_calls: list[Any] = []
    monkeypatch.setattr(train_network, "_fit", lambda *arguments: fit_calls.append(arguments))
    missing = {"mil.masks": str(tmp_path / "none"), "mil.seeds": [7]}
    with pytest.raises(ConfigError, match=r"the mask folder .* does not exist(?s:.*)contains slides.yaml"):
        clipit.train_mil(clipit.load_config(path, missing))
    masks = tmp_path / "masks"
    masks.mkdir()
    keys = {"mil.masks": str(masks), "mil.maps": 0, "mil.arms": ["mean"], "mil.seeds": [0], "name": "none"}
    unmasked = clipit.train_mil(clipit.load_config(path, keys))
    assert "No test slide has both a mask" in unmasked.report.read_text(encoding="utf-8") and unmasked.map_scores.empty
    misspelt = {**keys, "mil.mask_values": {"glands": 3, "stroma": 4}}
    with pytest.raises(ConfigError, match=r"labels that no bag has: glands; the labels are gland, stroma"):
        clipit.train_mil(clipit.load_config(path, misspelt))
    Image.new("L", (100, 10)).save(masks / "s02.png")
    with pytest.raises(DataError, match="does not have the aspect ratio of the slide"):
        clipit.train_mil(clipit.load_config(path, {**keys, "mil.seeds": [7]}))
    assert not fit_calls


@pytest.fixture
def feature_files(tmp_path: Path) -> dict[str, Any]:
    """Configuration values without tiles, for synthetic bags stored as TRIDENT files."""
    bags, rows = bags_with_signal(36), []
    for bag, name in enumerate(bags.names.tolist()):
        write_features(tmp_path / "h5" / f"{name}.h5", bags.features(bag))
        label = bags.classes[int(bags.labels[bag])]
        rows.append({"slide": name, "label": label, "group": bags.patients[bag], "split": bags.splits[bag]})
    pd.DataFrame(rows).to_csv(tmp_path / "slides.csv", index=False)
    section = {"features": "h5", "h5": str(tmp_path / "h5"), "slides": str(tmp_path / "slides.csv")}
    section |= {"training": {**TRAINING, "epochs": 12, "learning_rate": 0.01}, "seeds": [0], "resamples": 0}
    return {"name": "files", "output": str(tmp_path / "out"), "mil": section}


def test_the_command_trains_on_feature_files_without_tiles(
    feature_files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipit.cli.mil import main

    path = tmp_path / "files.yaml"
    path.write_text(yaml.safe_dump(feature_files), encoding="utf-8")
    record = tmp_path / "record.csv"
    arms = '--mil.arms=["attention", "mean", "zero_shot"]'
    monkeypatch.setattr(sys, "argv", ["clipit mil", "--config", str(path), arms, f"--record={record}"])
    main()
    result = MilResult(tmp_path / "out" / "mil" / "files")
    rows = result.table.query("metric == 'accuracy' and level == 'slide'").set_index("arm")["mean"]
    assert rows["attention"] > 0.8 and rows["class frequencies"] == 0.5
    assert "zero_shot" not in rows and "no prompts are configured" in result.report.read_text(encoding="utf-8")
    assert pd.read_csv(record)["arm"].nunique() == 3


def test_invalid_study_configurations_are_rejected(
    feature_files: dict[str, Any], tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    tiles = {"tiles": {"source": "table", "path": NO_TILES}}  # the command's default
    path = tmp_path / "files.yaml"
    path.write_text(yaml.safe_dump({**feature_files, **tiles}), encoding="utf-8")

    def assert_error(kind: type[Exception], match: str, keys: dict[str, Any], config: Path = path) -> None:
        with pytest.raises(kind, match=match):
            clipit.train_mil(clipit.load_config(config, keys))

    assert_error(ConfigError, "unknown arms: median", {"mil.arms": ["mean", "median"]})
    assert_error(ConfigError, "must be one of the arms", {"mil.reference": "max", "mil.arms": ["mean"]})
    assert_error(ConfigError, "h5 and slides are read only", {"mil.features": "vlm"})
    assert_error(ConfigError, "tiles.labels.*mil.labels_per_class", {"tiles.labels.kind": "none"})
    masks = {"mil.masks": str(tmp_path), "mil.mask_values": {"benign": 1}}
    assert_error(ConfigError, "only maps of slides", {**masks, "mil.arms": ["mean"]})
    without_files = {**feature_files["mil"], "features": "vlm", "h5": None, "slides": None}
    assert_error(ConfigError, "no tiles are configured", {"mil": without_files})
    table = pd.read_csv(tmp_path / "slides.csv")
    table.assign(label=table["label"].where(table["split"] != "test")).to_csv(tmp_path / "slides.csv", index=False)
    assert_error(DataError, r"(?s)no test bag has a label.*map a split that has labels to test in tiles\.splits", {})
    table.assign(label="benign").to_csv(tmp_path / "slides.csv", index=False)
    assert_error(DataError, "all labels belong to one class: benign", {})
    # tiles of several classes in every group: no bag has a label
    assert_error(
        ConfigError, "tiles.labels.*mil.labels_per_class", {}, write_config({"tiles.labels.kind": "per_class"})
    )
    assert_error(
        DataError, "no training bag has a label", {"mil.arms": ["mean"], "tiles.labels.kind": "all"}, write_config()
    )


def test_slides_without_a_group_are_not_called_patients(feature_files: dict[str, Any], tmp_path: Path) -> None:
    path, table = tmp_path / "files.yaml", tmp_path / "slides.csv"
    path.write_text(yaml.safe_dump(feature_files), encoding="utf-8")
    slides = pd.read_csv(table)
    test = slides["split"] == "test"
    count, note = int(test.sum()), "Slides of unknown patients, each counted as a separate patient: "
    slides.drop(columns="group").to_csv(table, index=False)
    result = clipit.train_mil(clipit.load_config(path, {"mil.arms": ["mean"], "mil.reference": "mean"}))
    for file in (result.page, result.report):
        text = file.read_text(encoding="utf-8")
        assert f"{count} test slides of unknown patients" in text and f"{note}{len(slides)}." in text
        assert f"{count} patients" not in text and "resamples of patients" not in text
    slides.loc[slides.index[test][:2], "group"] = ""
    slides.to_csv(table, index=False)
    result = clipit.train_mil(clipit.load_config(path, {"mil.arms": ["mean"], "mil.reference": "mean"}))
    text = result.report.read_text(encoding="utf-8")
    known = slides.loc[test, "group"].replace("", pd.NA).nunique()
    assert f"{count} test slides of {known} patients and of unknown patients (2 slides)" in text and f"{note}2." in text
