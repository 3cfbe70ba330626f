"""Validation of keys that conflict with each other, and the description of a student's training signal."""

from collections.abc import Callable

import pytest

from clipit.config.run import RunConfig
from clipit.distributed import Processes
from clipit.errors import ConfigError
from clipit.training.arms import resolve_arm
from clipit.training.config_checks import check_keys
from clipit.training.terms import bags
from clipit.training.terms.term_table import describe_terms

LARGE = {"training.tiles_per_step": 2048, "bags.tiles": 5, "bags.snippets": 5}  # 6 x 5 members take 0.47 GiB per copy


def test_the_memory_limit_of_bags_counts_all_copies_of_a_step(configure: Callable[..., RunConfig]) -> None:
    check_keys(resolve_arm(configure(LARGE, arm="bags")))  # needs 2.8 GiB
    with pytest.raises(ConfigError, match=r"6 tiles and 5 texts need about 4\.2 GiB in a step of 2,048 tiles"):
        check_keys(resolve_arm(configure({**LARGE, "bags.learn_temperature": True}, arm="bags")))


def test_processes_share_the_memory_of_bags(
    configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    config = resolve_arm(configure({**LARGE, "training.tiles_per_step": 4096}, arm="bags"))
    with pytest.raises(ConfigError, match=r"about 11\.2 GiB in a step of 4,096 tiles; the limit is 4 GiB: lower"):
        check_keys(config)
    monkeypatch.setattr(bags, "get_processes", lambda: Processes(0, 3, torch.device("cpu")))
    check_keys(config)


def test_the_initial_value_of_a_learnt_temperature_must_be_within_its_bounds(
    configure: Callable[..., RunConfig],
) -> None:
    check_keys(resolve_arm(configure({"bags.temperature": 0.005}, arm="bags")))
    with pytest.raises(ConfigError, match=r"bags\.learn_temperature(?s:.*)bags\.temperature=0\.01 or more"):
        check_keys(resolve_arm(configure({"bags.temperature": 0.005, "bags.learn_temperature": True}, arm="bags")))


def test_bags_need_enough_pairs_and_the_whole_batch(configure: Callable[..., RunConfig]) -> None:
    config = configure({"pairing.k": 2, "bags.weight": 1.0, "training.accumulation": 2})
    with pytest.raises(ConfigError, match=r"bags\.snippets=5(?s:.*)training\.accumulation=1"):
        check_keys(config)


def test_the_description_of_terms_names_every_source(configure: Callable[..., RunConfig]) -> None:
    arms = {"two": {"base": "clip_it_all", "second_vlm": {"name": "other"}}}
    descriptions = {
        arm: describe_terms(resolve_arm(configure(arm=arm, arms=arms)))
        for arm in ("clip_it_all", "report_labels", "text_adapter", "text_lora", "two")
    }
    assert "reports' own labels" in descriptions["report_labels"]
    assert "adapter on the text embeddings, fitted to the tiles' labels" in descriptions["text_adapter"]
    assert "LoRA in the text tower, fitted to the tiles' labels" in descriptions["text_lora"]
    assert "each of two VLMs" in descriptions["two"] and "other" in descriptions["two"]
    plain = descriptions["clip_it_all"]
    assert not any(word in plain for word in ("reports' own labels", "adapter", "LoRA", "two VLMs"))
