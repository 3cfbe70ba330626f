"""Drop page numbers, headers and footers that page breaks leave in the text of a report."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise, takewhile
from typing import NamedTuple

from clipit.reports.cleaning import ESCAPED_LINE_END, NEGATIVE_VALUE
from clipit.reports.garbage import names_diagnosis
from clipit.reports.headings import STRONG, WEAK

_WINDOW = 12  # maximum number of lines in a header or footer
_MAX_NUMBER_LINE = 80  # maximum length of a line that contains only a page number
_MAX_WORDS, _MAX_CHARACTERS = 40, 400  # maximum size of a header or footer in a report without line breaks
_MIN_WORDS = 3  # minimum number of words in such a header or footer; fewer can repeat by chance
_PAGE = r"(?:page|seite|blatt|p[aá]gina|pagina|pag\.|p[aá]g\.)"
_OF = r"(?:of|0f|/|von|de|di|van|sur)"
_NUMBERED = rf"{_PAGE}\s{{0,3}}:?\s{{0,3}}[\dIl]{{1,3}}\s{{0,3}}{_OF}\s{{0,3}}[\dIlSB]{{1,3}}"  # OCR: "Page I ofS"
_WHOLE_LINE = re.compile(rf"\W*(?:{_NUMBERED}|{_PAGE}\s{{0,3}}:?\s{{0,3}}\d{{1,3}})\W*", re.I)
_INSIDE_LINE = re.compile(rf"(?<![^\W_])(?=[A-Z])(?i:{_NUMBERED})(?![^\W_])")  # not "see page 2 of 3"
_HINT = re.compile(rf"\f|{_PAGE}", re.I)
_WORD = re.compile(r"\S+")
_NEWLINE = re.compile(rf"\r\n|[\n\r\v\u2028\u2029\x85]|{ESCAPED_LINE_END}")

_Span = tuple[int, int]


class _PageNumber(NamedTuple):
    """Page number within a line."""

    line: int
    """Index of the line."""
    begin: int
    """Index of the first character in the line."""
    end: int
    """Index after the last character in the line."""


def drop_page_lines(text: str) -> tuple[str, list[str]]:
    """Drop page numbers and the lines that repeat next to page breaks, so that they do not interrupt sentences.

    A page break is a page number with the number of pages ("Page 2 of 3", "Seite 2/3", even inside a line), a page
    number on a line of its own, or a form feed. Lines directly before or after a break are a footer or header if they
    occur on the same side of at least two breaks and at least half of all breaks. The start and end of the report count
    as breaks, but the first page keeps its header. Lines that name a diagnosis or begin with a section heading,
    negative values ("Not identified") and sentences with a full stop are kept. The time is linear in the length of the
    text.

    Args:
        text: Text of a report as read, before `clean_text`.

    Returns:
        The remaining text, and the dropped text: parts of lines, then whole lines, each in reading order.
    """
    if _HINT.search(text) is None:
        return text, []
    lines, dropped = _drop_inside(_NEWLINE.split(text.replace("\f", "\n\f\n")))
    breaks = _find_breaks(lines)
    removed = _headers(lines, breaks)
    for begin, end in breaks:
        removed |= {index for index in range(begin, end) if lines[index].strip()}
    dropped += [lines[index].strip() for index in sorted(removed) if lines[index].strip()]
    if not dropped:
        return text, []
    return "\n".join(line for index, line in enumerate(lines) if index not in removed), dropped


def _is_page_number(line: str) -> bool:
    return len(line) < _MAX_NUMBER_LINE and _WHOLE_LINE.fullmatch(line) is not None


def _find_breaks(lines: Sequence[str]) -> list[_Span]:
    """Find the page breaks as line ranges; breaks without text between them are merged."""
    breaks: list[_Span] = []
    last_text = -1  # index of the last line with text
    for index, line in enumerate(lines):
        if line == "\f" or _is_page_number(line):
            if breaks and last_text < breaks[-1][1]:
                breaks[-1] = (breaks[-1][0], index + 1)
            else:
                breaks.append((index, index + 1))
        elif line.strip():
            last_text = index
    return breaks


def _headers(lines: Sequence[str], breaks: Sequence[_Span]) -> set[int]:
    """Find the indices of header and footer lines, without the header of the first page."""
    starts, stops = [0, *(end for _, end in breaks)], [*(begin for begin, _ in breaks), len(lines)]
    pages = [range(start, stop) for start, stop in zip(starts, stops, strict=True)]
    if pages and not any(lines[index].strip() for index in pages[0]):  # the report begins with a page break
        pages = pages[1:]
    removed: set[int] = set()
    for sides, n_kept in (
        ([_first_lines(lines, page) for page in pages], 1),
        ([_first_lines(lines, page[::-1]) for page in pages], 0),
    ):
        counts = Counter(key for side in sides for key in {_key(lines[index]) for index in side})
        min_count = max(2, -(-len([side for side in sides if side]) // 2))
        for side in sides[n_kept:]:
            for index in side:
                if counts[_key(lines[index])] < min_count:
                    break
                if not _has_content(lines[index]):
                    removed.add(index)
    return removed


def _first_lines(lines: Sequence[str], indices: range) -> list[int]:
    """Return the indices of the first lines with text, at most as many as a header may have."""
    return list(islice((index for index in indices if lines[index].strip()), _WINDOW))


def _key(line: str) -> str:
    return " ".join(line.split()).casefold()


def _has_content(line: str) -> bool:
    """Return whether a repeated line may belong to the report's text."""
    text = " ".join(line.split())
    heading = STRONG.match(text) or WEAK.match(text)
    if heading is not None and heading.groupdict().get("administrative") is None:
        return True
    return text.endswith(".") or NEGATIVE_VALUE.match(text) is not None or names_diagnosis(text)


