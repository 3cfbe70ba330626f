"""From reports to the table of snippets and the table of their sources."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from clipit.config.run import ReportsConfig
from clipit.errors import ConfigError, DataError
from clipit.reports.account import Account, Dropped, token_histogram
from clipit.reports.filters import (
    Similarity,
    by_similarity,
    check_sections,
    in_kept_section,
    readable_words,
    term_pattern,
)
from clipit.reports.readers import Report, Reports
from clipit.reports.snippets import Piece, split_reports
from clipit.types import TokenCounter

_BLOCK = 256  # reports whose tokens are counted at once

_SNIPPETS = pa.schema([("snippet_id", pa.string()), ("text", pa.string()), ("n_tokens", pa.int32())])
_SOURCES = pa.schema(
    [
        ("snippet_id", pa.string()),
        ("report_id", pa.string()),
        ("group", pa.string()),
        ("organ", pa.string()),
        ("section", pa.string()),
        ("position", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Snippets:
    """Snippets, where they come from, and what was dropped on the way."""

    snippets: pa.Table
    """snippet_id, text, n_tokens; sorted by snippet_id."""
    sources: pa.Table
    """snippet_id, report_id, group, organ, section, position; sorted by snippet_id, then as read."""
    account: Account


_Found = dict[str, list[tuple[Report, Piece]]]  # text of a snippet -> where it was found


def snippet_id(text: str) -> str:
    """16 hexadecimal digits of the SHA-256 of a snippet's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _collect(reports: Reports, count_tokens: TokenCounter, budget: int) -> _Found:
    """Split all reports, block by block, and merge exact duplicates."""
    found: _Found = {}
    for begin in range(0, len(reports.reports), _BLOCK):
        block = reports.reports[begin : begin + _BLOCK]
        for report, pieces in zip(block, split_reports([r.text for r in block], count_tokens, budget), strict=True):
            for piece in pieces:
                found.setdefault(piece.text, []).append((report, piece))
    return found


def _filter(
    found: _Found, config: ReportsConfig, similarity: Similarity | None
) -> tuple[list[str], dict[str, Dropped]]:
    """Texts that pass all filters, and what each filter has dropped."""
    texts = list(found)
    dropped: dict[str, Dropped] = {}

    def keep(name: str, test: Callable[[str], bool]) -> None:
        """Keep the texts that pass the test; count the others under the filter's name."""
        nonlocal texts
        passed = {text for text in texts if test(text)}
        dropped.setdefault(name, Dropped()).add([text for text in texts if text not in passed])
        texts = [text for text in texts if text in passed]

    keep(
        f"length (fewer than {config.min_words} readable words)", lambda text: readable_words(text) >= config.min_words
    )
    if config.sections is not None or config.exclude_sections:
        keep("section", lambda text: in_kept_section({piece.section for _, piece in found[text]}, config))
    include = term_pattern(config.include_terms)
    if include is not None:
        keep("include_terms (none of them)", lambda text: include.search(text) is not None)
    exclude = term_pattern(config.exclude_terms)
    if exclude is not None:
        keep("exclude_terms", lambda text: exclude.search(text) is None)
    if similarity is not None:
        near = dict(zip(texts, by_similarity(texts, similarity, config.morphology_margin), strict=True))
        keep("similarity (nearer to boilerplate than to morphology)", lambda text: near[text])
    return texts, dropped


def _tables(found: _Found, texts: list[str]) -> tuple[pa.Table, pa.Table]:
    """The snippets and their sources as tables, by snippet id."""
    ordered = sorted((snippet_id(text), text) for text in texts)
    snippets = [{"snippet_id": i, "text": text, "n_tokens": found[text][0][1].n_tokens} for i, text in ordered]
    sources = [
        {
            "snippet_id": i,
            "report_id": report.report_id,
            "group": report.group,
            "organ": report.organ,
            "section": piece.section,
            "position": piece.position,
        }
        for i, text in ordered
        for report, piece in found[text]
    ]
    return pa.Table.from_pylist(snippets, schema=_SNIPPETS), pa.Table.from_pylist(sources, schema=_SOURCES)


def build_snippets(
    reports: Reports,
    config: ReportsConfig,
    count_tokens: TokenCounter,
    budget: int,
    similarity: Similarity | None = None,
) -> Snippets:
    """Clean, split, merge and filter reports.

    Filters in this order: length (readable words), sections (one kept source is enough), include
    terms, exclude terms, similarity (kept when it is at least `config.morphology_margin`).

    Args:
        reports: What `read_reports` gave.
        config: Its filters.
        count_tokens: Tokens per text, special tokens included, nothing cut.
        budget: Most tokens of a snippet, special tokens included.
        similarity: Per text, similarity to the morphology bag minus similarity to the boilerplate bag.

    Raises:
        ConfigError: Unknown section names, a budget that holds nothing, or prompt bags without `similarity`.
        DataError: No snippet is left.
    """
    check_sections(config)
    if config.morphology_prompts is not None and similarity is None:
        raise ConfigError(
            "the similarity filter needs a VLM to embed its prompt bags",
            where="reports.morphology_prompts",
            fix="configure a VLM, or remove morphology_prompts and boilerplate_prompts",
        )
    found = _collect(reports, count_tokens, budget)
    texts, dropped = _filter(found, config, similarity)
    snippets, sources = _tables(found, texts)
    pieces = [piece for places in found.values() for _, piece in places]
    account = Account(
        source=reports.source,
        reports=len(reports.reports),
        empty_reports=reports.empty,
        pieces=len(pieces),
        split_sentences=sum(piece.first_part for piece in pieces),
        duplicates=len(pieces) - len(found),
        dropped=dropped,
        kept=len(texts),
        sections=dict(Counter(piece.section for piece in pieces).most_common()),
        budget=budget,
        tokens=token_histogram(snippets["n_tokens"].to_pylist(), budget),
        problems=reports.problems,
    )
    if not texts:
        raise DataError(
            f"no snippet is left:\n{account.text()}",
            where=reports.source,
            fix="loosen the filters under reports, or give another corpus",
        )
    return Snippets(snippets, sources, account)
