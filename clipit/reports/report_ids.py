"""Ids of reports without an id of their own, derived from their texts."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from clipit.input_files.data_files import MISSING_VALUES
from clipit.reports.symbol_fonts import translate_symbols
from clipit.reports.textfiles import RawReport


def is_empty(text: str) -> bool:
    """Return whether a report contains neither letters nor digits, or only a marker of a missing value."""
    return not any(map(str.isalnum, text)) or text.strip() in MISSING_VALUES


def name_reports(raw_reports: Iterable[RawReport]) -> Iterator[RawReport]:
    """Name the reports without an id after their content, except empty ones."""
    repeats: Counter[str] = Counter()
    for raw in raw_reports:
        if raw.report_id is None and not is_empty(translate_symbols(raw.text)):
            content = hashlib.sha256(raw.text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            repeats[content] += 1
            name = content if repeats[content] == 1 else f"{content}-{repeats[content]}"
            yield raw._replace(report_id=name)
        else:
            yield raw
