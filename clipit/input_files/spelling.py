"""Compare names of classes, patients and annotators, ignoring differences in spelling."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

from clipit.errors import DataError, shortlist

_WHOLE = re.compile(r"^(-?)0*(\d+)(?:\.0+)?$")
"""Whole number, possibly with leading zeros (which spreadsheets drop) or as 1.0 (as in columns with empty cells)."""

_NUMBERED = re.compile(r"^(\D*[^\W\d_])(?: +|[-_.#])?0*(\d+)$")
"""Letters and one number, such as the patients P007, P-7 and P_07."""

_SEPARATOR = re.compile(r"(?<=[^\W_])(?: +|[-_])(?=[^\W_])|(?<=\d)/(?=\d)")
"""Separator within a name, such as the accession numbers S24-123, S24_123 and S24/123."""

_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
"""Leading zeros of a number within a name, such as S24-00123; not those of decimals."""

_MIDNIGHT = re.compile(r"(?<=\d\d\d\d-\d\d-\d\d)[ t]00:00:00(?:\.0+)?$")
"""Time that programs add to a date."""

_CYRILLIC = ("АВЕЅІЈКМНОРСТУХаеѕіјорсух", "ABESIJKMHOPCTYXaesijopcyx")  # noqa: RUF001
_GREEK = ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "ABEZHIKMNOPTYXo")  # noqa: RUF001
_QUOTES = ("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`\u201c\u201d\u201e\u201f\u2033", "''''''''\"\"\"\"\"")
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_LOOKALIKES = str.maketrans("".join((_CYRILLIC[0], _GREEK[0], _QUOTES[0])), _CYRILLIC[1] + _GREEK[1] + _QUOTES[1]) | {
    ord(dash): "-" for dash in _DASHES
}
"""Translation table for letters that look like Latin ones, and for typographic quotes and dashes."""


def plain_letters(name: str) -> str:
    """Replace look-alike letters, typographic quotes and dashes, and Unicode compatibility forms with plain ones."""
    return unicodedata.normalize("NFKC", name.translate(_LOOKALIKES)).translate(_LOOKALIKES)


def spelled_alike(names: Iterable[str], *, numbered: bool = True) -> list[str]:
    """List names that differ only in spelling.

    Names differ only in spelling if they are the same number, like 1, 01 and 1.0, or the same letters before the same
    number, like P01, P-1 and P_1, or are equal except for letter case, spaces, separators and leading zeros
    (S24-00123, S24_123), kinds of quotes and dashes, invisible characters, and letters that look like Latin ones.

    Args:
        names: Names to compare with each other.
        numbered: Whether names that differ in separators or leading zeros, such as P01, P-1 and P_1, are
            the same name.
    """
    names_of: dict[str, list[str]] = {}
    for name in sorted(names):
        for form in _normal_forms(name, numbered):
            names_of.setdefault(form, []).append(name)
    groups = dict.fromkeys(tuple(group) for group in names_of.values() if len(group) > 1)
    return [" and ".join(map(_quote, group)) for group in groups]


def spelled_differently(names: Iterable[str], others: Collection[str]) -> dict[str, str]:
    """Map each name that is not among `others` to one of `others` that differs only in spelling, if there is one."""
    known = set(others)
    named = {form: other for other in sorted(known, reverse=True) for form in _normal_forms(other)}
    pairs = {}
    for name in sorted(set(names) - known):
        alike = [named[form] for form in _normal_forms(name) if form in named]
        if alike:
            pairs[name] = alike[0]
    return pairs


def format_pairs(pairs: dict[str, str]) -> list[str]:
    """Format the pairs of `spelled_differently` for messages."""
    return [f"{_quote(name)} and {_quote(other)}" for name, other in pairs.items()]


def folded_name(column: str) -> str:
    """Reduce a column name to lower-case letters and digits."""
    return "".join(char for char in plain_letters(column).casefold() if char.isalnum())


def check_column_spelling(names: Mapping[str, str], present: Sequence[str], where: object, fix: str = "") -> None:
    """Reject a column such as `Split`, which would be ignored because `split` is expected.

    Args:
        names: Column names in the table, keyed by clipit's column names.
        present: All column names of the table.
        fix: What to do; "" to rename the column or to set tiles.columns.

    Raises:
        DataError: A column is missing, and another one differs only in letter case, spaces or punctuation.
    """
    for field, column in names.items():
        others = [name for name in present if name not in names.values()] if column not in present else []
        alike = [name for name in others if folded_name(name) == folded_name(column)]
        if alike:
            raise DataError(
                f"no column {column}; {shortlist([repr(name) for name in alike])} would be ignored",
                where=where,
                fix=f"{fix or f'rename the column to {column}, or set tiles.columns.{field}'}; to ignore it, give it a "
                "different name",
            )


def _normal_forms(name: str, numbered: bool = True) -> list[str]:
    """Return the normal forms of a name, as written and with Latin letters; names spelled alike share one.

    Both forms are needed, because some letters look like a Latin letter only in upper or only in lower case.
    """
    forms = dict.fromkeys((_folded(unicodedata.normalize("NFKC", name)), _folded(plain_letters(name))))
    return list(dict.fromkeys(map(_without_separators, forms)) if numbered else forms)


def _without_separators(form: str) -> str:
    return _SEPARATOR.sub("-", _LEADING_ZEROS.sub("", _NUMBERED.sub(r"\1\2", form)))


def _folded(name: str) -> str:
    visible = "".join(char for char in name if char.isprintable() or char.isspace())
    folded = " ".join(visible.casefold().strip("\"' ").split())
    return _MIDNIGHT.sub("", _WHOLE.sub(r"\1\2", folded))


def _quote(name: str) -> str:
    """Quote a name, and state the code points of its look-alike characters."""
    foreign = [char for char in name if char.translate(_LOOKALIKES) != char and plain_letters(name).isascii()]
    codes = ", ".join(f"{char} is U+{ord(char):04X}" for char in dict.fromkeys(foreign))
    return f"{name!r} ({codes})" if codes else repr(name)
