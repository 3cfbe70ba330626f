"""Filters that choose which snippets are kept."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from clipit.config.run import ReportsConfig
from clipit.errors import ConfigError, shortlist
from clipit.reports.account import Dropped
from clipit.reports.headings import SECTIONS

Similarity = Callable[[Sequence[str]], Float[np.ndarray, " n"]]
"""Function that returns each text's similarity to the morphology bag minus that to the boilerplate bag."""


def filter_snippets(
    sections_of: Mapping[str, Collection[str]], config: ReportsConfig, similarity: Similarity | None
) -> tuple[list[str], dict[str, Dropped]]:
    """Apply the configured filters in order: length, sections, include terms, exclude terms, similarity.

    Args:
        sections_of: Sections in which each snippet occurs, by its text.
        config: Configuration of the filters.
        similarity: Similarity function; required with `config.morphology_prompts`.

    Returns:
        Texts that pass all filters, and a record of those dropped by each filter.
    """
    texts = list(sections_of)
    dropped: dict[str, Dropped] = {}

    def keep(name: str, passes: Sequence[bool]) -> None:
        nonlocal texts
        dropped[name] = Dropped()
        dropped[name].add([text for text, passed in zip(texts, passes, strict=True) if not passed])
        texts = [text for text, passed in zip(texts, passes, strict=True) if passed]

    length = f"length (fewer than {config.min_words} readable words)"
    keep(length, [_readable_words(text) >= config.min_words for text in texts])
    if config.sections is not None or config.exclude_sections:
        keep("section", [_in_kept_section(sections_of[text], config) for text in texts])
    include = _term_pattern(config.include_terms)
    if include is not None:
        keep("include_terms (none of them)", [include.search(text) is not None for text in texts])
    exclude = _term_pattern(config.exclude_terms)
    if exclude is not None:
        keep("exclude_terms", [exclude.search(text) is None for text in texts])
    if similarity is not None:
        near = _pass_similarity(texts, similarity, config.morphology_margin)
        keep("similarity (nearer to boilerplate than to morphology)", near)
    return texts, dropped


def _readable_words(text: str) -> int:
    """Count the words with a letter and at least two different letters or digits.

    Drawn lines, bar codes read as "IIII" and single letters do not count.
    """
    count = 0
    for word in text.split():
        characters = {char for char in word.lower() if char.isalnum()}
        count += len(characters) >= 2 and any(char.isalpha() for char in characters)
    return count


def _term_pattern(terms: Sequence[str]) -> re.Pattern[str] | None:
    """Compile a pattern that matches any of the terms as whole words, ignoring case; None without terms."""
    words = [r"\s+".join(re.escape(word) for word in term.split()) for term in terms if term.strip()]
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE) if words else None


def check_sections(config: ReportsConfig) -> None:
    """Validate the configured section names.

    Raises:
        ConfigError: A section is unknown.
    """
    unknown = sorted({*(config.sections or ()), *config.exclude_sections} - set(SECTIONS))
    if unknown:
        raise ConfigError(
            f"unknown section: {shortlist(unknown)}",
            where="reports.sections, reports.exclude_sections",
            fix=f"use some of: {', '.join(SECTIONS)}",
        )


def _in_kept_section(sections: Collection[str], config: ReportsConfig) -> bool:
    kept = sections if config.sections is None else set(sections) & set(config.sections)
    return any(section not in config.exclude_sections for section in kept)


def _pass_similarity(texts: Sequence[str], similarity: Similarity, margin: float) -> list[bool]:
    """Return whether each text is nearer to morphology than to boilerplate by at least the margin."""
    scores = np.asarray(similarity(texts)) if texts else np.zeros(0)
    if scores.shape != (len(texts),) or not np.isfinite(scores).all():
        raise ConfigError(
            f"the similarity filter returned no finite value for each of {len(texts)} snippets (shape {scores.shape})",
            where="reports.morphology_prompts, reports.boilerplate_prompts",
            fix="check the VLM that embeds the two prompt bags",
        )
    return [bool(score >= margin) for score in scores]
