"""The sensitivity grid: the same classes asked in every combination of template, organ, magnification and stain."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from clipit.errors import ConfigError
from clipit.prompts.prompt_set import PLACEHOLDER, PromptSet

SLOTS = ("organ", "magnification", "stain")
"""What a grid template names in braces, beside the `{}` of the class's name."""
_WORDS = re.compile(r"\{(\w*)\}")
_ARTICLE = re.compile(r"\b([Aa])n? (?=(\S))")
_VOWEL_SOUNDS = "aeiouAEIOUH"  # H: as in H&E, the only stain word that begins with it


@dataclass(frozen=True)
class Cell:
    """One combination, and the prompt set that it makes."""

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
) -> list[Cell]:
    """All combinations of the axes, in their order, each with one finished template and the classes' names.

    The axes are those of the caption styles of Histo-VL (arXiv 2503.12990): wording, organ, magnification, stain. An
    empty word leaves its slot out: spaces close up, and `a` or `an` follows the next word.

    Args:
        prompts: The set whose names are used; its own templates are not.
        templates: Sentences that hold `{}`, `{organ}`, `{magnification}` and `{stain}` once each.
        organs: Such as `colorectal`.
        magnifications: Such as `at 10x`.
        stains: Such as `H&E stained`.

    Raises:
        ConfigError: A template lacks a slot, or an axis is empty or repeats a word.
    """
    problems = [text for template in templates if (text := template_problem(template))]
    for axis, words in zip(("templates", *SLOTS), (templates, organs, magnifications, stains), strict=True):
        if not words or len(set(words)) < len(words):
            problems.append(f"{axis}: give at least one, each once; found {list(words)}")
    if problems:
        raise ConfigError("\n".join(problems), where="prompt_study", fix="correct the axes of the grid")
    return [
        Cell(*words, replace(prompts, templates=(worded(*words),)))
        for words in product(templates, organs, magnifications, stains)
    ]


def template_problem(template: str) -> str:
    """What is wrong with a grid template; empty if nothing is."""
    if sorted(_WORDS.findall(template)) == sorted(("", *SLOTS)):
        return ""
    wanted = ", ".join((PLACEHOLDER, *("{" + slot + "}" for slot in SLOTS)))
    return f"template {template!r} must hold each of {wanted} once"


def worded(template: str, organ: str = "", magnification: str = "", stain: str = "") -> str:
    """A grid template with its words filled in; the place of the class's name stays `{}`."""
    words = {"organ": organ, "magnification": magnification, "stain": stain, "": PLACEHOLDER}
    text = " ".join(_WORDS.sub(lambda slot: words[slot[1]], template).split())
    text = re.sub(r" ([.,;:])", r"\1", text)
    return _ARTICLE.sub(lambda found: f"{found[1]}{'n' if found[2] in _VOWEL_SOUNDS else ''} ", text)
