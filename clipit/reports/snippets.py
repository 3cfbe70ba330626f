"""Split the sentences of reports into snippets that fit the token budget of the text tower."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from clipit.errors import ConfigError, counted
from clipit.reports.cleaning import trim
from clipit.reports.sentences import split_sentences
from clipit.types import TokenCounter


@dataclass(frozen=True)
class Piece:
    """Part of a report that fits the token budget."""

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
    re.compile(r";\s+|\uff1b"),  # including Chinese and Japanese punctuation
    re.compile(r":\s+|\s+(?=-\s)|\uff1a"),
    re.compile(r",\s+|[\uff0c\u3001]"),
    re.compile(r"\s+(?=(?:and|with|or|which|but|where|while)\s)"),
    re.compile(r"\)\s+|\s+(?=\()"),
)
_SHORTER_PART = 0.2  # minimum fraction of characters in the shorter part of a split at a clause

# Measurements and ranges: "3.5 x 2 cm", "25 - 30%".
_NUMBER, _UNIT_OR_MORE = (
    re.compile(r"\d\s*$"),
    re.compile(r"(?:[x\u00d7+-]|to|by)\s+\d|(?:[cmuµ]?m|m?g|kg|ml|grams?)\b|%"),
)
_OPEN_RANGE, _DIGIT = re.compile(r"\d\s*(?:[x\u00d7+-]|to|by)\s+$"), re.compile(r"\d")

_NEGATION = re.compile(
    r"(?i)\b(?:no\s+(?:definite\s+|histologic\s+)?(?:evidence|signs?|features)\s+of|negative\s+for|free\s+(?:of|from)|"
    r"absence\s+of|without|no)(?=[\s:])\s?:?"
)
_AFTER_NEGATION = re.compile(
    r"(?i)[.;!?]|\b(?:is|are|was|were|has|have|had|shows?|there|the|it|but|however|although|though|except|which|while|"
    r"because|due|in\s+a|with)\b"
)
_CONJUNCTION = re.compile(r"(?i)(?:and|or|nor)\s+")
_MAX_NEGATION = 0.25  # maximum fraction of the text that a repeated negation may take up


def split_reports(texts: Sequence[str], count_tokens: TokenCounter, budget: int) -> list[list[Piece]]:
    """Split cleaned reports into sentences within the token budget.

    A sentence over the budget is split at clauses, then between words, and within a word only if the word itself is
    over the budget. The pieces contain all letters and digits of the report, in order; where a list after a negation
    is split, the negation is repeated. The tokens of all reports are counted together.

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
    """Halve texts until no part is over the budget, and return the parts with their token counts.

    All new parts of a round are tokenised together.
    """
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
                        f"one character does not fit the budget of {counted(budget, 'token')} ({part!r}: "
                        f"{counts[part]})",
                        where="vlm (context length of its text tower)",
                        fix="choose a VLM with a longer context",
                    )
                else:
                    halved.extend(_halve(part))
            parts[i] = halved


def _halve(text: str) -> tuple[str, str]:
    """Split a text near the middle: at a clause if possible, otherwise between words or within a word.

    Numbers stay with their units, and a part that begins within a negated list repeats its negation: "no evidence of".
    """
    middle = len(text) / 2
    for pattern in _CLAUSES:
        ends = [m.end() for m in pattern.finditer(text) if _SHORTER_PART <= m.end() / len(text) <= 1 - _SHORTER_PART]
        ends = [end for end in ends if not _in_measurement(text, end)]
        if ends:
            break
    else:
        spaces = [match.end() for match in re.finditer(r"\s+", text)]
        ends = [end for end in spaces if not _in_measurement(text, end)] or spaces or _between_characters(text)
    split = min(ends, key=lambda end: (abs(end - middle), end)) if ends else len(text) // 2
    return trim(text[:split]), _with_negation(text, split)


def _in_measurement(text: str, offset: int) -> bool:
    """Return whether an offset lies between a number and its unit, or between the numbers of a size or range."""
    start = max(0, offset - 8)
    if _NUMBER.search(text, start, offset):
        return _UNIT_OR_MORE.match(text, offset) is not None
    return _OPEN_RANGE.search(text, start, offset) is not None and _DIGIT.match(text, offset) is not None


def _between_characters(text: str) -> list[int]:
    """Return the offsets between characters of scripts without spaces; Latin words and numbers are not split."""
    return [
        offset
        for offset in range(1, len(text))
        if not (text[offset - 1].isascii() and text[offset].isascii()) and not unicodedata.combining(text[offset])
    ]


def _with_negation(text: str, split: int) -> str:
    """Return the text after `split`; if `split` divides a negated list, repeat the negation before it."""
    rest = trim(text[split:])
    negation = next(reversed(list(_NEGATION.finditer(text, 0, split))), None)
    if negation is None or len(negation.group()) > _MAX_NEGATION * len(text):
        return rest
    left = text[negation.end() : split].rstrip()
    conjunction = _CONJUNCTION.match(rest)
    first = rest.split(",")[0]
    in_list = left.endswith(",") or conjunction is not None
    if not left or not in_list or _AFTER_NEGATION.search(left) or _AFTER_NEGATION.search(first):
        return rest
    begin = conjunction.end() if conjunction else 0
    return f"{rest[:begin]}{negation.group().strip()} {rest[begin:]}"
