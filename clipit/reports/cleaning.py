"""Remove OCR and layout noise from a report while keeping every letter and digit."""

import html
import re
import unicodedata
from collections.abc import Collection, Iterable
from itertools import pairwise

from clipit.reports.headings import STRONG, WEAK

LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"
_SINGLE, _DOUBLE = "\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f"  # quotes
_BULLETS = "\u2022\u00b7\u25cf\u25aa\u25a0\u2023"
_DECIMAL_DOT, _MIDDLE_DOT = re.compile(r"(?<=\d)\u00b7(?=\d)"), re.compile(r"(?<=\w)\u00b7(?=\w)")  # not bullets
_PUNCTUATION = str.maketrans(dict.fromkeys(_DASHES, "-") | dict.fromkeys(_SINGLE, "'") | dict.fromkeys(_DOUBLE, '"'))

_INLINE_TAG = r"(?:a|b|big|center|em|font|i|s|small|span|strong|sub|sup|td|th|u)"
_BLOCK_TAG = r"(?:body|br|div|h[1-6]|head|hr|html|li|meta|ol|p|pre|table|tbody|thead|title|tr|ul)"
_IN_TAG = r"(?:\s+[a-z-]{1,30}\s*=\s*(?:\"[^\"<>]{0,500}\"|'[^'<>]{0,500}'|[\w#.%-]{1,100})){0,20}\s*/?>"
_INLINE = re.compile(rf"</?{_INLINE_TAG}{_IN_TAG}", re.I)
_BLOCK = re.compile(rf"</?{_BLOCK_TAG}{_IN_TAG}", re.I)
_CELL = re.compile(rf"</t[dh]{_IN_TAG}", re.I)
_ENTITY = re.compile(r"&(?:[a-z]{2,8}\d?|#\d{1,6}|#x[0-9a-f]{1,5});", re.I)

_FULL_LINE = 60  # minimum length of a full line; the break after a shorter line is probably deliberate
_MIN_WIDTH = 30  # minimum width of a column of wrapped text
_OPEN_ENDED = re.compile(
    r"(?:,|\b(?:a|an|and|any|as|at|by|for|from|in|into|is|nor|(?<!: )not|of|on|or|shows?|than|the|their|these|to|was|"
    r"were|which|with|without|and/or|(?:and|are|is|of|shows?|was|were|with) no))$",
    re.I,
)
_OPEN_NUMBER = re.compile(r"\d\.?$")  # "0.1 / cm in the region", "9. / 5 cm"
_REST_OF_NUMBER = re.compile(r"(?i:(?:[cm]m|em|gm?|grams?)\b)|\d+\s*(?i:[cm]m|em|x|gm?|grams?)\b")
_OPEN_SUM = re.compile(r"\d \+$")  # "Gleason 3 + / 4"
_OPEN_STOP = re.compile(r"(?::|(?<!\w)[A-Z]\.)$")  # "Margins: / free", "H. / pylori"
_NEW_ITEM = re.compile(r"(?:[-*]|(?!H\. pylori)\(?(?:[A-Z]|\d{1,2})[.):]\s|[A-Z][A-Za-z /-]{2,40}:)")
_MARKER = re.compile(r"p\d\d\b")  # "p53", which may begin a line of a table

_FOUND = r"(?:identified|seen|present|detected|found|observed|noted|demonstrated)"
_NOT_EXCLUDED = (
    r"(?:(?:can\s+|could\s+)?not|cannot|(?:can|couldn)['\u2019]t)(?:\s+be(?:en)?)?(?:\s+(?:\w+ly|with\s+certainty))?"
    r"(?:\s+be(?:en)?)?\s+(?:excluded|ruled\s+out)"
)
_NEGATED_LEAD = re.compile(
    rf"(?i)(?:\b(?:no\s+(?:evidence|signs?|features)\s+(?:of|for)|negative\s+for|free\s+(?:of|from)|absence\s+of|"
    rf"without|(?:is|are|was|were|shows?|has|have|with)\s+no|not\s+{_FOUND}|(?:is|are|was|were)\s+absent|{_NOT_EXCLUDED}|"
    r"(?:can(?:not|\s+not)|could\s+not|unable\s+to)\s+(?:exclude|rule\s+out)|suspicious\s+for|suggestive\s+of|"
    r"suspicion\s+(?:of|for))|^absent|^rule\s+out|^r/o|^suspected)\s?:$"
)
"""Line that negates the list in the following lines, or leaves it uncertain: "Negative for:", "Not ruled out:"."""
_LISTED = re.compile(r"[-*]\s*|\(?(\d{1,2}|[a-h])[.)]\s+")
NEGATIVE_VALUE = re.compile(rf"(?i)(?:not\s+{_FOUND}|negative|absent|uninvolved|{_NOT_EXCLUDED})\.?$")
"""Line that negates the label on the previous line, or leaves it uncertain."""
_ANSWER = re.compile(r"(?i)(?:no|yes|none|nil|n/?a|(?:focally )?present|identified|positive)\.?$")
"""Line that is the value of a label ending in a colon on the previous line."""
_OPTION = re.compile(r"\[ ?[xX]? ?\]|\([ xX]\)|[\u2610\u2611\u2612\u25a1]")
# Options of CAP templates: "_X_ Present", "___ Absent".
_OPTIONS = re.compile(r"^(?:[ \t]*__.*|.*_[xX]_.*)$", re.M)
_CHECKED, _UNCHECKED = re.compile(r"(?<!_)_+([xX])_+"), re.compile(r"(?<!\S)_{2,}(?=[ \t]*[^\W_])")

