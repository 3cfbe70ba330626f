"""Filter snippets by text checks, length, section, terms and similarity."""

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial

import numpy as np
from jaxtyping import Float

from clipit.config.run import ReportsConfig
from clipit.errors import ConfigError, counted, shortlist
from clipit.reports.assertion import Assertions, Triggers
from clipit.reports.garbage import DISEASE, is_bare_heading, learn_vocabulary, names_diagnosis, readability
from clipit.reports.headings import SECTIONS
from clipit.reports.phrases import whole_words
from clipit.reports.snippet_summary import Tally

Similarity = Callable[[Sequence[str]], Float[np.ndarray, " n"]]
"""Function that returns each text's similarity to the morphology prompts minus that to the boilerplate prompts."""
_TISSUE = frozenset({"microscopic", "diagnosis"})  # sections that describe what a tile can show
_NON_TISSUE = frozenset({"gross", "clinical", "specimen", "blocks", "stage", "administrative"})
_PACKAGED_BAG = ReportsConfig.model_fields["morphology_prompts"].default


_composed = partial(unicodedata.normalize, "NFC")


def filter_snippets(
    sections_of: Mapping[str, Collection[str]], config: ReportsConfig, similarity: Similarity | None
) -> tuple[list[str], dict[str, Tally], Tally | None]:
    """Apply the configured filters in order: text checks, length, sections, include and exclude terms, similarity.

    Args:
        sections_of: Sections of each snippet, by the snippet's text.
        similarity: Similarity function; required with `config.morphology_prompts`.

    Returns:
        Texts that pass all filters, a tally of those dropped by each filter, and a tally of the short diagnoses that
        were kept although a filter would have dropped them (None unless `config.text_checks.short_diagnoses` is set).
    """
    texts = list(sections_of)
    dropped: dict[str, Tally] = {}
    checks = config.text_checks
    longest = _MAX_DIAGNOSIS if config.morphology_prompts == _PACKAGED_BAG else _BRIEF
    rescued: dict[str, None] = {}

    def keep(name: str, passes: Sequence[bool]) -> None:
        nonlocal texts
        dropped[name] = Tally()
        dropped[name].add([text for text, passed in zip(texts, passes, strict=True) if not passed])
        texts = [text for text, passed in zip(texts, passes, strict=True) if passed]

    def rescue(passes: Sequence[bool]) -> list[bool]:
        """Keep short diagnoses that fail a filter.

        Diagnoses of more than three words are kept only with the packaged prompts, which fit any organ.
        """
        if checks is None or not checks.short_diagnoses:
            return list(passes)
        short = [
            text
            for text, passed in zip(texts, passes, strict=True)
            if not passed and not _NON_TISSUE.issuperset(sections_of[text]) and is_short_diagnosis(text, longest)
        ]
        rescued.update(dict.fromkeys(short))
        return [passed or text in rescued for text, passed in zip(texts, passes, strict=True)]

    if checks is not None and checks.headings:
        keep("headings without text", [not is_bare_heading(text) for text in texts])
    if checks is not None and checks.readable > 0:
        vocabulary = learn_vocabulary(texts)
        passes = [readability(text, vocabulary) >= checks.readable for text in texts]
        keep(f"unreadable text (under {checks.readable:.0%} readable)", passes)
    length = f"length (fewer than {counted(config.min_words, 'readable word')})"
    keep(length, rescue([readable_words(text) >= config.min_words for text in texts]))
    if config.sections is not None or config.exclude_sections:
        keep("section", [_in_kept_section(sections_of[text], config) for text in texts])
    include = _term_pattern(config.include_terms)
    if include is not None:
        keep("include_terms (none of them)", [include.search(_composed(text)) is not None for text in texts])
    exclude = _term_pattern(config.exclude_terms)
    if exclude is not None:
        keep("exclude_terms", [exclude.search(_composed(text)) is None for text in texts])
    if similarity is not None:
        scores = _similarity_scores(texts, similarity)
        name = "similarity (nearer to boilerplate than to morphology)"
        if checks is not None and checks.section_weight:
            scores = scores + checks.section_weight * scores.std() * _section_signs(texts, sections_of)
            name += ", weighted by section; to disable, set reports.morphology_prompts=null"
        keep(name, rescue([bool(score >= config.morphology_margin) for score in scores]))
    kept = set(texts)
    short = Tally()
    short.add([text for text in rescued if text in kept])
    return texts, dropped, short if checks is not None and checks.short_diagnoses else None


