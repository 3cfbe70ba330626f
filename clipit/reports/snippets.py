"""Cut reports into pieces that fit the text tower's token budget."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clipit.errors import ConfigError
from clipit.reports.cleaning import clean_text, trim
from clipit.reports.sentences import cut_sentences
from clipit.types import TokenCounter


@dataclass(frozen=True)
class Piece:
    """A part of a report that fits the budget."""

    section: str
    position: int
    """Running number within the report."""
    text: str
    n_tokens: int
    """Special tokens included."""
    first_part: bool = False
    """Whether it is the first part of a sentence that was over the budget."""


# Where to cut a sentence that is too long, best first. The cut is at the end of the match.
_CLAUSES = (
    re.compile(r";\s+"),
    re.compile(r":\s+|\s+(?=-\s)"),
    re.compile(r",\s+"),
    re.compile(r"\s+(?=(?:and|with|or|which|but|where|while)\s)"),
    re.compile(r"\)\s+|\s+(?=\()"),
)
_MIDDLE = 0.2  # a clause is used if the shorter part has at least this share of the characters


def _halves(text: str) -> tuple[str, str]:
    """Cut a text in two at its best clause near the middle, else at a word, else within the word."""
    middle = len(text) / 2
    for pattern in _CLAUSES:
        ends = [m.end() for m in pattern.finditer(text) if _MIDDLE <= m.end() / len(text) <= 1 - _MIDDLE]
        if ends:
            break
    else:
        ends = [match.end() for match in re.finditer(r"\s+", text)]
    cut = min(ends, key=lambda end: (abs(end - middle), end)) if ends else len(text) // 2
    return trim(text[:cut]), trim(text[cut:])


def _count(texts: Sequence[str], count_tokens: TokenCounter, known: dict[str, int]) -> None:
    """Count, in one call, the tokens of the texts that are not known yet."""
    new = [text for text in dict.fromkeys(texts) if text not in known]
    if new:
        known.update(zip(new, count_tokens(new), strict=True))


def _fit(texts: Sequence[str], count_tokens: TokenCounter, budget: int) -> list[list[tuple[str, int]]]:
    """Parts of each text with their token counts, none over the budget; one call per round of halving."""
    known: dict[str, int] = {}
    parts: list[list[str]] = [[text] for text in texts]
    pending = list(range(len(texts)))
    _count(texts, count_tokens, known)
    while pending:
        still = [i for i in pending if any(known[part] > budget for part in parts[i])]
        for i in still:
            halved: list[str] = []
            for part in parts[i]:
                if known[part] <= budget:
                    halved.append(part)
                elif len(part) < 2:
                    raise ConfigError(
                        f"a budget of {budget} tokens does not hold one character ({part!r}: {known[part]})",
                        where="vlm (context length of its text tower)",
                        fix="choose a VLM with a longer context",
                    )
                else:
                    halved.extend(_halves(part))
            parts[i] = halved
        _count([part for i in still for part in parts[i]], count_tokens, known)
        pending = still
    return [[(part, known[part]) for part in found if any(map(str.isalnum, part))] for found in parts]


def split_reports(texts: Sequence[str], count_tokens: TokenCounter, budget: int) -> list[list[Piece]]:
    """Pieces of each of many reports; tokens are counted for all of them at once (`split_report`)."""
    sentences = [cut_sentences(clean_text(text)) for text in texts]
    fitted = iter(_fit([text for report in sentences for _, text in report], count_tokens, budget))
    out: list[list[Piece]] = []
    for report in sentences:
        pieces: list[Piece] = []
        for section, _ in report:
            parts = next(fitted)
            for i, (text, n_tokens) in enumerate(parts):
                pieces.append(Piece(section, len(pieces), text, n_tokens, first_part=i == 0 and len(parts) > 1))
        out.append(pieces)
    return out


def split_report(text: str, count_tokens: TokenCounter, budget: int) -> list[Piece]:
    """Clean a report and cut it into sentences, none over the budget.

    A sentence over the budget is cut at its clauses, then at words, then within a word only if that
    word alone is over the budget. All letters and digits of the report are in the pieces, in order.

    Args:
        text: The report as read.
        count_tokens: Tokens per text with special tokens, nothing cut.
        budget: Most tokens of a piece, special tokens included.

    Raises:
        ConfigError: A single character does not fit the budget.
    """
    return split_reports([text], count_tokens, budget)[0]
