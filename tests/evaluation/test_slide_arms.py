"""Tests of the comparison of arms on slide labels."""

import numpy as np
import pandas as pd
import pytest

from clipit.errors import DataError
from clipit.evaluation.intervals import MIN_UNITS, paired_bootstrap, t_interval
from clipit.evaluation.significance import paired_t_test
from clipit.evaluation.slide_arms import SlideTables, compare_slide_arms, compare_slide_sets
from clipit.evaluation.slide_metrics import choose_pooling, evaluate_slides
from clipit.evaluation.slide_scores import PooledScore, slide_table
from clipit.evaluation.slide_sets import PoolingKey, collect_slides
from clipit.reporting.slide_arms_table import slide_arms_markdown, slide_arms_table

CLASSES = ("normal", "tumour")
N = 60


def slides_table(validation: int = 20) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "slide": [f"s{i:02}" for i in range(N)],
            "label": [CLASSES[i // 2 % 2] for i in range(N)],
            "group": [f"p{i // 2}" for i in range(N)],
            "split": ["validation" if i < validation else "test" for i in range(N)],
        }
    )


def scores(seed: int, gain: float, best: str = "top5") -> pd.DataFrame:
    """Noisy slide scores, in which one pooling method is the best."""
    generator = np.random.default_rng(seed)
    pooled = {}
    for i in range(N):
        by_pooling = {
            name: (generator.normal(size=2) + (gain if name == best else 0.1) * (np.arange(2) == i // 2 % 2))
            for name in ("top1", "top5", "mean")
        }
        pooled[f"s{i:02}"] = [
            PooledScore(name, False, 100, 100, values.astype(np.float32)) for name, values in by_pooling.items()
        ]
    return slide_table(pooled, CLASSES)


@pytest.fixture(scope="module")
def tables() -> SlideTables:
    return {
        "image_only": {seed: scores(seed, 1.5) for seed in range(5)},
        "text": {seed: scores(100 + seed, 4.0, "mean") for seed in range(5)},
        "prompts": {0: scores(200, 1.0)},
    }


def select_row(table: pd.DataFrame, arm: str, metric: str, level: str = "slide") -> pd.Series:
    rows = table.query("arm == @arm and metric == @metric and level == @level")
    assert len(rows) == 1
    return rows.iloc[0]


def test_each_arm_uses_the_pooling_chosen_on_validation_slides(tables: SlideTables) -> None:
    compared = compare_slide_arms(tables, slides_table(), CLASSES, "image_only", resamples=40)
    assert compared.choices["text"].key == PoolingKey("mean", False)
    assert compared.choices["image_only"].key == PoolingKey("top5", False)
    assert set(compared.table["split"]) == {"test"}
    row = select_row(compared.table, "text", "accuracy")
    assert (row["pooling"], row["seeds"], row["labelled"], row["patients"]) == ("mean", 5, 40, 20)
    single = [
        evaluate_slides(table, slides_table(), CLASSES, resamples=0)
        .scores.query("split == 'test' and level == 'slide' and pooling == 'mean' and metric == 'accuracy'")
        .iloc[0]["value"]
        for table in tables["text"].values()
    ]
    assert row["mean"] == pytest.approx(np.mean(single)) and row["sd"] == pytest.approx(np.std(single, ddof=1))


def test_controls_have_no_p_value_and_are_not_corrected_for(tables: SlideTables) -> None:
    sets = {
        arm: {seed: collect_slides(table, slides_table(), CLASSES) for seed, table in by_seed.items()}
        for arm, by_seed in tables.items()
    }
    choices = {arm: choose_pooling(*by_seed.values()) for arm, by_seed in sets.items()}
    without_controls = compare_slide_sets(sets, choices, "image_only", resamples=0).table
    with_controls = compare_slide_sets(sets, choices, "image_only", resamples=0, controls=["prompts"]).table
    text = select_row(with_controls, "text", "accuracy")
    assert text["p_holm"] == text["p"] < select_row(without_controls, "text", "accuracy")["p_holm"]
    prompts = select_row(with_controls, "prompts", "accuracy")
    assert (pd.isna(prompts["p"]), pd.isna(prompts["p_holm"]), prompts["p_reason"]) == (True, True, "control")
    assert prompts["difference"] == select_row(without_controls, "prompts", "accuracy")["difference"]


def test_differences_intervals_and_p_values_match_the_generic_functions(tables: SlideTables) -> None:
    compared = compare_slide_arms(tables, slides_table(), CLASSES, "image_only", resamples=40, seed=3)
    sets = {
        arm: [collect_slides(table, slides_table(), CLASSES) for table in by_seed.values()]
        for arm, by_seed in tables.items()
    }
    base = [each.predictions(PoolingKey("top5", False), "patient", "test") for each in sets["image_only"]]
    text = [each.predictions(PoolingKey("mean", False), "patient", "test") for each in sets["text"]]
    drawn = paired_bootstrap(list(zip(base, text, strict=True)), ("auroc",), 40, 3)["auroc"]
    row = select_row(compared.table, "text", "auroc", "patient")
    assert (row["difference"], row["low"], row["high"]) == (drawn.value, drawn.interval.low, drawn.interval.high)
    means = (
        select_row(compared.table, "text", "auroc", "patient"),
        select_row(compared.table, "image_only", "auroc", "patient"),
    )
    assert row["difference"] == pytest.approx(means[0]["mean"] - means[1]["mean"])
    gains = [paired_bootstrap([pair], ("auroc",), 0)["auroc"].value or 0.0 for pair in zip(base, text, strict=True)]
    interval = t_interval(gains)
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx((interval.low, interval.high))
    assert row["p"] == pytest.approx(paired_t_test(gains).p) and row["p_holm"] >= row["p"]
    assert pd.isna(means[1]["difference"])


def test_arm_with_a_single_seed_is_paired_with_each_seed_of_the_reference(tables: SlideTables) -> None:
    compared = compare_slide_arms(tables, slides_table(), CLASSES, "image_only", resamples=0)
    row, base = select_row(compared.table, "prompts", "accuracy"), select_row(compared.table, "image_only", "accuracy")
    assert row["difference"] == pytest.approx(row["mean"] - base["mean"])
    assert row["seeds"] == 1 and pd.isna(row["sd"]) and row["reason"] == "no resamples requested"
    reversed_roles = compare_slide_arms(tables, slides_table(), CLASSES, "prompts", resamples=0)
    assert select_row(reversed_roles.table, "image_only", "accuracy")["difference"] == pytest.approx(-row["difference"])


def test_all_poolings_are_compared_without_validation_slides(tables: SlideTables) -> None:
    compared = compare_slide_arms(tables, slides_table(validation=0), CLASSES, "image_only", resamples=0)
    rows = compared.table.query("arm == 'text' and metric == 'accuracy' and level == 'slide'")
    assert rows["pooling"].tolist() == ["top1", "top5", "mean"]
    assert compared.choices["text"].key is None


def test_difference_of_few_patients_has_no_interval(tables: SlideTables) -> None:
    slides = slides_table().assign(group=[f"p{i % 3}" for i in range(N)])
    row = select_row(compare_slide_arms(tables, slides, CLASSES, "image_only", resamples=40).table, "text", "accuracy")
    assert row["difference"] is not None and pd.isna(row["low"])
    assert row["reason"] == f"3 independent units to resample; a 95% interval needs {MIN_UNITS}"


def test_table_shows_means_differences_intervals_and_p_values(tables: SlideTables) -> None:
    compared = compare_slide_arms(tables, slides_table(), CLASSES, "image_only", resamples=40)
    base, text, prompts = slide_arms_table(compared, "test", "accuracy").rows
    row = select_row(compared.table, "text", "accuracy")
    assert base[-3:] == ["", "", ""]
    assert text[:3] == ["text", "mean", 5] and text[3] == f"{row['mean']:.3f} ± {row['sd']:.3f}"
    assert text[4] == f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    assert text[5] == f"[{row['seeds_low']:+.3f}, {row['seeds_high']:+.3f}]" and text[6] == f"{row['p_holm']:.3f}"
    assert (prompts[0], prompts[2]) == ("prompts", 1)
    markdown = slide_arms_markdown(compared, "test", "accuracy")
    assert "40 slides of 20 patients" in markdown and "chosen on validation slides" in markdown
    assert slide_arms_markdown(compared, "elsewhere", "accuracy").startswith("No elsewhere slides to compare")
    few = slides_table().assign(group=[f"p{i % 3}" for i in range(N)])
    rows = slide_arms_table(compare_slide_arms(tables, few, CLASSES, "image_only", resamples=40), "test", "auroc").rows
    assert f"(no interval: 3 independent units to resample; a 95% interval needs {MIN_UNITS})" in str(rows[1][4])


def test_incompatible_arms_raise_an_error(tables: SlideTables) -> None:
    with pytest.raises(DataError, match="unknown reference arm baseline"):
        compare_slide_arms(tables, slides_table(), CLASSES, "baseline")
    fewer = {**tables, "text": {seed: table[3:] for seed, table in tables["text"].items()}}
    with pytest.raises(DataError, match="text, seed 0: its slides or pooling methods differ from those of image_only"):
        compare_slide_arms(fewer, slides_table(), CLASSES, "image_only")
    others = {**tables, "text": {seed + 1: table for seed, table in tables["text"].items()}}
    with pytest.raises(DataError, match="text: seeds 1, 2, 3, 4, 5 cannot be paired with 0, 1, 2, 3, 4"):
        compare_slide_arms(others, slides_table(), CLASSES, "image_only")
    with pytest.raises(DataError, match="no slide scores for text"):
        compare_slide_arms({**tables, "text": {}}, slides_table(), CLASSES, "image_only")
