"""Drop what page breaks leave inside the text of a report: page numbers, headers and footers."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import NamedTuple

from clipit.reports.cleaning import ESCAPED_LINE_END, NEGATIVE_VALUE
from clipit.reports.garbage import names_diagnosis
from clipit.reports.headings import STRONG, WEAK

_WINDOW = 12  # lines beside a break that may be its header or footer
_LONGEST_NUMBER = 80  # characters of a line that is only a page number
_WORDS, _CHARACTERS = 40, 400  # limits of a header or footer in a report without line ends
_FEWEST_WORDS = 3  # minimum of such a header; fewer can agree by chance
_PAGE = r"(?:page|seite|blatt|p[aá]gina|pagina|pag\.|p[aá]g\.)"
_OF = r"(?:of|0f|/|von|de|di|van|sur)"
_NUMBERED = rf"{_PAGE}\s{{0,3}}:?\s{{0,3}}[\dIl]{{1,3}}\s{{0,3}}{_OF}\s{{0,3}}[\dIlSB]{{1,3}}"  # OCR: "Page I ofS"
_WHOLE = re.compile(rf"\W*(?:{_NUMBERED}|{_PAGE}\s{{0,3}}:?\s{{0,3}}\d{{1,3}})\W*", re.I)
_INSIDE = re.compile(rf"(?<![^\W_])(?=[A-Z])(?i:{_NUMBERED})(?![^\W_])")  # not "see page 2 of 3"
_HINT = re.compile(rf"\f|{_PAGE}", re.I)
_WORD = re.compile(r"\S+")
_NEWLINE = re.compile(rf"\r\n|[\n\r\v\u2028\u2029\x85]|{ESCAPED_LINE_END}")

_Span = tuple[int, int]


class _Number(NamedTuple):
    """A page number inside a line: the line's place, and its first and last character."""

    place: int
    begin: int
    end: int


def drop_page_lines(text: str) -> tuple[str, list[str]]:
    """Drop page numbers and the lines that repeat beside page breaks, so that no sentence is cut by them.

    A page break is a page number with its total ("Page 2 of 3", "Seite 2/3", also inside a line), a page number on a
    line of its own, or a form feed. Lines directly before or after it are a footer or header if they occur on the same
    side of at least two breaks and of at least half of all; the first page counts as well, but keeps its header. Lines
    that name a diagnosis or begin with the heading of a section, negative values ("Not identified") and sentences with
    a full stop are kept. The time is linear in the length of the text.

    Args:
        text: Text of a report as read, before `clean_text`.

    Returns:
        The text without these lines, and the dropped lines in reading order.
    """
    if _HINT.search(text) is None:
        return text, []
    lines, dropped = _drop_inside(_NEWLINE.split(text.replace("\f", "\n\f\n")))
    breaks = _find_breaks(lines)
    removed = _headers(lines, breaks)
    for begin, end in breaks:
        removed |= {place for place in range(begin, end) if lines[place].strip()}
    dropped += [lines[place].strip() for place in sorted(removed) if lines[place].strip()]
    if not dropped:
        return text, []
    return "\n".join(line for place, line in enumerate(lines) if place not in removed), dropped


def _is_number(line: str) -> bool:
    return len(line) < _LONGEST_NUMBER and _WHOLE.fullmatch(line) is not None


def _find_breaks(lines: Sequence[str]) -> list[_Span]:
    """Find the page breaks as ranges of lines; breaks without text between them are merged."""
    breaks: list[_Span] = []
    last = -1  # line with text before
    for place, line in enumerate(lines):
        if line == "\f" or _is_number(line):
            if breaks and last < breaks[-1][1]:
                breaks[-1] = (breaks[-1][0], place + 1)
            else:
                breaks.append((place, place + 1))
        elif line.strip():
            last = place
    return breaks


