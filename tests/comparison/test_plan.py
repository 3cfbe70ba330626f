"""Tests of comparison plans, which validate the names and keys of data sets before training."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import MakeFile, with_comparison

from clipit.comparison.compare import compare
from clipit.comparison.plan import Plan, plan_comparison
from clipit.config.load import merge, nested, validate_file
from clipit.errors import ConfigError, DataError


def plans(**comparison: Any) -> list[Plan]:
    keys = {"tiles": {"source": "folders", "path": "tiles"}, "name": "demo", "comparison.arms": ["image_only"]}
    file = validate_file(merge(nested(keys), {"comparison": comparison}), "test")
    return plan_comparison(file.run, file.comparison)


def test_plans_have_different_folders() -> None:
    planned = plans(data_sets={"a b": {}, "c": {}}, backbones=["x", "y"])
    assert [plan.config.name for plan in planned] == ["demo-a-b-x", "demo-a-b-y", "demo-c-x", "demo-c-y"]


@pytest.mark.parametrize(("pages", "expected"), [("first_seed", [3]), ("all", [3, 1]), ("none", [])])
def test_only_selected_runs_have_a_page(pages: str, expected: list[int]) -> None:
    [plan] = plans(seeds=[3, 1], run_pages=pages)
    assert [seed for seed in (3, 1) if plan.run_config("image_only", seed).evaluation.page] == expected


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        ({"data_sets": {"a b": {}, "a-b": {}}}, r"'a b' on .*'a-b' on .*folder demo-a-b"),
        ({"data_sets": {"a": {}, "a-b": {}}, "backbones": ["b-c", "c"]}, r"'a' on 'b-c', 'a-b' on 'c'"),
        ({"backbones": ["hub:a", "hub/a"]}, r"'hub:a', 'demo' on 'hub/a'"),
    ],
)
def test_plans_that_would_share_a_folder_raise_an_error(comparison: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"would share a folder: .*{message}"):
        plans(**comparison)


def test_data_set_can_set_its_backbone_as_a_section() -> None:
    planned = plans(data_sets={"a": {"backbone": {"name": "x"}}, "b": {"backbone.name": "y"}})
    assert [plan.config.backbone.name for plan in planned] == ["x", "y"]


def test_duplicate_key_of_a_data_set_raises_an_error() -> None:
    with pytest.raises(ConfigError, match=r"given twice: lora\.rank(.|\n)*comparison\.data_sets\.a\n"):
        plans(data_sets={"a": {"lora": {"rank": 2}, "lora.rank": 4}})


@pytest.mark.parametrize("keys", [{"lora": {"rank": 2}}, {"lora.rank": 2}])
def test_override_of_a_key_that_distinguishes_arms_raises_an_error(keys: dict[str, Any]) -> None:
    values = {"tiles": {"source": "folders", "path": "tiles"}, "arms": {"small": keys}, "overrides": ["lora.rank"]}
    file = validate_file({**values, "comparison": {"arms": ["image_only", "small"]}}, "test")
    with pytest.raises(ConfigError, match=r"override what distinguishes the arms or data sets: lora\.rank"):
        plan_comparison(file.run, file.comparison)


@pytest.mark.parametrize("data_sets", [{"é": {}, "ü": {}}, {"é": {}}, {"...": {}}])
def test_data_set_name_without_folder_characters_raises_an_error(data_sets: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no character that is allowed in folder names"):
        plans(data_sets=data_sets)


@pytest.mark.parametrize(
    "keys",
    [
        {"seed": 1},
        {"name": "other"},
        {"output": "elsewhere"},
        {"arm": "clip_it_all"},
        {"overrides": ["seed"]},
        {"comparison.seeds": [5]},
        {"comparison": {"arms": ["image_only"]}},
    ],
)
def test_keys_that_all_data_sets_share_raise_an_error(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)cannot set {next(iter(keys))}.*comparison\.data_sets\.few"):
        plans(data_sets={"few": {"tiles.labels.value": 2, **keys}, "all": {}})


def test_classes_of_shifted_sets_are_checked_before_training(configure_file: MakeFile, tmp_path: Path) -> None:
    file = configure_file({"output": tmp_path / "out", "comparison.seeds": [1], "comparison.tuning_seeds": [2]})
    two = file.run.tiles.model_copy(update={"class_map": {"gland": "gland", "stroma": "stroma"}})
    file = with_comparison(file, shifted={"centre 2": two})
    with pytest.raises(DataError, match=r"(?s)has the classes gland, stroma; the tiles.*comparison\.shifted\.centre 2"):
        compare(file.run, file.comparison)
    assert not list(tmp_path.rglob("runs"))
