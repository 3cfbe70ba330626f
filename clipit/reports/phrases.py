"""Find phrases in a text: whole words in any case, with flexible white space and hyphens, and regular expressions."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clipit.reports.cleaning import plain_characters

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Characters of scripts without spaces, such as Chinese, Japanese and Thai, in which every character is a token."""
_TOKEN = re.compile(rf"[^\W_{_UNSPACED}]+|[^\W_]|[^\w\s-]|_")
_STARTS_UNSPACED, _ENDS_UNSPACED = re.compile(f"[{_UNSPACED}]"), re.compile(rf"[{_UNSPACED}]\Z")
_DASH = re.compile("\\\\?[\u2010-\u2014\u2212]")  # also if escaped
_ESCAPED_SET_OR_BLANK = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]| ", re.DOTALL)
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")  # the flag with which blanks in an expression have no meaning


class Token(NamedTuple):
    """Word or punctuation mark, in lower case, with its position in the text."""

    text: str
    start: int
    end: int

    @property
    def is_word(self) -> bool:
        """Whether the token is made of letters and digits."""
        return self.text[0].isalnum()


class Match(NamedTuple):
    """Matched phrase: its position in the text, and the name that the phrase is listed under."""

    start: int
    end: int
    name: str


def tokenize(text: str) -> list[Token]:
    """Split a text into words and punctuation marks; hyphens separate words like white space.

    In scripts that are written without spaces, each character is a word.

    Composed and decomposed accents differ; normalise the text (NFC) first.
    """
    return [Token(match.group().casefold(), *match.span()) for match in _TOKEN.finditer(text)]


@dataclass
class PhraseTree:
    """Prefix tree of phrases, token by token, with the names of each phrase at its last token."""

    names: list[str] = field(default_factory=list)
    children: "dict[str, PhraseTree]" = field(default_factory=dict)

    def add(self, phrase: str, name: str) -> None:
        """Add a phrase under a name."""
        node = self
        for token in tokenize(plain_characters(phrase)):
            node = node.children.setdefault(token.text, PhraseTree())
        if name not in node.names:
            node.names.append(name)

    def longest(self, tokens: Sequence[Token], begin: int, stop: int | None = None) -> tuple[int, Sequence[str]]:
        """Find the longest phrase that starts at a token and ends before `stop` (default: the end of the text).

        Returns:
            The index after its last token, and its names; `begin` and no names if no phrase starts there.
        """
        node, end, names = self, begin, list[str]()
        for index in range(begin, len(tokens) if stop is None else stop):
            child = node.children.get(tokens[index].text)
            if child is None:
                break
            node = child
            if node.names:
                end, names = index + 1, node.names
        return end, names


class PhraseFinder:
    """Search for many phrases in a single pass over a text; regular expressions are matched one by one."""

    def __init__(self, phrases: Mapping[str, Iterable[str]]) -> None:
        """Build the finder.

        Args:
            phrases: Phrases by name; phrases written `/.../` are regular expressions, matched one by one.

        Raises:
            re.error: A regular expression is invalid.
        """
        self._tree = PhraseTree()
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        for name, texts in phrases.items():
            for text in texts:
                pattern = regular_expression(text)
                if pattern is None:
                    self._tree.add(text, name)
                else:
                    self._patterns.append((pattern, name))

    def find(self, text: str) -> list[Match]:
        """Find all matches in reading order, without those inside a longer match."""
        matches = [
            Match(match.start(), match.end(), name)
            for pattern, name in self._patterns
            for match in pattern.finditer(text)
            if match.end() > match.start()
        ]
        tokens = tokenize(text)
        for begin, token in enumerate(tokens):
            if token.text not in self._tree.children:
                continue
            end, names = self._tree.longest(tokens, begin)
            matches += [Match(tokens[begin].start, tokens[end - 1].end, name) for name in names]
        return _longest_only(matches)


def regular_expression(phrase: str) -> re.Pattern[str] | None:
    """Compile a phrase written `/.../` as a case-insensitive regular expression; None for any other phrase.

    A blank in the expression also matches the line break between two sentences, as in other phrases.

    Raises:
        re.error: The regular expression is invalid.
    """
    if not is_expression(phrase):
        return None
    return re.compile(_across_lines(plain_phrase(phrase)[1:-1]), re.IGNORECASE)


def has_blanks(phrase: str) -> bool:
    """Return whether a phrase is a regular expression with a blank, which also matches a line break."""
    return is_expression(phrase) and _across_lines(phrase) != phrase


def _across_lines(expression: str) -> str:
    """Let every blank of a regular expression, also in a set of characters, match a line break too."""
    if _VERBOSE.search(expression):
        return expression
    return _ESCAPED_SET_OR_BLANK.sub(_with_line_break, expression)


def _with_line_break(part: re.Match[str]) -> str:
    """Add the line break to a blank or to a set with a blank; other parts are kept."""
    text = part.group()
    if text in (" ", "\\ "):
        return "[ \n]"
    return text.replace(" ", " \n") if text.startswith("[") else text


def plain_phrase(phrase: str) -> str:
    """Return a phrase or regular expression in the characters of cleaned reports; see `plain_characters`."""
    if is_expression(phrase):
        phrase = _DASH.sub(r"\\-", phrase)  # in brackets, a plain hyphen would be a range
    return plain_characters(phrase)


def is_expression(phrase: str) -> bool:
    """Return whether a phrase is a regular expression: `/.../`."""
    return len(phrase) > 2 and phrase[0] == phrase[-1] == "/"


def is_plain(phrase: str) -> bool:
    """Return whether a phrase has only characters of cleaned reports, in scripts with spaces between words."""
    return plain_phrase(phrase) == phrase and not any(map(_STARTS_UNSPACED.match, phrase))


def whole_words(phrase: str) -> str:
    """Return a regular expression that matches a phrase in cleaned text as whole words; white space is flexible."""
    phrase = plain_characters(phrase).strip()
    start = "" if _STARTS_UNSPACED.match(phrase) else rf"(?<![^\W{_UNSPACED}])"
    end = "" if _ENDS_UNSPACED.search(phrase) else rf"(?![^\W{_UNSPACED}])"
    return start + r"\s+".join(map(re.escape, phrase.split())) + end


def _longest_only(matches: Iterable[Match]) -> list[Match]:
    """Drop matches inside a longer one; matches with the same start and end are all kept."""
    kept: list[Match] = []
    last_end = -1
    for match in sorted(set(matches), key=lambda match: (match.start, -match.end, match.name)):
        same_span = bool(kept) and (match.start, match.end) == kept[-1][:2]
        if match.end > last_end or same_span:
            kept.append(match)
            last_end = max(last_end, match.end)
    return kept
