"""Denials of a mention without a trigger word: the answer "no" after a dash, and counts of zero.

Only unambiguous forms are recognised: "Perineural invasion - no", "Metastasis: 0/12",
"metastasis in 0 of 12 lymph nodes", "0/12 lymph nodes with metastasis".
"""

import re

_WINDOW = 160  # characters before a mention that are searched for a count
_COUNT = r"(?<![^\s(\[:=])(?:0 ?(?:/|of|out of)|zero (?:of|out of)) ?(?:the )?[1-9]\d{0,2}(?!\d| ?/|[.,:-]\d| ?%)"
"""Count of zero, such as 0/12; not part of a date (0/12/2019), a decimal, a range or a larger number (10/12)."""
_ANSWER = re.compile(r"(?<!\d)(?: +[-\u2013\u2014] ?|[-\u2013\u2014] +)no(?: *[,;]| *\.? *\Z)", re.IGNORECASE)
_COUNT_AFTER = re.compile(
    r"(?: ?[:=] ?|(?: (?:is|are|was|were|present|identified|found|seen|detected|noted)){0,2}"
    rf" (?:in|to|involv(?:es?|ed|ing)) ){_COUNT}",
    re.IGNORECASE,
)
_COUNT_BEFORE = re.compile(
    rf"{_COUNT} (?:[^\W\d]+ ){{0,4}}?"
    r"(?:nodes?|lns?|cores?|biops(?:y|ies)|fragments?|sections|blocks|slides|levels|pieces)"
    r" (?:(?:is|are|was|were) )?(?:with|positive for|involved (?:by|with)|show(?:s|ed|ing)?|contain(?:s|ed|ing)?|"
    r"harbou?r(?:s|ed|ing)?|demonstrat(?:e|es|ed|ing)|reveal(?:s|ed|ing)?|ha(?:s|ve|d)|having)"
    r" (?:(?!(?:but|and|or|no|not|without|negative)\b)[^\W\d]+ ){0,2}\Z",
    re.IGNORECASE,
)


def is_denied(sentence: str, start: int, end: int) -> bool:
    """Return whether the text directly around a mention denies it.

    Args:
        sentence: Sentence of the mention, with single spaces.
        start: Index of the first character of the mention.
        end: Index after its last character.
    """
    begin = max(0, start - _WINDOW)
    may_follow_count = "0" in sentence[begin:start] or "zero" in sentence[begin:start].casefold()
    return bool(
        _ANSWER.match(sentence, end)
        or _COUNT_AFTER.match(sentence, end)
        or (may_follow_count and _COUNT_BEFORE.search(sentence, begin, start))
    )
