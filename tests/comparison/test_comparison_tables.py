"""Tests of comparison tables: paired differences, intervals and corrected p-values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from clipit.comparison.report.comparison_tables import (
    cells,
    describe_holm_family,
    latex_table,
    main_table,
    paper_table,
)
from clipit.comparison.statistics import compute_results
from clipit.evaluation.score_row import ScoreRow


def rows(arm: str, scores: dict[int, float | None], data_set: str = "crc", test_set: str = "test") -> list[ScoreRow]:
    return [
        ScoreRow(
            data_set=data_set, backbone="uni", test_set=test_set, arm=arm, seed=seed, metric="accuracy", score=score
        )
        for seed, score in scores.items()
    ]


def test_differences_are_paired_by_seed() -> None:
    results = compute_results(
        rows("base", {1: 0.5, 2: 0.7}) + rows("text", {2: 0.78, 1: 0.62}), "base", lambda *_: None
    )
    assert results[1].differences == pytest.approx({1: 0.12, 2: 0.08})
    low, high = stats.t.interval(0.95, 1, loc=10, scale=stats.sem([12, 8]))
    assert cells(results[1])[5:7] == ["+10.0", f"[{low:+.1f}, {high:+.1f}]"]
    assert results[0].differences == {} and cells(results[0])[5:] == ["", "", "", ""]


def test_single_seed_has_no_interval_and_no_p_value() -> None:
    results = compute_results(rows("base", {1: 0.5}) + rows("text", {1: 0.6}), "base", lambda *_: None)
    assert cells(results[1])[5:] == ["+10.0", "only one seed", "none", "none: 1 of the 5 seeds needed"]


def test_equal_differences_have_no_interval() -> None:
    results = compute_results(rows("base", {1: 0.5, 2: 0.7}) + rows("text", {1: 0.6, 2: 0.8}), "base", lambda *_: None)
    assert cells(results[1])[5:7] == ["+10.0", "no spread over seeds"]


def test_p_values_match_scipy_and_are_holm_corrected() -> None:
    draws = np.random.default_rng(0).normal(0.02, 0.02, size=(3, 5))
    base = dict.fromkeys(range(5), 0.7)
    table = rows("base", base) + rows("base", base, "bach")
    for name, data_set, difference in (("a", "crc", draws[0]), ("b", "crc", draws[1]), ("a", "bach", draws[2])):
        table += rows(name, {seed: 0.7 + d for seed, d in enumerate(difference.tolist())}, data_set)
    results = {line.key: line for line in compute_results(table, "base", lambda *_: None)}
    raw = {key: line.p.p for key, line in results.items() if line.differences}
    assert raw[("crc", "uni", "test", "a")] == pytest.approx(stats.ttest_1samp(draws[0], 0).pvalue)
    smallest = min(raw, key=lambda key: raw[key] or 1.0)
    assert results[smallest].p_holm.p == pytest.approx(min(1.0, 3 * (raw[smallest] or 1.0)))


def test_undefined_score_gives_no_difference() -> None:
    results = compute_results(rows("base", {1: 0.5, 2: 0.7}) + rows("text", {1: None, 2: 0.8}), "base", lambda *_: None)
    assert results[1].mean is None and results[1].differences == {} and "n/a" in cells(results[1])[4]


def test_arm_named_reference_is_not_a_reference_row() -> None:
    scores: dict[int, float | None] = {seed: 0.7 + 0.01 * seed**2 for seed in range(5)}
    names = ("reference_arm", "reference: mine", "reference: VLM linear probe")
    score_rows = [*rows("base", dict.fromkeys(scores, 0.6)), *(row for name in names for row in rows(name, scores))]
    score_rows = [replace(row, run=Path("run")) if row.arm != names[2] else row for row in score_rows]
    results = {result.key.arm: result for result in compute_results(score_rows, "base", lambda *_: None)}
    assert [name for name, result in results.items() if result.reference] == [names[2]]
    assert results["reference_arm"].p_holm.p is not None and results[names[2]].p_holm.p is None
    assert "(tests in each family: test: 2)" in describe_holm_family(list(results.values())), (
        "reference rows must not be tested"
    )


def test_reference_row_has_a_deviation_only_if_it_depends_on_the_seed() -> None:
    name, paths = "reference: VLM linear probe", {"probe": ("0.parquet", "1.parquet"), "zero-shot": ("0.parquet",) * 2}
    score_rows = {
        kind: [replace(row, predictions=Path(files[row.seed])) for row in rows(name, {0: 1.0, 1: 1.0})]
        for kind, files in paths.items()
    }
    scores = {kind: cells(compute_results(score_rows[kind], "base", lambda *_: None)[0])[4] for kind in score_rows}
    assert scores == {"probe": "100.0 ± 0.0", "zero-shot": "100.0"}


def test_main_paper_and_latex_tables() -> None:
    results = compute_results(rows("base", {1: 0.5, 2: 0.7}) + rows("text", {1: 0.6, 2: 0.8}), "base", lambda *_: None)
    text = main_table(results, {("crc", "uni", "text"): "95.92"})
    assert text.splitlines()[0].split("|")[1].strip() == "arm" and "95.92" in text
    header, body = paper_table(results, "base", "text")
    assert header == ["backbone", "crc", "difference"]
    assert body == [["uni", "60.0 ± 14.1 -> 70.0 ± 14.1", "+10.0"]]
    latex = latex_table(header, body, "50% of R&D_x")
    assert r"\begin{tabular}{lrr}" in latex and r"{llr}" in latex_table(header, body, "", left=2)
    assert r"\caption{50\% of R\&D\_x}" in latex and r"$\rightarrow$" in latex and r"$\pm$" in latex
