"""Tests of verdicts on synthetic scores: rules, contrasts, the page's section and the headline."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from scipy import stats
from tiny_models import MakeFile

from clipit.comparison.headline import judge_comparison
from clipit.comparison.judged_arms import judged_arms
from clipit.comparison.own_report_arms import label_sources, own_report_arms
from clipit.comparison.plan import Plan, plan_comparison
from clipit.comparison.report.verdicts import verdict_markdown, verdict_sections
from clipit.comparison.statistics import ArmResult, compute_results
from clipit.comparison.verdict import ArmVerdict, judge_arms
from clipit.evaluation.score_row import ScoreRow
from clipit.reporting.html import page

ARMS = ("image_only", "image_embedding", "own_label", "own_case", "own_shuffled", "other_snippet")
REPORT_PROBE, TILE_PROBE = "reference: VLM probe on labels of own_label", "reference: VLM linear probe"
LOW = dict.fromkeys([*ARMS, REPORT_PROBE, TILE_PROBE], 0.5)


@pytest.fixture
def make_plan(configure_file: MakeFile) -> Any:
    def make(compared_arms: tuple[str, ...] = ARMS, **keys: Any) -> Plan:
        file = configure_file({"comparison.arms": compared_arms, "comparison.seeds": list(range(5)), **keys})
        (plan,) = plan_comparison(file.run, file.comparison)
        return plan

    return make


def results(plan: Plan, means: dict[str, float | None], seeds: int = 5) -> list[ArmResult]:
    """Results of arms with the given mean scores and a standard deviation over seeds of about 1%."""
    noise = {}
    for number, arm in enumerate(means):
        drawn = np.random.default_rng(number).normal(0, 0.01, 5)
        noise[arm] = (drawn - drawn.mean()).tolist()
    rows = [
        ScoreRow(
            data_set=plan.data_set, backbone=plan.backbone, test_set="test", arm=arm, seed=seed, metric="accuracy",
            score=None if mean is None else mean + noise[arm][seed],
        )
        for arm, mean in means.items()
        for seed in range(seeds)
    ]  # fmt: skip
    return compute_results(rows, plan.comparison.baseline, lambda *_: None)


def judge_single_arm(plan: Plan, means: dict[str, float | None], seeds: int = 5) -> ArmVerdict:
    (result,) = judge_arms([plan], results(plan, means, seeds))
    return result


VERDICTS: list[tuple[dict[str, float | None], str]] = [
    (
        {"own_label": 0.8},
        "Text from the patients' own reports adds information: better than image_only, image_embedding (the VLM's "
        "embedding of the tile instead of text), own_case (tile labels propagated within each patient, without text), "
        "own_shuffled (reports shuffled across patients), other_snippet (the nearest snippet of any other report), the "
        "VLM's linear probe on the same labels and the VLM's linear probe on the tile labels.",
    ),
    ({"own_label": 0.8, REPORT_PROBE: 0.9}, "Use the VLM's linear probe on the report labels instead: no student"),
    ({"own_label": 0.8, REPORT_PROBE: 0.8}, "Use the VLM's linear probe on the report labels instead: no student"),
    ({"own_label": 0.5, REPORT_PROBE: 0.9}, "Use the VLM's linear probe on the report labels instead: no student"),
    ({"own_label": 0.4, REPORT_PROBE: 0.9}, "Use the VLM's linear probe on the report labels instead: no student"),
    ({"own_label": 0.8, TILE_PROBE: 0.9}, "Use the VLM's linear probe on the tile labels instead: no student"),
    (
        {"own_label": 0.8, "own_case": 0.8},
        "The gain is due to knowing which tiles belong to the same patient, not to text.",
    ),
    (
        {"own_label": 0.8, "own_shuffled": 0.8},
        "Better than image_only, but the gain is not shown to be due to text from the patients' own reports. Not "
        "better than own_shuffled (reports shuffled across patients).",
    ),
    ({"own_label": 0.5}, "No gain shown: the interval of the difference from image_only over 5 seeds includes 0"),
    ({"own_label": 0.3}, "Worse than image_only."),
    ({"own_label": None}, "Not decided: a score is undefined."),
]


@pytest.mark.parametrize(("changes", "verdict"), VERDICTS)
def test_verdict_of_each_rule(make_plan: Any, changes: dict[str, float | None], verdict: str) -> None:
    assert judge_single_arm(make_plan(), {**LOW, **changes}).verdict.startswith(verdict)


def test_verdict_names_the_controls_that_are_not_exceeded(make_plan: Any) -> None:
    means = {**LOW, "own_label": 0.8, REPORT_PROBE: 0.9, "own_case": 0.85, TILE_PROBE: None}
    assert judge_single_arm(make_plan(), means).verdict.endswith(
        "at most speed and independence from the VLM. Not better than own_case (tile labels propagated within "
        "each patient, without text). Not tested against the VLM's linear probe on the tile labels."
    )
    arm_results = results(make_plan(), {**LOW, "own_label": 0.8})
    label_result = next(r for r in arm_results if r.key.arm == "own_label")
    for seed in range(5):
        next(r for r in arm_results if r.key.arm == "own_case").scores[seed] = (
            float(label_result.scores[seed] or 0) - 0.1
        )
    (result,) = judge_arms([make_plan()], arm_results)
    assert result.verdict.startswith("Better than image_only, but") and "Not decided against own_case" in result.verdict


def test_single_seed_gives_no_verdict(make_plan: Any) -> None:
    plan = make_plan(**{"comparison.seeds": [0]})
    assert judge_single_arm(plan, {**LOW, "own_label": 0.9}, seeds=1).verdict == "Not decided: one seed."


def test_missing_controls_are_named(make_plan: Any) -> None:
    means: dict[str, float | None] = {"image_only": 0.5, "own_label": 0.8, REPORT_PROBE: 0.5, TILE_PROBE: None}
    verdict = judge_single_arm(make_plan(("image_only", "own_label", "own_case")), means | {"own_case": 0.5}).verdict
    assert verdict.startswith("Text from the patients' own reports adds information: better than image_only, own_case")
    for name in ("image_embedding", "own_shuffled", "other_snippet or clip_it_all", "tile labels"):
        assert name in verdict.partition("Not tested against")[2]


def test_text_is_not_credited_without_a_control_that_tests_it(make_plan: Any) -> None:
    means: dict[str, float | None] = {"image_only": 0.5, "own_label": 0.8, REPORT_PROBE: 0.5, TILE_PROBE: 0.5}
    for control in ({}, {"image_embedding": 0.5}, {"clip_it_all": 0.5}):
        verdict = judge_single_arm(make_plan(("image_only", "own_label", *control)), means | control).verdict
        assert verdict.startswith("Better than image_only, but the gain is not shown to be due to text"), control
        assert "own_case" in verdict.partition("Not tested against")[2]
    verdict = judge_single_arm(
        make_plan(("image_only", "own_label", "own_shuffled")), means | {"own_shuffled": 0.5}
    ).verdict
    assert verdict.startswith("Text from the patients' own reports adds information")


def test_contrasts_are_paired_by_seed_and_holm_corrected(make_plan: Any) -> None:
    plan = make_plan((*ARMS, "own_rules"), **{"own_report.rules": "gleason"})
    both = results(
        plan, {**LOW, "own_label": 0.53, "own_rules": 0.9, "reference: VLM probe on labels of own_rules": 0.6}
    )
    arms = {result.key.arm: result.scores for result in both}
    verdicts = judge_arms([plan], both)
    assert [result.key.arm for result in verdicts] == ["own_label", "own_rules"]
    raw = []
    for result in verdicts:
        for contrast in result.contrasts:
            gains = [(arms[result.key.arm][s] or 0) - (arms[str(contrast.control)][s] or 0) for s in range(5)]
            test = stats.ttest_1samp(gains, 0)
            assert contrast.difference == pytest.approx(sum(gains) / 5) and contrast.p.p == pytest.approx(test.pvalue)
            assert (contrast.interval.low, contrast.interval.high) == pytest.approx(test.confidence_interval(0.95))
            raw.append((contrast.p.p or 0, contrast.p_holm.p))
    assert len(raw) == 14 and min(raw)[1] == pytest.approx(14 * min(raw)[0])


def test_arms_with_the_same_labels_share_a_reference_row(make_plan: Any) -> None:
    arms = {
        "longer": {"base": "own_label", "training.learning_rate": 0.01},
        "latest": {"base": "own_label", "own_report.several": "latest"},
    }
    plan = make_plan((*ARMS, "longer", "latest", "own_snippet", "clip_it_all"), arms=arms)
    assert label_sources(plan) == {"own_label": "own_label", "longer": "own_label", "latest": "latest"}
    controls = own_report_arms(plan)
    assert list(controls) == ["own_label", "longer", "latest", "own_snippet"]
    assert controls["longer"]["report probe"] == REPORT_PROBE and controls["latest"]["snippet"] == "other_snippet"
    assert set(controls["own_snippet"]) == {"baseline", "image embedding", "case", "snippet", "tile probe"}
    assert (
        own_report_arms(make_plan(("image_only", "own_label", "clip_it_all")))["own_label"]["snippet"] == "clip_it_all"
    )


def test_controls_are_found_by_configuration_not_by_name(make_plan: Any) -> None:
    renamed = {
        "mine": {"base": "own_label"},
        "by_tile": {"base": "own_case"},
        "exchanged": {"base": "own_label", "own_report.shuffled": True},
        "elsewhere": {"base": "other_snippet"},
        "image_as_text": {"base": "image_embedding"},
        "own_shuffled": {"base": "clip_it_all"},  # the name alone does not make it a control
    }
    plan = make_plan(("image_only", "clip_it_all", *renamed), arms=renamed)
    expected = {
        "baseline": "image_only", "image embedding": "image_as_text", "case": "by_tile", "shuffled": "exchanged",
        "snippet": "elsewhere", "report probe": "reference: VLM probe on labels of mine", "tile probe": TILE_PROBE,
    }  # fmt: skip
    assert own_report_arms(plan) == {"mine": expected}
    pairs = {"text": {"base": "clip_it_all"}, "mixed": {"base": "shuffled_pairs"}, "twin": {"base": "image_embedding"}}
    judged = judged_arms(make_plan(("image_only", *pairs), arms=pairs))
    assert {arm: dict(each.controls) for arm, each in judged.items()} == {
        "text": {"baseline": "image_only", "image embedding": "twin", "shuffled pairs": "mixed"}
    }


def test_most_similar_control_is_used(make_plan: Any) -> None:
    arms = {"rules_shuffled": {"base": "own_rules", "own_report.shuffled": True}}
    plan = make_plan(
        ("image_only", "own_label", "own_rules", "own_shuffled", "rules_shuffled", "clip_it_all", "other_snippet"),
        arms=arms, **{"own_report.rules": "gleason"},
    )  # fmt: skip
    controls = own_report_arms(plan)
    assert {arm: names["shuffled"] for arm, names in controls.items()} == {
        "own_label": "own_shuffled", "own_rules": "rules_shuffled",
    }  # fmt: skip
    assert {names["snippet"] for names in controls.values()} == {"other_snippet"}


def test_baseline_is_compared_once(make_plan: Any) -> None:
    plan = make_plan(**{"comparison.baseline": "own_case"})
    controls = own_report_arms(plan)["own_label"]
    assert controls["baseline"] == "own_case" and "case" not in controls
    plan = make_plan(**{"comparison.baseline": "own_label"})
    assert judge_single_arm(plan, LOW).verdict == "Not decided: this arm is the baseline."


def test_section_escapes_names_and_is_omitted_without_arms(make_plan: Any) -> None:
    hostile = "<img src=x onerror=alert(1)>|"
    plan = make_plan()
    plans = [plan, replace(plan, data_set=hostile)]
    means = {**LOW, "own_label": 0.7}
    verdict_list = judge_arms(plans, [result for each in plans for result in results(each, means)])
    html = page("t", "", verdict_sections(verdict_list))
    assert hostile not in html and str(escape(f"own_label ({hostile}): Text from the patients' own")) in html
    heading, *verdicts, table, rule = verdict_markdown(verdict_list)
    assert heading == "## Verdicts" and len(verdicts) == 2 and "<img" not in "".join([*verdicts, table])
    assert table.count("\n") == 2 + 14 - 1 and "+20.0" in table
    text = re.sub("</?code>", "`", html.replace("&#39;", "'").replace("&#34;", '"'))
    assert rule in text
    assert verdict_sections([]) == verdict_markdown([]) == []


CLIP_IT = ("image_only", "clip_it_all", "shuffled_pairs", "image_embedding")
EQUAL: dict[str, float | None] = dict.fromkeys(CLIP_IT, 0.5)
HEADLINES: list[tuple[dict[str, float | None], str, str]] = [
    ({"clip_it_all": 0.8}, "helps", "clip_it_all helps: accuracy +30.0 points ["),
    ({"clip_it_all": 0.2}, "harms", "clip_it_all harms: accuracy -30.0 points ["),
    ({}, "no gain", "clip_it_all: no gain shown: accuracy"),
    (
        {"clip_it_all": 0.8, "image_embedding": 0.8},
        "no gain from text",
        "clip_it_all: no gain from text shown: accuracy",
    ),
    (
        {"clip_it_all": 0.8, "shuffled_pairs": 0.9},
        "no gain from text",
        "clip_it_all: no gain from text shown: accuracy -10",
    ),
    ({"clip_it_all": None}, "not decided", "clip_it_all: not decided, because a score is undefined."),
]


@pytest.mark.parametrize(("changes", "outcome", "start"), HEADLINES)
def test_headline_states_the_effect_of_the_text(
    make_plan: Any, changes: dict[str, float | None], outcome: str, start: str
) -> None:
    plan = make_plan(CLIP_IT)
    verdict = judge_comparison([plan], results(plan, {**EQUAL, **changes}), "accuracy")
    assert [arm.outcome for arm in verdict.arms] == [outcome]
    assert verdict.headline.startswith(start) and verdict.headline.endswith(".")
    if outcome == "helps":
        assert "over image_only and +30.0 points" in verdict.headline and "its closest control, " in verdict.headline
        assert "95% intervals over 5 seeds; p < 0.001 and < 0.001, Holm-corrected" in verdict.headline


def test_headline_names_the_control_that_explains_the_gain(make_plan: Any) -> None:
    plan = make_plan(CLIP_IT)
    means = {**EQUAL, "clip_it_all": 0.8, "image_embedding": 0.85}
    headline = judge_comparison([plan], results(plan, means), "accuracy").headline
    assert "-5.0 points" in headline and "against image_embedding (the VLM's embedding of the tile" in headline
    without_controls = make_plan(CLIP_IT[:2])
    headline = judge_comparison(
        [without_controls], results(without_controls, {"image_only": 0.5, "clip_it_all": 0.8}), "accuracy"
    ).headline
    assert (
        headline.startswith("clip_it_all: no gain from text shown") and "not compared with image_embedding" in headline
    )


@pytest.mark.parametrize(
    ("probe", "control"), [(REPORT_PROBE, "probe on the same labels"), (TILE_PROBE, "probe on the tile labels")]
)
def test_headline_recommends_a_probe_that_matches_the_student(make_plan: Any, probe: str, control: str) -> None:
    plan = make_plan()
    means: dict[str, float | None] = {**LOW, "own_label": 0.8, probe: 0.85}
    headline = judge_comparison([plan], results(plan, means), "accuracy").headline
    assert headline.startswith("own_label: use the VLM's linear probe instead: accuracy -5.0 points")
    assert f"against the VLM's linear {control}, +30.0 points" in headline and "no gain" not in headline
    close = judge_comparison([plan], results(plan, {**means, probe: 0.799}), "accuracy")
    assert close.headline.startswith(
        "own_label: not shown to be better than the VLM's linear probe: accuracy +0.1 points [-"
    )
    assert close.arms[0].verdict.startswith("Not shown to be better than the VLM's linear probe on the ")
    assert "use the probe, or run more seeds to decide." in close.arms[0].verdict
    places = [plan, replace(plan, data_set="other")]
    scores = [*results(plan, means), *results(places[1], {**LOW, "own_label": 0.8})]
    headline = judge_comparison(places, scores, "accuracy").headline
    assert headline.startswith("own_label helps on 1 of 2 data sets, use the VLM's linear probe instead on 1: accuracy")
    difference = "-5.0" if probe == REPORT_PROBE else "+30.0"
    assert f"{difference} to +30.0 points against the VLM's linear probe on the same labels" in headline


def test_headline_describes_the_first_arm_with_text_and_counts_the_others(make_plan: Any) -> None:
    plan = make_plan((*CLIP_IT, "consensus"))
    assert {arm: judged.text for arm, judged in judged_arms(plan).items()} == dict.fromkeys(
        ("clip_it_all", "consensus"), "reports"
    )
    both = judge_comparison([plan], results(plan, {**EQUAL, "consensus": 0.9}), "accuracy")
    assert both.headline.startswith("clip_it_all: no gain shown")
    assert both.headline.endswith("; of the other arms, consensus is better than the baseline and every control.")
    places = [plan, replace(plan, data_set="other")]
    scores = [result for each in places for result in results(each, {**EQUAL, "clip_it_all": 0.8, "consensus": 0.5})]
    headline = judge_comparison(places, scores, "accuracy").headline
    assert headline.startswith(
        "clip_it_all helps on 2 of 2 data sets: accuracy +30.0 to +30.0 points against image_only, +30.0 to"
    )
    assert headline.endswith("; of the other arms, none is shown to be better than the baseline and every control.")


def test_arms_without_text_are_compared_with_the_baseline_only(make_plan: Any) -> None:
    plan = make_plan(("image_only", "self_training", "image_embedding"))
    means: dict[str, float | None] = {"image_only": 0.5, "self_training": 0.8, "image_embedding": 0.5}
    verdict = judge_comparison([plan], results(plan, means), "accuracy")
    assert [(arm.key.arm, arm.outcome) for arm in verdict.arms] == [
        ("self_training", "helps"), ("image_embedding", "no gain")
    ]  # fmt: skip
    assert verdict.headline.startswith("self_training helps: accuracy +30.0 points")
    baseline_only = make_plan(("image_only",))
    assert judge_comparison(
        [baseline_only], results(baseline_only, {"image_only": 0.5}), "accuracy"
    ).headline.startswith("Nothing is")


def test_headline_of_a_single_seed_has_no_verdict(make_plan: Any) -> None:
    plan = make_plan(CLIP_IT, **{"comparison.seeds": [0]})
    verdict = judge_comparison([plan], results(plan, {**EQUAL, "clip_it_all": 0.8}, seeds=1), "accuracy")
    assert verdict.headline.startswith("clip_it_all: not decided (one seed): accuracy +")
    assert verdict.headline.endswith("points over image_only.")
    both = make_plan((*CLIP_IT, "consensus"), **{"comparison.seeds": [0]})
    undecided = judge_comparison(
        [both], results(both, {**EQUAL, "clip_it_all": 0.8, "consensus": 0.9}, seeds=1), "auroc"
    )
    assert undecided.headline.endswith(
        "; of the other arms, none is shown to be better than the baseline and every control."
    )