# Prefixes and suffixes that OCR separates from their word: "tumor -free", "non -polyposis".
_PREFIX = (
    r"non|pre|post|intra|inter|extra|peri|sub|semi|anti|multi|neo|low|high|well|poorly|moderately|lymph|tumor|tumour"
)
_ENDING = r"free|like|grade|type|rich|positive|negative|differentiated|neoplastic|polyposis|vascular"
_COLOUR = r"tan|gr[ae]y|pink|yellow|red|brown|white"
_PREFIX_ONLY, _ENDING_ONLY = re.compile(_PREFIX, re.I), re.compile(_ENDING, re.I)
_HYPHENATED = re.compile(r"(?<![^\W\d_])([^\W\d_]*[a-z]{2})-[ \t]*\n\s*([a-z]{2}[^\W\d_]*)")
"""Word that is hyphenated at the end of a line."""
_MARKER_HYPHEN = re.compile(rf"(?<=[A-Z0-9])-[ \t]*\n\s*(?=(?:{_ENDING})\b)")  # "HER2-", then "positive"
_COMPOUND = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LOOSE_HYPHEN = re.compile(
    rf"(?i:\b({_PREFIX}|{_COLOUR})(?: -\s?|- )(?=[a-z])(?!and|or\b|to\b)|(?<=[a-z]) -\s?(?=(?:{_ENDING})\b))"
)

_MARKER_NAME = r"\b(?:ER|PR|AR|[A-Za-z]{1,8}[-/]?\d[\w/]{0,8})"  # HER2, p53, Ki-67, AE1/AE3
_SCORE = rf"{_MARKER_NAME} ?:? ?---(?!-)|\+\+[^\n-]{{0,40}} ---(?!-)|(?<!-)---(?!-)(?=[^\n-]{{0,40}}\+\+)"
"""Staining score --- after the name of a marker or beside +++."""
_SCORE_AT_END = re.compile(rf"(?:{_MARKER_NAME} ?:? ?-{{1,3}}|\+\+[^\n-]{{0,40}} -{{1,3}}|\w\)?: ?-{{1,3}})$")
_SIGN = re.compile(r"[+-]{1,3}")  # "Metastasis:", then "-"
_LABEL = re.compile(rf".*:|{_MARKER_NAME}")
_OPEN_HYPHEN, _AFTER_HYPHEN = re.compile(r"[^\W_]-$"), re.compile(r"[A-Z]?\d")  # "PD-", then "L1"
_LOOSE_START = re.compile(r"(?:[-*,;: \n]|\.(?!(?<!\.\.)\d))+")

ESCAPED_LINE_END = r"(?:\\r\\n|\\[nr])(?![a-z])"  # a literal backslash and n, as in JSON; not in paths such as C:\new
_ESCAPED = re.compile(rf"{ESCAPED_LINE_END}|_x000[ADad]_\n?|\\t(?![a-z])")  # also as Excel stores line breaks

_MAX_WORD = 500  # maximum length of a word; longer words are encoded images or corrupt data
_OTHER_SCRIPTS = "\u0e00-\u109f\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff\uff00-\uffef"  # without spaces
_LONG_WORD = re.compile(rf"(?<![^\s{_OTHER_SCRIPTS}])[^\s{_OTHER_SCRIPTS}]{{{_MAX_WORD + 1},}}")

_STEPS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[_|]+"), " "),  # ruled lines and cell borders
    # Runs of blanks are collapsed before and after drawn lines are dropped: other patterns take quadratic time on them.
    (re.compile(r"[ \t]+"), " "),
    (re.compile(rf"({_SCORE})|([-=*~#.^<>\\])\2{{2,}}"), r"\1 "),  # drawn lines and dotted leaders
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r"(?!(?<=[A-Z0-9])::[A-Z])([.,;:!?])(?:[ \t]*\1)+(?!(?<=[ \t]\.)\d)"), r"\1"),  # not "5 cm. .7 cm"
    (re.compile(r"(?<=\d)[ \t]+\.(?=\d)"), "."),  # "2 .5 cm"
    (re.compile(r"[ \t]+([,;])(?=\w)"), r"\1 "),  # "fat ,nodular"
    (re.compile(r"[ \t]+([,;:.!?])(?=\s|$)"), r"\1"),
    (re.compile(r"[ \t]+"), " "),
)


