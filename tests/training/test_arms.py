"""Arms: recipes of keys, alone and built on each other."""

from collections.abc import Callable

import pytest

from clipit.config.load import validate
from clipit.config.run import RunConfig
from clipit.errors import ConfigError
from clipit.training.arms import ARMS, arm_keys, resolve_arm
from clipit.training.terms.term_table import TERMS, active_terms


def test_no_arm_changes_nothing(configure: Callable[..., RunConfig]) -> None:
    config = configure()
    assert resolve_arm(config) is config


@pytest.mark.parametrize("arm", ARMS)
def test_every_built_in_arm_resolves_to_its_own_keys(configure: Callable[..., RunConfig], arm: str) -> None:
    config = resolve_arm(configure(arm=arm))
    for key, value in arm_keys(arm, {}).items():
        found: object = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value
    assert resolve_arm(config) == config


def test_arms_differ_in_what_their_names_say(configure: Callable[..., RunConfig]) -> None:
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
    for control in ("shuffled_pairs", "random_text", "random_codes", "image_embedding", "word_drop"):
        other, plain = resolved[control], resolved["clip_it_paper" if control == "word_drop" else "clip_it_all"]
        assert other.model_dump(exclude={"arm", "distillation"}) == plain.model_dump(exclude={"arm", "distillation"})


def test_the_image_only_arms_disable_every_term_of_the_table(configure: Callable[..., RunConfig]) -> None:
    on = {"soft_labels.source": "zero_shot", "prompt_bags.weight": 0.5, "consistency.weight": 1.0, "bags.weight": 0.5}
    every = configure({**on, "distillation.tiles": "all", "second_vlm": {}})
    assert [term.name for term in active_terms(every)] == [term.name for term in TERMS]
    for arm in ("image_only", "image_only_frozen"):
        image_only = resolve_arm(every.model_copy(update={"arm": arm, "overrides": ()}))
        assert [term.name for term in active_terms(image_only)] == ["cross_entropy"]


def test_what_bags_and_soft_labels_are_to_be_compared_with(configure: Callable[..., RunConfig]) -> None:
    resolved = {arm: resolve_arm(configure(arm=arm)) for arm in ARMS}
    # The same five snippets: the term of the bags alone.
    top5, bags = (resolved[arm].model_dump(exclude={"arm", "bags"}) for arm in ("top5", "bags"))
    assert top5 == bags and resolved["top5"].pairing.k == 5
    assert (resolved["top5"].bags.weight, resolved["bags"].bags.weight) == (0.0, 0.5)
    # The same soft labels, with and without retrieved text.
    both, labels = resolved["soft_labels_and_text"], resolved["zero_shot_labels"]
    assert both.soft_labels == labels.soft_labels and labels.distillation.tiles == "none"
    assert both.distillation == resolved["clip_it_all"].distillation and both.distillation.tiles == "all"


def test_an_own_arm_over_a_base(configure: Callable[..., RunConfig]) -> None:
    arms = {"big": {"base": "middle", "lora.rank": 16}, "middle": {"base": "word_drop", "lora.rank": 8, "seed": 5}}
    config = resolve_arm(configure(arm="big", arms=arms))
    assert (config.lora.rank, config.seed, config.distillation.word_drop) == (16, 5, 0.3)


def test_an_own_arm_over_the_built_in_one_of_its_name(configure: Callable[..., RunConfig]) -> None:
    config = resolve_arm(configure(arm="clip_it_all", arms={"clip_it_all": {"base": "clip_it_all", "lora.rank": 2}}))
    assert (config.lora.rank, config.distillation.tiles) == (2, "all")


@pytest.mark.parametrize(
    ("arm", "arms", "match"),
    [
        ("clipit", {}, r"unknown arm 'clipit'(?s:.*)image_only"),
        ("a", {"a": {"base": "b"}}, r"unknown arm 'b'(?s:.*)arms\.a\.base"),
        ("a", {"a": {"base": "b"}, "b": {"base": "a"}}, "cycle: a -> b -> a"),
        ("a", {"a": {"base": "a"}}, "cycle: a -> a"),
        ("a", {"a": {"lora": {"rank": 2}, "lora.rank": 4}}, r"given twice: lora\.rank(.|\n)*arms\.a\n"),
        ("a", {"a": {"lora.rnak": 2}}, r"unknown key 'lora\.rnak' \(did you mean 'lora\.rank'"),
        ("a", {"a": {"student.projector_layers": 2}}, "late_fusion"),
    ],
)
def test_recipes_that_cannot_be_resolved(
    configure: Callable[..., RunConfig], arm: str, arms: dict[str, dict[str, object]], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        resolve_arm(configure(arm=arm, arms=arms))


def test_the_command_line_wins_over_the_arm_and_the_arm_over_the_file(configure: Callable[..., RunConfig]) -> None:
    arms = {
        "tuned": {"base": "clip_it_all", "training.steps": 300, "training.learning_rate": 0.002, "lora": {"rank": 4}}
    }
    values = {"arm": "tuned", "arms": arms, "training.steps": 5, "training.learning_rate": 0.1, "lora.rank": 3}
    config = resolve_arm(configure({**values, "overrides": ["training.steps", "lora.rank"]}))
    assert (config.training.steps, config.training.learning_rate, config.lora.rank) == (5, 0.002, 3)
    assert resolve_arm(configure(values)).lora.rank == 4
    # From config.yaml, as a run leaves it, nothing changes.
    assert resolve_arm(validate(config.model_dump(mode="json"), "config.yaml")) == config


def test_an_arm_wins_over_its_bases_however_it_writes_a_key(configure: Callable[..., RunConfig]) -> None:
    arms = {
        "a": {"base": "image_only", "lora": {"rank": 2}},
        "b": {"base": "a", "lora.rank": 3},
        "c": {"base": "b", "lora": {"rank": 4}},
    }
    assert [resolve_arm(configure(arm=arm, arms=arms)).lora.rank for arm in arms] == [2, 3, 4]


def test_what_a_program_sets_after_the_command_line_stays(configure: Callable[..., RunConfig]) -> None:
    given = configure({"arm": "clip_it_all", "seed": 7, "overrides": ["seed", "output"]})
    assert resolve_arm(given.model_copy(update={"seed": 1})).seed == 1  # a comparison's seeds


def test_a_section_that_an_arm_leaves_out_stays_when_it_was_given(configure: Callable[..., RunConfig]) -> None:
    values = {"arm": "mute", "arms": {"mute": {"base": "image_only", "reports": None}}}
    assert resolve_arm(configure(values)).reports is None
    assert resolve_arm(configure({**values, "overrides": ["reports.min_words"]})).reports is not None
