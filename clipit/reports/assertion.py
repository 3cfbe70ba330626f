"""Assertion status of mentions (affirmed, negated or uncertain), from trigger phrases in the same sentence.

The method follows NegEx (Chapman et al., J Biomed Inform 34:301, 2001) and ConText (Chapman et al., BioNLP 2007;
Harkema, Dowling, Thornblade and Chapman, J Biomed Inform 42:839, 2009). A trigger before or after a mention changes
its status if the mention is in the trigger's scope. The scope ends with the sentence, at a terminating word such as
"but", or after a few words.

The lists below were compiled for pathology reports, as part of clipit. The published implementations, medspacy and
negspacy, are not used because they depend on spaCy and its models.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from clipit.reports.denials import is_denied, is_questioned, read_boxes
from clipit.reports.phrases import PhraseTree, Token, tokenize

Status = Literal["affirmed", "negated", "uncertain"]

WORDS_BEFORE = 6
"""Scope of a trigger that precedes a mention: number of words after the trigger."""
WORDS_AFTER = 5
"""Scope of a trigger that follows a mention: number of words before the trigger."""

_NEGATION_BEFORE = """
no; not; without; never; neither; nor; no evidence of; no sign of; no signs of; no features of; no convincing;
negative for; absence of; lack of; lacks; lacking; free of; free from; devoid of; rather than; fails to show;
fail to show; failed to show; fails to demonstrate; fail to demonstrate; failed to demonstrate; neg for; neg. for;
not suspicious for; not suggestive of; no suspicion of; not consistent with; not diagnostic of;
does not show; do not show; did not show; no evidence to suggest; no evidence of residual
"""
_NEGATION_NEXT_WORD = "non"
_NEGATION_AFTER = """
negative; absent; excluded; ruled out; none; none seen; none identified; : no; not identified; not seen; not present;
not detected; not found; not observed; not noted; not demonstrated; not evident; not appreciated; not apparent;
not confirmed; not involved; no longer present
"""
_FOUND = ("identified", "seen", "found", "detected", "demonstrated", "observed", "appreciated", "noted")
_FIND = ("identify", "see", "find", "detect", "demonstrate", "observe", "appreciate", "note")
_NOT_BE = ("cannot be", "can not be", "could not be", "'t be", "'t", "no longer")
_UNCERTAINTY_BEFORE = """
possible; possibly; probable; probably; likely; unlikely; perhaps; suspicious for; suspected; suspicion of;
suspicion for; suggestive of; suggests; suggest; suggesting; concerning for; concern for; worrisome for; rule out; r/o;
questionable; question of; possibility of; insufficient for; may be; may represent; might be; might represent; could be;
could represent; favor; favors; favored; favoring; favour; favours; favoured; favouring;
equivocal for; borderline for; indeterminate for; pending; awaiting; if;
whether; whether or not; evaluate for; evaluation for; assess for; assessment for; test for; tested for; testing for;
screen for; screening for; versus; vs; differential diagnosis; differential includes; to be tested for; not certain if
"""
_UNCERTAINTY_AFTER = """
?; (?); possible; probable; suspected; favored; favoured; is unlikely; are unlikely; seems unlikely; appears unlikely;
considered unlikely; remains a possibility; cannot be confirmed; can not be confirmed; could not be confirmed;
cannot be proven; could not be proven; pending; to follow; to be determined; not performed; not tested;
not done; not evaluated; not assessed; not determined; not available; not applicable; not requested; not reported;
not known; unknown; cannot be determined; can not be determined; cannot be assessed; can not be assessed;
could not be assessed; could not be determined; indeterminate; equivocal; inconclusive; questionable; recommended;
will be performed; will be reported; has been ordered; was ordered; have been ordered; were ordered; n/a
"""
_TERMINATIONS = """
;; but; however; although; though; nevertheless; nonetheless; except; except for; apart from; aside from; other than;
yet; while; whereas; whilst; because; due to; secondary to; still
"""
_PSEUDO_TRIGGERS = """
not only; not necessarily; no increase; no change; no significant change; no further; gram negative; no.;
with or without
"""

_ITEM_MARKS = frozenset(".;*\u2022\u00b7\u2013\u2014")
_INTRODUCING = frozenset({":", "is", "are"})
_TERMINATION = "end"
_BITS = {"negated": 1, "uncertain": 2}


@dataclass(frozen=True)
class Triggers:
    """Trigger phrases that precede or follow a mention."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


