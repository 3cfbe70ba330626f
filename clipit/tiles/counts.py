"""Whether a data set on disk is the published one: its classes and its numbers of tiles."""

from collections import Counter
from dataclasses import replace

from clipit.config.run import TilesConfig
from clipit.errors import shortlist
from clipit.tiles.datasets import Count, DataSet
from clipit.tiles.source import Published, SourceTiles


def check_counts(source: SourceTiles, config: TilesConfig, row: DataSet, published: Published) -> SourceTiles:
    """Compare with the row; with `tiles.check_counts: false` a difference becomes a note.

    Raises:
        DataError: A class is missing, or there are more or fewer tiles than published; names the classes.
    """
    expected = row.counts_at.get(config.magnification, ()) if config.magnification else row.counts
    problems = [*_classes(source, row), *_numbers(source, expected)]
    if not problems:
        return source
    if config.check_counts:
        raise published.missing(
            f"not {row.title} as published: {shortlist(problems, 10)}",
            source.where,
            "complete the copy, or say tiles.check_counts: false if it was made smaller on purpose",
        )
    return replace(source, notes=(*source.notes, f"not as published: {shortlist(problems, 10)}"))


def _classes(source: SourceTiles, row: DataSet) -> list[str]:
    found = set(source.labels) - {""}
    if row.class_count is not None and len(found) != row.class_count:
        return [f"{len(found)} classes of {row.class_count}"]
    return [f"no tile of class {name}" for name in row.classes if name not in found]


def _numbers(source: SourceTiles, expected: tuple[Count, ...]) -> list[str]:
    found: Counter[tuple[str, str]] = Counter()
    for part, label in zip(source.parts, source.labels, strict=True):
        for key in {(part, label), (part, ""), ("", label), ("", "")}:
            found[key] += 1
    present = set(source.labels)
    problems = []
    for part, label, number in expected:
        count = found[part, label]
        if count != number and (not label or label in present):  # a missing class is said already
            name = " ".join(filter(None, (part, label))) or "tiles"
            problems.append(f"{name} {count} instead of {number} ({'short by' if count < number else 'over by'} "
                            f"{abs(number - count)})")  # fmt: skip
    return problems