def _normalise_characters(text: str) -> str:
    """Expand ligatures, normalise dashes and quotes, and drop invisible characters."""
    text = text.translate(LIGATURES).translate(_PUNCTUATION)
    text = _MIDDLE_DOT.sub(" ", _DECIMAL_DOT.sub(".", text))
    out: list[str] = []
    for char in text.replace("\r\n", "\n").replace("\r", "\n"):
        if char == "\n" or char in "\f\v\u2028\u2029\x85":
            out.append("\n")
        elif char.isspace():
            out.append(" ")
        elif char in _BULLETS:
            out.append("\n- ")
        elif char.isprintable() or char == "\N{SOFT HYPHEN}" or char.isalnum():
            out.append(char)
        elif unicodedata.category(char) != "Cf":  # drops format characters (zero width, direction)
            out.append(" ")
    return "".join(out)


def plain_characters(text: str) -> str:
    """Return a phrase in the characters of cleaned reports: composed accents, plain dashes and quotes, no ligatures."""
    return unicodedata.normalize("NFC", text).translate(LIGATURES).translate(_PUNCTUATION)


def compound_words(texts: Iterable[str]) -> frozenset[str]:
    """Collect the words of a corpus that decide whether a word hyphenated at a line break is a compound.

    For each word hyphenated at a line break, these are its two parts and its spellings with and without the hyphen, in
    lower case, if they occur within a line.
    """
    texts = ["\n".join(_ESCAPED.sub("\n", text).translate(_PUNCTUATION).splitlines()) for text in texts]
    needed = {
        word
        for text in texts
        for match in _HYPHENATED.finditer(text)
        for word in (match[1], match[2], match[1] + match[2], f"{match[1]}-{match[2]}")
    }
    needed = {word.lower() for word in needed}
    if not needed:
        return frozenset()
    return frozenset().union(*(needed & set(_COMPOUND.findall(_HYPHENATED.sub(" ", text).lower())) for text in texts))


def _join_words(text: str, words: Collection[str]) -> str:
    """Join words hyphenated at a line break; compounds keep their hyphen. Remove soft hyphens.

    Args:
        words: Result of `compound_words` for the corpus.
    """
    text = re.sub(r"\N{SOFT HYPHEN}[ \t]*\n*[ \t]*", "", text)
    text = _MARKER_HYPHEN.sub("-", text)
    return _HYPHENATED.sub(
        lambda match: f"{match[1]}{_hyphen(match[1].lower(), match[2].lower(), words)}{match[2]}", text
    )


def _hyphen(first: str, second: str, words: Collection[str]) -> str:
    """Return the hyphen between the parts of a word, or "" if only the line break caused the hyphen."""
    if first + second in words or f"{first}-{second}" in words:
        return "-" if f"{first}-{second}" in words else ""
    if _PREFIX_ONLY.fullmatch(first) or _ENDING_ONLY.fullmatch(second):
        return "-"
    is_combining_form = len(first) > 3 and first.endswith("o")  # adeno-, fibro-
    return "" if is_combining_form or (first not in words and second not in words) else "-"


def _first_word(line: str) -> str:
    return line.partition(" ")[0]


def _lines(text: str) -> list[str]:
    return [line for line in (" ".join(line.split()) for line in text.split("\n")) if line]


def _wrapped_width(text: str) -> int:
    """Return the width at which a text was wrapped: the length of its longest line; 0 if it is not wrapped.

    A text counts as wrapped if some lines begin with a lower-case word, and none of these words would have fitted on
    the previous line.
    """
    lines = _lines(text)
    width = max(map(len, lines), default=0)
    continued = [pair for pair in pairwise(lines) if pair[1][0].islower() and pair[0][-1] not in ".:;?!"]
    fitting = any(len(line) + 1 + len(_first_word(following)) <= width for line, following in continued)
    return width if continued and not fitting and width >= _MIN_WIDTH else 0


def _continues(line: str, following: str, width: int) -> bool:
    """Return whether the sentence continues on the following line of a text with this width; see `_wrapped_width`."""
    if _OPEN_ENDED.search(line) or (_OPEN_NUMBER.search(line) and _REST_OF_NUMBER.match(following)):
        return True
    if _OPEN_SUM.search(line) and following[0].isdigit():
        return True
    is_full = len(line) >= _FULL_LINE or len(line) + 1 + len(_first_word(following)) > width > 0
    if is_full and following[0].islower() and _OPEN_STOP.search(line):
        return True
    if line[-1] in ".:;?!" or _NEW_ITEM.match(following) or (not is_full and _MARKER.match(following)):
        return False
    return following[0].islower() or is_full