class Assertions:
    """Classify mentions by the negation and uncertainty triggers in the same sentence."""

    def __init__(self, negation: Triggers, uncertainty: Triggers) -> None:
        """Add triggers to those of the package."""
        self._triggers = PhraseTree()
        for name, phrases in {
            "negated before": [
                *_phrases(_NEGATION_BEFORE),
                *(f"'t {verb}" for verb in _FIND),
                *_EXCLUDING,
                *negation.before,
            ],
            "negated next": _phrases(_NEGATION_NEXT_WORD),
            "negated after": [*_phrases(_NEGATION_AFTER), *map(_join, product(_NOT_BE, _FOUND)), *negation.after],
            "uncertain before": [*_phrases(_UNCERTAINTY_BEFORE), *_not_excluding(), *uncertainty.before],
            "uncertain after": [*_phrases(_UNCERTAINTY_AFTER), *_not_excluded(), *uncertainty.after],
            _TERMINATION: _phrases(_TERMINATIONS),
            "none": _phrases(_PSEUDO_TRIGGERS),
        }.items():
            for phrase in phrases:
                self._triggers.add(phrase, name)

    def statuses(self, sentence: str, mentions: Sequence[tuple[int, int]]) -> list[Status]:
        """Determine the status of each mention in a sentence.

        Triggers within a mention have no effect. Triggers are matched from left to right without overlap; of those that
        start at the same word, the longest is used. Two negations in a row ("not absent") cancel each other out. A
        mention that is both negated and uncertain is uncertain. A trigger that normally follows its mention applies to
        the text after the trigger if it begins the sentence or a list item and is followed by a colon, "is" or "are":
        "Not excluded: MSI-H". Short answers, counts of zero and check boxes also change the status of a mention
        (`denials.py`).

        Args:
            mentions: Start and end of each mention within the sentence, in characters.
        """
        boxes = read_boxes(sentence)
        tokens = tokenize(boxes.sentence)
        first, last = _token_spans(tokens, mentions)
        before, after = bytearray(len(tokens)), bytearray(len(tokens))  # per token: bits of the triggers that cover it
        triggers = _without_double_negation(self._find(tokens, zip(first, last, strict=True)), tokens)
        barrier = frozenset(
            index for begin, end, names in triggers if _TERMINATION in names for index in range(begin, end)
        )
        for begin, end, names in triggers:
            for name in names:
                status, _, position = name.partition(" ")
                introduces = position == "after" and _introduces(tokens, begin, end)
                if introduces or position in ("before", "next"):
                    words = 1 if position == "next" else WORDS_BEFORE
                    _mark_following(before, tokens, end, words, barrier, _BITS[status])
                elif position == "after":
                    _mark_preceding(after, tokens, begin, barrier, _BITS[status])
        statuses: list[Status] = []
        for begin, end, span in zip(first, last, mentions, strict=True):
            bits = before[begin] | after[end - 1] if end > begin else 0
            bits |= _BITS["negated"] * (boxes.denies(span[0]) or is_denied(boxes.sentence, *span))
            bits |= _BITS["uncertain"] * (span[0] < boxes.unanswered or is_questioned(sentence, span[0]))
            statuses.append(
                "uncertain" if bits & _BITS["uncertain"] else "negated" if bits & _BITS["negated"] else "affirmed"
            )
        return statuses

    def _find(
        self, tokens: Sequence[Token], mentions: Iterable[tuple[int, int]]
    ) -> list[tuple[int, int, Sequence[str]]]:
        """Find the triggers outside mentions, from left to right, as (first token, token after the last, names)."""
        triggers: list[tuple[int, int, Sequence[str]]] = []
        index = 0
        for begin, end in [*sorted(mentions), (len(tokens), len(tokens))]:
            while index < begin:
                after, names = self._triggers.longest(tokens, index, begin)
                if names:
                    triggers.append((index, after, names))
                index = max(after, index + 1)
            index = max(index, end)
        return triggers


def _phrases(text: str) -> list[str]:
    """Split a list at semicolons; a semicolon at its start is itself a phrase."""
    text = text.strip()
    phrases = [";"] if text.startswith(";") else []
    return phrases + [phrase for part in text.split(";") if (phrase := " ".join(part.split()))]


