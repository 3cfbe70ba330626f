"""Tests that all numbers of a comparison can be recomputed from comparison.json and its predictions."""

import hashlib
import html
import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from logged_lines import capture_log
from scipy.stats import t as student

from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.compare import compare
from clipit.comparison.export_tables import export_csv, export_numbers, write_points
from clipit.comparison.rebuild import _read_analysis
from clipit.comparison.statistics import ArmResult, ComparisonResults, compute_results
from clipit.comparison.vlm_reference import reference_file
from clipit.errors import ArtifactError
from clipit.evaluation.complementarity import complementarity
from clipit.evaluation.intervals import Estimate, Interval, paired_bootstrap
from clipit.evaluation.predictions import Predictions, read_predictions
from clipit.evaluation.score_row import ScoreRow

Values = dict[str, Any]


@pytest.fixture(scope="module")
def compared(
    world: dict[str, Any], shared_output: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Values, list[str]]:
    """Folder, comparison.json and log of a small comparison with a shifted set and a control."""
    from clipit.config.load import merge, nested, validate_file

    keys: dict[str, Any] = {
        "output": tmp_path_factory.mktemp("compared"),
        "training.steps": 6,
        "tiles.labels.seed": None,
        "training.evaluate_every": 2,
        "evaluation.bootstrap": 20,
        "comparison.arms": ["image_only", "clip_it_all"],
        "comparison.controls": ["clip_it_all"],
        "comparison.seeds": [1, 2],
        "comparison.tuning_seeds": [9],
        "comparison.shifted": {"centre 2": world["tiles"]},
    }
    file = validate_file(merge(world, nested(keys)), "test")
    log_lines = capture_log()
    folder = compare(file.run, file.comparison)
    return folder, json.loads((folder / "comparison.json").read_text(encoding="utf-8")), log_lines


def select_line(numbers: Values, arm: str, test_set: str = "test") -> Values:
    (line,) = [line for line in numbers["lines"] if (line["arm"], line["test_set"]) == (arm, test_set)]
    return dict(line)


def scores(line: Values) -> list[float]:
    """Accuracy of each seed, computed from its predictions."""
    predictions = [read_predictions(Path(row["predictions"])).select("test") for row in line["seeds"]]
    return [float((t.probabilities.argmax(axis=1) == t.labels)[t.labels >= 0].mean()) for t in predictions]


@pytest.mark.slow
def test_means_differences_and_intervals_can_be_recomputed(
    compared: tuple[Path, Values, list[str]],
) -> None:
    folder, numbers, _ = compared
    resamples, markdown = numbers["config"]["evaluation"]["bootstrap"], (folder / "comparison.md").read_text()
    assert len({(line["arm"], line["test_set"]) for line in numbers["lines"]}) == 2 * 5, (
        "two arms and three references on two test sets"
    )
    for test_set in ("test", "centre 2"):
        base = select_line(numbers, "image_only", test_set)
        old = scores(base)
        for line in (line for line in numbers["lines"] if line["test_set"] == test_set):
            new = scores(line)
            assert [row["score"] for row in line["seeds"]] == pytest.approx(new, abs=1e-12)
            assert line["mean"] == pytest.approx(fmean(new)) and line["sd"] == pytest.approx(stdev(new))
            spread = "" if line["reference"] and len(set(new)) == 1 else f" ± {100 * stdev(new):.1f}"
            assert f"{100 * fmean(new):.1f}{spread}" in markdown
            if line["arm"] == "image_only":
                assert line["difference"] is None and line["over_tiles"] is None
                continue
            gains = np.subtract(new, old)
            assert line["difference"] == pytest.approx(gains.mean())
            pairs = [
                tuple(read_predictions(Path(row["predictions"])).select("test") for row in both)
                for both in zip(base["seeds"], line["seeds"], strict=True)
            ]
            drawn = paired_bootstrap(pairs, ("accuracy",), resamples)["accuracy"]  # type: ignore[arg-type]
            assert (line["over_tiles"]["low"], line["over_tiles"]["high"]) == (drawn.interval.low, drawn.interval.high)
            low, high = drawn.interval.low, drawn.interval.high
            shown = drawn.interval.reason if low is None or high is None else f"[{100 * low:+.1f}, {100 * high:+.1f}]"
            assert shown in markdown
            if np.ptp(gains) < 1e-12:
                assert line["over_seeds"] == {"low": None, "high": None, "reason": "no spread over seeds"}
                continue
            low, high = student.interval(0.95, len(gains) - 1, gains.mean(), gains.std(ddof=1) / len(gains) ** 0.5)
            assert (line["over_seeds"]["low"], line["over_seeds"]["high"]) == pytest.approx((low, high))
            assert f"[{100 * low:+.1f}, {100 * high:+.1f}]" in markdown


