"""Prompt grid: prompt sets for every combination of template, organ, magnification and stain."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from clipit.errors import ConfigError
from clipit.prompts.prompt_set import PLACEHOLDER, PromptSet

SLOTS = ("organ", "magnification", "stain")
"""Slots of a grid template, in addition to the `{}` for the class name."""
_SLOT = re.compile(r"\{(\w*)\}")
_ARTICLE = re.compile(r"\b([Aa])n? (?=(\S))")
_VOWEL_SOUNDS = "aeiouAEIOUH"  # with H, because H&E is the only stain word that begins with H


@dataclass(frozen=True)
class PromptCell:
    """One combination of the grid, and its prompt set."""

    template: str
    organ: str
    magnification: str
    stain: str
    prompts: PromptSet


def prompt_grid(
    prompts: PromptSet,
    templates: Sequence[str],
    organs: Sequence[str] = ("",),
    magnifications: Sequence[str] = ("",),
    stains: Sequence[str] = ("",),
) -> list[PromptCell]:
    """Build one prompt set per combination of the axes, in order, each with one filled-in template.

    The axes follow the caption styles of Histo-VL (arXiv 2503.12990): wording, organ, magnification and stain. An empty
    word removes its slot; spaces and the articles `a` and `an` are adjusted.

    Args:
        prompts: Prompt set that provides the class names; its templates are ignored.
        templates: Sentences with `{}`, `{organ}`, `{magnification}` and `{stain}` once each.
        organs: Words such as `colorectal`.
        magnifications: Words such as `at 10x`.
        stains: Words such as `H&E stained`.

    Raises:
        ConfigError: A template lacks a slot, or an axis is empty or repeats a word.
    """
    problems = [text for template in templates if (text := template_problem(template))]
    for axis, words in zip(("templates", *SLOTS), (templates, organs, magnifications, stains), strict=True):
        if not words or len(set(words)) < len(words):
            problems.append(f"{axis}: needs at least one entry and no duplicates; got {list(words)}")
    if problems:
        raise ConfigError("\n".join(problems), where="prompt_study", fix="correct the axes of the grid")
    return [
        PromptCell(*words, replace(prompts, templates=(fill_template(*words),)))
        for words in product(templates, organs, magnifications, stains)
    ]


def template_problem(template: str) -> str:
    """Describe the problem with a grid template; "" if it is valid."""
    if sorted(_SLOT.findall(template)) == sorted(("", *SLOTS)):
        return ""
    slots = ", ".join((PLACEHOLDER, *("{" + slot + "}" for slot in SLOTS)))
    return f"template {template!r} must contain each of {slots} once"


def fill_template(template: str, organ: str = "", magnification: str = "", stain: str = "") -> str:
    """Insert the words into a grid template, keeping the `{}` for the class name."""
    words = {"organ": organ, "magnification": magnification, "stain": stain, "": PLACEHOLDER}
    text = " ".join(_SLOT.sub(lambda slot: words[slot[1]], template).split())
    text = re.sub(r" ([.,;:])", r"\1", text)
    return _ARTICLE.sub(lambda match: f"{match[1]}{'n' if match[2] in _VOWEL_SOUNDS else ''} ", text)
