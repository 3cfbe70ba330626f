"""The segmentation study: methods with floors and ceilings, choices on validation masks, and the page."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from tiny_classifier import save_classifier
from token_fixtures import write_images

import clipit
from clipit.config.file import ConfigFile
from clipit.config.load import merge, nested, validate_file
from clipit.config.segmentation import SegmentationConfig, SegmentationMethod
from clipit.errors import ConfigError, DataError, ModelError
from clipit.evaluation.segmentation_scores import MEAN
from clipit.segmentation.decision import DecisionSearch
from clipit.segmentation.mask_draws import draw_order
from clipit.segmentation.method import Method, MethodInputs, Segmenter
from clipit.segmentation.methods import METHODS, select_methods
from clipit.segmentation.segmentation_sections import _explanation
from clipit.segmentation.segmentation_study import _segment, read_study_masks, segment
from clipit.workspace.adapted_patients import TRAINING_TILES
from clipit.workspace.workspace import Workspace

PARTS = {"train": 3, "validation": 3, "test": 12}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Configuration for 18 images of 24 x 20 pixels with a dark gland, and a classifier."""
    root = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    lines = ["path,mask,split,group,mpp"]
    for split, count in PARTS.items():
        for number in range(count):
            width = 4 + number % 16
            mask = np.zeros((20, 24), np.uint8)
            mask[:, :width], mask[:2, :2] = 1, 255
            pixels = np.where(mask[..., None] == 1, 60, 200) + rng.integers(0, 20, (20, 24, 3))
            name = f"{split}{number}<b>.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
            Image.fromarray(mask).save(root / f"mask_{name}")
            lines.append(f"{name},mask_{name},{split},{split}-{number},1.0")
    (root / "tiles.csv").write_text("\n".join(lines), encoding="utf-8")
    prompts = {"name": "p", "version": 1, "templates": ["{}."], "classes": {"glands": ["gland"], "other": ["stroma"]}}
    (root / "prompts.yaml").write_text(yaml.safe_dump(prompts), encoding="utf-8")
    save_classifier(root)
    return {
        "name": "masks",
        "output": str(root / "out"),
        "tiles": {"source": "table", "path": str(root / "tiles.csv"), "labels": {"kind": "none"}},
        "vlm": {"name": str(root / "clip")},
        "evaluation": {"bootstrap": 50},
        "segmentation": {"classes": {"stroma": 0, "gland": 1}, "windows": {"scales": [0.25, 0.5]}},
        "root": root,
    }


def configure(values: dict[str, Any], **changes: Any) -> ConfigFile:
    return validate_file(merge({k: v for k, v in values.items() if k != "root"}, nested(changes)), "test")


def darkness(image: Image.Image, mpp: float) -> np.ndarray:
    """Gland probabilities from darkness, at half their true value."""
    assert mpp == 1.0
    dark = (1 - np.asarray(image.convert("L"), dtype=np.float32) / 255) * 0.5
    return np.stack([1 - dark, dark])


@pytest.fixture(scope="module")
def finished(values: dict[str, Any]) -> "clipit.api.segmentation.SegmentResult":
    """A study of the window methods and of an exact method with underestimated probabilities."""
    oracle = Method("darkness", lambda inputs: "", lambda inputs: [Segmenter("dark", darkness, {"model": "dark"})])
    changes = {
        "segmentation.prompts": str(values["root"] / "prompts.yaml"),
        # Only for the prompts; the classifier has the class names of the masks.
        "segmentation.class_map": {"glands": "gland", "other": "stroma"},
        "note": "<script>taken</script>",
    }
    with pytest.MonkeyPatch.context() as patch:
        windows = {name: METHODS[name] for name in ("vlm_windows", "student_windows", "classifier_windows")}
        patch.setattr("clipit.segmentation.methods.METHODS", {"dark": oracle, **windows})
        return clipit.segment(configure(values, **changes), values["root"] / "run")


def dice(rows: pd.DataFrame, subject: str, name: str = MEAN, averaging: str = "images") -> float:
    selected = rows.query(
        "subject == @subject and class_name == @name and averaging == @averaging and metric == 'dice'"
    )
    return float(selected.value.iloc[0])


