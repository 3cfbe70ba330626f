"""Account of a snippet set: how many reports were read, what each filter dropped, and what was kept."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_BINS = 8
_EXAMPLES = 3
_SHOWN_PROBLEMS = 5


@dataclass
class Dropped:
    """Snippets that one filter dropped."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """The first few texts."""

    def add(self, texts: Sequence[str]) -> None:
        """Count texts, and keep the first few as examples."""
        self.count += len(texts)
        self.examples.extend(texts[: _EXAMPLES - len(self.examples)])


@dataclass(frozen=True)
class Account:
    """Counts from reports to snippets, written to `account.json` and printed."""

    source: str
    reports: int
    """Number of reports with text."""
    empty_reports: int
    pieces: int
    """Number of sentences and parts of sentences, before merging and filtering."""
    split_sentences: int
    """Number of sentences over the budget, which were split into parts."""
    duplicates: int
    """Number of duplicate pieces that were merged."""
    dropped: dict[str, Dropped]
    """Filter -> snippets that it dropped, in the order of application."""
    kept: int
    sections: dict[str, int]
    """Section -> number of pieces, before merging and filtering."""
    budget: int
    tokens: dict[str, int]
    """Range of token counts (special tokens included) -> number of kept snippets."""
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
        return asdict(self)

    def text(self) -> str:
        """Format the account for printing."""
        lines = [
            f"reports    {self.reports:>9,}  with text, {self.empty_reports:,} empty; from {self.source}",
            f"pieces     {self.pieces:>9,}  {self.split_sentences:,} sentences over {self.budget} tokens were split",
            f"merged     {self.duplicates:>9,}  exact duplicates; all their sources are kept",
        ]
        for name, dropped in self.dropped.items():
            lines.append(f"dropped    {dropped.count:>9,}  by {name}")
            lines += [f"{'':23}e.g. {_shorten(example)!r}" for example in dropped.examples]
        lines.append(f"snippets   {self.kept:>9,}  kept")
        largest = max(self.tokens.values(), default=0)
        lines.append(f"tokens (special tokens included; budget {self.budget})")
        lines += [f"  {span:>9} {n:>9,}  {'#' * round(40 * n / max(largest, 1))}" for span, n in self.tokens.items()]
        if self.sections:
            lines.append("sections   " + ", ".join(f"{name} {n:,}" for name, n in self.sections.items()))
        lines.append(f"problems   {len(self.problems):>9,}")
        lines += [f"  {problem}" for problem in self.problems[:_SHOWN_PROBLEMS]]
        if len(self.problems) > _SHOWN_PROBLEMS:
            lines.append(f"  and {len(self.problems) - _SHOWN_PROBLEMS:,} more")
        return "\n".join(lines)


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
