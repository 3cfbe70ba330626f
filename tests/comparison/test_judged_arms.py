"""Tests that controls of a comparison do not read reports through a loss term that is enabled for all arms."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import MakeFile

from clipit.comparison.compare import compare
from clipit.comparison.judged_arms import check_controls
from clipit.comparison.own_report_arms import resolve_plan_arm
from clipit.comparison.plan import plan_comparison
from clipit.comparison.tune import run_trials
from clipit.doctor.configs import check_config
from clipit.errors import ConfigError

TERM = '''
from pydantic import Field

from clipit.config.run import Section
from clipit.training.terms.term import Term


class TextConfig(Section):
    """Keys of the term."""

    weight: float = Field(1.0, ge=0)


class TextTerm(Term[TextConfig]):
    """A term that reads reports."""

    options_class = TextConfig
    uses_reports = True


class PlainTerm(Term[TextConfig]):
    """A term that reads no reports, such as a regulariser."""

    options_class = TextConfig
'''
ON = {"mine": {"class": "text_term:TextTerm"}}
OFF = {"mine": {"class": "text_term:TextTerm", "weight": 0}}
ARMS = ("image_only", "clip_it_all", "image_embedding")
BASELINE = {"arms": {"plain": {"base": "image_only", "terms.mine.weight": 0}}, "comparison.baseline": "plain"}


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text_term.py").write_text(TERM, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("keys", "control"),
    [
        ({}, "image_only"),
        ({**BASELINE, "comparison.arms": ("plain", *ARMS)}, "image_embedding"),
        (
            {
                **BASELINE,
                "comparison.arms": ("plain", "clip_it_all", "self_training"),
                "comparison.controls": ("self_training",),
            },
            "self_training",
        ),
    ],
)
def test_text_term_in_a_control_without_text_raises_an_error(
    configure_file: MakeFile, tmp_path: Path, keys: dict[str, Any], control: str
) -> None:
    output = {"output": str(tmp_path)}  # other tests write runs to the shared folder
    file = configure_file({"comparison.arms": ARMS, "comparison.seeds": [1], "terms": ON, **keys, **output})
    with pytest.raises(ConfigError, match=rf"(?s)'mine' reads reports.*control {control},.*terms\.mine\.weight"):
        compare(file.run, file.comparison)
    assert not list(file.run.output.rglob("runs"))
    (check,) = [check for check in check_config(file, [], Path("config.yaml")) if check.subject == "keys"]
    assert check.status == "FAIL" and f"control {control}," in check.message


@pytest.mark.parametrize(
    "keys",
    [
        {"terms": {"mine": {"class": "text_term:PlainTerm"}}},
        {
            "terms": OFF,
            "comparison.arms": ("image_only", "text"),
            "arms": {"text": {"base": "image_only", "terms.mine.weight": 1}},
        },
        {"terms": ON, "comparison.arms": ("clip_it_all", "consensus"), "comparison.baseline": "clip_it_all"},
        {
            "terms": OFF,
            "comparison.arms": ("text", "clip_it_all"),
            "comparison.baseline": "text",
            "arms": {"text": {"base": "image_only", "terms.mine.weight": 1}},
        },
        {**BASELINE, "terms": ON, "comparison.arms": ("plain", "image_only")},
    ],
)
def test_terms_without_text_and_terms_of_single_arms_are_accepted(
    configure_file: MakeFile, keys: dict[str, Any]
) -> None:
    file = configure_file({"comparison.arms": ARMS, "comparison.seeds": [1], **keys})
    for plan in plan_comparison(file.run, file.comparison):
        configs = {arm: resolve_plan_arm(plan, arm) for arm in plan.arms}
        check_controls(configs, plan.comparison, plan.config.arms)


def test_tuning_checks_the_controls_before_training(configure_file: MakeFile, tmp_path: Path) -> None:
    output = {"output": str(tmp_path)}
    file = configure_file({"comparison.arms": ARMS, "terms": ON, **output})
    with pytest.raises(ConfigError, match=r"(?s)'mine' reads reports.*\(terms\.mine\.weight: 0\)"):
        run_trials(file.run, file.comparison)
    assert not list(tmp_path.rglob("runs"))
