"""Comparison of runs on slide labels: tables, arms and seeds, the zero-shot VLM, resuming, and errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from slide_files import picture, write_slide
from tiny_classifier import CLASSES, save_classifier

import clipit
from clipit.api.slides import SlideCompareResult
from clipit.config.data import TilesConfig
from clipit.config.run import RunConfig
from clipit.errors import ConfigError, DataError
from clipit.slide_tasks.slide_runs import find_runs
from clipit.workspace.adapted_patients import TRAINING_TILES

PROMPTS = {
    "name": "tissue",
    "version": "1",
    "templates": ["a picture of {}"],
    "classes": {name: [name] for name in CLASSES},
}
VLM_TILES = {"tile_mpp": 1.0, "tile_pixels": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two arms of two seeds and an untrained run in `runs/demo`, and the VLM."""
    root = tmp_path_factory.mktemp("models")
    for number, (arm, seed) in enumerate((arm, seed) for arm in ("image_only", "clip_it_all") for seed in (0, 1)):
        folder = root / "runs/demo" / f"{arm}-seed{seed}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(save_classifier(root / str(number), seed=number) / "run", folder)
        write_config(folder, arm, seed)
    (root / "runs/demo/bags-seed0").mkdir()
    write_config(root / "runs/demo/bags-seed0", "bags", 0)
    (root / "prompts.yaml").write_text(yaml.safe_dump(PROMPTS))
    return root


