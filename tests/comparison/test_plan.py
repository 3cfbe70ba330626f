"""What a comparison runs: names and keys of its data sets, checked before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import MakeConfig

from clipit.comparison.compare import compare
from clipit.comparison.plan import plan_comparison
from clipit.config.load import merge, nested, validate
from clipit.config.run import RunConfig
from clipit.errors import ConfigError, DataError


def config(**comparison: Any) -> RunConfig:
    keys = {"tiles": {"source": "folders", "path": "tiles"}, "name": "demo", "comparison.arms": ["image_only"]}
    return validate(merge(nested(keys), {"comparison": comparison}), "test")


def test_settings_have_folders_of_their_own() -> None:
    found = plan_comparison(config(data_sets={"a b": {}, "c": {}}, backbones=["x", "y"]))
    assert [plan.config.name for plan in found] == ["demo-a-b-x", "demo-a-b-y", "demo-c-x", "demo-c-y"]


@pytest.mark.parametrize(
    ("comparison", "named"),
    [
        ({"data_sets": {"a b": {}, "a-b": {}}}, r"'a b' on .*'a-b' on .*folder demo-a-b"),
        ({"data_sets": {"a": {}, "a-b": {}}, "backbones": ["b-c", "c"]}, r"'a' on 'b-c', 'a-b' on 'c'"),
        ({"backbones": ["hub:a", "hub/a"]}, r"'hub:a', 'demo' on 'hub/a'"),
    ],
)
def test_settings_that_would_share_a_folder(comparison: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"kept in one folder: .*{named}"):
        plan_comparison(config(**comparison))


@pytest.mark.parametrize("data_sets", [{"é": {}, "ü": {}}, {"é": {}}, {"...": {}}])
def test_names_of_which_nothing_is_left(data_sets: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="can be part of a folder's name"):
        plan_comparison(config(data_sets=data_sets))


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
def test_keys_that_a_data_set_cannot_have(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)cannot have its own {next(iter(keys))}.*comparison\.data_sets\.few"):
        plan_comparison(config(data_sets={"few": {"tiles.labels.value": 2, **keys}, "all": {}}))


def test_the_classes_of_shifted_sets_are_looked_at_first(configure: MakeConfig, tmp_path: Path) -> None:
    processes = configure({"output": tmp_path / "out", "comparison.seeds": [1], "comparison.tuning_seeds": [2]})
    two = processes.tiles.model_copy(update={"class_map": {"gland": "gland", "stroma": "stroma"}})
    shifted = processes.comparison.model_copy(update={"shifted": {"centre 2": two}})
    with pytest.raises(DataError, match=r"(?s)has the classes gland, stroma; the tiles.*comparison\.shifted\.centre 2"):
        compare(processes.model_copy(update={"comparison": shifted}))
    assert not list(tmp_path.rglob("runs"))
