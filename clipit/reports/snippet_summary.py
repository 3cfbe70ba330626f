"""Summary of a snippet set: the number of reports, the snippets that each filter dropped, and the kept snippets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipit.errors import counted, printable
from clipit.output_files.artifacts import REBUILD, read_json, reading
from clipit.reports.readers import Reports

_BINS = 8
_MAX_EXAMPLES = 3
_MAX_PROBLEMS = 5
_STORED_NAMES = {"repaired_words": "mended"}  # fields whose key in `account.json` differs from their name


@dataclass
class Tally:
    """Number of snippets or lines that one step dropped or kept, with examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """The first few texts."""

    def add(self, texts: Sequence[str]) -> None:
        """Count texts, and keep the first few as examples."""
        self.count += len(texts)
        self.examples.extend(texts[: _MAX_EXAMPLES - len(self.examples)])


@dataclass(frozen=True)
class SnippetSummary:
    """Counts at each step from reports to snippets, stored in `account.json`.

    The counts depend only on the reports, the tokeniser, the token budget and the filters. The source of the reports
    and the skipped files and rows are part of `Reports`; `text` adds them when the summary is printed.
    """

    reports: int
    """Number of reports with text."""
    pieces: int
    """Number of sentences and sentence parts, before merging and filtering."""
    split_sentences: int
    """Number of sentences over the budget, which were split into parts."""
    duplicates: int
    """Number of duplicate pieces that were merged."""
    dropped: dict[str, Tally]
    """Filter -> dropped snippets, in the order of the filters."""
    kept: int
    sections: dict[str, int]
    """Section -> number of pieces, before merging and filtering."""
    budget: int
    tokens: dict[str, int]
    """Range of token counts (including special tokens) -> number of kept snippets."""
    long_words: int = 0
    """Number of words of more than 500 characters, which were dropped before splitting."""
    long_word_reports: tuple[str, ...] = ()
    """Descriptions of the reports with over-long words, one line each."""
    kept_short: Tally | None = None
    """Short snippets that were kept because they name a diagnosis."""
    section_reports: dict[str, int] | None = None
    """Section -> number of reports with text in it."""
    repaired_words: dict[str, int] | None = None
    """Repaired word, such as "intesFnal -> intestinal", mapped to its number of occurrences; most frequent first."""
    page_lines: Tally | None = None
    """Page numbers, headers and footers dropped at page breaks; None if no lines were dropped."""
    page_line_reports: int | None = None
    """Number of reports in which page lines were dropped; None if there are none."""

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary without the values that are None."""
        return {_STORED_NAMES.get(key, key): value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SnippetSummary":
        """Restore a summary from the content of `account.json`."""
        stored_names = {key: _STORED_NAMES.get(key, key) for key in cls.__dataclass_fields__}
        known = {key: values[name] for key, name in stored_names.items() if name in values}
        dropped = {name: Tally(**tally) for name, tally in values["dropped"].items()}
        long_word_reports = tuple(values.get("long_word_reports", ()))
        tallies = {key: Tally(**values[key]) for key in ("kept_short", "page_lines") if key in values}
        return cls(**{**known, "dropped": dropped, "long_word_reports": long_word_reports, **tallies})

    def text(self, reports: Reports) -> str:
        """Format the summary for printing, with the source of the reports and the problems found in them."""
        lines = [
            f"reports    {self.reports:>9,}  with text, {reports.empty:,} empty; from {reports.source}",
            *(f"{'':23}{note}" for note in reports.notes),
            *self._format_repaired(),
            *self._format_page_lines(),
            f"pieces     {self.pieces:>9,}  {counted(self.split_sentences, 'sentence')} over {self.budget} tokens "
            "split",
            f"merged     {self.duplicates:>9,}  exact duplicates; all their sources are kept",
        ]
        for name, dropped in self.dropped.items():
            lines.append(f"dropped    {dropped.count:>9,}  by {name}")
            lines += [f"{'':23}e.g. {_shorten(example)!r}" for example in dropped.examples]
        if self.kept_short is not None and self.kept_short.count:
            lines.append(f"rescued    {self.kept_short.count:>9,}  short diagnoses kept despite the filters")
            lines += [f"{'':23}e.g. {_shorten(example)!r}" for example in self.kept_short.examples]
        lines.append(f"snippets   {self.kept:>9,}  kept")
        largest = max(self.tokens.values(), default=0)
        lines.append(f"tokens (including special tokens; budget {self.budget})")
        lines += [f"  {span:>9} {n:>9,}  {'#' * round(40 * n / max(largest, 1))}" for span, n in self.tokens.items()]
        if self.sections:
            unit = "(pieces)" if self.section_reports is None else "reports (pieces):"
            lines.append(f"sections   {unit} {', '.join(map(self._format_section, self.sections))}")
        if self.long_words:
            lines.append(f"long words {self.long_words:>9,}  dropped because they have more than 500 characters")
            lines += _first_problems(self.long_word_reports)
        lines.append(f"problems   {len(reports.problems):>9,}")
        return "\n".join([*lines, *_first_problems(reports.problems)])

    def _format_section(self, name: str) -> str:
        pieces = f"{self.sections[name]:,}"
        return (
            f"{name} {pieces}" if self.section_reports is None else f"{name} {self.section_reports[name]:,} ({pieces})"
        )

    def _format_repaired(self) -> list[str]:
        if not self.repaired_words:
            return []
        examples = [
            f"{'':23}e.g. {printable(pair)} ({count:,})"
            for pair, count in [*self.repaired_words.items()][:_MAX_EXAMPLES]
        ]
        return [f"repaired   {sum(self.repaired_words.values()):>9,}  words with a damaged ligature", *examples]

    def _format_page_lines(self) -> list[str]:
        if self.page_lines is None:
            return []
        examples = [f"{'':23}e.g. {_shorten(printable(line))!r}" for line in self.page_lines.examples]
        where = f"page numbers, headers and footers dropped in {counted(self.page_line_reports or 0, 'report')}"
        return [f"page lines {self.page_lines.count:>9,}  {where}", *examples]


def read_summary(path: Path) -> SnippetSummary:
    """Read `account.json`.

    Raises:
        ArtifactError: The file is damaged.
    """
    values = read_json(path, REBUILD)
    with reading(path):
        return SnippetSummary.from_dict(values)


def _first_problems(problems: Sequence[str]) -> list[str]:
    lines = [f"  {printable(problem)}" for problem in problems[:_MAX_PROBLEMS]]
    return lines if len(problems) <= _MAX_PROBLEMS else [*lines, f"  and {len(problems) - _MAX_PROBLEMS:,} more"]


def _shorten(text: str, limit: int = 90) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def token_histogram(n_tokens: Sequence[int], budget: int) -> dict[str, int]:
    """Count snippets per range of tokens, in at most 8 ranges from 1 to the budget."""
    width = -(-budget // _BINS)
    spans = {f"{low}-{min(low + width - 1, budget)}": 0 for low in range(1, budget + 1, width)}
    names = list(spans)
    for n in n_tokens:
        spans[names[(n - 1) // width]] += 1
    return spans
