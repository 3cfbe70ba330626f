"""Split a cleaned report into sentences, each with its section."""

import re
from bisect import bisect_left
from itertools import pairwise

from clipit.reports.cleaning import trim
from clipit.reports.headings import FIELD, MENTION, ONE_SENTENCE_SECTIONS, RECEIVED, STRONG, UNKNOWN, WEAK

_ABBREVIATIONS = frozenset({  # never the last word of a sentence
    "dr", "mr", "mrs", "ms", "prof", "st", "vs", "e.g", "i.e", "eg", "ie", "approx", "fig", "figs", "ca", "cf", "viz",
    "resp", "incl", "dept", "inc", "ltd", "sect", "sp", "spp", "temp", "hosp", "ref", "i.v", "m.d",
    "bzw", "d.h", "evtl", "ggf", "inkl", "insges", "u.a", "vgl", "z.b",  # German
    "aprox", "dra", "env", "sr", "sra",  # Spanish and French
})  # fmt: skip
_BEFORE_NUMBERS_ONLY = frozenset({  # abbreviations only before a number; otherwise they may end a sentence
    "no", "nos", "nr", "dim", "max", "máx", "min", "mín", "mind", "ext", "vol", "al", "pt", "pts", "var",
})  # fmt: skip
_NAMED_LETTER = re.compile(
    r"(?i:dukes'?|stage|hepatitis|vitamin|type|grade|group|class|level|blocks?|slides?|cassettes?|parts?|specimens?|"
    r"sections?|coller|and|through|to|label(?:l?ed)?)\s+(?:[A-Z](?:,|\s+and)\s+)*$"
)
_END = re.compile(
    r"[.!?]+[\"')\]]*(?:\s+(?=(?:[\"'(\[¿¡«-]+\s?)?(?![a-z])[^\W_])|(?=[A-Z][a-z]+\s))|"
    r"[\u3002\uff01\uff1f\u061f\u06d4\u0964]+[\"')\]\u300d\u300f\uff09]*\s*"  # other scripts need no space
)
_TNM = re.compile(r"[pcy]{0,2}(?:[TNM][0-4Xx]|[LVRG][0-4X]\b)")
_REMARK = re.compile(r"\((?:(?i:see\b)|\d)")  # "(see comment)", "(0/8)" belong to the preceding sentence
_QUOTED_INITIAL = re.compile(r"[\"'][A-Z]")  # labeled "J. Doe, colon"
_LINKING_WORD = re.compile(
    r"(?i:\b(?:of|for|in|to|the|and|or|with)\s+)$"
)  # "Number of Lymph Nodes Examined:" is one label
_LOOK_BACK = 300  # number of characters examined before a full stop, item or field
_LETTERS_BACK = 100  # number of characters searched before a letter for the word to which it belongs: "blocks A, B and"
_LAST_WORD = re.compile(r"(?<![^\s,;:(\[])[^\s,;:(\[]+$")
_ITEM = re.compile(
    r"\s(?:[-*]\s?(?=[A-Z][A-Za-z]{2})|[A-HJ-Z]\.\s?(?!PYLORI)(?=[A-Z][A-Za-z]{2})|\d{1,2}[.)]\s?(?=[A-Z][A-Za-z]{2}))"
)
_SHORT_SENTENCE = 3  # a sentence of fewer words keeps its heading: "Diagnosis: Adenocarcinoma."
_MARK = re.compile(r"\W*(?:[A-Z0-9]{1,2}\W*)?")  # the number or letter of a list item


def split_sentences(text: str) -> list[tuple[str, str]]:
    """Split a cleaned report into (section, sentence) pairs, in order, keeping all letters and digits.

    A heading becomes a separate sentence, unless the sentence after it is too short to stand alone.
    """
    splitter = _Splitter()
    for line in text.split("\n"):
        splitter.line(line)
    splitter.flush()
    return splitter.out


class _Splitter:
    """Collect the sentences of one report, tracking the current section and a pending heading."""

    def __init__(self) -> None:
        self.out: list[tuple[str, str]] = []
        self._section = UNKNOWN
        self._one_sentence_section: str | None = None
        self._heading = ""

    def line(self, line: str) -> None:
        """Split one line into headings and sentences."""
        headings = _find_headings(line)
        ends = {start: end for start, end, _ in headings}
        names = {start: name for start, _, name in headings}
        starts = _outside(headings, _sentence_starts(line))
        for begin, end in pairwise(sorted({0, len(line), *starts, *ends, *ends.values()})):
            text = line[begin:end].strip()
            if begin in names:
                self._start_section(text, names[begin])
            elif text:
                self._add_sentence(text)

    def flush(self) -> None:
        """Add the pending heading as a separate sentence."""
        if self._heading:
            self.out.append((self._one_sentence_section or self._section, self._heading))
            self._heading = ""

    def _start_section(self, heading: str, section: str) -> None:
        self.flush()
        self._heading = heading
        if section in ONE_SENTENCE_SECTIONS:
            self._one_sentence_section = section
        else:
            self._section, self._one_sentence_section = section, None

    def _add_sentence(self, text: str) -> None:
        text = trim(text)
        if not any(char.isalnum() for char in text):
            return
        if self._one_sentence_section is None and RECEIVED.match(text):
            self.flush()
            self._section = "gross"
        if self._heading and len(text.split()) < _SHORT_SENTENCE:
            text, self._heading = f"{self._heading} {text}", ""
        self.flush()
        self.out.append((self._one_sentence_section or self._section, text))
        if not _MARK.fullmatch(text):
            self._one_sentence_section = None


