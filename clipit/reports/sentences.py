"""Where the sentences and items of a cleaned report begin."""

import re

from clipit.reports.headings import FIELD

_ABBREVIATIONS = frozenset({  # never the last word of a sentence
    "dr", "mr", "mrs", "ms", "prof", "st", "no", "nr", "vs", "e.g", "i.e", "eg", "ie", "approx", "fig", "figs", "ca",
    "cf", "viz", "resp", "incl", "max", "min", "dept", "inc", "ltd", "sect", "al", "var", "sp", "spp", "temp",
    "hosp", "ext", "vol", "ref", "pt", "pts", "i.v", "m.d",
})  # fmt: skip
_BEFORE_NUMBERS_ONLY = frozenset({"no", "nr", "max", "min", "ext", "vol", "al", "pt", "pts", "var"})
_NAMED_LETTER = re.compile(
    r"(?i:dukes'?|stage|hepatitis|vitamin|type|grade|group|class|level|blocks?|slides?|cassettes?|parts?|specimens?|"
    r"sections?|coller|and|through|to|label(?:l?ed)?)\s+(?:[A-Z](?:,|\s+and)\s+)*$"
)
_END = re.compile(r"[.!?]+[\"')\]]*(?:\s+(?=(?:[\"'(\[-]+\s?)?[A-Z0-9])|(?=[A-Z][a-z]+\s))")
_TNM = re.compile(r"[pcy]{0,2}(?:[TNM][0-4Xx]|[LVRG][0-4X]\b)")
_REMARK = re.compile(r"\((?:(?i:see\b)|\d)")  # "(see comment)", "(0/8)" belong to the sentence before
_LAST_WORD = re.compile(r"[^\s,;:(\[]+$")
_ITEM = re.compile(
    r"\s(?:[-*]\s?(?=[A-Z][A-Za-z]{2})|[A-HJ-Z]\.\s?(?=[A-Z][A-Za-z]{2})|\d{1,2}[.)]\s?(?=[A-Z][A-Za-z]{2}))"
)


def _ends_sentence(text: str, begin: int, dot: int, after: int) -> bool:
    """Whether the full stop at `dot` ends the sentence that began at `begin`; the next one would start at `after`."""
    if text[dot] != ".":
        return True
    found = _LAST_WORD.search(text, begin, dot)
    if found is None:
        return True
    word = found.group().lstrip("-'\"")
    before = text[begin : found.start()]
    if _REMARK.match(text, after):
        return False
    following = text[after : after + 8].lstrip("\"'([- ")
    if _TNM.match(following) or (word[-1:].isdigit() and re.match(r"\d+(?![\d.):])", following)):
        return False  # a stage goes on, or OCR has cut a decimal: "3. 2 cm"
    if re.fullmatch(r"\d{1,2}|[IVX]{1,4}", word) and (not re.search(r"\w", before) or before.rstrip().endswith(":")):
        return False  # the number of an item: "2. Colon ..."
    if len(word) == 1 and word.isalpha() and word.isupper():
        return bool(_NAMED_LETTER.search(before))  # otherwise an initial or the letter of a part: "A. Colon ..."
    word = word.lower()
    if word in _BEFORE_NUMBERS_ONLY:
        return not following[:1].isdigit()
    return word not in _ABBREVIATIONS


def _item_start(text: str, begin: int, match: re.Match[str]) -> bool:
    """Whether an item of a list begins here, and not a hyphenated word or a lettered block."""
    before = text[begin : match.start()]
    mark = match.group().strip()
    if mark[0] in "-*":
        words = before.split()
        return before.rstrip().endswith(":") or (len(words) >= 3 and len(words[-1]) >= 3)  # not "6 - ICV; 7 - colon"
    if mark[0].isdigit():
        return before.rstrip().endswith(";")
    return not before.rstrip().endswith(".") and not _NAMED_LETTER.search(before + " ")


def _in_capitals(text: str, match: re.Match[str]) -> bool:
    """Whether a label in capitals only goes on a line in capitals: "LEFT PELVIC LYMPH NODES:"."""
    before = text[: match.start()].rsplit(None, 1)[-1]
    return match.group().isupper() and before.isalpha() and before.isupper()


def sentence_starts(text: str) -> list[int]:
    """Offsets at which a sentence, list item or labelled field of a line begins (0 not included).

    Knows abbreviations ("approx. 3 cm"), decimals, numbered items, initials and TNM stages.
    """
    fields = {match.start() for match in FIELD.finditer(text) if match.start() and not _in_capitals(text, match)}
    events: list[tuple[int, re.Match[str] | None, bool]] = [(start, None, False) for start in fields]
    events += [(match.end(), match, True) for match in _END.finditer(text) if match.end() < len(text)]
    events += [(match.start() + 1, match, False) for match in _ITEM.finditer(text)]
    starts: list[int] = []
    begin = 0
    for place, match, is_end in sorted(events, key=lambda event: (event[0], not event[2])):
        if place <= begin:
            continue
        if match is None or (
            _ends_sentence(text, begin, match.start(), place) if is_end else _item_start(text, begin, match)
        ):
            starts.append(place)
            begin = place
    return starts
