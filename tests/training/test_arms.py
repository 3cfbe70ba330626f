"""Arms: recipes of keys, alone and built on each other."""

from collections.abc import Callable

import pytest

from clipit.config import Config
from clipit.errors import ConfigError
from clipit.training.arms import ARMS, arm_keys, resolve_arm


def test_no_arm_changes_nothing(configure: Callable[..., Config]) -> None:
    config = configure()
    assert resolve_arm(config) is config


@pytest.mark.parametrize("arm", ARMS)
def test_every_built_in_arm_resolves_to_its_own_keys(configure: Callable[..., Config], arm: str) -> None:
    config = resolve_arm(configure(arm=arm))
    for key, value in arm_keys(arm, {}).items():
        found: object = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value
    assert resolve_arm(config) == config


def test_arms_differ_in_what_their_names_say(configure: Callable[..., Config]) -> None:
    resolved = {arm: resolve_arm(configure(arm=arm)) for arm in ARMS}
    assert resolved["image_only"].student.projector_layers == 0
    assert resolved["image_only_frozen"].backbone.tuning == "frozen"
    assert resolved["heads_without_text"].distillation.tiles == "none"
    assert resolved["heads_without_text"].student.projector_layers > 0
    assert resolved["clip_it_paper"].student.warm_start
    assert resolved["clip_it_labelled"].distillation.tiles == "labelled"
    assert resolved["word_drop"].distillation.word_drop == 0.3
    assert resolved["shuffled_pairs"].distillation.target == "shuffled_text"
    assert resolved["image_embedding"].distillation.target == "image"
    # A control differs from what it controls in this one thing.
    plain = resolved["clip_it_all"]
    for control in ("shuffled_pairs", "image_embedding", "word_drop"):
        other = resolved[control]
        assert other.model_dump(exclude={"arm", "distillation"}) == plain.model_dump(exclude={"arm", "distillation"})


def test_an_own_arm_over_a_base(configure: Callable[..., Config]) -> None:
    arms = {"big": {"base": "middle", "lora.rank": 16}, "middle": {"base": "word_drop", "lora.rank": 8, "seed": 5}}
    config = resolve_arm(configure(arm="big", arms=arms))
    assert (config.lora.rank, config.seed, config.distillation.word_drop) == (16, 5, 0.3)


def test_an_own_arm_over_the_built_in_one_of_its_name(configure: Callable[..., Config]) -> None:
    config = resolve_arm(configure(arm="clip_it_all", arms={"clip_it_all": {"base": "clip_it_all", "lora.rank": 2}}))
    assert (config.lora.rank, config.distillation.tiles) == (2, "all")


@pytest.mark.parametrize(
    ("arm", "arms", "match"),
    [
        ("clipit", {}, r"unknown arm 'clipit'(?s:.*)image_only"),
        ("a", {"a": {"base": "b"}}, r"unknown arm 'b'(?s:.*)arms\.a\.base"),
        ("a", {"a": {"base": "b"}, "b": {"base": "a"}}, "circle: a -> b -> a"),
        ("a", {"a": {"base": "a"}}, "circle: a -> a"),
        ("a", {"a": {"lora.rnak": 2}}, r"unknown key 'lora\.rnak' \(did you mean 'lora\.rank'"),
        ("a", {"a": {"student.projector_layers": 2}}, "late_fusion"),
    ],
)
def test_recipes_that_cannot_be_resolved(
    configure: Callable[..., Config], arm: str, arms: dict[str, dict[str, object]], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        resolve_arm(configure(arm=arm, arms=arms))