def _find_headings(line: str) -> list[tuple[int, int, str]]:
    """Find the headings in a line as (start, end including the colon, section), in order and without overlap."""
    matches = [match for match in STRONG.finditer(line) if _is_heading(line, match, strong=True)]
    matches += [match for match in WEAK.finditer(line) if _is_heading(line, match, strong=False)]
    headings: list[tuple[int, int, str]] = []
    for match in sorted(matches, key=lambda match: (match.start(), -match.end())):
        if not headings or match.start() >= headings[-1][1]:
            section = next(name for name, value in match.groupdict().items() if value is not None and name != "colon")
            headings.append((match.start(), match.end(), section))
    return headings


def _outside(headings: list[tuple[int, int, str]], offsets: list[int]) -> list[int]:
    """Return the offsets that do not lie within a heading."""
    begins, ends = [begin for begin, _, _ in headings], [0, *(end for _, end, _ in headings)]
    return [offset for offset in offsets if offset >= ends[bisect_left(begins, offset)]]


def _is_heading(line: str, match: re.Match[str], *, strong: bool) -> bool:
    """Return whether a match is a heading: it has a colon, or is not just a mention and looks like a heading.

    A match in capitals looks like a heading. So does a strong match in title case or alone on its line, and a weak
    match at the start of the line.
    """
    if ":" in (match["colon"] or ""):
        return True
    if MENTION.search(line[max(0, match.start() - 20) : match.start()]):
        return False
    if match.group().isupper():
        return True
    if not strong:
        return match.start() == 0
    titled = all(word[0].isupper() for word in match.group().split())
    return titled or (match.start() == 0 and not line[match.end() :].strip(" .;,-"))


def _sentence_starts(text: str) -> list[int]:
    """Find the start offsets of the sentences, list items and labelled fields of a line, except 0.

    Abbreviations ("approx. 3 cm"), decimals, numbered items, initials and TNM stages do not end a sentence.
    """
    fields = {match.start() for match in FIELD.finditer(text) if match.start() and not _continues_label(text, match)}
    events: list[tuple[int, re.Match[str] | None, bool]] = [(start, None, False) for start in fields]
    events += [(match.end(), match, True) for match in _END.finditer(text) if match.end() < len(text)]
    events += [(match.start() + 1, match, False) for match in _ITEM.finditer(text)]
    starts: list[int] = []
    begin = 0
    for offset, match, is_end in sorted(events, key=lambda event: (event[0], not event[2])):
        if offset <= begin:
            continue
        if match is None or (
            _ends_sentence(text, begin, match.start(), offset) if is_end else _starts_item(text, begin, match)
        ):
            starts.append(offset)
            begin = offset
    return starts


def _ends_sentence(text: str, begin: int, dot: int, after: int) -> bool:
    """Return whether the mark at `dot` ends the sentence that starts at `begin`, and the next starts at `after`."""
    following = text[after : after + 8].lstrip("\"'([¿¡«- ")
    if following[:1].islower():  # non-ASCII letters; the pattern excludes only a to z
        return False
    if text[dot] != ".":
        return True
    before = text[max(begin, dot - _LOOK_BACK) : dot]
    last_word = _LAST_WORD.search(before)
    if last_word is None:
        return True
    word = last_word.group().lstrip("-'\"")
    before = before[: last_word.start()]
    if _REMARK.match(text, after) or _QUOTED_INITIAL.fullmatch(last_word.group()):
        return False
    if _TNM.match(following) or (word[-1:].isdigit() and re.match(r"\d+(?![\d.):])", following)):
        return False  # a TNM stage continues, or OCR has split a decimal: "3. 2 cm"
    if re.fullmatch(r"\d{1,2}|[IVX]{1,4}", word) and (not re.search(r"\w", before) or before.rstrip().endswith(":")):
        return False  # the number of an item: "2. Colon ..."
    if len(word) == 1 and word.isalpha() and word.isupper():
        return _names_letter(before)  # otherwise an initial or the letter of a part: "A. Colon ..."
    word = word.lower()
    if word in _BEFORE_NUMBERS_ONLY:
        return not following[:1].isdigit()
    return word not in _ABBREVIATIONS


def _names_letter(before: str) -> bool:
    """Return whether the words before a letter refer to it: "stage", "blocks A and"."""
    return _NAMED_LETTER.search(before, max(0, len(before) - _LETTERS_BACK)) is not None


def _starts_item(text: str, begin: int, match: re.Match[str]) -> bool:
    """Return whether a match begins a list item, rather than a hyphenated word or the letter of a block."""
    before = text[max(begin, match.start() - _LOOK_BACK) : match.start()]
    mark = match.group().strip()
    if mark[0] in "-*":
        words = before.split()
        return before.rstrip().endswith(":") or (len(words) >= 3 and len(words[-1]) >= 3)  # not "6 - ICV; 7 - colon"
    if mark[0].isdigit():
        return before.rstrip().endswith(";")
    return not before.rstrip().endswith(".") and not _names_letter(before + " ")


def _continues_label(text: str, match: re.Match[str]) -> bool:
    """Return whether a label is part of a longer label: "LEFT PELVIC LYMPH NODES:", "Number of Lymph Nodes:"."""
    if _LINKING_WORD.search(text, max(0, match.start() - 10), match.start()):
        return True
    before = text[max(0, match.start() - _LOOK_BACK) : match.start()].rsplit(None, 1)[-1]
    return match.group().isupper() and before.isalpha() and before.isupper()
