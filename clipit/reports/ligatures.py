"""Mend words in which a font's ligature was read as another character: "intesFnal", "diﬀerenƟated"."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from clipit.reports.cleaning import LIGATURES

_LETTERS = ("ti", "tt", "ft", "fi", "fl", "ff", "ffi", "ffl", "tti", "tf", "st")  # of the ligatures of common fonts
_FOREIGN = "\u019f\u01a1\u01a9\u01ab\u014c\u019e\ufffd"  # characters that PDF readers return for some of them
_PLAIN = re.compile(r"\b[A-Za-z]?[a-z]{2,}\b")  # in ordinary letter case
_INSIDE = re.compile(
    rf"(?<![^\W_])[A-Za-z]?[a-z]*(?:(?<=[a-z])[A-Z](?=[a-z])[a-z]*|[{_FOREIGN}][a-z]*){{1,4}}(?![^\W_])"
)
"""A word in lower case with capitals or foreign characters inside it, without digits beside it."""
_WHOLE = re.compile(rf"(?<![^\W_])[A-Za-z{_FOREIGN}]{{3,}}(?![^\W_])")
_PRONOUNCED = re.compile(r"[A-Z](?:[aeiouy]|[hlrw][aeiouy])")  # such as Fat, Free: the beginning of a real word
_LEAST = 3  # occurrences of an undamaged word that make it vocabulary
_SHORTEST = 5  # letters of a mended word


def find_damage(texts: Iterable[str]) -> dict[str, str]:
    """Find the words of a corpus that can be mended with certainty.

    The vocabulary consists of the words that occur undamaged and in lower case at least three times in the same
    corpus. A damaged word has one kind of capital or foreign character within lower-case letters, and exactly one
    ligature in its place makes it a word of the vocabulary. A capital at the beginning counts only if the same capital
    is damage within other words of the corpus, and no English word begins so ("Fssue"). Words with digits, and all
    others in capitals, are left alone.

    Args:
        texts: Texts of the corpus, read twice.

    Returns:
        Mended word of each damaged one. The time is linear in the length of the texts.
    """
    texts = list(texts)
    inside = {word for text in texts for word in _INSIDE.findall(text)}
    if not inside:
        return {}
    plain: Counter[str] = Counter()
    initial: set[str] = set()
    for text in texts:
        words = _PLAIN.findall(text.translate(LIGATURES))
        plain.update(words)
        initial.update(word for word in words if word[0].isupper() and _PRONOUNCED.match(word) is None)
    vocabulary = {word for word, n in plain.items() if n >= _LEAST and len(word) >= _SHORTEST and word.islower()}
    mended: dict[str, str] = {}
    learnt: set[tuple[str, str]] = set()
    for word in sorted(inside):
        marks = {char for char in word[1:] if char.isupper()} | {char for char in word if char in _FOREIGN}
        candidates = _candidates(word, marks, _LETTERS, vocabulary)
        if len(marks) == 1 and len(candidates) == 1:
            ((letters, whole),) = candidates.items()
            mended[word] = whole
            learnt.add((next(iter(marks)), letters))
    for word in sorted(initial):
        known = [letters for mark, letters in learnt if mark == word[0]]
        candidates = _candidates(word, {word[0]}, known, vocabulary)
        if len(candidates) == 1 and not plain[word.lower()]:
            mended[word] = next(iter(candidates.values()))
    return mended


def mend(text: str, mended: Mapping[str, str], counts: Counter[str]) -> str:
    """Replace the damaged words of a text, and count them in `counts`, written as "damaged -> mended"."""
    if not mended:
        return text

    def replace(match: re.Match[str]) -> str:
        word = match.group()
        whole = mended.get(word)
        if whole is None:
            return word
        counts[f"{word} -> {whole}"] += 1
        return whole

    return _WHOLE.sub(replace, text)


def _candidates(word: str, marks: set[str], ligatures: Iterable[str], vocabulary: set[str]) -> dict[str, str]:
    """Return the words of the vocabulary that result from a ligature in place of every mark, by ligature."""
    words: dict[str, str] = {}
    if len(marks) != 1:
        return words
    mark = next(iter(marks))
    for letters in ligatures:
        whole = word.replace(mark, letters)
        if whole.lower() in vocabulary:
            words[letters] = whole
    return words
