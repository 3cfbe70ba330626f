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
    | {"\uf001": "fi", "\uf002": "fl"}  # ligatures in Apple's fonts
)
"""Translation of private-use characters."""
BULLETS = "\uf0b7\uf0a7"
# In Wingdings, these codes are bullets; inside a line, they are more often Greek letters of the Symbol font.
_LINE_BULLETS = "\uf06c\uf06e\uf071\uf072\uf075\uf076\uf0d8\uf0de"
_LINE_BULLET = re.compile(rf"(?m)^([ \t]*)[{_LINE_BULLETS}](?=[ \t])")
# Some PDFs store all letters of an ordinary font in this way; the Symbol font stores single Greek letters.
_WORD, _LATIN = re.compile("[\uf061-\uf07a]{4}"), {_FIRST + code: chr(code) for code in range(0x20, 0x7F)}
_KNOWN = re.escape("".join([*map(chr, SYMBOLS), BULLETS, _LINE_BULLETS]))
UNKNOWN_SYMBOL = rf"(?![{_KNOWN}])[\ue000-\uf8ff]"
"""Pattern of private-use characters whose meaning depends on the font."""


def translate_symbols(text: str) -> str:
    """Replace characters of the Symbol and Wingdings fonts with standard ones; bullets become U+2022.

    If the text contains words in private-use characters, these are Latin letters of another font.
    """
    if _WORD.search(text):
        return text.translate(_LATIN)
    return _LINE_BULLET.sub("\\1\u2022", text).translate(SYMBOLS)
