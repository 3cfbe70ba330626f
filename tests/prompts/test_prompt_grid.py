"""The sensitivity grid: which texts come out, and which axes are refused."""

import pytest

from clipit.config.studies import PromptStudyConfig
from clipit.errors import ConfigError
from clipit.prompts.prompt_grid import fill_template, prompt_grid, template_problem
from clipit.prompts.prompt_set import PromptSet

TEMPLATE = "a {stain} {organ} image of {} {magnification}."
PROMPTS = PromptSet("two", "1", ("unused {}",), {"a": ("adenoma", "polyp"), "b": ("an ulcer",)})


def test_every_combination_once_and_in_order() -> None:
    cells = prompt_grid(
        PROMPTS, [TEMPLATE, "{}, {organ} {stain} {magnification}"], ["", "colon"], ["", "at 10x"], ["", "H&E"]
    )
    found = [(cell.template, cell.organ, cell.magnification, cell.stain) for cell in cells]
    assert len(set(found)) == len(found) == 16
    assert found[:3] == [(TEMPLATE, "", "", ""), (TEMPLATE, "", "", "H&E"), (TEMPLATE, "", "at 10x", "")]
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
def test_words_that_are_left_out_leave_no_gap(words: dict[str, str], text: str) -> None:
    assert fill_template(TEMPLATE, **words) == text


def test_names_are_not_touched() -> None:
    # "an ulcer" stands behind the article rule's reach: it works on the template alone.
    (cell,) = prompt_grid(PROMPTS, ["{organ} {stain} {magnification} a {}"])
    assert cell.prompts.texts("b")[0].endswith(" an ulcer")


def test_the_shipped_axes_are_in_order() -> None:
    z = PromptStudyConfig()
    assert [template_problem(template) for template in z.templates] == [""] * len(z.templates)
    assert len(prompt_grid(PROMPTS, z.templates, z.organs, z.magnifications, z.stains)) == 4 * 1 * 3 * 2


@pytest.mark.parametrize("template", ["an image of {}", TEMPLATE + " {}", TEMPLATE + " {scanner}"])
def test_slots_must_be_there_once(template: str) -> None:
    with pytest.raises(ConfigError, match="must contain each of"):
        prompt_grid(PROMPTS, [template])


def test_axes_must_not_be_empty_or_repeat() -> None:
    with pytest.raises(ConfigError) as caught:
        prompt_grid(PROMPTS, [TEMPLATE], organs=[], stains=["H&E", "H&E"])
    assert "organ:" in str(caught.value) and "stain:" in str(caught.value)