def _headers(lines: Sequence[str], breaks: Sequence[_Span]) -> set[int]:
    """Find the lines of headers and footers, without the header of the first page."""
    starts, stops = [0, *(end for _, end in breaks)], [*(begin for begin, _ in breaks), len(lines)]
    pages = [range(start, stop) for start, stop in zip(starts, stops, strict=True)]
    if pages and not any(lines[place].strip() for place in pages[0]):  # the report begins with a page break
        pages = pages[1:]
    removed: set[int] = set()
    for sides, kept in (
        ([_filled(lines, page) for page in pages], 1),
        ([_filled(lines, page[::-1]) for page in pages], 0),
    ):
        counts = Counter(key for side in sides for key in {_key(lines[place]) for place in side})
        enough = max(2, -(-len([side for side in sides if side]) // 2))
        for side in sides[kept:]:
            for place in side:
                if counts[_key(lines[place])] < enough:
                    break
                if not _has_content(lines[place]):
                    removed.add(place)
    return removed


def _filled(lines: Sequence[str], places: range) -> list[int]:
    """Return the first lines with text, at most as many as a header may have."""
    filled: list[int] = []
    for place in places:
        if len(filled) == _WINDOW:
            break
        if lines[place].strip():
            filled.append(place)
    return filled


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
    """Drop page numbers inside lines, with the words that repeat beside them; a number at an end stays a break."""
    numbers = [
        _Number(place, match.start(), match.end())
        for place, line in enumerate(lines)
        if not _is_number(line)
        for match in _INSIDE.finditer(line)
    ]
    if not numbers:
        return list(lines), []
    left, right = _words_beside(lines, numbers)
    n_left, n_right = _count_repeated(lines, numbers, left), _count_repeated(lines, numbers, right)
    if not left[0] and not any(line.strip() for line in lines[: numbers[0].place]):
        n_right[0] = 0  # the first page keeps its header
    spans: dict[int, list[_Span]] = {}
    for index, number in enumerate(numbers):
        begin = left[index][n_left[index] - 1][0] if n_left[index] else number.begin
        end = right[index][n_right[index] - 1][1] if n_right[index] else number.end
        in_line = spans.setdefault(number.place, [])
        if in_line and begin <= in_line[-1][1]:
            in_line[-1] = (in_line[-1][0], end)
        else:
            in_line.append((begin, end))
    out: list[str] = []
    dropped: list[str] = []
    for place, line in enumerate(lines):
        in_line = spans.get(place, [])
        dropped += [line[begin:end].strip() for begin, end in in_line]
        starts, ends = [0, *(end for _, end in in_line)], [*(begin for begin, _ in in_line), len(line)]
        parts = [line[start:end].strip() if in_line else line for start, end in zip(starts, ends, strict=True)]
        if in_line and not (parts[0] and parts[-1]):
            out += [part or "\f" for part in (parts[0], " ".join(parts[1:-1]), parts[-1])]
        else:
            out.append(" ".join(parts))
    return out, dropped


def _words_beside(lines: Sequence[str], numbers: Sequence[_Number]) -> tuple[list[list[_Span]], list[list[_Span]]]:
    """Return the words before each number, the nearest first, and those after it, as far as the next number."""
    left, right = [], []
    for index, number in enumerate(numbers):
        line, start, stop = lines[number.place], 0, len(lines[number.place])
        if index and numbers[index - 1].place == number.place:
            start = numbers[index - 1].end
        if index + 1 < len(numbers) and numbers[index + 1].place == number.place:
            stop = numbers[index + 1].begin
        start, stop = max(start, number.begin - _CHARACTERS), min(stop, number.end + _CHARACTERS)
        left.append([match.span() for match in _WORD.finditer(line, start, number.begin)][: -_WORDS - 1 : -1])
        right.append([match.span() for match in _WORD.finditer(line, number.end, stop)][:_WORDS])
    return left, right


def _count_repeated(lines: Sequence[str], numbers: Sequence[_Number], sides: Sequence[list[_Span]]) -> list[int]:
    """Count the words beside each number, the nearest first, that also occur beside another one."""
    texts = [
        [lines[number.place][begin:end] for begin, end in side] for number, side in zip(numbers, sides, strict=True)
    ]
    keys = [[word.casefold() for word in words] for words in texts]
    order = sorted(range(len(sides)), key=lambda index: keys[index])  # equal beginnings are neighbours
    longest = [0] * len(sides)
    for one, other in pairwise(order):
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(keys[one], keys[other], strict=False)))
        longest[one], longest[other] = max(longest[one], common), max(longest[other], common)
    counts = []
    for side, words, common in zip(sides, texts, longest, strict=True):
        while common and words[common - 1][0].islower():  # where the text may go on
            common -= 1
        run = words[:common] if not side or side[0] == min(side) else words[:common][::-1]
        counts.append(common if common >= _FEWEST_WORDS and not _has_content(" ".join(run)) else 0)
    return counts
