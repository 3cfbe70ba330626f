"""Read a report corpus from text files, folders, zips, tables, TCGA-Reports or Hugging Face data sets."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clipit.config.run import ReportsConfig
from clipit.config.shipped import data_card
from clipit.errors import ConfigError, DataError, counted, is_limit, printable, shortlist
from clipit.input_files.data_files import (
    NO_CLASSES,
    hub_id,
    is_saved_dataset,
    is_whole,
    missing_markers,
    without_decimals,
)
from clipit.input_files.folder_files import list_files
from clipit.input_files.git_lfs import PULL, check_pointer
from clipit.input_files.mangled_names import check_labels, check_rounded, placeholder_notes
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.zip_files import check_uncompressed
from clipit.reports.barcodes import add_patients
from clipit.reports.encodings import CONVERT, DOCUMENTS, JSON, POINTER, describe_faults, document_kind
from clipit.reports.metadata import Metadata, check_dates, read_metadata
from clipit.reports.report_ids import is_empty, name_reports
from clipit.reports.report_tables import TABLE_FORMATS, read_huggingface_reports, read_table_file
from clipit.reports.symbol_fonts import translate_symbols
from clipit.reports.tcga import read_tcga
from clipit.reports.textfiles import RawReport, is_text, read_lines, read_texts

_FORMAT_OF_SUFFIX = {".txt": "lines", ".zip": "texts", **TABLE_FORMATS}
_DATA_FILES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")  # files of Hugging Face data sets
_SHOWN_PROBLEMS = 5
_TCGA_PAGE = "https://github.com/tatonetti-lab/tcga-path-reports"


@dataclass(frozen=True)
class Report:
    """One pathology report."""

    report_id: str
    text: str
    organ: str | None = None
    group: str | None = None
    label: str | None = None
    """Report-level label; snippets do not depend on it."""
    date: str | None = None
    """ISO 8601 date of the report; snippets do not depend on it."""


@dataclass(frozen=True)
class Reports:
    """All non-empty reports of a corpus, in the order of the source."""

    reports: tuple[Report, ...]
    problems: tuple[str, ...]
    """Descriptions of skipped files and reports, one line each."""
    source: str
    """Path from which the reports were read, or `hf:owner/name`."""
    empty: int = 0
    """Number of empty reports (without letters or digits), which are listed in `problems`."""
    notes: tuple[str, ...] = ()
    """Sources of groups, organs and labels, one line each."""

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of all ids, texts, organs and groups: 16 hexadecimal digits of their SHA-256."""
        digest = hashlib.sha256()
        for report in self.reports:
            line = json.dumps([report.report_id, report.text, report.organ, report.group], ensure_ascii=True)
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()[:16]


