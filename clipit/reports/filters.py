"""Filters that choose which snippets are kept."""

import re
from collections.abc import Callable, Collection, Sequence

import numpy as np
from jaxtyping import Float

from clipit.config.run import ReportsConfig
from clipit.errors import ConfigError, shortlist
from clipit.reports.headings import SECTIONS

Similarity = Callable[[Sequence[str]], Float[np.ndarray, " n"]]
"""Per text: similarity to the morphology bag minus similarity to the boilerplate bag."""


def readable_words(text: str) -> int:
    """Number of words with a letter and at least two different letters or digits.

    Drawn lines, bar codes read as "IIII" and single letters are no words.
    """
    count = 0
    for word in text.split():
        characters = {char for char in word.lower() if char.isalnum()}
        count += len(characters) >= 2 and any(char.isalpha() for char in characters)
    return count


def term_pattern(terms: Sequence[str]) -> re.Pattern[str] | None:
    """Pattern for any of the terms as whole words in any case; None without terms."""
    words = [r"\s+".join(re.escape(word) for word in term.split()) for term in terms if term.strip()]
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE) if words else None


def check_sections(config: ReportsConfig) -> None:
    """Compare the configured section names with those that exist.

    Raises:
        ConfigError: A name that no snippet can have.
    """
    unknown = sorted({*(config.sections or ()), *config.exclude_sections} - set(SECTIONS))
    if unknown:
        raise ConfigError(
            f"no such section: {shortlist(unknown)}",
            where="reports.sections, reports.exclude_sections",
            fix=f"use some of: {', '.join(SECTIONS)}",
        )


def in_kept_section(sections: Collection[str], config: ReportsConfig) -> bool:
    """Whether any of a snippet's sections is a kept one."""
    kept = sections if config.sections is None else set(sections) & set(config.sections)
    return any(section not in config.exclude_sections for section in kept)


def by_similarity(texts: Sequence[str], similarity: Similarity, margin: float) -> list[bool]:
    """For each text whether it is nearer to morphology than to boilerplate by at least the margin."""
    scores = np.asarray(similarity(texts)) if texts else np.zeros(0)
    if scores.shape != (len(texts),) or not np.isfinite(scores).all():
        raise ConfigError(
            f"the similarity filter gave no finite value for each of {len(texts)} snippets (shape {scores.shape})",
            where="reports.morphology_prompts, reports.boilerplate_prompts",
            fix="check the VLM that embeds the two prompt bags",
        )
    return [bool(score >= margin) for score in scores]
