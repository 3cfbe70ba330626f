"""Symbol and Wingdings characters, which Word and pdftotext write as private-use characters U+F020 to U+F0FF."""

import re

# Symbol font: code of the first character of a range, and the characters of that range
_SYMBOL = {
    0x20: " !∀#∃%&∋()∗+,-./0123456789:;<=>?≅",  # noqa: RUF001
    0x41: "ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_",
    0x61: "αβχδεφγηιϕκλ\N{MICRO SIGN}νοπθρστυϖωξψζ{|}∼",  # noqa: RUF001
    0xA1: "ϒ′≤/∞",  # noqa: RUF001
    0xAB: "↔←↑→↓°±″≥×∝∂",  # noqa: RUF001
    0xB8: "÷≠≡≈…",
    0xD2: "®©™",
    0xE2: "®©™",
}
_WINGDINGS = {0x6F: "□", 0xA8: "☐", 0xE0: "→", 0xE8: "→", 0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑"}
"""Check boxes and arrows; in Symbol, these codes are an omicron and parts of large brackets, which are rarer."""
_FIRST = 0xF000
SYMBOLS = str.maketrans(
    {chr(_FIRST + code + place): char for code, characters in _SYMBOL.items() for place, char in enumerate(characters)}
    | {chr(_FIRST + code): char for code, char in _WINGDINGS.items()}
    | dict.fromkeys("\uf0a7\uf0b7\uf0d8\uf0de", "\u2022")  # bullets in Word
    | {"\uf001": "fi", "\uf002": "fl"}  # ligatures in Apple's fonts
)
"""Translation of private-use characters."""
_PRIVATE = re.compile(r"[\ue000-\uf8ff]")
UNKNOWN_SYMBOL = rf"(?![{re.escape(''.join(map(chr, SYMBOLS)))}]){_PRIVATE.pattern}"
"""Pattern of private-use characters whose meaning depends on the font."""
# In Wingdings, these codes are bullets; inside a line, they are more often Greek letters of the Symbol font.
_LINE_BULLET = re.compile("(?<![^\n\r])([ \t]*)[\uf06c\uf06e\uf071\uf072\uf075\uf076](?=[ \t])")
_LETTER = re.compile("[\uf041-\uf05a\uf061-\uf07a]")
_WORD = re.compile(rf"(?:(?!(.)\1{{3}}){_LETTER.pattern}){{4}}")  # but not four check boxes
_RUN, _CHARACTER = re.compile("[\uf020-\uf07e]{2,}"), re.compile("[\uf020-\uf07e]")


def translate_symbols(text: str) -> str:
    """Replace characters of the Symbol and Wingdings fonts with standard ones; bullets become U+2022.

    Some PDFs store the letters of an ordinary font in this way. If a text contains words of such letters, they are
    Latin letters: all of them if most letters of the text are private-use characters, otherwise those in runs.
    """
    if not _PRIVATE.search(text):
        return text
    if _WORD.search(text):
        ordinary = sum(char.isalpha() for char in text)
        text = (_CHARACTER if len(_LETTER.findall(text)) > ordinary else _RUN).sub(_to_latin, text)
    return _LINE_BULLET.sub("\\1\u2022", text).translate(SYMBOLS)


def _to_latin(match: re.Match[str]) -> str:
    run = match[0]
    if len(run) > 1 and len({*run}) == 1:
        return run  # check boxes or a line
    return "".join(chr(ord(char) - _FIRST) for char in run)
