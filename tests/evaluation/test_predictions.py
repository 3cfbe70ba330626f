"""Tests of the predictions table and the scores computed from it."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import balanced_accuracy_score

from clipit.errors import DataError
from clipit.evaluation.intervals import paired_bootstrap
from clipit.evaluation.predictions import (
    Predictions,
    read_predictions,
    read_run_predictions,
    softmax,
    write_predictions,
)
from clipit.evaluation.run_scores import evaluate_predictions
from clipit.images.image_readers import FileReader
from clipit.output_files.artifacts import file_sha256, write_json
from clipit.tiles.tileset import TileSet

CLASSES = ("AC", "H", "S")


def example_predictions(n: int = 90, groups: bool = True) -> Predictions:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, n)
    logits = generator.normal(size=(n, 3))
    logits[np.arange(n), labels] += 1
    labels[:5] = -1
    return Predictions(
        ids=np.array([f"tile-{i:03}" for i in range(n)][::-1]),
        splits=np.where(np.arange(n) % 3 == 0, "validation", "test"),
        labels=labels,
        groups=np.array([f"p{i % 10}" if groups else "" for i in range(n)]),
        classes=CLASSES,
        probabilities=softmax(logits),
        zero_shot=softmax(generator.normal(size=(n, 3))),
    )


def test_round_trip_is_sorted_by_id(tmp_path: Path) -> None:
    predictions = example_predictions()
    write_predictions(tmp_path / "predictions.parquet", predictions)
    reread = read_predictions(tmp_path / "predictions.parquet")
    assert reread.ids.tolist() == sorted(predictions.ids.tolist())
    np.testing.assert_array_equal(reread.probabilities, predictions.probabilities[::-1])
    assert reread.zero_shot is not None and predictions.zero_shot is not None
    np.testing.assert_array_equal(reread.zero_shot, predictions.zero_shot[::-1])
    np.testing.assert_array_equal(reread.labels, predictions.labels[::-1])
    assert reread.classes == CLASSES
    names = pq.read_schema(tmp_path / "predictions.parquet").names
    assert names == ["id", "split", "label", "group", "p_AC", "p_H", "p_S", "zs_AC", "zs_H", "zs_S"]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]


def test_long_name_does_not_increase_the_memory_of_other_rows(tmp_path: Path) -> None:
    ids = [f"t{row}" for row in range(29)] + ["x" * 10**6]
    written = dataclasses.replace(
        example_predictions(30), ids=np.array(ids, dtype=object), groups=np.array(ids, dtype=object)
    )
    write_predictions(tmp_path / "p.parquet", written)
    read = read_predictions(tmp_path / "p.parquet")
    assert read.ids.itemsize <= 8 and read.groups.itemsize <= 8 and read.ids.tolist() == sorted(ids)
    short = dataclasses.replace(written, ids=np.array([*ids[:-1], "y"]), groups=np.array([*ids[:-1], "y"]))
    assert evaluate_predictions(read, ["test"], 20, 0) == evaluate_predictions(short.by_id(), ["test"], 20, 0)


def test_predictions_without_zero_shot(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.parquet", dataclasses.replace(example_predictions(), zero_shot=None))
    assert read_predictions(tmp_path / "p.parquet").zero_shot is None


def with_changed_value(name: str, row: int, value: object) -> Predictions:
    predictions = example_predictions()
    column = getattr(predictions, name).copy()
    column[row] = value
    return dataclasses.replace(predictions, **{name: column})


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (with_changed_value("ids", 3, "tile-001"), r"duplicate tile ids: tile-001 \(row \d+, row \d+\)"),
        (with_changed_value("labels", 3, 3), "outside the 3 classes"),
        (with_changed_value("labels", 3, -2), "outside the 3 classes"),
        (with_changed_value("probabilities", 3, np.nan), "not finite"),
        (with_changed_value("probabilities", 3, [0.5, 0.2, 0.1]), "summing to 1 for 1 tile: tile-086"),
        (with_changed_value("probabilities", 3, [1.5, -0.5, 0.0]), "negative"),
        (with_changed_value("zero_shot", 3, 0.9), "zero-shot"),
        (dataclasses.replace(example_predictions(), classes=(*CLASSES, "T")), "90 x 3, expected 90 x 4"),
    ],
)
def test_invalid_predictions_are_not_written(tmp_path: Path, predictions: Predictions, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_predictions(tmp_path / "p.parquet", predictions)
    assert not list(tmp_path.iterdir())


def test_invalid_files_raise_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    with pytest.raises(DataError, match="predictions file does not exist"):
        read_predictions(path)
    path.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="unreadable"):
        read_predictions(path)
    write_predictions(path, example_predictions())
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["p_H"]), path)
    with pytest.raises(DataError, match="missing columns: p_H"):
        read_predictions(path)
    for renamed, message in (("zs_H", "missing columns: zs_H; unknown columns: other"), ("id", "missing columns: id")):
        pq.write_table(table.rename_columns({renamed: "other"}).replace_schema_metadata(table.schema.metadata), path)
        with pytest.raises(DataError, match=message):
            read_predictions(path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(DataError, match="does not name its classes"):
        read_predictions(path)


def test_scores_depend_only_on_the_table(tmp_path: Path) -> None:
    predictions = example_predictions()
    write_predictions(tmp_path / "p.parquet", predictions)
    results = evaluate_predictions(read_predictions(tmp_path / "p.parquet"), ("validation", "test"), 200, 1)
    assert results == evaluate_predictions(predictions, ("validation", "test"), 200, 1)
    test = results["splits"]["test"]
    rows = (predictions.splits == "test") & (predictions.labels >= 0)
    expected = balanced_accuracy_score(predictions.labels[rows], predictions.probabilities[rows].argmax(1))
    score = test["metrics"]["balanced_accuracy"]
    assert score["value"] == pytest.approx(expected)
    assert score["low"] < score["value"] < score["high"]
    assert (test["n"], test["labelled"], test["groups"]) == (60, int(rows.sum()), 10)
    assert test["resampled"] == "10 groups"
    assert np.sum(test["confusion"]) == rows.sum()
    assert [row["class"] for row in test["per_class"]] == list(CLASSES)
    assert test["zero_shot"]["metrics"]["accuracy"]["value"] < score["value"]
    json.loads(json.dumps(results, allow_nan=False))


def test_tiles_without_a_group_are_not_counted_as_groups() -> None:
    groups = example_predictions().groups.copy()
    groups[groups == "p3"] = ""
    predictions = dataclasses.replace(example_predictions(), groups=groups)
    ungrouped = int(((groups == "") & (predictions.splits == "test") & (predictions.labels >= 0)).sum())
    results = evaluate_predictions(predictions, ["test"], 50)
    assert results["splits"]["test"]["resampled"] == f"9 groups and {ungrouped} tiles"


def test_the_tiles_of_a_tcga_patient_are_resampled_together() -> None:
    predictions = example_predictions()
    patients = np.array([f"TCGA-A6-{int(name[1:]):04d}" if name else "" for name in predictions.groups.tolist()])
    slides = np.array([f"{name}-01Z-00-DX{n % 2 + 1}" for n, name in enumerate(patients.tolist())], dtype=object)
    variants = [
        dataclasses.replace(predictions, groups=patients),
        dataclasses.replace(predictions, groups=slides),
        dataclasses.replace(predictions, groups=np.full(len(patients), ""), ids=slides + "_" + predictions.ids),
    ]
    first, *others = [evaluate_predictions(each, ["test"], 50)["splits"]["test"] for each in variants]
    assert first["resampled"] == "10 groups"
    assert [each["resampled"] for each in others] == ["10 groups"] * 2
    assert [each["metrics"]["accuracy"] for each in others] == [first["metrics"]["accuracy"]] * 2


def test_without_groups_tiles_are_resampled() -> None:
    results = evaluate_predictions(example_predictions(groups=False), ["test"], 50)
    assert results["splits"]["test"]["resampled"] == "57 tiles"


def test_split_without_labels_has_a_reason_instead_of_scores() -> None:
    predictions = dataclasses.replace(example_predictions(), labels=np.full(90, -1))
    metrics = evaluate_predictions(predictions, ["test"], 50)["splits"]["test"]["metrics"]
    assert metrics["accuracy"] == {"value": None, "low": None, "high": None, "reason": "no labelled tile"}


def test_missing_split_raises_an_error() -> None:
    with pytest.raises(DataError, match="the predictions cover: test, validation"):
        evaluate_predictions(example_predictions(), ["train"])


def test_predictions_are_compared_by_id() -> None:
    predictions = example_predictions()
    worse = dataclasses.replace(predictions, probabilities=predictions.zero_shot).by_id()
    differences = paired_bootstrap([(predictions.select("test"), worse.select("test"))], resamples=200)
    results = [evaluate_predictions(p, ["test"], 0)["splits"]["test"]["metrics"] for p in (predictions, worse)]
    for name, difference in differences.items():
        assert difference.value == pytest.approx(results[1][name]["value"] - results[0][name]["value"])
    assert differences["accuracy"].interval.high < 0
    with pytest.raises(DataError, match="cover different tiles"):
        paired_bootstrap([(predictions.select("test"), predictions.take(np.arange(40)).select("test"))])
    with pytest.raises(DataError, match="differ in their labels"):
        other = dataclasses.replace(worse, labels=np.zeros(90, np.int64))
        paired_bootstrap([(predictions.select("test"), other.select("test"))])


def finished_run(folder: Path) -> tuple[Path, Predictions]:
    write_predictions(folder / "predictions.parquet", example_predictions())
    write_json(folder / "results.json", {"predictions_sha256": file_sha256(folder / "predictions.parquet")})
    return folder, read_run_predictions(folder)


def rewrite(run: Path, change: Callable[[Predictions], Predictions]) -> None:
    write_predictions(run / "predictions.parquet", change(example_predictions()))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: dataclasses.replace(p, labels=np.roll(p.labels, 1)),
        lambda p: p.take(np.arange(len(p.ids) - 1)),
        lambda p: dataclasses.replace(p, probabilities=p.probabilities[::-1]),
    ],
)
def test_predictions_changed_after_scoring_raise_an_error(
    tmp_path: Path, change: Callable[[Predictions], Predictions]
) -> None:
    run, _ = finished_run(tmp_path)
    rewrite(run, change)
    with pytest.raises(DataError, match=r"(?s)changed since they were scored.*predictions\.parquet.*clipit evaluate"):
        read_run_predictions(run)


def test_flipped_bit_raises_an_error_without_a_recorded_hash(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, example_predictions())
    content = path.read_bytes()
    start = pq.read_metadata(path).row_group(0).column(4).data_page_offset  # probabilities of the first class
    path.write_bytes(content[: start + 60] + bytes([content[start + 60] ^ 1]) + content[start + 61 :])
    with pytest.raises(DataError, match=r"(?s)unreadable predictions.*p\.parquet"):
        read_predictions(path)


def to_tileset(predictions: Predictions) -> TileSet:
    n = len(predictions.ids)
    return TileSet(
        ids=predictions.ids,
        labels=predictions.labels,
        truth=predictions.labels,
        splits=predictions.splits,
        groups=predictions.groups,
        mpp=np.full(n, np.nan),
        classes=predictions.classes,
        reader=FileReader(Path(), ()),
        rows=np.arange(n),
        stamps=np.full(n, "", dtype=np.str_),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ids": np.array([f"tile-{i:03}" for i in range(1, 91)])},
            "2 tiles occur in only one of them: tile-000, tile-090",
        ),
        ({"splits": np.full(90, "test")}, "splits or labels of 30 tiles differ"),
        ({"truth": np.zeros(90, dtype=np.int64)}, "splits or labels of [0-9]+ tiles differ"),
        ({"classes": ("AC", "S", "H")}, "the predictions have the classes AC, H, S; the tiles have AC, S, H"),
    ],
)
def test_predictions_of_different_tiles_raise_an_error(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    run, predictions = finished_run(tmp_path)
    tiles = to_tileset(example_predictions())
    assert read_run_predictions(run, tiles).ids.tolist() == predictions.ids.tolist()
    with pytest.raises(DataError, match=rf"(?s){message}.*predictions\.parquet"):
        read_run_predictions(run, dataclasses.replace(tiles, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "values"), [("p_AC", [["0.5"]] * 90), ("label", [0.6] * 90), ("id", range(90))])
def test_columns_of_a_wrong_type_raise_an_error(tmp_path: Path, name: str, values: Sequence[object]) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, example_predictions())
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values)), path)
    with pytest.raises(DataError, match=rf"(?s)columns of the wrong type: {name}.*p\.parquet"):
        read_predictions(path)