@pytest.mark.slow
def test_predictions_of_reference_rows_are_in_the_comparison_folder(
    compared: tuple[Path, Values, list[str]],
) -> None:
    folder, numbers, _ = compared
    predictions = folder / "predictions" / "small"
    probe, zero_shot = (
        select_line(numbers, "reference: VLM linear probe"),
        select_line(numbers, "reference: VLM zero-shot"),
    )
    assert [row["predictions"] for row in probe["seeds"]] == [
        str(predictions / f"vlm-linear-probe-seed{seed}-test.parquet") for seed in (1, 2)
    ]
    assert {row["predictions"] for row in zero_shot["seeds"]} == {str(predictions / "vlm-zero-shot-test.parquet")}
    assert zero_shot["reference"] and zero_shot["over_tiles"]["low"] is not None
    assert zero_shot["p_holm"]["reason"] == "reference row"
    rows = pq.read_table(folder / "comparison.parquet").to_pylist()
    assert all(Path(row["predictions"]).is_file() for row in rows)


@pytest.mark.slow
def test_analysis_values_can_be_recomputed_from_their_files(compared: tuple[Path, Values, list[str]]) -> None:
    _, numbers, _ = compared
    findings = {finding["heading"].partition(" (")[0]: finding for finding in numbers["findings"]}
    for row in findings["Complementarity: correct where vision is wrong"]["values"]:
        vision, other = (read_predictions(Path(row[side])).select("test") for side in ("vision", "predictions"))
        recomputed = complementarity(vision, other, 0, 1)
        assert (row["only_other"], row["accuracy"]) == (recomputed.only_other, pytest.approx(is_correct(other).mean()))
        if row["seed"] == 1:
            assert row["excess_low"] == complementarity(vision, other, 20, 1).intervals["excess"].low
    shown = {row[0]: row for row in findings["Complementarity: correct where vision is wrong"]["rows"]}
    assert {name.partition(":")[0] for name in shown} == {
        "text only", "the VLM's image probe", "image_only, the next seed", "clip_it_all",
    }  # fmt: skip
    for name, row in shown.items():
        values = [
            v for v in findings["Complementarity: correct where vision is wrong"]["values"] if v["classifier"] == name
        ]
        shares = [100 * value["share"] for value in values]
        assert [value["seed"] for value in values] == [1, 2], "R is computed for each seed"
        assert row[1] == f"{fmean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})"
        assert row[4] == str(values[0]["only_other"]), "the other columns show the first seed"
    for row in findings["Gain by class"]["values"]:
        gains = [
            is_correct(new)[new.by_id().labels == class_index(new, row)].mean()
            - is_correct(old)[old.by_id().labels == class_index(old, row)].mean()
            for new, old in prediction_pairs(row)
        ]
        assert row["gain"] == pytest.approx(fmean(gains), abs=1e-12)
    for row in findings["Gain by pairing score"]["values"]:
        scores = {line["tile_id"]: line for line in pq.read_table(row["scores"]).to_pylist()}
        gains = []
        for new, old in prediction_pairs(row):
            inside = np.array([scores[tile]["quartile"] == row["quartile"] for tile in new.by_id().ids.tolist()])
            assert inside.sum() == row["tiles"]
            gains.append((is_correct(new) - is_correct(old))[inside].mean())
        assert row["gain"] == pytest.approx(fmean(gains), abs=1e-12)
    (quality,) = findings["Quality of the pairs"]["values"]
    assert Path(quality["pairs"]).is_file() and isinstance(quality["skewness"], float)
    sharing = f"{quality['neighbours_tiles']:,} of {quality['labelled']:,} labelled tiles that share their snippet"
    assert sharing in findings["Quality of the pairs"]["text"] and quality["neighbours_tiles"] < quality["labelled"]


def is_correct(table: Predictions) -> np.ndarray:
    """Correctness (1.0 or 0.0) of each tile's prediction, sorted by id."""
    table = table.by_id()
    return 1.0 * (table.probabilities.argmax(axis=1) == table.labels)


def class_index(table: Predictions, row: Values) -> int:
    return table.classes.index(row["class"])


def prediction_pairs(row: Values) -> list[tuple[Predictions, Predictions]]:
    """Test predictions of the arm and the baseline for each seed."""
    sides = [[read_predictions(Path(file)).select("test") for file in row[key]] for key in ("predictions", "baseline")]
    return list(zip(*sides, strict=True))


