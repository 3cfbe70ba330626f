"""Symbols and letters that Word and PDFs store as private-use characters."""

import pytest

from clipit.reports.symbol_fonts import translate_symbols


def private_use(text: str) -> str:
    """Store the characters of a text as some PDFs do."""
    return "".join(chr(0xF000 + ord(char)) for char in text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\uf0fe yes \uf0a8 no, \uf0a3 5 \uf06dm", "\u2611 yes \u2610 no, \u2264 5 \u00b5m"),
        ("Ki-67 \uf03c 5%, margin \uf03e 10 mm, 37\uf0b0C", "Ki-67 < 5%, margin > 10 mm, 37\u00b0C"),
        ("\uf062-catenin, \uf067\uf064 T cells, p \uf0b9 0", "\u03b2-catenin, \u03b3\u03b4 T cells, p \u2260 0"),
        ("in\uf001ltrating \uf002ow", "infiltrating flow"),
        ("unknown \ue123", "unknown \ue123"),
    ],
)
def test_symbols(text: str, expected: str) -> None:
    assert translate_symbols(text) == expected


def test_bullets_at_the_start_of_a_line_are_not_greek_letters() -> None:
    text = "Findings:\n\uf06e Size 3 cm\r \uf0d8 Margin, \uf0b7 Node\n\uf06c-chain free"
    expected = "Findings:\n\u2022 Size 3 cm\r \u2022 Margin, \u2022 Node\n\u03bb-chain free"
    assert translate_symbols(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (private_use("Margin of 3 cm, a B"), "Margin of 3 cm, a B"),
        (f"Diagnosis: {private_use('MUCINOUS, pT3 N0')}", "Diagnosis: MUCINOUS, pT3 N0"),
        (f"{private_use('tumour')} \uf0b3 5 mm \uf0fe yes, \uf061-SMA", "tumour \u2265 5 mm \u2611 yes, \u03b1-SMA"),
        (f"{private_use('MARGIN')} {private_use('A')}", "MARGIN A"),
        ("Grade \uf06f\uf06f\uf06f\uf06f \uf0b3 5 mm", "Grade \u25a1\u25a1\u25a1\u25a1 \u2265 5 mm"),
    ],
)
def test_words_are_latin_letters_of_another_font(text: str, expected: str) -> None:
    assert translate_symbols(text) == expected