def _drop_inside(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Drop page numbers inside lines, together with the words that repeat next to them.

    A page number at either end of a line becomes a page break (form feed).
    """
    numbers = [
        _PageNumber(index, match.start(), match.end())
        for index, line in enumerate(lines)
        if not _is_page_number(line)
        for match in _INSIDE_LINE.finditer(line)
    ]
    if not numbers:
        return list(lines), []
    left, right = _words_beside(lines, numbers)
    n_left, n_right = _count_repeated(lines, numbers, left), _count_repeated(lines, numbers, right)
    if not left[0] and not any(line.strip() for line in lines[: numbers[0].line]):
        n_right[0] = 0  # the first page keeps its header
    spans: dict[int, list[_Span]] = {}
    for index, number in enumerate(numbers):
        begin = left[index][n_left[index] - 1][0] if n_left[index] else number.begin
        end = right[index][n_right[index] - 1][1] if n_right[index] else number.end
        in_line = spans.setdefault(number.line, [])
        if in_line and begin <= in_line[-1][1]:
            in_line[-1] = (in_line[-1][0], end)
        else:
            in_line.append((begin, end))
    out: list[str] = []
    dropped: list[str] = []
    for index, line in enumerate(lines):
        in_line = spans.get(index, [])
        dropped += [line[begin:end].strip() for begin, end in in_line]
        starts, ends = [0, *(end for _, end in in_line)], [*(begin for begin, _ in in_line), len(line)]
        parts = [line[start:end].strip() if in_line else line for start, end in zip(starts, ends, strict=True)]
        if in_line and not (parts[0] and parts[-1]):
            out += [part or "\f" for part in (parts[0], " ".join(parts[1:-1]), parts[-1])]
        else:
            out.append(" ".join(parts))
    return out, dropped


def _words_beside(lines: Sequence[str], numbers: Sequence[_PageNumber]) -> tuple[list[list[_Span]], list[list[_Span]]]:
    """Return the words before each page number, the nearest first, and those after it, up to the next page number."""
    left, right = [], []
    for index, number in enumerate(numbers):
        line, start, stop = lines[number.line], 0, len(lines[number.line])
        if index and numbers[index - 1].line == number.line:
            start = numbers[index - 1].end
        if index + 1 < len(numbers) and numbers[index + 1].line == number.line:
            stop = numbers[index + 1].begin
        start, stop = max(start, number.begin - _MAX_CHARACTERS), min(stop, number.end + _MAX_CHARACTERS)
        left.append([match.span() for match in _WORD.finditer(line, start, number.begin)][: -_MAX_WORDS - 1 : -1])
        right.append([match.span() for match in _WORD.finditer(line, number.end, stop)][:_MAX_WORDS])
    return left, right


def _count_repeated(lines: Sequence[str], numbers: Sequence[_PageNumber], sides: Sequence[list[_Span]]) -> list[int]:
    """Count the words next to each page number, the nearest first, that are repeated next to another page number."""
    texts = [
        [lines[number.line][begin:end] for begin, end in side] for number, side in zip(numbers, sides, strict=True)
    ]
    keys = [[word.casefold() for word in words] for words in texts]
    order = sorted(range(len(sides)), key=lambda index: keys[index])  # puts common prefixes side by side
    longest = [0] * len(sides)
    for a, b in pairwise(order):
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(keys[a], keys[b], strict=False)))
        longest[a], longest[b] = max(longest[a], common), max(longest[b], common)
    counts = []
    for side, words, common in zip(sides, texts, longest, strict=True):
        while common and words[common - 1][0].islower():  # a word in lower case may belong to the report's text
            common -= 1
        run = words[:common] if not side or side[0] == min(side) else words[:common][::-1]
        counts.append(common if common >= _MIN_WORDS and not _has_content(" ".join(run)) else 0)
    return counts