def read_reports(config: ReportsConfig) -> Reports:
    """Read all reports from the configured source.

    The id of a report is taken from the id column or, in a folder or zip, from the file path without .txt. Otherwise it
    is the first 12 hexadecimal digits of the text's SHA-256, with "-2", "-3", ... appended for repeated texts.

    Raises:
        DataError: The source or a column is missing, text cannot be decoded, a row is malformed, an id is repeated, a
            date is invalid, or there are no reports.
        ConfigError: The encoding is unknown, or an option does not apply to the source.
    """
    path = Path(config.path).expanduser()
    suffix = path.suffix.lower()
    if suffix in DOCUMENTS and path.is_file() and (config.format == "auto" or suffix in (".docx", ".odt", ".pdf")):
        raise DataError(f"{suffix} files are not plain text", where=path, fix=CONVERT)
    check_uncompressed(path)
    format_name = _detect_format(config, path)
    _check_options(config, format_name, path)
    problems: list[str] = []
    notes: list[str] = []
    metadata = read_metadata(config)
    source_config = config if metadata is None else metadata.for_reports(config)
    if metadata is not None and format_name in ("lines", "texts"):
        _check_columns(config, metadata)
    try:
        raw_reports: Iterable[RawReport] = _read_source(source_config, format_name, path, problems)
        if config.tcga_barcodes and format_name != "tcga":
            raw_reports = add_patients(raw_reports, source_config, notes, problems)
        raw_reports = name_reports(raw_reports)
        if metadata is not None:
            raw_reports = metadata.add([*raw_reports], config, format_name, notes, problems)
        reports, empty = _select_reports(raw_reports, problems, from_files=format_name in ("texts", "tcga"))
    except PermissionError:
        raise
    except OSError as error:
        if is_limit(error):
            raise
        raise DataError(
            f"cannot read this file: {error.strerror or error}", where=error.filename or path, fix="copy it again"
        ) from error
    if not reports:
        listed = "".join(f"\n  {printable(problem)}" for problem in problems[:_SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DataError(
            f"empty corpus: no report contains text ({counted(empty, 'empty report')}; read in the format "
            f"{format_name}){listed}{more}",
            where=config.path,
            fix="check reports.path and reports.format"
            + ("; only .txt files are read" if format_name == "texts" else "; or correct reports.text_column"),
        )
    problems += describe_faults([report.text for report in reports])
    reports = _select_organs(_missing_to_none(reports, config, problems), config, problems)
    check_dates([report.date for report in reports], config.path)
    return Reports(tuple(reports), tuple(problems), config.path, empty, tuple(notes))


def _check_options(config: ReportsConfig, format_name: str, path: Path) -> None:
    """Reject options that the format would ignore; a metadata table may contain organs, groups, labels and dates.

    Raises:
        ConfigError: An option does not apply.
    """
    is_folder_of_tables = format_name == "huggingface" and path.is_dir() and not is_saved_dataset(path)
    is_csv = format_name in ("csv", "tsv", "xlsx") or is_folder_of_tables
    is_tcga_csv = format_name == "tcga" and path.suffix.lower() == ".csv"
    is_table = format_name not in ("lines", "texts", "tcga")
    described = config.metadata is not None
    applies = {
        "columns": (is_csv, "csv, tsv and xlsx only"),
        "sheet": (format_name == "xlsx", "xlsx only"),
        "text_column": (is_table or is_tcga_csv, "tables only"),
        "id_column": (is_table, "tables only"),
        "organ_column": (is_table or described, "tables only"),
        "group_column": (is_table or described, "tables only"),
        "label_column": (is_table or is_tcga_csv or described, "tables only"),
        "date_column": (is_table or is_tcga_csv or described, "tables only"),
        "metadata_id_column": (described, "only with reports.metadata"),
        "metadata_group_column": (described, "only with reports.metadata"),
        "metadata_sheet": (described, "only with reports.metadata"),
        "split": (format_name == "huggingface", "Hugging Face data sets only"),
    }
    ignored = [
        f"reports.{option} ({note})"
        for option, (does_apply, note) in applies.items()
        if not does_apply and getattr(config, option) != ReportsConfig.model_fields[option].default
    ]
    if ignored and (path.exists() or hub_id(config.path) is not None):  # _read_source reports a missing path
        raise ConfigError(
            f"options that do not apply to reports in the format {format_name}: {', '.join(ignored)}",
            where=config.path,
            fix="remove these options (a column is removed with null), or correct reports.path or reports.format",
        )


def _check_columns(config: ReportsConfig, metadata: Metadata) -> None:
    """Reject configured columns that the metadata table lacks, for reports that have no columns themselves.

    Raises:
        DataError: A column is missing.
    """
    fields = ("organ", "label", "date", *(["group"] if metadata.by_report else []))
    columns = {field: getattr(config, f"{field}_column") for field in fields if field not in metadata.fields}
    missing = [f"{column} (reports.{field}_column)" for field, column in columns.items() if column is not None]
    if missing:
        raise DataError(
            f"the metadata table does not have these columns: {', '.join(missing)}",
            where=metadata.path,
            fix="correct their names in the configuration or in the table",
        )


def _detect_format(config: ReportsConfig, path: Path) -> str:
    if config.format != "auto":
        return config.format
    if hub_id(config.path) is not None:
        return "huggingface"
    if path.is_dir():
        if is_saved_dataset(path):
            return "huggingface"
        listed = list_files(path)
        names = [file.relative_to(path).as_posix() for file in (*listed.files, *listed.dangling, *listed.undecodable)]
        is_tables = any(name.lower().endswith(_DATA_FILES) for name in names) and not any(map(is_text, names))
        return "huggingface" if is_tables else "texts"
    if path.suffix.lower() in _FORMAT_OF_SUFFIX:
        return _FORMAT_OF_SUFFIX[path.suffix.lower()]
    if path.is_file():
        raise DataError(
            f"cannot infer the format of this report file from its suffix {path.suffix!r}",
            where=path,
            fix="save it as .xlsx or .csv"
            if path.suffix.lower() in (".xls", ".xlsm", ".xlsb", ".ods")
            else "set reports.format to lines, texts, csv, tsv, xlsx, jsonl or parquet",
        )
    return "lines"


def check_report_path(config: ReportsConfig) -> None:
    """Check that the reports exist, unless they are on the Hugging Face Hub.

    Raises:
        DataError: There is no such file or folder.
    """
    path = Path(config.path).expanduser()
    if hub_id(config.path) is not None or path.exists():
        return
    fix = "correct reports.path (--reports.path=...); a data set on the Hugging Face Hub is hf:owner/name"
    if config.format == "tcga":
        fix = f"download TCGA-Reports from {_TCGA_PAGE} (see {data_card('tcga_reports')}), or use your own reports"
    raise DataError(f"no such report file or folder; {similar_names(config.path)}", where=path, fix=fix)


def _read_source(config: ReportsConfig, format_name: str, path: Path, problems: list[str]) -> Iterator[RawReport]:
    if format_name == "huggingface":
        return read_huggingface_reports(config, problems)
    check_report_path(config)
    if format_name not in ("texts", "tcga", "parquet") and path.is_dir():
        raise DataError(
            f"reports.format={format_name} expects a file, but the path is a folder",
            where=path,
            fix="set reports.path to the file",
        )
    if path.is_file():
        check_pointer(path)
    match format_name:
        case "lines":
            return read_lines(path, config.encoding, problems)
        case "texts":
            return read_texts(path, config.encoding, problems)
        case "tcga":
            return read_tcga(path, config, problems)
        case _:
            return read_table_file(path, config, format_name, problems)


def _select_reports(
    raw_reports: Iterable[RawReport], problems: list[str], *, from_files: bool
) -> tuple[list[Report], int]:
    """Check ids and drop empty reports; return the remaining reports and the number of empty reports.

    Reports with null characters are listed in `problems`.

    Args:
        from_files: Whether the ids are names of files.

    Raises:
        DataError: Two reports have the same id, or a report is a document in a different format (RTF, PDF).
    """
    reports: list[Report] = []
    locations: dict[str, str] = {}
    empty = 0
    for raw in raw_reports:
        if nulls := raw.text.count("\0"):
            problems.append(
                f"{raw.where}: this report contains {counted(nulls, 'null character')}, which a damaged disk or an "
                "incomplete copy leaves in place of text; compare the file with its original"
            )
        text = translate_symbols(raw.text)
        if raw.report_id is None or is_empty(text):
            empty += 1
            problems.append(f"{raw.where}: empty report")
            continue
        if document := document_kind(raw.text):
            raise DataError(
                f"this report is {document}, not plain text",
                where=raw.where,
                fix="set reports.path to the file, and reports.format to jsonl if it has one object per report"
                if document == JSON
                else (PULL if document == POINTER else CONVERT),
            )
        name = raw.report_id
        if name in locations:
            raise DataError(
                f"two reports have the id {name!r}",
                where=f"{locations[name]} and {raw.where}",
                fix="rename one of the files"
                if from_files
                else "make the ids unique, or set reports.group_column to this column and remove reports.id_column",
            )
        locations[name] = raw.where
        reports.append(Report(name, text, raw.organ, raw.group, raw.label, raw.date))
    where = list(locations.values())
    check_rounded([report.report_id for report in reports], "id", where.__getitem__, None)
    check_rounded([report.group for report in reports], "group", where.__getitem__, None)
    check_labels([report.label for report in reports], "label", where.__getitem__, None)
    return reports, empty


def _missing_to_none(reports: list[Report], config: ReportsConfig, problems: list[str]) -> list[Report]:
    """Replace markers of missing organs, groups, labels and dates with None, and count them in `problems`."""
    for key in ("organ", "group", "label", "date"):
        values = [getattr(report, key) for report in reports]
        resolved, note = _resolve_column(values, f"reports.{key}_column", config.path)
        if key == "group":
            resolved = without_decimals(resolved)
            problems += placeholder_notes(Counter(value for value in resolved if value), "report")
        if note:
            problems.append(note)
        if resolved != values:
            changes: list[dict[str, Any]] = [{key: value} for value in resolved]
            reports = [replace(report, **change) for report, change in zip(reports, changes, strict=True)]
    return reports


def _select_organs(reports: list[Report], config: ReportsConfig, problems: list[str]) -> list[Report]:
    """Keep only reports of the configured organs, ignoring case.

    Raises:
        DataError: A configured organ does not occur in the corpus; the message lists the organs that do.
    """
    if not config.organs:
        return reports
    selected = {_normalise_organ(organ) for organ in config.organs}
    organs = {report.organ for report in reports}
    known = {_normalise_organ(organ) for organ in organs}
    absent = [organ for organ in config.organs if _normalise_organ(organ) not in known]
    if absent:
        listed = shortlist(sorted(organ for organ in organs if organ is not None), 40)
        raise DataError(
            f"no report has the organ {shortlist(absent)}; organs in the corpus: {listed or 'unknown'}",
            where=config.path,
            fix="correct reports.organs, or provide the organs with reports.organ_column (tables) or "
            "reports.cancer_types (tcga)",
        )
    kept = [report for report in reports if _normalise_organ(report.organ) in selected]
    if len(kept) < len(reports):
        problems.append(
            f"dropped {counted(len(reports) - len(kept), 'report')} with other or unknown organs (reports.organs)"
        )
    return kept


def _normalise_organ(organ: str | None) -> str | None:
    return None if organ is None else organ.strip().lower()


def _resolve_column(values: Sequence[str | None], key: str, where: str) -> tuple[list[str | None], str]:
    """Replace markers of missing values, such as NA, None and -1, with None.

    Args:
        values: Cells of a column, None where empty.

    Returns:
        The values, and a note that counts the replaced values; "" if none were replaced.

    Raises:
        DataError: It is unclear whether -1 marks missing values, because the column has only one other integer.
    """
    counts = Counter(value for value in values if value is not None)
    markers = missing_markers(counts)
    no_class = NO_CLASSES & set(counts)
    others = set(counts) - markers - no_class
    if no_class and all(map(is_whole, others)):
        if len(others) == 1:
            raise DataError(
                f"the values are {shortlist([*sorted(no_class), *others])}: -1 may be a value or mark missing values",
                where=f"{where}, {key}",
                fix="replace the numbers with names, or leave cells without a value empty",
            )
        markers |= no_class
    if not markers:
        return list(values), ""
    listed = shortlist([f"{marker}: {counts[marker]}" for marker in sorted(markers)])
    note = f"{counted(sum(counts[marker] for marker in markers), 'report')} without a value for {key} ({listed})"
    return [None if value in markers else value for value in values], note
