"""What is checked of the header of any table, of tiles or of reports."""

from collections.abc import Sequence

from clipit.errors import DataError, explain, shortlist

_DELIMITERS = {";": "';'", "\t": "tabs", ",": "','"}


def check_names(names: Sequence[str], where: object) -> None:
    """Refuse two columns of one name, spaces around it aside; columns without a name do not count.

    Raises:
        DataError: A name stands there twice.
    """
    stripped = [name.strip() for name in names]
    doubled = sorted({name for name in stripped if name and stripped.count(name) > 1})
    if doubled:
        raise DataError(explain(f"two columns have one name: {shortlist(doubled)}", where=where, fix="rename one"))


def delimiter_hint(names: Sequence[str]) -> str:
    """What to do about a header that was taken for one column but holds another delimiter; empty if it is not so."""
    found = [word for mark, word in _DELIMITERS.items() if len(names) == 1 and mark in names[0]]
    return f"the header is one column that holds {found[0]}: save the table with commas, or as .tsv" if found else ""
