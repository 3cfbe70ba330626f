"""Arms: built-in training recipes, custom arms and their precedence over other configuration."""

from collections.abc import Callable

import pytest

from clipit.config.load import validate
from clipit.config.run import RunConfig
from clipit.errors import ConfigError
from clipit.training.arms import ARMS, arm_keys, resolve_arm
from clipit.training.terms.term_table import TERMS, active_terms


def test_without_an_arm_the_configuration_is_unchanged(configure: Callable[..., RunConfig]) -> None:
    config = configure()
    assert resolve_arm(config) is config


@pytest.mark.parametrize("arm", ARMS)
def test_every_built_in_arm_sets_its_keys(configure: Callable[..., RunConfig], arm: str) -> None:
    config = resolve_arm(configure(arm=arm))
    for key, value in arm_keys(arm, {}).items():
        resolved: object = config
        for part in key.split("."):
            resolved = getattr(resolved, part)
        assert resolved == value
    assert resolve_arm(config) == config


def test_arms_set_the_keys_that_their_names_suggest(configure: Callable[..., RunConfig]) -> None:
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
    # A control differs from its baseline only in the distillation.
    for control in ("shuffled_pairs", "random_text", "random_codes", "image_embedding", "word_drop"):
        other, plain = resolved[control], resolved["clip_it_paper" if control == "word_drop" else "clip_it_all"]
        assert other.model_dump(exclude={"arm", "distillation"}) == plain.model_dump(exclude={"arm", "distillation"})


def test_the_image_only_arms_disable_all_other_terms(configure: Callable[..., RunConfig]) -> None:
    enabled = {
        "soft_labels.source": "zero_shot",
        "prompt_bags.weight": 0.5,
        "consistency.weight": 1.0,
        "bags.weight": 0.5,
    }
    all_terms = configure({**enabled, "distillation.tiles": "all", "second_vlm": {}})
    assert [term.name for term in active_terms(all_terms)] == [term.name for term in TERMS]
    for arm in ("image_only", "image_only_frozen"):
        image_only = resolve_arm(all_terms.model_copy(update={"arm": arm, "overrides": ()}))
        assert [term.name for term in active_terms(image_only)] == ["cross_entropy"]


def test_baselines_of_bags_and_soft_labels_differ_in_one_term(configure: Callable[..., RunConfig]) -> None:
    resolved = {arm: resolve_arm(configure(arm=arm)) for arm in ARMS}
    # Both arms use the same five snippets and differ only in the bag term.
    top5, bags = (resolved[arm].model_dump(exclude={"arm", "bags"}) for arm in ("top5", "bags"))
    assert top5 == bags and resolved["top5"].pairing.k == 5
    assert (resolved["top5"].bags.weight, resolved["bags"].bags.weight) == (0.0, 0.5)
    # Both arms use the same soft labels, with and without retrieved text.
    combined, labels = resolved["soft_labels_and_text"], resolved["zero_shot_labels"]
    assert combined.soft_labels == labels.soft_labels and labels.distillation.tiles == "none"
    assert combined.distillation == resolved["clip_it_all"].distillation and combined.distillation.tiles == "all"


def test_a_custom_arm_extends_its_base(configure: Callable[..., RunConfig]) -> None:
    arms = {"big": {"base": "middle", "lora.rank": 16}, "middle": {"base": "word_drop", "lora.rank": 8, "seed": 5}}
    config = resolve_arm(configure(arm="big", arms=arms))
    assert (config.lora.rank, config.seed, config.distillation.word_drop) == (16, 5, 0.3)


def test_a_custom_arm_can_extend_the_built_in_arm_of_the_same_name(configure: Callable[..., RunConfig]) -> None:
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
def test_invalid_arms_are_errors(
    configure: Callable[..., RunConfig], arm: str, arms: dict[str, dict[str, object]], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        resolve_arm(configure(arm=arm, arms=arms))


def test_the_command_line_overrides_the_arm_and_the_arm_overrides_the_file(configure: Callable[..., RunConfig]) -> None:
    arms = {
        "tuned": {"base": "clip_it_all", "training.steps": 300, "training.learning_rate": 0.002, "lora": {"rank": 4}}
    }
    values = {"arm": "tuned", "arms": arms, "training.steps": 5, "training.learning_rate": 0.1, "lora.rank": 3}
    config = resolve_arm(configure({**values, "overrides": ["training.steps", "lora.rank"]}))
    assert (config.training.steps, config.training.learning_rate, config.lora.rank) == (5, 0.002, 3)
    assert resolve_arm(configure(values)).lora.rank == 4
    # Resolving the config.yaml of a run again changes nothing.
    assert resolve_arm(validate(config.model_dump(mode="json"), "config.yaml")) == config


def test_an_arm_overrides_its_bases_with_nested_and_dotted_keys(configure: Callable[..., RunConfig]) -> None:
    arms = {
        "a": {"base": "image_only", "lora": {"rank": 2}},
        "b": {"base": "a", "lora.rank": 3},
        "c": {"base": "b", "lora": {"rank": 4}},
    }
    assert [resolve_arm(configure(arm=arm, arms=arms)).lora.rank for arm in arms] == [2, 3, 4]


def test_values_set_in_code_after_the_command_line_are_kept(configure: Callable[..., RunConfig]) -> None:
    config = configure({"arm": "clip_it_all", "seed": 7, "overrides": ["seed", "output"]})
    assert resolve_arm(config.model_copy(update={"seed": 1})).seed == 1  # as a comparison sets its seeds


def test_an_arm_does_not_remove_a_section_set_on_the_command_line(configure: Callable[..., RunConfig]) -> None:
    values = {"arm": "mute", "arms": {"mute": {"base": "image_only", "reports": None}}}
    assert resolve_arm(configure(values)).reports is None
    assert resolve_arm(configure({**values, "overrides": ["reports.min_words"]})).reports is not None