@pytest.mark.slow
def test_points_of_scatter_plots_are_written_with_ids(
    compared: tuple[Path, Values, list[str]], world: dict[str, Any]
) -> None:
    folder, numbers, _ = compared
    (number,) = [i for i, finding in enumerate(numbers["findings"]) if finding["points"]]
    finding = numbers["findings"][number]
    assert finding["points"] == f"plane-{number}.parquet" and finding["points"] in finding["source"]
    assert (folder / f"plane-{number}.png").is_file()
    points = pq.read_table(folder / finding["points"])
    assert points.column_names == ["plane", "kind", "id", "x", "y"]
    groups = {(row["plane"], row["kind"]) for row in points.to_pylist()}
    assert {plane for plane, _ in groups} == {"as embedded by the VLM", "centred", "projected by the student"}
    for plane, kind in groups:
        ids = {row["id"] for row in points.to_pylist() if (row["plane"], row["kind"]) == (plane, kind)}
        names = re.compile(r"images/test-\d+\.png")
        assert all(bool(names.fullmatch(name)) == (kind != "snippets") for name in ids), (plane, kind)
    tiles = {plane: {row["id"] for row in points.to_pylist() if row["plane"] == plane and row["kind"] != "snippets"}
             for plane, _ in groups}  # fmt: skip
    assert len({frozenset(ids) for ids in tiles.values()}) == 1, "planes must show the same tiles"
    for fingerprint in finding["values"][0]["fingerprints"].values():
        assert fingerprint in finding["source"]
    assert "classifier of small/clip_it_all-seed1" in finding["source"]
    assert finding["points"] in (folder / "comparison.html").read_text(encoding="utf-8")
    assert [row["gap"] for row in finding["values"]] == pytest.approx(
        [float(row[1]) for row in finding["rows"]], abs=6e-4
    )


@pytest.mark.slow
def test_rows_have_provenance_and_hashes_of_their_predictions(
    compared: tuple[Path, Values, list[str]],
) -> None:
    folder, numbers, _ = compared
    provenance = {
        row["arm"].removeprefix("reference: VLM "): (bool(row["prompts_hash"]), bool(row["index"]))
        for row in numbers["rows"]
        if row["run"] is None
    }
    assert provenance == {
        "linear probe": (False, False),
        "zero-shot": (True, False),
        "zero-shot, centred": (True, True),
    }
    labels = {row["arm"]: row["training_labels"] for row in numbers["rows"] if row["run"] is None}
    assert labels["reference: VLM zero-shot"] == 0 and labels["reference: VLM linear probe"] == 12
    for row in numbers["rows"]:
        assert row["predictions_sha256"] == hashlib.sha256(Path(row["predictions"]).read_bytes()).hexdigest()
        assert (row["searched"] is None) == (row["run"] is None)
        if row["searched"]:
            assert json.loads(row["searched"]) == {"training.learning_rate": row["learning_rate"], "training.steps": 6}
    page = html.unescape((folder / "comparison.html").read_text(encoding="utf-8"))
    for key in ("lines", "against.clip_it_all", "findings[0].values"):
        assert f"comparison.json: {key}, computed from" in page
    assert "of small/image_only-seed1, small/image_only-seed2" in page and str(folder / "predictions") in page
    assert all(note in page for note in numbers["notes"]) and numbers["notes"]


def score_rows(arm: str, values: list[float | None], predictions: Path | None = None) -> list[ScoreRow]:
    return [
        ScoreRow(
            data_set="d",
            backbone="b",
            test_set="test",
            arm=arm,
            seed=seed,
            metric="accuracy",
            score=score,
            steps=10 * (seed + 1),
            predictions=predictions,
        )
        for seed, score in enumerate(values)
    ]


def exported(results: list[ArmResult], **against: list[ArmResult]) -> Values:
    return export_numbers(ComparisonResults((), results, against), [])


