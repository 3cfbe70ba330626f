"""Keys that contradict each other, of bags; and the line that describes what a student learns from."""

from collections.abc import Callable

import pytest

from clipit.config.run import RunConfig
from clipit.distributed import Processes
from clipit.errors import ConfigError
from clipit.training.arms import resolve_arm
from clipit.training.config_checks import check_keys
from clipit.training.terms import bags
from clipit.training.terms.term_table import describe_terms

LARGE = {"training.tiles_per_step": 2048, "bags.tiles": 5, "bags.snippets": 5}  # 6 x 5 members: 0.47 GiB once


def test_the_bound_counts_all_that_a_step_holds(configure: Callable[..., RunConfig]) -> None:
    check_keys(resolve_arm(configure(LARGE, arm="bags")))  # 2.8 GiB
    with pytest.raises(ConfigError, match=r"6 tiles and 5 texts need about 4\.2 GiB in a step of 2,048 tiles"):
        check_keys(resolve_arm(configure({**LARGE, "bags.learn_temperature": True}, arm="bags")))


def test_processes_share_what_a_step_holds(
    configure: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    config = resolve_arm(configure({**LARGE, "training.tiles_per_step": 4096}, arm="bags"))
    with pytest.raises(ConfigError, match=r"about 11\.2 GiB in a step of 4,096 tiles; the limit is 4 GiB: lower"):
        check_keys(config)
    monkeypatch.setattr(bags, "get_processes", lambda: Processes(0, 3, torch.device("cpu")))
    check_keys(config)


def test_a_learnt_temperature_starts_where_it_may_stay(configure: Callable[..., RunConfig]) -> None:
    check_keys(resolve_arm(configure({"bags.temperature": 0.005}, arm="bags")))
    with pytest.raises(ConfigError, match=r"bags\.learn_temperature(?s:.*)bags\.temperature=0\.01 or more"):
        check_keys(resolve_arm(configure({"bags.temperature": 0.005, "bags.learn_temperature": True}, arm="bags")))


def test_bags_need_their_pairs_and_the_whole_batch(configure: Callable[..., RunConfig]) -> None:
    config = configure({"pairing.k": 2, "bags.weight": 1.0, "training.accumulation": 2})
    with pytest.raises(ConfigError, match=r"bags\.snippets=5(?s:.*)training\.accumulation=1"):
        check_keys(config)


def test_what_is_taught_names_every_source(configure: Callable[..., RunConfig]) -> None:
    arms = {"two": {"base": "clip_it_all", "second_vlm": {"name": "other"}}}
    described = {
        arm: describe_terms(resolve_arm(configure(arm=arm, arms=arms)))
        for arm in ("clip_it_all", "report_labels", "text_adapter", "text_lora", "two")
    }
    assert "reports' own labels" in described["report_labels"]
    assert "adapter on the text embeddings, fitted to the tiles' labels" in described["text_adapter"]
    assert "LoRA in the text tower, fitted to the tiles' labels" in described["text_lora"]
    assert "each of two VLMs" in described["two"] and "other" in described["two"]
    plain = described["clip_it_all"]
    assert not any(word in plain for word in ("reports' own labels", "adapter", "LoRA", "two VLMs"))
