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
LIST_WORDS = 40
"""Maximum scope of a trigger that precedes a list."""

_NEGATION_BEFORE = """
no; not; without; never; neither; nor; no evidence of; no sign of; no signs of; no features of; no convincing;
negative for; absence of; lack of; lacks; lacking; free of; free from; devoid of; rather than; fails to show;
fail to show; failed to show; fails to demonstrate; fail to demonstrate; failed to demonstrate; neg for; neg. for;
not suspicious for; not suggestive of; no suspicion of; not consistent with; not involved by; uninvolved by;
does not show; do not show; did not show; no evidence to suggest; no evidence of residual; nil evidence of; 't
"""
_NEGATION_NEXT_WORD = "non; nil"
_NEGATION_AFTER = """
negative; neg; absent; excluded; ruled out; none; none seen; none identified; nil; : no; not identified; not seen;
not present; not detected; not found; not observed; not noted; not demonstrated; not evident; not appreciated;
not apparent; not confirmed; not involved; no longer present; is lacking; are lacking; is not.; are not.;
but none was; but none were; but none identified; but none seen; but none found
"""
_FOUND = ("identified", "seen", "found", "detected", "demonstrated", "observed", "appreciated", "noted")
_NOT_BE = ("cannot be", "can not be", "could not be", "'t be", "'t", "no longer")
_UNCERTAINTY_BEFORE = """
possible; possibly; probable; probably; likely; unlikely; perhaps; suspicious for; suspected; suspicion of;
suspicion for; suggestive of; suggests; suggest; suggesting; concerning for; concern for; worrisome for; worrying for;
presumed; presumably; suspicious of; inadequate for; indefinite for; not diagnostic; not definitive; not conclusive;
may well; rule out; r/o; questionable; question of; possibility of; insufficient for; may be; may represent; might be;
might represent; could be; could represent; favor; favors; favored; favoring; favour; favours; favoured; favouring;
equivocal for; borderline for; indeterminate for; pending; awaiting; if; whether; whether or not; evaluate for;
evaluation for; assess for; assessment for; test for; tested for; testing for; screen for; screening for; sent for;
versus; vs; to be tested for; not certain if
"""
_UNCERTAINTY_BEFORE_LIST = "differential; differentials; dd; ddx"
_UNCERTAINTY_AFTER = """
?; (?); possible; probable; suspected; favored; favoured; is unlikely; are unlikely; seems unlikely; appears unlikely;
considered unlikely; remains a possibility; should be considered; versus; vs; pending; awaited; in progress; to follow;
to be determined; not performed; not tested; not done; not evaluated; not assessed; not assessable; not determined;
not available; not applicable; not requested; not reported; not stated; not known; unknown; indeterminate; indefinite;
equivocal; inconclusive; questionable; not diagnostic; not definitive; not conclusive; recommended; will be performed;
will be reported; has been ordered; was ordered; have been ordered; were ordered; n/a; : na; : see; : suspicious;
: insufficient; : awaiting; outstanding; not yet known; not yet available; less likely
"""
_TERMINATIONS = """
;; but; however; although; though; nevertheless; nonetheless; except; except for; apart from; aside from; other than;
yet; while; whereas; whilst; because; due to; secondary to; still
"""
_PSEUDO_TRIGGERS = """
not only; not necessarily; no doubt; no increase; no change; no significant change; no further; gram negative; no.;
with or without
"""

