"""Test the grid of prompt variants: the generated texts, and axes that are rejected."""

import pytest

from clipit.config.studies import PromptStudyConfig
from clipit.errors import ConfigError
from clipit.prompts.prompt_grid import fill_template, prompt_grid, template_problem
from clipit.prompts.prompt_set import PromptSet

TEMPLATE = "a {stain} {organ} image of {} {magnification}."
PROMPTS = PromptSet("two", "1", ("unused {}",), {"a": ("adenoma", "polyp"), "b": ("an ulcer",)})


def test_every_combination_occurs_once_in_order() -> None:
    cells = prompt_grid(
        PROMPTS, [TEMPLATE, "{}, {organ} {stain} {magnification}"], ["", "colon"], ["", "at 10x"], ["", "H&E"]
    )
    combinations = [(cell.template, cell.organ, cell.magnification, cell.stain) for cell in cells]
    assert len(set(combinations)) == len(combinations) == 16
    assert combinations[:3] == [(TEMPLATE, "", "", ""), (TEMPLATE, "", "", "H&E"), (TEMPLATE, "", "at 10x", "")]
    last = cells[7].prompts
    assert last.templates == ("an H&E colon image of {} at 10x.",)
    assert last.texts("a") == ["an H&E colon image of adenoma at 10x.", "an H&E colon image of polyp at 10x."]
    assert last.name == "two" and last.hash != PROMPTS.hash


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({}, "an image of {}."),
        ({"organ": "colorectal"}, "a colorectal image of {}."),
        ({"stain": "H&E stained"}, "an H&E stained image of {}."),
        ({"organ": "oral", "magnification": "at 40x"}, "an oral image of {} at 40x."),
    ],
)
def test_omitted_words_leave_no_gap(words: dict[str, str], text: str) -> None:
    assert fill_template(TEMPLATE, **words) == text


def test_class_names_keep_their_article() -> None:
    # The rule for articles applies to the template only, so the article of "an ulcer" stays.
    (cell,) = prompt_grid(PROMPTS, ["{organ} {stain} {magnification} a {}"])
    assert cell.prompts.texts("b")[0].endswith(" an ulcer")


def test_the_default_axes_are_valid() -> None:
    config = PromptStudyConfig()
    assert [template_problem(template) for template in config.templates] == [""] * len(config.templates)
    assert (
        len(prompt_grid(PROMPTS, config.templates, config.organs, config.magnifications, config.stains))
        == 4 * 1 * 3 * 2
    )


@pytest.mark.parametrize("template", ["an image of {}", TEMPLATE + " {}", TEMPLATE + " {scanner}"])
def test_each_slot_must_occur_exactly_once(template: str) -> None:
    with pytest.raises(ConfigError, match="must contain each of"):
        prompt_grid(PROMPTS, [template])


def test_axes_must_not_be_empty_or_repeat_values() -> None:
    with pytest.raises(ConfigError) as caught:
        prompt_grid(PROMPTS, [TEMPLATE], organs=[], stains=["H&E", "H&E"])
    assert "organ:" in str(caught.value) and "stain:" in str(caught.value)
