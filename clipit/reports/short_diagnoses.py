"""Recognise short diagnoses, which filters by length or by prompts must not drop."""

import re
from functools import cache

from clipit.reports.assertion import Assertions, Triggers
from clipit.reports.garbage import names_diagnosis

BRIEF = 3
"""Readable words up to which a text only has to name a diagnosis; longer ones have to affirm an entity."""
LONGEST = 6
"""Readable words of the longest short diagnosis, without the label or site before a colon."""
_ENTITY = re.compile(
    r"(?i)\b(?!stroma|(?:dia|pro)gnos|anastomos)\w{2,}(?:omas?|itis|plasias?|plasms?|osis|oses)\b|\bpolyps?\b"
)


def is_short_diagnosis(text: str, longest: int = LONGEST) -> bool:
    """Return whether a text is a short diagnosis, such as "Partially mucinous colorectal adenocarcinoma".

    A text of at most three readable words only has to name a diagnosis. A longer one, of up to `longest` words after
    its last colon ("Histologic type: ..."), has to affirm an entity there: templates such as "Margins negative for
    carcinoma" or "Number of nodes with metastasis: 0" do not. If `longest` is at most three, no longer one counts.
    """
    if readable_words(text) <= BRIEF:
        return names_diagnosis(text)
    value = text[text.rfind(":") + 1 :]
    if longest <= BRIEF or not 0 < readable_words(value) <= longest:
        return False
    mentions = [match.span() for match in _ENTITY.finditer(value)]
    return bool(mentions) and all(status == "affirmed" for status in _assertions().statuses(value, mentions))


def readable_words(text: str) -> int:
    """Count the words with a letter and at least two different letters or digits.

    Drawn lines, bar codes read as "IIII" and single letters do not count.
    """
    count = 0
    for word in text.split():
        characters = {char for char in word.lower() if char.isalnum()}
        count += len(characters) >= 2 and any(char.isalpha() for char in characters)
    return count


@cache
def _assertions() -> Assertions:
    return Assertions(Triggers(), Triggers())
