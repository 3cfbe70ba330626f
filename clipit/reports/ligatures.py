"""Repair words in which a ligature was misread as a different character: "intesFnal", "diﬀerenƟated"."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from clipit.reports.cleaning import LIGATURES

_LIGATURE_LETTERS = ("ti", "tt", "ft", "fi", "fl", "ff", "ffi", "ffl", "tti", "tf", "st")  # ligatures of common fonts
_FOREIGN = "\u019f\u01a1\u01a9\u01ab\u014c\u019e\ufffd"  # characters that PDF readers return for some ligatures
_PLAIN = re.compile(r"\b[A-Za-z]?[a-z]{2,}\b")  # words in ordinary letter case
_INSIDE = re.compile(
    rf"(?<![^\W_])[A-Za-z]?[a-z]*(?:(?<=[a-z])[A-Z](?=[a-z])[a-z]*|[{_FOREIGN}][a-z]*){{1,4}}(?![^\W_])"
)
"""A word in lower case with capitals or foreign characters inside it, and no digit next to it."""
_WHOLE = re.compile(rf"(?<![^\W_])[A-Za-z{_FOREIGN}]{{3,}}(?![^\W_])")
_PRONOUNCED = re.compile(r"[A-Z](?:[aeiouy]|[hlrw][aeiouy])")  # may begin a real word: Fat, Free
_MIN_COUNT = 3  # minimum occurrences of a vocabulary word
_MIN_LETTERS = 5  # minimum length of a vocabulary word


def find_repairs(texts: Iterable[str]) -> dict[str, str]:
    """Find the words of a corpus that can be repaired unambiguously.

    The vocabulary consists of the words of at least five letters that occur in lower case at least three times in the
    corpus. A damaged word has a capital letter or foreign character among its lower-case letters. It is repaired if it
    contains only one such character, one or more times, and exactly one ligature in place of this character yields a
    word of the vocabulary. An initial capital is repaired only if the same capital stands for a ligature inside other
    words, and no English word starts like the damaged word ("Fssue"). Words with digits, and all other words with
    capitals, are left unchanged. The time is linear in the length of the texts.

    Returns:
        Damaged word -> repaired word.
    """
    texts = list(texts)
    damaged = {word for text in texts for word in _INSIDE.findall(text)}
    if not damaged:
        return {}
    plain: Counter[str] = Counter()
    initial: set[str] = set()
    for text in texts:
        words = _PLAIN.findall(text.translate(LIGATURES))
        plain.update(words)
        initial.update(word for word in words if word[0].isupper() and _PRONOUNCED.match(word) is None)
    vocabulary = {word for word, n in plain.items() if n >= _MIN_COUNT and len(word) >= _MIN_LETTERS and word.islower()}
    repairs: dict[str, str] = {}
    substitutions: set[tuple[str, str]] = set()  # wrong character, letters of the ligature
    for word in sorted(damaged):
        marks = {char for char in word[1:] if char.isupper()} | {char for char in word if char in _FOREIGN}
        candidates = _candidates(word, marks, _LIGATURE_LETTERS, vocabulary)
        if len(marks) == 1 and len(candidates) == 1:
            ((letters, whole),) = candidates.items()
            repairs[word] = whole
            substitutions.add((next(iter(marks)), letters))
    for word in sorted(initial):
        ligatures = [letters for mark, letters in substitutions if mark == word[0]]
        candidates = _candidates(word, {word[0]}, ligatures, vocabulary)
        if len(candidates) == 1 and not plain[word.lower()]:
            repairs[word] = next(iter(candidates.values()))
    return repairs


def repair(text: str, repairs: Mapping[str, str], counts: Counter[str]) -> str:
    """Replace the damaged words of a text, and count them in `counts`, written as "damaged -> repaired"."""
    if not repairs:
        return text

    def replace(match: re.Match[str]) -> str:
        word = match.group()
        whole = repairs.get(word)
        if whole is None:
            return word
        counts[f"{word} -> {whole}"] += 1
        return whole

    return _WHOLE.sub(replace, text)


def _candidates(word: str, marks: set[str], ligatures: Iterable[str], vocabulary: set[str]) -> dict[str, str]:
    """Return, for each ligature, the vocabulary word that results from replacing the mark with it, if there is one."""
    words: dict[str, str] = {}
    if len(marks) != 1:
        return words
    mark = next(iter(marks))
    for letters in ligatures:
        whole = word.replace(mark, letters)
        if whole.lower() in vocabulary:
            words[letters] = whole
    return words