def test_missing_statistics_have_a_reason() -> None:
    rows = score_rows("base", [0.5] * 5) + score_rows("same", [0.6] * 5) + score_rows("gap", [0.5, None, 0.5, 0.5, 0.5])
    numbers = exported(compute_results(rows, "base", lambda old, new: None))
    same, gap = select_line(numbers, "same"), select_line(numbers, "gap")
    assert same["difference"] == pytest.approx(0.1)
    assert same["over_seeds"] == {"low": None, "high": None, "reason": "no spread over seeds"}
    assert same["p_holm"] == {"value": None, "reason": "no spread over seeds"}
    varied = (
        score_rows("base", [0.5] * 5)
        + score_rows("a", [0.6, 0.5, 0.7, 0.6, 0.8])
        + score_rows("b", [0.4, 0.6, 0.5, 0.5, 0.6])
    )
    tested = exported(compute_results(varied, "base", lambda old, new: None))
    a, b = select_line(tested, "a"), select_line(tested, "b")
    gains = np.array([0.1, 0.0, 0.2, 0.1, 0.3])
    bounds = student.interval(0.95, 4, gains.mean(), gains.std(ddof=1) / 5**0.5)
    assert (a["over_seeds"]["low"], a["over_seeds"]["high"]) == pytest.approx(bounds)
    assert a["p"]["value"] < b["p"]["value"] and a["p_holm"]["value"] == 2 * a["p"]["value"]
    assert (gap["mean"], gap["sd"], gap["difference"], gap["over_seeds"]) == (None, None, None, None)
    assert same["costs"]["steps"] == 30 and same["costs"]["seconds"] is None
    one = exported(compute_results(score_rows("base", [0.5]) + score_rows("a", [0.6]), "base", lambda old, new: None))
    assert select_line(one, "a")["over_seeds"]["reason"] == "only one seed" and select_line(one, "a")["sd"] is None
    json.dumps(numbers, allow_nan=False)


def test_interval_over_tiles_is_exported_with_its_reason() -> None:
    rows = score_rows("base", [0.5, 0.4], Path("file")) + score_rows("a", [0.6, 0.7], Path("file"))
    drawn = Estimate(0.2, Interval(None, None, "1 independent unit to resample; 2 are needed"))
    results = compute_results(rows, "base", lambda old, new: drawn)
    numbers = exported(results, base=results)
    expected = {"value": 0.2, "low": None, "high": None, "reason": "1 independent unit to resample; 2 are needed"}
    assert select_line(numbers, "a")["over_tiles"] == expected
    assert numbers["against"]["base"] == numbers["lines"]


def test_point_files_are_numbered_by_analysis(tmp_path: Path) -> None:
    plain = AnalysisResult(heading="a", text="b", header=("c",), rows=(("d",),), source="rows", values=({"d": 1.5},))
    points = {"left": {"tiles": np.array([[0.0, 1.0], [2.0, 3.0]])}, "right": {"snippets": np.array([[4.0, 5.0]])}}
    ids = {"left": {"tiles": np.array(["t1", "t2"])}, "right": {"snippets": np.array(["s1"])}}
    pictured = AnalysisResult(heading="e", text="f", header=("g",), rows=(), source="stores", planes=points, ids=ids)
    first, second = write_points([plain, pictured], tmp_path)
    assert first == plain and second.points == "plane-1.parquet"
    assert second.source == "stores; plane-1.parquet: x, y by id"
    assert pq.read_table(tmp_path / "plane-1.parquet").to_pylist() == [
        {"plane": "left", "kind": "tiles", "id": "t1", "x": 0.0, "y": 1.0},
        {"plane": "left", "kind": "tiles", "id": "t2", "x": 2.0, "y": 3.0},
        {"plane": "right", "kind": "snippets", "id": "s1", "x": 4.0, "y": 5.0},
    ]
    assert export_numbers(ComparisonResults((), (), {}), [first])["findings"][0]["values"] == [{"d": 1.5}]


def test_flipped_bit_in_a_point_file_raises_an_error(tmp_path: Path) -> None:
    place = np.full((50, 2), 0.5) + np.arange(100).reshape(50, 2)
    names = {"left": {"tiles": np.array([f"t{number}" for number in range(50)])}}
    analysis = AnalysisResult(
        heading="e", text="f", header=("g",), rows=(), source="s", planes={"left": {"tiles": place}}, ids=names
    )
    (written,) = write_points([analysis], tmp_path)
    record = export_numbers(ComparisonResults((), (), {}), [written])["findings"][0]
    assert np.array_equal(_read_analysis(record, tmp_path).planes["left"]["tiles"], place)
    path = tmp_path / "plane-0.parquet"
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(3)
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"e: incomplete \(OSError"):
        _read_analysis(record, tmp_path)


def test_similar_test_set_names_get_different_files(tmp_path: Path) -> None:
    names = {reference_file(tmp_path, "vlm", seed, part).name for seed in (None, 1) for part in ("a b", "a-b", "a/b")}
    assert len(names) == 6 and reference_file(tmp_path, "vlm", 1, "test").name == "vlm-seed1-test.parquet"
    assert all("/" not in name and " " not in name for name in names)


@pytest.mark.parametrize("content", ["{}", '{"rows": 3, "config": {}, "findings": []}', '{"rows": [], "checksum": ""}'])
def test_csv_export_of_an_invalid_file_raises_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"(?s)comparison\.json.*clipit compare again"):
        export_csv(tmp_path, tmp_path / "rows.csv")