def test_methods_are_scored_with_floors_and_ceilings(finished: Any) -> None:
    rows = finished.rows
    windows = ["VLM, windows", "student, windows", "classifier, windows"]
    assert list(dict.fromkeys(rows[rows.kind == "method"].subject)) == ["dark", *windows]
    share = [(20 * (4 + n) - 4) / (20 * 24 - 4) for n in range(12)]
    floor = np.mean([2 * p / (1 + p) for p in share])
    assert dice(rows, "everything is gland") == pytest.approx(floor)
    assert 0 < dice(rows, "haematoxylin above Otsu's threshold is gland") < 1
    assert dice(rows, "best class per tile of 20 um") < 1
    for name in windows:
        assert 0 < dice(rows, name) < dice(rows, f"majority class in the windows of {name}") < 1
    # A threshold of one half would find nothing; the threshold from validation masks finds every pixel.
    assert dice(rows, "dark") == 1
    assert 0 < rows[rows.subject == "dark"].threshold.iloc[0] < 0.5
    assert rows.query("subject == 'VLM, windows'").choice.iloc[0].startswith("scale ")


def test_a_run_trained_on_test_patients_is_an_error(values: dict[str, Any], tmp_path: Path) -> None:
    rows = [("a", "train", "test-4"), ("b", "validation", "other")]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("id", "split", "group"))}
    pd.DataFrame(columns).to_parquet(tmp_path / TRAINING_TILES)
    with pytest.raises(DataError, match=r"1 of 12 test tiles belongs to 1 patient .*: test-4"):
        clipit.segment(configure(values), tmp_path)


def test_scores_have_provenance_and_image_scores_have_counts(finished: Any) -> None:
    rows = finished.rows
    vlm = rows[rows.subject == "VLM, windows"].iloc[0]
    assert vlm.prompts == "p" and vlm.vlm_fingerprint and vlm.tiles_fingerprint and vlm.patients == 12
    assert rows.commit.notna().all() and (rows.split == "test").all()
    csv = pd.read_csv(finished.folder / "segmentation.csv")
    assert len(csv) == len(rows) and list(csv.columns) == list(rows.columns)
    images = finished.images
    dark = images[images.subject == "dark"]
    assert len(dark) == 12 and (dark.dice == 1).all()
    counts = np.array([[list(row) for row in matrix] for matrix in dark["counts"]])
    assert counts.sum() == 12 * (20 * 24 - 4) and counts[:, 0, 1].sum() == 0  # ignored pixels are not counted
    record = json.loads((finished.folder / "segmentation.json").read_text())
    assert record["masks"] == PARTS and record["foreground"] == ["gland"]


def test_the_page_shows_tables_and_pictures_and_escapes_names(finished: Any) -> None:
    page = finished.page.read_text()
    assert "<script>taken" not in page and "test0<b>" not in page
    assert page.count("data:image/png;base64,") == 4 * 3  # best, median and worst image of each method
    for text in (
        "everything is gland",
        "best class per tile of 140 um",
        "majority class in the windows of VLM, windows",
    ):
        assert text in page
    assert re.search(r"Dice of .*|Mean of the foreground classes", finished.report.read_text())


