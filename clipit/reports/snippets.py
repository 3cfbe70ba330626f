"""Split reports into pieces within the token budget of the text tower."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clipit.errors import ConfigError
from clipit.reports.cleaning import trim
from clipit.reports.sentences import split_sentences
from clipit.types import TokenCounter


@dataclass(frozen=True)
class Piece:
    """Part of a report within the token budget."""

    section: str
    position: int
    """Index of the piece within the report."""
    text: str
    n_tokens: int
    """Number of tokens, including special tokens."""
    first_part: bool = False
    """Whether this is the first part of a sentence that exceeded the budget."""


# Patterns after which to split an over-long sentence, in order of preference.
_CLAUSES = (
    re.compile(r";\s+"),
    re.compile(r":\s+|\s+(?=-\s)"),
    re.compile(r",\s+"),
    re.compile(r"\s+(?=(?:and|with|or|which|but|where|while)\s)"),
    re.compile(r"\)\s+|\s+(?=\()"),
)
_SHORTER_PART = 0.2  # minimum share of characters in the shorter part when splitting at a clause


def split_reports(texts: Sequence[str], count_tokens: TokenCounter, budget: int) -> list[list[Piece]]:
    """Split cleaned reports into sentences within the token budget.

    A sentence over the budget is split at clauses, then between words, and within a word only if the word itself is
    over the budget. The pieces contain all letters and digits of the report, in order. Tokens of all reports are
    counted together.

    Args:
        texts: Texts of the reports, cleaned by `clean_text`.
        count_tokens: Function that counts the tokens of each text, including special tokens, without truncation.
        budget: Maximum number of tokens per piece, including special tokens.

    Raises:
        ConfigError: A single character is over the budget.
    """
    reports = [split_sentences(text) for text in texts]
    parts_of = iter(_fit_to_budget([text for report in reports for _, text in report], count_tokens, budget))
    out: list[list[Piece]] = []
    for report in reports:
        pieces: list[Piece] = []
        for section, _ in report:
            parts = next(parts_of)
            for i, (text, n_tokens) in enumerate(parts):
                pieces.append(Piece(section, len(pieces), text, n_tokens, first_part=i == 0 and len(parts) > 1))
        out.append(pieces)
    return out


def _fit_to_budget(texts: Sequence[str], count_tokens: TokenCounter, budget: int) -> list[list[tuple[str, int]]]:
    """Halve texts until no part is over the budget; returns parts with token counts, counted once per round."""
    counts: dict[str, int] = {}
    parts: list[list[str]] = [[text] for text in texts]
    pending = list(range(len(texts)))
    while True:
        new = [part for part in dict.fromkeys(part for i in pending for part in parts[i]) if part not in counts]
        if new:
            counts.update(zip(new, count_tokens(new), strict=True))
        pending = [i for i in pending if any(counts[part] > budget for part in parts[i])]
        if not pending:
            return [[(part, counts[part]) for part in row if any(map(str.isalnum, part))] for row in parts]
        for i in pending:
            halved: list[str] = []
            for part in parts[i]:
                if counts[part] <= budget:
                    halved.append(part)
                elif len(part) < 2:
                    raise ConfigError(
                        f"a budget of {budget} tokens does not fit one character ({part!r}: {counts[part]})",
                        where="vlm (context length of its text tower)",
                        fix="choose a VLM with a longer context",
                    )
                else:
                    halved.extend(_halve(part))
            parts[i] = halved


def _halve(text: str) -> tuple[str, str]:
    """Split a text near the middle: at a clause if possible, otherwise between words or within a word."""
    middle = len(text) / 2
    for pattern in _CLAUSES:
        ends = [m.end() for m in pattern.finditer(text) if _SHORTER_PART <= m.end() / len(text) <= 1 - _SHORTER_PART]
        if ends:
            break
    else:
        ends = [match.end() for match in re.finditer(r"\s+", text)]
    split = min(ends, key=lambda end: (abs(end - middle), end)) if ends else len(text) // 2
    return trim(text[:split]), trim(text[split:])
