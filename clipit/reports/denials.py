"""Denials and doubts about a mention without a trigger word: short answers, counts of zero, check boxes.

Only unambiguous forms are recognised: "Perineural invasion - no", "Perineural invasion: N", "Metastasis: 0/12",
"metastasis in 0 of 12 lymph nodes", "0/12 lymph nodes with metastasis", "[ ] metastasis [x] no metastasis",
"?metastasis", and labels without an answer ("Metastasis:").
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WINDOW = 160  # number of characters searched before a mention for a count
# Empty brackets at the end, after at least this many words, stand for a removed name; after fewer, for a check box.
_MANY_WORDS = 4
_COUNT = r"(?<![^\s(\[:=])(?:0 ?(?:/|of|out of)|zero (?:of|out of)) ?(?:the )?[1-9]\d{0,2}(?!\d| ?/|[.,:-]\d| ?%)"
"""Count of zero, such as 0/12; not part of a date (0/12/2019), a decimal, a range or a larger number (10/12)."""
_ANSWER = re.compile(r"(?<!\d)(?: +[-\u2013\u2014] ?|[-\u2013\u2014] +)no(?: *[,;]| *\.? *\Z)", re.IGNORECASE)
_SHORT_ANSWER = re.compile(
    r"(?: ?\(y ?/ ?n\))? ?[:=] ?(?:no|n|neg|nil|false|0|-)(?=\.? *\Z| *[,;)]|\. +(?-i:[A-Z]))"
    r"|(?-i:(?:,? |,)[Nn]o)(?=\.? *\Z| *[,;])| ?-(?= ?[,;])| ?(?:[:=] ?)?\((?:-|n|neg\.?)\)"
    r"|(?: (?:is|are|was|were)|:)? ?-ve\b|[ -]free\b(?! (?:of|from)\b)",
    re.IGNORECASE,
)
_UNANSWERED = re.compile(r"(?: ?\([^()]{1,40}\)|\))? ?: ?\.?\Z")
_QUESTION = re.compile(r"\? ?(?:[^\W\d_]+[ -]){0,2}\Z")
_BOX = re.compile(r"\[ ?\]|\( \)|[\u2610\u25a1]|(?P<checked>\[ ?[xX] ?\]|\([xX]\)|[\u2611\u2612\u2713\u2714])")
_COUNT_AFTER = re.compile(
    r"(?: ?[:=] ?|(?: (?:is|are|was|were|present|identified|found|seen|detected|noted)){0,2}"
    rf" (?:in|to|involv(?:es?|ed|ing)) ){_COUNT}",
    re.IGNORECASE,
)
_COUNT_BEFORE = re.compile(
    rf"(?:{_COUNT}|none of the(?: \d+)?) (?:[^\W\d]+ ){{0,4}}?"
    r"(?:nodes?|lns?|cores?|biops(?:y|ies)|fragments?|sections|blocks|slides|levels|pieces)(?: examined)?"
    r" (?:(?:is|are|was|were) )?(?:with|positive for|involved (?:by|with)|show(?:s|ed|ing)?|contain(?:s|ed|ing)?|"
    r"harbou?r(?:s|ed|ing)?|demonstrat(?:e|es|ed|ing)|reveal(?:s|ed|ing)?|ha(?:s|ve|d)|having)"
    r" (?:(?!(?:but|and|or|no|not|without|negative)\b)[^\W\d]+ ){0,2}\Z",
    re.IGNORECASE,
)


def is_denied(sentence: str, start: int, end: int) -> bool:
    """Return whether the text directly around a mention denies it.

    Args:
        sentence: Sentence that contains the mention, with single spaces.
        start: Index of the first character of the mention.
        end: Index after its last character.
    """
    begin = max(0, start - _WINDOW)
    may_follow_count = re.search(r"(?i)0|zero|none of", sentence[begin:start]) is not None
    return bool(
        _ANSWER.match(sentence, end)
        or _SHORT_ANSWER.match(sentence, end)
        or _COUNT_AFTER.match(sentence, end)
        or (may_follow_count and _COUNT_BEFORE.search(sentence, begin, start))
    )


def is_questioned(sentence: str, start: int, end: int) -> bool:
    """Return whether a mention is questioned, as in "?metastasis", or is a label without an answer: "Metastasis:"."""
    return bool(_QUESTION.search(sentence, max(0, start - _WINDOW), start) or _UNANSWERED.match(sentence, end))


@dataclass(frozen=True)
class CheckBoxes:
    """Options with check boxes in a sentence.

    Attributes:
        sentence: The sentence with boxes and unchecked options replaced by spaces, of the same length.
        unchecked: Start and end of each unchecked option.
        unanswered: End of the question before the options if no option is checked, or of the sentence if an option
            occurs twice, which implies several questions; 0 otherwise.
    """

    sentence: str
    unchecked: Sequence[tuple[int, int]] = ()
    unanswered: int = 0

    def denies(self, start: int) -> bool:
        """Return whether the mention that starts at this index is in an unchecked option."""
        return any(begin <= start < end for begin, end in self.unchecked)


def read_boxes(sentence: str) -> CheckBoxes:
    """Read the check boxes of a sentence, each before its option ("[x] yes [ ] no") or after it ("yes [x] no [ ]").

    Empty brackets within or after a sentence without a checked box are ignored, since removed names look the same.
    """
    boxes = list(_BOX.finditer(sentence))
    if not boxes:
        return CheckBoxes(sentence)
    before, after = sentence[: boxes[0].start()].strip(" -"), sentence[boxes[-1].end() :].strip(" .;,")
    answered = any(box["checked"] for box in boxes)
    if not (
        answered
        or not before
        or (not after and len(before.split()) < _MANY_WORDS)
        or before.endswith(":")
        or boxes[0][0] in "\u2610\u25a1"
    ):
        return CheckBoxes(sentence)
    first = 0 if after else sentence.rstrip(" .;,")[: boxes[0].start()].rstrip(" :").rfind(":") + 1
    starts = [box.end() for box in boxes] if after else [first, *(box.end() for box in boxes[:-1])]
    stops = [*(box.start() for box in boxes[1:]), len(sentence)] if after else [box.start() for box in boxes]
    unchecked = [(start, stop) for box, start, stop in zip(boxes, starts, stops, strict=True) if not box["checked"]]
    masked = list(sentence)
    for start, stop in [*unchecked, *(box.span() for box in boxes)]:
        masked[start:stop] = " " * (stop - start)
    if after and answered and before and not before.endswith(":"):  # "Invasion [x] no"
        masked[next(box.start() for box in boxes if box["checked"])] = ":"
    options = [sentence[start:stop].strip(" .;,").casefold() for start, stop in zip(starts, stops, strict=True)]
    options = [option for option in options if option]
    several = len(set(options)) < len(options)  # "Invasion [ ] yes [x] no Metastasis [x] yes [ ] no"
    unanswered = len(sentence) if several else 0 if answered else boxes[0].start() if after else first
    return CheckBoxes("".join(masked), unchecked, unanswered)