def write_config(folder: Path, arm: str, seed: int) -> None:
    config = RunConfig(name="demo", arm=arm, seed=seed, tiles=TilesConfig(source="folders", path="tiles"))
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of validation and test slides; the last file is empty."""
    root = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    rows = []
    for number, (label, split) in enumerate(
        [(label, split) for split in ("validation", "test", "test") for label in ("gland", "stroma", "tumour")]
    ):
        pixels = np.clip(picture(300, 300).astype(int) + rng.integers(-90, 90, (300, 300, 3)), 0, 255)
        write_slide(root / f"s{number}.tiff", pixels.astype(np.uint8), levels=2)
        rows.append({"slide": f"s{number}", "label": label, "split": split, "group": f"P{number}"})
    (root / "s8.tiff").write_bytes(b"")
    pd.DataFrame(rows).to_csv(root / "slides.csv", index=False)
    return root / "slides.csv"


@pytest.fixture(scope="module")
def compared(models: Path, slides: Path, tmp_path_factory: pytest.TempPathFactory) -> SlideCompareResult:
    """Comparison of both arms and the VLM."""
    out = tmp_path_factory.mktemp("compared")
    return clipit.compare_slides(
        slides, models / "runs", out, reference="image_only", vlm=str(models / "0/clip"),
        prompts=models / "prompts.yaml", **VLM_TILES,
    )  # fmt: skip


def test_every_arm_is_compared_with_the_reference_on_test_slides(compared: SlideCompareResult) -> None:
    table = compared.table
    assert set(table["split"]) == {"test"} and set(table["labelled"]) == {5}
    main = table[(table["level"] == "slide") & (table["metric"] == "accuracy")].set_index("arm")
    assert main.index.tolist() == ["clip_it_all", "image_only", "VLM zero-shot"]
    assert main["seeds"].tolist() == [2, 2, 1]
    gains = main["mean"] - main.loc["image_only", "mean"]
    others = ["clip_it_all", "VLM zero-shot"]
    assert np.allclose(main.loc[others, "difference"], gains[others]) and np.isnan(main.loc["image_only", "difference"])
    assert compared.verdict.startswith("Balanced accuracy on 5 test slides of 5 patients: ")
    assert compared.verdict in compared.text


def test_means_match_the_scores_of_each_run(models: Path, slides: Path, compared: SlideCompareResult) -> None:
    expected = clipit.score_slides(
        slides, compared.folder / "alone", classifier=models / "runs/demo/clip_it_all-seed1", **VLM_TILES
    )
    scores = compared.scores.query("arm == 'clip_it_all' and seed == 1").drop(columns=["arm", "seed"])
    pd.testing.assert_frame_equal(scores.reset_index(drop=True), expected.scores)
    metrics = pd.read_csv(compared.folder / "runs/clip_it_all-seed1/slide_metrics.csv")
    assert set(metrics["split"]) == {"validation", "test"}


def test_page_and_summary_list_runs_poolings_and_dropped_slides(compared: SlideCompareResult) -> None:
    page = compared.page.read_text(encoding="utf-8")
    for text in (compared.text, page):
        assert "the file is empty" in text and "was chosen for its balanced accuracy" in text
    assert "clip_it_all-seed1" in page and "VLM zero-shot" in page
    assert "Provenance" not in compared.text and "#" not in compared.text and "**" not in compared.text
    assert "runs/image_only-seed0/slides.html" in page
    assert (compared.folder / "runs/image_only-seed0/slides.html").is_file()
    status = pd.read_csv(compared.folder / "slides.csv").set_index("slide")["status"]
    assert status["s8"] == "failed" and (status.drop("s8") == "ok").all()


def test_a_second_call_reuses_all_scores(models: Path, slides: Path, compared: SlideCompareResult) -> None:
    files = {path: path.stat().st_mtime_ns for path in compared.folder.glob("runs/*/slides/*/tiles.parquet")}
    assert len(files) == 5 * 8
    before = compared.table
    repeated = clipit.compare_slides(
        slides, [models / "runs/demo/clip_it_all-seed0", models / "runs"], compared.folder, reference="image_only",
        vlm=str(models / "0/clip"), prompts=models / "prompts.yaml", **VLM_TILES,
    )  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in files} == files
    pd.testing.assert_frame_equal(repeated.table, before)


def test_runs_without_a_configuration_are_skipped_with_a_note(models: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        shutil.copytree(models / f"runs/demo/clip_it_all-seed{seed}", tmp_path / f"clip_it_all-seed{seed}")
    (tmp_path / "clip_it_all-seed1/config.yaml").unlink()
    runs, notes = find_runs([tmp_path])
    assert [run.seed for run in runs] == [0]
    assert notes == [f"in {tmp_path}, skipped 1 classifier without config.yaml: clip_it_all-seed1"]
    for folder in (tmp_path / "clip_it_all-seed1", tmp_path):
        (folder / "clip_it_all-seed0/config.yaml").unlink(missing_ok=True)
        with pytest.raises(
            DataError, match=r"not contain a trained run, only [12] classifiers? without config\.yaml: clip_it"
        ):
            find_runs([folder])


def test_invalid_comparisons_are_errors_before_anything_is_scored(models: Path, slides: Path, tmp_path: Path) -> None:
    runs, out = models / "runs/demo", tmp_path / "out"
    table = pd.read_csv(slides)
    wrong = slides.parent / "wrong.csv"
    table.assign(label="fat").to_csv(wrong, index=False)
    with pytest.raises(DataError, match=r"there is no arm bags(.|\n)*labels that are not classes: fat"):
        clipit.compare_slides(wrong, runs, out, reference="bags")
    table.drop(columns="label").to_csv(wrong, index=False)
    with pytest.raises(DataError, match=r"image_only is the only arm(.|\n)*no slide has a label"):
        clipit.compare_slides(wrong, runs / "image_only-seed0", out, reference="image_only")
    table.assign(split="train").to_csv(wrong, index=False)
    with pytest.raises(DataError, match="all labelled slides are in train, so none is left"):
        clipit.compare_slides(wrong, runs, out, reference="image_only")
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(PROMPTS | {"classes": {"fat": ["fat"], "gland": ["gland"]}}))
    with pytest.raises(DataError, match="the classes of the prompts are fat, gland"):
        clipit.compare_slides(
            slides, runs, out, reference="image_only", vlm=str(models / "0/clip"), prompts=tmp_path / "two.yaml"
        )
    with pytest.raises(ConfigError, match="needs a VLM and prompts"):
        clipit.compare_slides(slides, runs, out, reference="image_only", vlm="embedded")
    with pytest.raises(DataError, match="unknown prompt set 'nothing'"):
        clipit.compare_slides(slides, runs, out, reference="image_only", vlm="embedded", prompts="nothing")
    with pytest.raises(ConfigError, match=r"do not specify the resolution of their training tiles(.|\n)*--tile-mpp"):
        clipit.compare_slides(
            slides, runs, out, reference="image_only", vlm=str(models / "0/clip"), prompts=models / "prompts.yaml"
        )
    assert not out.exists()


def test_patients_in_two_splits_are_an_error_or_a_note(
    models: Path, slides: Path, compared: SlideCompareResult, tmp_path: Path
) -> None:
    table, run = slides.parent / "crossing.csv", models / "runs/demo/clip_it_all-seed1"
    rows = pd.read_csv(slides)
    rows.assign(group=[f"P{number % 6}" for number in range(9)]).to_csv(table, index=False)
    crossing = r"3 patients are in more than one split: P0 \(test, validation\)"
    with pytest.raises(DataError, match=rf"{crossing}(.|\n)*--leaks-policy=note"):
        clipit.compare_slides(table, models / "runs", tmp_path / "out", reference="image_only", tile_mpp=1.0)
    with pytest.raises(DataError, match=crossing):
        clipit.score_slides(table, tmp_path / "out", classifier=run, **VLM_TILES)
    noted = clipit.score_slides(table, compared.folder / "crossing", classifier=run, leaks_policy="note", **VLM_TILES)
    assert noted.page is not None
    for text in (noted.text, noted.page.read_text(encoding="utf-8")):
        assert "3 patients are in more than one split" in text and "kept on request" in text
    rows.drop(columns="label").assign(group="P").to_csv(table, index=False)  # without labels nothing is evaluated
    clipit.score_slides(table, compared.folder / "crossing", classifier=run, **VLM_TILES)
    opened = clipit.load_classifier(run)
    unchecked = clipit.score_slides(slides, compared.folder / "crossing", classifier=opened, **VLM_TILES)
    assert "he test slides were not compared with the training tiles" in unchecked.text


def test_reports_of_test_patients_are_noted(models: Path, slides: Path, tmp_path: Path) -> None:
    table = slides.parent / "reported.csv"
    run = Path(shutil.copytree(models / "runs/demo/clip_it_all-seed1", tmp_path / "r"))
    rows = pd.read_csv(slides)
    rows.assign(group=[f"T{number}" for number in range(9)]).to_csv(table, index=False)
    corpus = [{"id": f"r{number}", "text": "Adenocarcinoma.", "patient": f"T{number}"} for number in range(9)]
    (tmp_path / "reports.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus), encoding="utf-8")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["reports"] = {"path": str(tmp_path / "reports.jsonl"), "group_column": "patient"}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    scored = clipit.score_slides(table, tmp_path / "out", classifier=run, **VLM_TILES)
    count = (rows["split"] == "test").sum()
    assert f"{count} reports of r belong to patients with test slides" in scored.text


@pytest.mark.parametrize("matched_by", ["group", "slide", "slide of the patient"])
def test_test_slides_of_training_patients_are_an_error_or_a_note(
    models: Path, slides: Path, tmp_path: Path, matched_by: str
) -> None:
    runs = tmp_path / "runs"
    for arm in ("image_only", "clip_it_all"):
        shutil.copytree(models / f"runs/demo/{arm}-seed0", runs / f"{arm}-seed0")
    groups = {"group": ["P4", "P0", "X"], "slide": ["s4", "s0", "X"], "slide of the patient": ["P4-1", "P5-2", "X"]}
    ids = {"group": ["x.png", "y.png", "z.png"], "slide": ["s4@0,0,32", "s0@0,0,32", "s99@0,0,32"]}
    training_tiles = {
        "id": ids.get(matched_by, ids["group"]), "split": ["train", "validation", "train"], "group": groups[matched_by]
    }  # fmt: skip
    pd.DataFrame(training_tiles).to_parquet(runs / "clip_it_all-seed0" / TRAINING_TILES)
    count = 2 if matched_by == "slide of the patient" else 1  # s0 of patient P0 is a validation slide
    match = rf"{count} of 6 test slides belongs? to {count} patients? whose tiles the run clip_it_all-seed0 was trained"
    match = match if count == 1 else match.replace("belongs?", "belong")
    with pytest.raises(DataError, match=match):
        clipit.compare_slides(slides, runs, tmp_path / "out", reference="image_only", tile_mpp=1.0)
    for path in (runs / "clip_it_all-seed0", runs / "clip_it_all-seed0/classifier"):
        with pytest.raises(DataError, match=match):
            clipit.score_slides(slides, tmp_path / "out", classifier=path, **VLM_TILES)
    if matched_by == "group":
        noted = clipit.compare_slides(
            slides, runs, tmp_path / "out", reference="image_only", leaks_policy="note", **VLM_TILES
        )
        of_run = noted.page.parent / "runs/clip_it_all-seed0/slides.html"
        for text in (noted.text, *(path.read_text(encoding="utf-8") for path in (noted.page, of_run))):
            assert "1 of 6 test slides belongs to 1 patient" in text and "kept on request" in text


def test_runs_that_cannot_be_compared_are_errors(models: Path, slides: Path, tmp_path: Path) -> None:
    source, copy = models / "runs/demo/clip_it_all-seed0", tmp_path / "again"
    shutil.copytree(source, copy)
    with pytest.raises(DataError, match="2 runs have the arm clip_it_all and the seed 0"):
        clipit.compare_slides(slides, [models / "runs", copy], tmp_path / "out", reference="image_only")
    write_config(copy, "clip_it_all", 7)
    with pytest.raises(DataError, match=r"the seeds of clip_it_all \(0, 1, 7\) cannot be paired"):
        clipit.compare_slides(slides, [models / "runs", copy], tmp_path / "out", reference="image_only")
    with pytest.raises(DataError, match="does not contain a trained run"):
        clipit.compare_slides(slides, models / "runs/demo/bags-seed0", tmp_path / "out", reference="bags")
    with pytest.raises(DataError, match=r"no such folder(?s:.*)contains "):
        clipit.compare_slides(slides, models / "nowhere", tmp_path / "out", reference="bags")