def test_the_threshold_is_chosen_on_validation_masks_only(
    values: dict[str, Any], finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = values["root"] / "empty.png"
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(empty)
    text = re.sub(r"mask_validation[^,]*", "empty.png", (values["root"] / "tiles.csv").read_text())
    (values["root"] / "misled.csv").write_text(text, encoding="utf-8")
    dark = Method("darkness", lambda inputs: "", lambda inputs: [Segmenter("dark", darkness, {"model": "dark"})])
    monkeypatch.setitem(METHODS, "vlm_windows", dark)
    changes = {"tiles.path": str(values["root"] / "misled.csv"), "name": "misled", "segmentation.shown": 0}
    file = configure(values, **changes, **{"segmentation.methods": ["vlm_windows"]})
    rows = pd.read_parquet(segment(file.run, file.segmentation) / "segmentation.parquet")
    assert dice(rows, "dark") < 0.5 < dice(finished.rows, "dark")


def test_scores_are_averaged_over_seeds_and_only_the_first_seed_has_a_section(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def light(image: Image.Image, mpp: float) -> np.ndarray:
        return np.asarray(1 - darkness(image, mpp))

    seeds = [
        Segmenter(f"dark, seed {seed}", predict, {"model": "dark"}, training_masks=2, seed=seed)
        for seed, predict in ((3, darkness), (4, light))
    ]
    monkeypatch.setitem(METHODS, "unet", Method("darkness", lambda inputs: "", lambda inputs: seeds, trained=True))
    changes = {"name": "seeds", "segmentation.methods": ["unet"], "segmentation.shown": 1}
    file = configure(values, **changes, **{"segmentation.training.masks": [2]})
    folder = segment(file.run, file.segmentation)
    rows = pd.read_parquet(folder / "segmentation.parquet")
    rows = rows[(rows.kind == "method") & (rows.metric == "dice") & (rows.class_name == MEAN)]
    means = [rows[rows.averaging == kind].value for kind in ("images", "pixels")]
    assert rows.value.nunique() > 1
    report = (folder / "segmentation.md").read_text()
    expected = " ".join(["| dark | 2 | 2 |", *(f"{each.mean():.3f} ± {each.std():.3f} |" for each in means)])
    assert expected in re.sub(" +", " ", report)
    assert report.index("| floor ") < report.index("| ceiling ") < report.index(" ± "), "bounds come first"
    assert "in rows with all training masks, the seeds differ only in training" in report
    assert "## dark, seed 3" in report and "## dark, seed 4" not in report
    assert all(path.name.startswith("dark__seed_3") for path in folder.glob("dark*.png"))


def test_a_study_without_validation_masks_predicts_the_most_probable_class(values: dict[str, Any]) -> None:
    text = (values["root"] / "tiles.csv").read_text().splitlines()
    lines = [re.sub(r",mask_validation[^,]*,", ",,", line) for line in text]
    (values["root"] / "fewer.csv").write_text("\n".join(lines), encoding="utf-8")
    changes = {"tiles.path": str(values["root"] / "fewer.csv"), "name": "fewer"}
    changes |= {
        "segmentation.methods": ["classifier_windows"],
        "segmentation.shown": 0,
        "segmentation.class_map": {"gland": "gland"},
    }
    file = configure(values, **changes)
    with pytest.raises(ConfigError, match="no model class corresponds to stroma"):
        segment(file.run, file.segmentation, values["root"] / "run")
    mapping = {"gland": "gland", "stroma": "stroma", "tumour": "gland"}
    section = file.segmentation.model_copy(update={"class_map": mapping})
    rows = pd.read_parquet(segment(file.run, section, values["root"] / "run") / "segmentation.parquet")
    method = rows[rows.kind == "method"].iloc[0]
    assert pd.isna(method.threshold) and "no validation masks" in method.choice and method.validation_masks == 0


def test_models_and_classes_are_validated_before_prediction(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(inputs: MethodInputs) -> tuple[str, ...]:
        raise ModelError("trained without text", where="run", fix="use another")

    def method(classes: Callable[[MethodInputs], tuple[str, ...]] | None, trained: bool = False) -> Method:
        return Method("", lambda inputs: "", lambda inputs: [], trained=trained, classes=classes)

    methods = {
        "mapped": method(lambda inputs: ("a", "b", "c")),
        "same names": method(lambda inputs: ("stroma", "gland")),
        "other names": method(lambda inputs: ("a", "x")),
        "refused": method(refuse),
        "unet": method(None, trained=True),
    }
    monkeypatch.setattr("clipit.segmentation.methods.METHODS", methods)
    file = configure(values, **{"segmentation.class_map": {"a": "gland", "b": "stroma"}})
    workspace = Workspace(file.run)
    inputs = MethodInputs(
        file.run, file.segmentation, workspace, read_study_masks(file.run, file.segmentation, workspace)
    )
    selected, notes = select_methods(inputs)
    assert list(selected) == ["mapped", "same names"]
    assert notes[0] == "refused is skipped: trained without text"
    assert "other names is skipped: no model class corresponds to stroma" in notes[1]
    wrong = file.segmentation.model_copy(update={"class_map": {"a": "gland", "b": "stroma", "typo": "gland"}})
    with pytest.raises(ConfigError, match="no model has: typo; mapped has a, b, c"):
        select_methods(replace(inputs, options=wrong))
    training = file.segmentation.training.model_copy(update={"masks": (2, 5, None)})
    named = file.segmentation.model_copy(update={"methods": ("unet",), "training": training, "class_map": {}})
    assert select_methods(replace(inputs, options=named))[1] == [
        "segmentation.training.masks: 5 skipped, because there are only 3 training masks"
    ]
    masks, known = inputs.masks, inputs.masks.counts.copy()
    train = np.flatnonzero(masks.tiles.splits == "train")
    first = [train[draw_order(masks.tiles.ids[train], masks.tiles.groups[train], seed)[0]] for seed in (0, 1)]
    known[first, 1] = 0
    training = training.model_copy(update={"masks": (1, None), "seeds": (0, 1)})
    named = named.model_copy(update={"training": training})
    assert select_methods(replace(inputs, options=named, masks=replace(masks, counts=known)))[1] == [
        f"1 mask, seed {seed}: no drawn mask contains gland; methods trained on masks alone cannot predict an absent "
        "class"
        for seed in (0, 1)
    ]
    known[train, 1] = 0
    assert select_methods(replace(inputs, options=named, masks=replace(masks, counts=known)))[1] == [
        "no training mask contains gland; methods trained on masks alone cannot predict an absent class"
    ]
    # Methods that train on masks use no threshold from validation masks.
    dark, test = Segmenter("dark", darkness, {"model": "dark"}), inputs.masks.of_split("test")
    untrained, trained = (_segment(dark, methods[name], inputs, test) for name in ("mapped", "unet"))
    assert untrained.validation_masks == 3 and untrained.decision.threshold is not None
    assert trained.validation_masks == 0 and trained.decision.threshold is None
    assert trained.counts[:, :, 1].sum() == 0  # no probability exceeds one half


def test_missing_inputs_are_errors(values: dict[str, Any], tmp_path: Path) -> None:
    file = configure(values)
    with pytest.raises(ConfigError, match="no mask classes are defined"):
        segment(file.run, SegmentationConfig())
    two_methods: tuple[SegmentationMethod, ...] = ("vlm_windows", "student_windows")
    with pytest.raises(ConfigError, match=r"vlm_windows needs class prompts: .*; student_windows needs a finished run"):
        segment(file.run, file.segmentation.model_copy(update={"methods": two_methods}))
    one_method: tuple[SegmentationMethod, ...] = ("classifier_windows",)
    with pytest.raises(ConfigError, match="classifier_windows needs a finished run"):
        segment(file.run, file.segmentation.model_copy(update={"methods": one_method}))
    lines = [line for line in (values["root"] / "tiles.csv").read_text().splitlines() if ",test," not in line]
    table = values["root"] / "no_test.csv"
    table.write_text("\n".join(lines), encoding="utf-8")
    untested = configure(values, **{"tiles.path": str(table)})
    with pytest.raises(DataError, match="no test tile has a mask"):
        segment(untested.run, untested.segmentation)


def test_with_three_classes_the_most_probable_class_is_predicted() -> None:
    options = SegmentationConfig(classes={"a": 0, "b": 1, "c": 2})
    search = DecisionSearch(("a", "b", "c"), options)
    assert search.best().log_odds is None
    truth = np.array([[0, 1], [2, 2]], np.int16)
    search.add(np.eye(3, dtype=np.float32)[truth].transpose(2, 0, 1), truth)
    assert search.best().threshold is None and search.best().dice == 1


def test_configuration_lists_all_methods() -> None:
    from typing import get_args

    assert get_args(SegmentationMethod) == tuple(METHODS)


def test_study_of_patch_tokens_and_u_nets(values: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    tiles = write_images(tmp_path)
    prompts = {"name": "two", "version": 1, "templates": ["{}."], "classes": {"other": ["stroma"], "tumour": ["gland"]}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(prompts), encoding="utf-8")
    methods = ("vlm_tokens", "student_tokens", "token_head", "token_head_pseudo", "unet", "unet_pseudo")
    changes = {
        "output": str(tmp_path / "out"),
        "tiles": {"source": "table", "path": str(tiles), "labels": {"kind": "all"}},
        "backbone.name": "embedded",
        "segmentation.classes": {"other": 0, "tumour": 1},
        "segmentation.methods": list(methods),
        "segmentation.prompts": str(tmp_path / "two.yaml"),
        "segmentation.training.masks": [1],
        "segmentation.training.head.steps": 20,
        "segmentation.training.pseudo.training": {"epochs": 2},
        "segmentation.training.unet": {"encoder": "tu-test_resnet", "crop": 32, "steps": 2, "batch_size": 2},
        "segmentation.training.pseudo.evidence": {"normal": "other", "tumour": "tumour"},
        "segmentation.ceilings": [8.0],
        "segmentation.shown": 0,
    }
    result = clipit.segment(
        configure({k: v for k, v in values.items() if k != "segmentation"}, **changes), values["root"] / "run"
    )
    rows = result.rows[result.rows.kind == "method"]
    assert rows.subject.nunique() == len(methods), sorted(rows.subject.unique())
    scores = rows.query("metric == 'dice' and averaging == 'images' and class_name == 'tumour'")
    assert len(scores) == len(methods) and scores.value.between(0, 1).all()


def test_masks_of_unknown_patients_are_counted() -> None:
    provenance = {"masks": {"train": 3, "validation": 2, "test": 5}, "patients": 1, "foreground": ["a"]}
    text = _explanation({**provenance, "masks_of_unknown_patients": 4})
    assert "5 test masks from 1 patient (4 of unknown patients); " in text and "one by one" in text
    assert "unknown" not in _explanation({**provenance, "masks_of_unknown_patients": 0})