def _section_signs(texts: Sequence[str], sections_of: Mapping[str, Collection[str]]) -> Float[np.ndarray, " n"]:
    """Return 1 for texts from sections that describe tissue, -1 for texts only from other known sections, else 0."""
    return np.array(
        [
            1.0 if not _TISSUE.isdisjoint(sections_of[text]) else -float(_NON_TISSUE.issuperset(sections_of[text]))
            for text in texts
        ],
        dtype=np.float64,
    )


def _term_pattern(terms: Sequence[str]) -> re.Pattern[str] | None:
    """Compile a pattern that matches any of the terms as whole words, ignoring case; None without terms."""
    words = [whole_words(term) for term in terms if term.strip()]
    return re.compile("|".join(words), re.IGNORECASE) if words else None


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
            fix=f"use any of: {', '.join(SECTIONS)}",
        )


def _in_kept_section(sections: Collection[str], config: ReportsConfig) -> bool:
    kept = sections if config.sections is None else set(sections) & set(config.sections)
    return any(section not in config.exclude_sections for section in kept)


def _similarity_scores(texts: Sequence[str], similarity: Similarity) -> Float[np.ndarray, " n"]:
    scores = np.asarray(similarity(texts) if texts else np.zeros(0), dtype=np.float64)
    if scores.shape != (len(texts),) or not np.isfinite(scores).all():
        raise ConfigError(
            f"the similarity filter did not return one finite value for each of {counted(len(texts), 'snippet')} "
            f"(shape {scores.shape})",
            where="reports.morphology_prompts, reports.boilerplate_prompts",
            fix="check the VLM that embeds the two prompt bags",
        )
    return scores


_BRIEF = 3
"""Maximum number of readable words in a text that only has to name a diagnosis; longer texts must affirm an entity."""
_MAX_DIAGNOSIS = 6
"""Maximum number of readable words in a short diagnosis, not counting the label or site before a colon."""
_ENTITY = re.compile(rf"(?i){DISEASE}|\bpolyps?\b")


def is_short_diagnosis(text: str, longest: int = _MAX_DIAGNOSIS) -> bool:
    """Return whether a text is a short diagnosis, such as "Partially mucinous colorectal adenocarcinoma".

    A text of at most three readable words only has to name a diagnosis. A longer text must have at most `longest`
    readable words after its last colon ("Histologic type: ..."), and affirm an entity in them; templates such as
    "Margins negative for carcinoma" or "Number of nodes with metastasis: 0" do not. If `longest` is at most three, no
    longer text is a short diagnosis.
    """
    if readable_words(text) <= _BRIEF:
        return names_diagnosis(text)
    value = text[text.rfind(":") + 1 :]
    if longest <= _BRIEF or not 0 < readable_words(value) <= longest:
        return False
    mentions = [match.span() for match in _ENTITY.finditer(value)]
    return bool(mentions) and all(status == "affirmed" for status in _assertions().statuses(value, mentions))


def readable_words(text: str) -> int:
    """Count the words with a letter and at least two different letters or digits.

    Drawn lines, bar codes read as "IIII" and single letters do not count.
    """
    count = 0
    for word in text.split():
        characters = {char for char in word.lower() if char.isalnum()}
        count += len(characters) >= 2 and any(char.isalpha() for char in characters)
    return count


@cache
def _assertions() -> Assertions:
    return Assertions(Triggers(), Triggers())
