"""Cut a cleaned report into sentences that know their section."""

import re
from itertools import pairwise

from clipit.reports.cleaning import trim
from clipit.reports.headings import MENTION, PASSING, RECEIVED, STRONG, UNKNOWN, WEAK
from clipit.reports.sentences import sentence_starts

_SHORT_SENTENCE = 3  # words; a shorter one ("Diagnosis: Adenocarcinoma.") keeps its heading
_MARK = re.compile(r"\W*(?:[A-Z0-9]{1,2}[.):]*)?\W*")  # the mark of an item, alone


def _is_heading(line: str, match: re.Match[str], *, strong: bool) -> bool:
    """Whether a match looks like a heading: with a colon; or in capitals, titled or first in its line."""
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


def _section(match: re.Match[str]) -> str:
    """The section whose pattern has matched."""
    return next(name for name, value in match.groupdict().items() if value is not None and name != "colon")


def find_headings(line: str) -> list[tuple[int, int, str]]:
    """Headings of a line: start, end (its colon included) and section, in order, not overlapping."""
    found = [match for match in STRONG.finditer(line) if _is_heading(line, match, strong=True)]
    found += [match for match in WEAK.finditer(line) if _is_heading(line, match, strong=False)]
    headings: list[tuple[int, int, str]] = []
    for match in sorted(found, key=lambda match: (match.start(), -match.end())):
        if not headings or match.start() >= headings[-1][1]:
            headings.append((match.start(), match.end(), _section(match)))
    return headings


class _Cutter:
    """Collects the sentences of one report; remembers the section and a heading that waits for its sentence."""

    def __init__(self) -> None:
        self.out: list[tuple[str, str]] = []
        self._section = UNKNOWN
        self._passing: str | None = None
        self._heading = ""

    def heading(self, text: str, section: str) -> None:
        """Begin a section."""
        self.flush()
        self._heading = text
        if section in PASSING:
            self._passing = section
        else:
            self._section, self._passing = section, None

    def flush(self) -> None:
        """Put out the waiting heading as a sentence of its own."""
        if self._heading:
            self.out.append((self._passing or self._section, self._heading))
            self._heading = ""

    def sentence(self, text: str) -> None:
        """Add a sentence, with its heading if it is too short to stand alone."""
        text = trim(text)
        if not any(char.isalnum() for char in text):
            return
        if self._passing is None and RECEIVED.match(text):
            self.flush()
            self._section = "gross"
        if self._heading and len(text.split()) < _SHORT_SENTENCE:
            text, self._heading = f"{self._heading} {text}", ""
        self.flush()
        self.out.append((self._passing or self._section, text))
        if not _MARK.fullmatch(text):
            self._passing = None

    def line(self, line: str) -> None:
        """Cut one line at its headings and sentences."""
        headings = find_headings(line)
        ends = {start: end for start, end, _ in headings}
        names = {start: name for start, _, name in headings}
        starts = [s for s in sentence_starts(line) if not any(begin < s < end for begin, end, _ in headings)]
        for begin, end in pairwise(sorted({0, len(line), *starts, *ends, *ends.values()})):
            text = line[begin:end].strip()
            if begin in names:
                self.heading(text, names[begin])
            elif text:
                self.sentence(text)


def cut_sentences(text: str) -> list[tuple[str, str]]:
    """Sentences of a cleaned report, in order, as (section, text); all letters and digits are in them.

    A heading is a sentence of its own, unless what follows is too short to stand alone.
    """
    cutter = _Cutter()
    for line in text.split("\n"):
        cutter.line(line)
    cutter.flush()
    return cutter.out