def _token_spans(tokens: Sequence[Token], spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return the index of the first token of each span, and the index after its last token."""
    starts, ends = [token.start for token in tokens], [token.end for token in tokens]
    return [bisect_right(ends, start) for start, _ in spans], [bisect_left(starts, end) for _, end in spans]


def _without_double_negation(
    triggers: Sequence[tuple[int, int, Sequence[str]]], tokens: Sequence[Token]
) -> list[tuple[int, int, Sequence[str]]]:
    """Drop pairs of different negations in a row: "not absent", "not free of"."""
    kept: list[tuple[int, int, Sequence[str]]] = []
    for trigger in triggers:
        begin, end, names = trigger
        if kept and _negates(names) and _negates(kept[-1][2]) and kept[-1][1] == begin:
            words = [[token.text for token in tokens[a:b]] for a, b, _ in (kept[-1], trigger)]
            if words[0] != words[1]:
                kept.pop()
                continue
        kept.append((begin, end, names))
    return kept


def _introduces(tokens: Sequence[Token], begin: int, end: int) -> bool:
    """Return whether a trigger begins a sentence or a list item, and is followed by a colon, "is" or "are"."""
    is_first = begin == 0 or tokens[begin - 1].text in _ITEM_MARKS or (begin == 2 and not tokens[1].is_word)
    return is_first and end < len(tokens) and tokens[end].text in _INTRODUCING


def _negates(names: Sequence[str]) -> bool:
    return any(name.startswith("negated") for name in names)


def _mark_following(
    marks: bytearray, tokens: Sequence[Token], begin: int, words: int, barrier: frozenset[int], bit: int
) -> None:
    """Mark the tokens in the scope of a trigger that ends before `begin`."""
    for index in range(begin, len(tokens)):
        if index in barrier or words == 0:
            return
        marks[index] |= bit
        words -= tokens[index].is_word


def _mark_preceding(marks: bytearray, tokens: Sequence[Token], begin: int, barrier: frozenset[int], bit: int) -> None:
    """Mark the tokens in the scope of a trigger that starts at `begin`; a comma also ends this scope."""
    words = WORDS_AFTER
    for index in range(begin - 1, -1, -1):
        if index in barrier or tokens[index].text == "," or words == 0:
            return
        marks[index] |= bit
        words -= tokens[index].is_word


_ADVERBS = (
    "", "entirely", "completely", "definitely", "definitively", "fully", "totally", "absolutely", "conclusively",
    "confidently", "reliably", "formally", "safely", "certainly", "with certainty",
)  # fmt: skip
_NOT = ("not", "cannot", "'t", "\u2019t")  # can't, doesn't
_EXCLUDING = ("excludes", "rules out", "ruling out", "has ruled out", "have ruled out", "had ruled out")
_ATTEMPTS = (
    "not able to", "not possible to", "unable to", "impossible to", "difficult to", "hard to", "no evidence to",
    "not sufficient to", "insufficient to",
)  # fmt: skip
_ACTIVE, _PASSIVE = ("exclude", "rule out", "r/o"), ("excluded", "ruled out", "excludable")
_RELATIVE = ("", ", ", ", which ", ", that ")  # a comma ends the scope of other triggers that follow a mention


def _not_excluding() -> list[str]:
    """Return phrases that leave the following mention uncertain, such as "cannot entirely exclude"."""
    active = product((*_NOT, *_ATTEMPTS), _ADVERBS, _ACTIVE)
    return [*map(_join, active), "exclude", "exclusion of"]


def _not_excluded() -> list[str]:
    """Return phrases that leave the preceding mention uncertain, such as "has not been completely ruled out"."""
    forms = [
        *product(_NOT, _ADVERBS, _PASSIVE),
        *product(_NOT, ("be", "been"), _ADVERBS, _PASSIVE),
        *product(_NOT, _ADVERBS, ("be", "been"), _PASSIVE),
        *product(("should be", "must be", "to be", "neither"), _PASSIVE),
        *product(("neither", "neither be", "neither been"), ("confirmed nor",), _PASSIVE),
        *product(("neither", "neither be", "neither been"), _PASSIVE, ("nor confirmed",)),
    ]
    return [relative + phrase for phrase in map(_join, forms) for relative in _RELATIVE]


def _join(parts: tuple[str, ...]) -> str:
    return " ".join(filter(None, parts))