def _unwrap(text: str, width: int) -> str:
    """Join wrapped lines of a sentence, and negations with the lines they negate; keep line breaks between items."""
    lines = _lines(text)
    if not lines:
        return ""
    out = [lines[0]]
    n_items = 0  # number of items in the current negated list
    negated = _NEGATED_LEAD.search(lines[0]) is not None
    for last, line in pairwise(lines):
        item = _LISTED.match(line) if negated else None
        if item:
            mark = f"({item.group(1)}) " if item.group(1) else ""
            if n_items:
                out[-1] = out[-1].rstrip(".;,")
            out.append(f"{', ' if n_items else ' '}{mark}{line[item.end() :]}")
            n_items += 1
            continue
        if negated and not n_items and not _NEW_ITEM.match(line):
            join = " "
        elif _answers(line, last):
            join = " " if last.endswith(":") else ": "
        elif _SIGN.fullmatch(line) and _LABEL.fullmatch(last):
            join = " "
        elif _OPTION.match(line):
            join = " " if _OPTION.match(last) or _is_label(last) else "\n"
        elif _continues(last, line, width):
            join = "" if _OPEN_HYPHEN.search(last) and _AFTER_HYPHEN.match(line) else " "
        else:
            join = "\n"
        out.append(join + line)
        negated, n_items = _NEGATED_LEAD.search(line) is not None, 0
    return "".join(out)


def _answers(line: str, label: str) -> bool:
    """Return whether a line consists of the value of the label on the previous line."""
    if not _is_label(label) or NEGATIVE_VALUE.match(label):
        return False
    if label[-1] == ":":
        return (NEGATIVE_VALUE.match(line) or _ANSWER.match(line)) is not None
    return NEGATIVE_VALUE.match(line) is not None and label[0].isupper() and " " in label


def _is_label(line: str) -> bool:
    """Return whether a line may be the label for the next line: neither a whole sentence nor a section heading."""
    heading = STRONG.match(line) or WEAK.match(line)
    return line[-1] not in ".;?!" and (heading is None or heading.end() < len(line))


def strip_markup(text: str) -> str:
    """Replace HTML tags and entities; other text in angle brackets is kept."""
    if "<" in text:
        text = _BLOCK.sub("\n", _INLINE.sub("", _CELL.sub(" ", text)))
    return _ENTITY.sub(lambda match: html.unescape(match.group()), text) if "&" in text else text


def trim(text: str) -> str:
    """Strip bullets and stray punctuation from both ends of a sentence, but not from ".5 cm" or "Invasion: -"."""
    start = _LOOSE_START.match(text)
    text = (text[start.end() :] if start else text).rstrip(",; \n")
    return text if _SCORE_AT_END.search(text) else text.rstrip("-,; \n")


def clean_text(text: str, words: Collection[str] | None = None) -> str:
    """Remove OCR and layout noise: invisible characters, drawn lines, repeated punctuation, line wraps and HTML.

    All letters and digits are kept in order, except those of HTML tags and escaped line breaks (\\n); ligatures such
    as "ﬁ" are expanded. Line breaks between items become one newline, line breaks within a sentence a space. A list is
    joined to the "Negative for:" or "Not ruled out:" that introduces it, a value such as "Not identified" to the label
    on the previous line, and options with check boxes to their question. Check boxes made of underscores become [ ]
    and [X].

    Args:
        words: Result of `compound_words` for the corpus; None for the words of this text.
    """
    text = _ESCAPED.sub(lambda match: " " if match.group().endswith("t") else "\n", text)
    text = _normalise_characters(strip_markup(text))
    width = _wrapped_width(text)
    if _CHECKED.search(text):
        text = _OPTIONS.sub(lambda match: _UNCHECKED.sub("[ ]", _CHECKED.sub(r"[\1]", match.group())), text)
    text = _join_words(text, compound_words([text]) if words is None else words)
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    text = _LOOSE_HYPHEN.sub(lambda match: f"{match.group(1) or ''}-", text)
    return _unwrap(text, width)


def drop_long_words(text: str) -> tuple[str, list[str]]:
    """Drop words of more than 500 characters, such as encoded images, from a cleaned report.

    Scripts that are written without spaces, such as Chinese and Thai, are kept.

    Returns:
        The remaining text, and the dropped words.
    """
    words = _LONG_WORD.findall(text)
    if not words:
        return text, []
    lines = (" ".join(line.split()) for line in _LONG_WORD.sub(" ", text).split("\n"))
    return "\n".join(line for line in lines if line), words