_ITEM_MARKS = frozenset(".;*\u2022\u00b7\u2013\u2014")
_INTRODUCING = frozenset({":", "is", "are"})
_NOT_IN_LISTS = frozenset({"is", "are", "was", "were", "has", "have", "show", "shows", "with"})
_ITEM_WORDS = 4  # maximum number of words in an item of a list
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
                *_EXCLUDING,
                *negation.before,
            ],
            "negated next": _phrases(_NEGATION_NEXT_WORD),
            "negated after": [*_phrases(_NEGATION_AFTER), *map(_join, product(_NOT_BE, _FOUND)), *negation.after],
            "uncertain before": [*_phrases(_UNCERTAINTY_BEFORE), *_not_excluding(), *uncertainty.before],
            "uncertain list": _phrases(_UNCERTAINTY_BEFORE_LIST),
            "uncertain after": [*_phrases(_UNCERTAINTY_AFTER), *_not_shown(), *_not_excluded(), *uncertainty.after],
            _TERMINATION: _phrases(_TERMINATIONS),
            "none": _phrases(_PSEUDO_TRIGGERS),
        }.items():
            for phrase in phrases:
                self._triggers.add(phrase, name)

    def statuses(self, sentence: str, mentions: Sequence[tuple[int, int]]) -> list[Status]:
        """Determine the status of each mention in a sentence.

        Triggers within a mention have no effect. Triggers are matched from left to right without overlap, except those
        that begin with a colon; of those that start at the same word, the longest is used. Two negations in a row ("not
        absent") cancel each other out. A mention that is both negated and uncertain is uncertain. A trigger that
        normally follows its mention applies to the text after the trigger if it begins the sentence or a list item and
        is followed by a colon, "is" or "are": "Not excluded: MSI-H". A list after a trigger, such as "no A, B or C", is
        in its scope as a whole. Short answers, counts of zero and check boxes also change the status of a mention
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
        list_barrier = frozenset(index for index in barrier if tokens[index].text != ";")
        for begin, end, names in triggers:
            for name in names:
                status, _, position = name.partition(" ")
                bit = _BITS.get(status, 0)
                if not position:
                    continue
                if position == "next":
                    before[end : end + 1] = bytes(mark | bit for mark in before[end : end + 1])
                elif position == "list":
                    _mark_following(before, tokens, end, LIST_WORDS, list_barrier, bit)
                elif position == "before" or (position == "after" and _introduces(tokens, begin, end)):
                    if not _is_answer(tokens, begin, end):
                        _mark_following(before, tokens, end, WORDS_BEFORE, barrier, bit)
                else:
                    _mark_preceding(after, tokens, begin, barrier, bit)
        statuses: list[Status] = []
        for begin, end, span in zip(first, last, mentions, strict=True):
            bits = before[begin] | after[end - 1] if end > begin else 0
            bits |= _BITS["negated"] * (boxes.denies(span[0]) or is_denied(boxes.sentence, *span))
            bits |= _BITS["uncertain"] * (span[0] < boxes.unanswered or is_questioned(sentence, *span))
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
                index = index + 1 if tokens[index].text == ":" else max(after, index + 1)
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


def _is_answer(tokens: Sequence[Token], begin: int, end: int) -> bool:
    """Return whether "no" is the answer to a label ("Invasion: no, ..."), not part of it ("Nodes: no metastasis")."""
    if begin == 0 or tokens[begin - 1].text != ":" or [token.text for token in tokens[begin:end]] != ["no"]:
        return False
    following = [token.text for token in tokens[end : end + WORDS_BEFORE + 1]]
    return not following or not following[0].isalnum() or ":" in following


def _list_end(tokens: Sequence[Token], begin: int, barrier: frozenset[int]) -> int:
    """Return the index after the list that starts at `begin`: "A, B, C or D", or all words after a colon."""
    stop = min(begin + LIST_WORDS, len(tokens))
    if begin < stop and tokens[begin].text == ":":
        return next((index for index in range(begin + 1, stop) if tokens[index].text == ":"), stop)
    end, words, is_last = begin, 0, False
    for index in range(begin, stop):
        text = tokens[index].text
        words = 0 if text in (",", "or", "nor") else words + tokens[index].is_word
        is_last = text in ("or", "nor") or (is_last and text != ",")
        if index in barrier or text in _NOT_IN_LISTS or words > _ITEM_WORDS:
            break
        end = index + 1 if is_last else end
    return end


def _negates(names: Sequence[str]) -> bool:
    return any(name.startswith("negated") for name in names)


def _mark_following(
    marks: bytearray, tokens: Sequence[Token], begin: int, words: int, barrier: frozenset[int], bit: int
) -> None:
    """Mark the tokens in the scope of a trigger that ends before `begin`: a few words, or a list."""
    list_end = _list_end(tokens, begin, barrier)
    words = 0 if begin < len(tokens) and tokens[begin].text == ":" else words
    for index in range(begin, len(tokens)):
        if index in barrier or (words <= 0 and index >= list_end):
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
_UNASSESSED = tuple(product(("difficult to", "hard to"), ("assess", "determine", "evaluate")))
_HARD = tuple(product(("is", "are"), ("difficult to", "hard to", "impossible to"), _ACTIVE))
_RELATIVE = ("", ", ", ", which ", ", that ")  # a comma ends the scope of other triggers that follow a mention


def _not_excluding() -> list[str]:
    """Return phrases that leave the following mention uncertain, such as "cannot entirely exclude"."""
    active = product((*_NOT, *_ATTEMPTS), _ADVERBS, _ACTIVE)
    return [*map(_join, (*active, *_HARD, *_UNASSESSED)), "exclude", "exclusion of"]


def _not_shown() -> list[str]:
    """Return phrases such as "could not be assessed"."""
    verbs = ("confirmed", "proven", "determined", "assessed", "evaluated")
    return [*map(_join, (*product(("cannot be", "can not be", "could not be"), verbs), *_UNASSESSED))]


def _not_excluded() -> list[str]:
    """Return phrases that leave the preceding mention uncertain, such as "has not been completely ruled out"."""
    forms = [
        *product(_NOT, _ADVERBS, _PASSIVE),
        *product(_NOT, ("be", "been"), _ADVERBS, _PASSIVE),
        *product(_NOT, _ADVERBS, ("be", "been"), _PASSIVE),
        *_HARD,
        *product(("should be", "must be", "to be", "neither"), _PASSIVE),
        *product(("neither", "neither be", "neither been"), ("confirmed nor",), _PASSIVE),
        *product(("neither", "neither be", "neither been"), _PASSIVE, ("nor confirmed",)),
    ]
    return [relative + phrase for phrase in map(_join, forms) for relative in _RELATIVE]


def _join(parts: tuple[str, ...]) -> str:
    return " ".join(filter(None, parts))
