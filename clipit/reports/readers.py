"""Read reports from text files, folders, zips, tables and Hugging Face data sets."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipit.config.run import ReportsConfig
from clipit.errors import DataError, shortlist
from clipit.reports.tables import is_dataset_folder, read_csv, read_huggingface, read_jsonl, read_parquet
from clipit.reports.tcga import read_tcga
from clipit.reports.textfiles import Row, read_lines, read_texts

_BY_SUFFIX = {
    ".txt": "lines", ".zip": "texts", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet",
}  # fmt: skip


_HUB_ID = re.compile(r"[\w-][\w.-]*(?:/[\w.-]+)?")  # anything else that is not there is a missing file


@dataclass(frozen=True)
class Report:
    """One document."""

    report_id: str
    text: str
    organ: str | None = None
    group: str | None = None
    label: str | None = None
    """Of the whole report; no snippet depends on it."""


@dataclass(frozen=True)
class Reports:
    """All reports of a corpus that have text, in the order of the source."""

    reports: tuple[Report, ...]
    problems: tuple[str, ...]
    """What was passed over, one line each."""
    source: str
    """Where they were read from."""
    empty: int = 0
    """Reports without a letter or digit; they are listed among the problems."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for all ids, texts, organs and groups."""
        digest = hashlib.sha256()
        for report in self.reports:
            line = json.dumps([report.report_id, report.text, report.organ, report.group], ensure_ascii=True)
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()[:16]


def _format(config: ReportsConfig, path: Path) -> str:
    """The configured format, or the one that the path's suffix or content says."""
    if config.format != "auto":
        return config.format
    if path.is_dir():
        if is_dataset_folder(path):
            return "huggingface"
        if any(path.rglob("*.txt")):
            return "texts"
        return "huggingface" if any(path.rglob("*.*")) else "texts"
    if path.suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[path.suffix.lower()]
    if path.is_file():
        raise DataError(
            f"cannot tell the format of this report file from its suffix {path.suffix!r}",
            where=path,
            fix="set reports.format to lines, texts, csv, tsv, jsonl or parquet",
        )
    return "huggingface" if _HUB_ID.fullmatch(config.path) else "lines"


def _rows(config: ReportsConfig, kind: str, path: Path, problems: list[str]) -> Iterator[Row]:
    """Rows of the source, one by one."""
    if kind == "huggingface":
        return read_huggingface(config)
    if not path.exists():
        raise DataError(
            "no such file or folder of reports", where=path, fix="correct reports.path (--reports.path=...)"
        )
    if kind not in ("texts", "tcga") and path.is_dir():
        raise DataError(
            f"a folder was given where reports.format {kind} reads one file", where=path, fix="give the file"
        )
    match kind:
        case "lines":
            return read_lines(path, config.encoding)
        case "texts":
            return read_texts(path, config.encoding, problems)
        case "csv":
            return read_csv(path, config, ",")
        case "tsv":
            return read_csv(path, config, "\t")
        case "tcga":
            return read_tcga(path, config, problems)
        case "jsonl":
            return read_jsonl(path, config)
        case _:
            return read_parquet(path, config)


def _content_id(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _collect(rows: Iterable[Row], problems: list[str]) -> tuple[list[Report], int]:
    """Give every report its id, pass over empty ones, and find ids given twice."""
    reports: list[Report] = []
    seen: dict[str, str] = {}  # id -> where
    repeats: Counter[str] = Counter()
    empty = 0
    for row in rows:
        if not any(char.isalnum() for char in row.text):
            empty += 1
            problems.append(f"{row.where}: empty report")
            continue
        name = row.report_id
        if name is None:
            content = _content_id(row.text)
            repeats[content] += 1
            name = content if repeats[content] == 1 else f"{content}-{repeats[content]}"
        if name in seen:
            raise DataError(
                f"two reports have the id {name!r}",
                where=f"{seen[name]} and {row.where}",
                fix="make the ids unique, or set reports.group_column to this column and leave id_column out",
            )
        seen[name] = row.where
        reports.append(Report(name, row.text, row.organ, row.group, row.label))
    return reports, empty


def _of_organs(reports: list[Report], config: ReportsConfig, problems: list[str]) -> list[Report]:
    """Only the reports of the organs that are asked for.

    Raises:
        DataError: One of them does not occur; names those that do.
    """
    if not config.organs:
        return reports
    counts = Counter(report.organ for report in reports)
    absent = [organ for organ in config.organs if organ not in counts]
    if absent:
        known = sorted(organ for organ in counts if organ is not None)
        raise DataError(
            f"no report of {shortlist(absent)}; the organs are: {shortlist(known, 40) or 'not known'}",
            where=config.path,
            fix="correct reports.organs, or say where organs stand: reports.organ_column (tables) or "
            "reports.cancer_types (tcga)",
        )
    kept = [report for report in reports if report.organ in config.organs]
    if len(kept) < len(reports):
        problems.append(f"{len(reports) - len(kept)} reports of other or unknown organs left out (reports.organs)")
    return kept


def read_reports(config: ReportsConfig) -> Reports:
    """Read all reports of the configured source.

    The id of a report is its id column, its file's path in a folder or zip (without .txt), or else 12
    hexadecimal digits of its text's SHA-256, with "-2", "-3" ... for repeats.

    Raises:
        DataError: Missing source, wrong column, undecodable text, a broken row, an id twice, or no report at all.
        ConfigError: An unknown encoding.
    """
    path = Path(config.path).expanduser()
    kind = _format(config, path)
    problems: list[str] = []
    reports, empty = _collect(_rows(config, kind, path, problems), problems)
    reports = _of_organs(reports, config, problems)
    if not reports:
        raise DataError(
            f"empty corpus: no report with text ({empty} empty ones), read as {kind}",
            where=config.path,
            fix="check reports.path, reports.format and reports.text_column",
        )
    return Reports(tuple(reports), tuple(problems), config.path, empty)
