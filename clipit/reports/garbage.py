"""Recognise snippets without content: headings that stand alone, and text garbled by OCR."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from clipit.reports.headings import FIELD, STRONG, WEAK

_FAMILIAR_COUNT = 5  # minimum occurrences of a familiar word, which needs no further check
_REPEATED_COUNT = 3  # minimum occurrences of a word that contributes trigrams
_MIN_REPEATED_WORDS = 1000  # with fewer repeated words, trigrams are not used
_MAX_ABSENT = 0.25  # above this fraction of absent trigrams, a text's unfamiliar words may be jumbled
_STRANGE_SHARE = 0.3  # a word with at least this fraction of absent trigrams is strange
_MAX_FAMILIAR_SHARE = (
    0.2  # above this fraction of letters in familiar words of four or more letters, no word is jumbled
)
_COMMON = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "do", "for", "from", "had", "has", "have",
    "he", "her", "him", "his", "if", "in", "into", "is", "it", "its", "may", "no", "none", "nor", "not", "of", "off",
    "on", "or", "our", "out", "over", "per", "she", "so", "than", "that", "the", "then", "they", "to", "two", "up",
    "was", "we", "were", "who", "with", "yes", "x", "am", "pm", "dr", "mr", "mrs", "cm", "mm", "ml", "mg", "gm", "gms",
    "kg", "g", "um", "hpf", "hpfs", "vs", "re", "nos", "tan", "red", "wt", "old", "rt", "see", "few", "fat", "all",
    "one", "six", "ten", "top", "tip", "rim", "ink", "due", "left", "pre", "pin", "nil", "iv", "ii", "iii", "vi", "p",
    "n", "t", "m", "i", "c", "y", "r", "l",
})  # fmt: skip
"""Short words and units that are readable in a corpus of any size."""
_LATIN = "0-9A-Za-z\u00c0-\u024f\u1e00-\u1eff"
_PART = re.compile(rf"[{_LATIN}]+|[^\W_{_LATIN}]+")  # a word of Latin letters and digits, or of a different script
_CODE = r"(?:[a-z]+|[a-z]?[A-Z]*|[A-Z][a-z]+[A-Z]?)(?:\d+(?:[a-z]{0,3}|[A-Z]{0,3})){1,2}"  # 5cm, CD117, 2x3cm
_STAGE = r"[pcymrua]{0,2}(?:[TNMGLVR][\dOoXx]?[a-dis]{0,3})+\d?"  # pT2cN0M0
_NUMBERED = re.compile(rf"{_CODE}|{_STAGE}")
_DIGIT = re.compile(r"\d")
_GLUED = re.compile(
    r"[A-Z]+s|[A-Zl]{4,}|[A-Z]?[a-z]{3,}[A-Z]|(?:[A-Z]?[a-z]{2,}){2,3}"
)  # CTs, PROXlMAL, DukesB, colonTumor
_VOWEL = re.compile(r"[aeiouy]")
_UNLIKELY = re.compile(r"[b-df-hj-np-tv-xz]{6}|[aeiou]{4}|([a-z])\1\1")
_ANY_LATIN = re.compile(rf"[{_LATIN}]")
_JUNK = re.compile(r"(?<=[^\W\d_])[:;~^\\|{}<>=*#@!?$]+(?=[^\W\d_])")
_MAX_LETTERS = 40  # longer words are codes, or several words without spaces
_MIN_LETTERS = 3  # shorter lower-case words are readable only if they are common or familiar
_MAX_ACRONYM = 5  # maximum number of letters in an acronym, which needs no vowel
_MARK = re.compile(r"^(?:[(\[]?(?:[A-Z]|\d{1,2}|[IVX]{1,4})[\])]?[.:)]\s*)+")  # mark of a list item: "A. ", "2) "
_LABEL = re.compile(r"[A-Za-z][A-Za-z()/&' -]{2,60}:")
_MAX_LABEL_WORDS = 4  # a longer text that ends in a colon is not a bare label
DISEASE = r"\b(?!stroma|(?:dia|pro)gnos|anastomos)\w{2,}(?:omas?|itis|plasias?|plasms?|osis|oses)\b"
"""Regular expression for a word whose ending marks it as a disease; must be matched case-insensitively."""
_DIAGNOSIS = re.compile(
    rf"(?i){DISEASE}|"
    r"\bmetasta(?:sis|ses|tic)\b|\b(?:benign|malignan\w+|polyps?|ulcers?|infarct\w*|necrotic)\b"
)


def names_diagnosis(text: str) -> bool:
    """Return whether a text names a diagnosis, such as "Adenocarcinoma"; a label that ends in a colon does not."""
    return not text.rstrip().endswith(":") and _DIAGNOSIS.search(text) is not None


def is_bare_heading(text: str) -> bool:
    """Return whether a text consists only of headings and field labels."""
    rest = _MARK.sub("", text.strip())
    for _ in range(4):
        match = STRONG.match(rest) or WEAK.match(rest)
        if match is None:
            break
        rest = rest[match.end() :].strip(" .,;:/&-")
        if not rest:
            return True
    if not rest.endswith(":") or names_diagnosis(rest[:-1]):
        return False
    field = FIELD.match(rest)
    return (field is not None and field.end() == len(rest)) or (
        len(rest.split()) <= _MAX_LABEL_WORDS and _LABEL.fullmatch(rest) is not None
    )


@dataclass(frozen=True)
class Vocabulary:
    """Familiar words and letter trigrams of a corpus.

    Attributes:
        words: Words that occur at least five times, in lower case; garbled words rarely repeat.
        trigrams: Letter trigrams, including start and end marks, of words that occur at least three times; empty if
            the corpus has fewer than 1,000 such words, too few to cover the language.
    """

    words: frozenset[str] = frozenset()
    trigrams: frozenset[str] = frozenset()


_NO_CORPUS = Vocabulary()


def learn_vocabulary(texts: Iterable[str]) -> Vocabulary:
    """Collect the familiar words of a corpus and the trigrams of its repeated words."""
    counts = Counter(word.lower() for text in texts for word in _PART.findall(text))
    repeated = [word for word, count in counts.items() if count >= _REPEATED_COUNT and word.isalpha()]
    trigrams = (
        frozenset(part for word in repeated for part in _trigrams(word)) if len(repeated) >= _MIN_REPEATED_WORDS else ()
    )
    return Vocabulary(
        frozenset(word for word, count in counts.items() if count >= _FAMILIAR_COUNT), frozenset(trigrams)
    )


def readability(text: str, vocabulary: Vocabulary = _NO_CORPUS) -> float:
    """Return the fraction of a text's letters and digits that belong to readable words, from 0 to 1.

    A word is readable if it is familiar in the corpus, is a number or code (pT3a, CD117, 5cm), is a common short word
    or an acronym of at most five letters, or looks ordinary. An ordinary word has ordinary letter case, a vowel, and
    no run of six consonants, four vowels or three equal letters; in lower case, it has at least three letters. Words
    joined by a symbol such as ":" or "~" need at least four letters. Words in non-Latin scripts are readable. The time
    is linear in the length of the text.

    Words that pass this test may still be garbled, such as words whose letters OCR has scrambled ("oglcai plltlem" for
    "Histological pattern"). If few words of a text are familiar and the unfamiliar ones contain many trigrams that
    the corpus lacks, none of the unfamiliar words is readable.
    """
    readable = total = familiar = 0
    unfamiliar: list[str] = []
    for token in text.split():
        glued = _JUNK.search(token) is not None
        for part in _PART.findall(token):
            total += len(part)
            word = part.lower()
            known = word in vocabulary.words
            if (known or _is_plausible(part)) and not (glued and len(part) < 4):
                readable += len(part)
                if len(part) >= 4 and known:
                    familiar += len(part)
                elif len(part) >= 4 and part.isascii() and part.isalpha():
                    unfamiliar.append(word)
    if familiar <= _MAX_FAMILIAR_SHARE * total and _are_jumbled(unfamiliar, vocabulary.trigrams):
        readable -= sum(map(len, unfamiliar))
    return readable / total if total else 1.0


def _trigrams(word: str) -> list[str]:
    marked = f"^{word}$"
    return [marked[start : start + 3] for start in range(len(word))]


def _are_jumbled(words: Sequence[str], trigrams: Collection[str]) -> bool:
    """Return whether the corpus lacks over 25% of the words' trigrams, and at least 30% in each of two words."""
    if len(words) < 2 or not trigrams:
        return False
    absent = [sum(part not in trigrams for part in _trigrams(word)) for word in words]
    letters = [len(word) for word in words]  # a word has as many trigrams as letters
    strange = sum(count >= _STRANGE_SHARE * length for count, length in zip(absent, letters, strict=True))
    return sum(absent) > _MAX_ABSENT * sum(letters) and strange >= 2


@lru_cache(maxsize=2**16)
def _is_plausible(word: str) -> bool:
    """Return whether a word is plausible, judged by its letters alone."""
    if _ANY_LATIN.search(word) is None:
        return True
    if len(word) > _MAX_LETTERS:
        return False
    if _DIGIT.search(word):
        return _NUMBERED.fullmatch(word) is not None
    ordinary = word.isupper() or word[1:].islower() or (len(word) == 1 and word.islower())
    if word.lower() in _COMMON:
        return ordinary
    if not ordinary and _GLUED.fullmatch(word) is None:
        return _NUMBERED.fullmatch(word) is not None
    if len(word) < _MIN_LETTERS:
        return word.isupper()
    if word.isupper() and len(word) <= _MAX_ACRONYM:
        return True
    letters = unicodedata.normalize("NFD", word).lower()
    return _VOWEL.search(letters) is not None and _UNLIKELY.search(letters) is None
