"""Build the snippet table and the table of snippet sources from reports."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clipit.config.effects import fingerprint_keys, select_keys
from clipit.config.run import ReportsConfig
from clipit.errors import ConfigError, DataError, counted
from clipit.progress import progress
from clipit.reports.cleaning import clean_text, compound_words, drop_long_words
from clipit.reports.filters import Similarity, check_sections, filter_snippets
from clipit.reports.ligatures import find_repairs, repair
from clipit.reports.page_breaks import drop_page_lines
from clipit.reports.phrases import is_plain
from clipit.reports.readers import Report, Reports
from clipit.reports.snippet_summary import SnippetSummary, Tally, token_histogram
from clipit.reports.snippets import Piece, split_reports
from clipit.types import TokenCounter

_BLOCK = 256  # number of reports that are tokenised together
_MAX_SHOWN = 40  # maximum number of characters of a dropped word that the summary shows

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

_Occurrences = dict[str, list[tuple[Report, Piece]]]  # snippet text -> reports and pieces in which it occurs


@dataclass(frozen=True)
class Snippets:
    """Snippets, their sources, and counts of dropped texts."""

    snippets: pa.Table
    """Table with the columns snippet_id, text and n_tokens, sorted by snippet_id."""
    sources: pa.Table
    """Table with the columns snippet_id, report_id, group, organ, section and position, sorted by snippet_id, then in
    reading order."""
    summary: SnippetSummary


def snippet_keys(config: ReportsConfig) -> dict[str, Any]:
    """Return the keys that determine the snippets, for fingerprints; `text_checks` only if it is set."""
    keys = select_keys(config, "results")
    if not all(map(is_plain, (*config.include_terms, *config.exclude_terms))):
        keys["characters"] = "plain"  # earlier versions matched such terms differently
    if config.text_checks is None:
        return keys
    return {**keys, "text_checks": fingerprint_keys(config.text_checks).keys}


def build_snippets(
    reports: Reports,
    config: ReportsConfig,
    count_tokens: TokenCounter,
    budget: int,
    similarity: Similarity | None = None,
) -> Snippets:
    """Clean reports, split them into snippets, merge duplicates and filter them (`filter_snippets`).

    A snippet that occurs in several sections is kept if any of these sections is kept.

    Args:
        reports: Reports from `read_reports`.
        count_tokens: Function that counts the tokens of each text, including special tokens, without truncation.
        budget: Maximum number of tokens per snippet, including special tokens.
        similarity: Function that returns each text's similarity to the morphology prompts minus its similarity to the
            boilerplate prompts; texts with at least `config.morphology_margin` are kept.

    Raises:
        ConfigError: A section is unknown, the budget is too small for one character, or the similarity filter is
            configured without `similarity`.
        DataError: No snippets remain.
    """
    check_sections(config)
    if config.morphology_prompts is not None and config.boilerplate_prompts is not None and similarity is None:
        raise ConfigError(
            "the similarity filter needs a VLM to embed its prompt bags",
            where="reports.morphology_prompts",
            fix="configure a VLM, or set reports.morphology_prompts to null",
        )
    long_words: dict[str, list[str]] = {}
    repairs_ligatures = config.text_checks is not None and config.text_checks.ligatures
    repairs = find_repairs([report.text for report in reports.reports]) if repairs_ligatures else {}
    repaired: Counter[str] = Counter()
    words = compound_words(report.text for report in reports.reports)
    drops_page_lines = config.text_checks is not None and config.text_checks.page_lines
    page_lines, page_reports = Tally(), 0

    def clean(text: str) -> str:
        nonlocal page_reports
        if drops_page_lines:
            text, lines = drop_page_lines(text)
            page_lines.add(lines)
            page_reports += bool(lines)
        return repair(clean_text(text, words), repairs, repaired)

    occurrences = _split_and_merge(reports, count_tokens, budget, clean, long_words)
    sections_of = {text: {piece.section for _, piece in origins} for text, origins in occurrences.items()}
    texts, dropped, kept_short = filter_snippets(sections_of, config, similarity)
    snippets, sources = _tables(occurrences, texts)
    pieces = [piece for origins in occurrences.values() for _, piece in origins]
    summary = SnippetSummary(
        reports=len(reports.reports),
        pieces=len(pieces),
        split_sentences=sum(piece.first_part for piece in pieces),
        duplicates=len(pieces) - len(occurrences),
        dropped=dropped,
        kept=len(texts),
        sections=dict(Counter(piece.section for piece in pieces).most_common()),
        section_reports=_count_reports(occurrences),
        budget=budget,
        tokens=token_histogram(snippets["n_tokens"].to_pylist(), budget),
        long_words=sum(map(len, long_words.values())),
        long_word_reports=tuple(_describe_long_words(name, words) for name, words in long_words.items()),
        kept_short=kept_short,
        repaired_words=dict(sorted(repaired.items(), key=lambda pair: (-pair[1], pair[0])))
        if repairs_ligatures
        else None,
        page_lines=page_lines if page_reports else None,
        page_line_reports=page_reports or None,
    )
    if not texts:
        raise DataError(
            f"no snippets remain:\n{summary.text(reports)}",
            where=reports.source,
            fix="relax the filters under `reports`, or use a different corpus",
        )
    return Snippets(snippets, sources, summary)


def _count_reports(occurrences: _Occurrences) -> dict[str, int]:
    """Count the reports with text in each section."""
    sections = {(piece.section, report.report_id) for origins in occurrences.values() for report, piece in origins}
    return dict(sorted(Counter(section for section, _ in sections).items()))


def _snippet_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _split_and_merge(
    reports: Reports,
    count_tokens: TokenCounter,
    budget: int,
    clean: Callable[[str], str],
    long_words: dict[str, list[str]],
) -> _Occurrences:
    """Clean and split reports, merge identical pieces, and add over-long words to `long_words`, keyed by report id."""
    occurrences: _Occurrences = {}
    with progress("splitting reports", len(reports.reports)) as advance:
        for begin in range(0, len(reports.reports), _BLOCK):
            block = reports.reports[begin : begin + _BLOCK]
            texts: list[str] = []
            for report in block:
                text, dropped = drop_long_words(clean(report.text))
                texts.append(text)
                if dropped:
                    long_words[report.report_id] = dropped
            for report, pieces in zip(block, split_reports(texts, count_tokens, budget), strict=True):
                for piece in pieces:
                    occurrences.setdefault(piece.text, []).append((report, piece))
            advance(len(block))
    return occurrences


def _describe_long_words(report_id: str, words: list[str]) -> str:
    characters = sum(map(len, words))
    return (
        f"report {report_id}: {len(words)} dropped ({counted(characters, 'character')}), e.g. "
        f"{words[0][:_MAX_SHOWN]}..."
    )


def _tables(occurrences: _Occurrences, texts: list[str]) -> tuple[pa.Table, pa.Table]:
    ordered = sorted((_snippet_id(text), text) for text in texts)
    snippets = [
        {"snippet_id": snippet_id, "text": text, "n_tokens": occurrences[text][0][1].n_tokens}
        for snippet_id, text in ordered
    ]
    sources = [
        {
            "snippet_id": snippet_id,
            "report_id": report.report_id,
            "group": report.group,
            "organ": report.organ,
            "section": piece.section,
            "position": piece.position,
        }
        for snippet_id, text in ordered
        for report, piece in occurrences[text]
    ]
    return pa.Table.from_pylist(snippets, schema=_SNIPPETS), pa.Table.from_pylist(sources, schema=_SOURCES)
