"""One row of a report source, before it becomes a report; and the checks that all tables share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipit.config.run import ReportsConfig
from clipit.errors import DataError, explain


class Row(NamedTuple):
    """A report as its source gives it."""

    where: str
    """File and row, for messages."""
    text: str
    report_id: str | None = None
    organ: str | None = None
    group: str | None = None
    label: str | None = None


def needed_columns(config: ReportsConfig) -> dict[str, str]:
    """Key of the configuration -> column, for those that are configured."""
    keys = ("text_column", "id_column", "organ_column", "group_column", "label_column")
    return {key: getattr(config, key) for key in keys if getattr(config, key) is not None}


def check_columns(config: ReportsConfig, columns: Sequence[str], where: object, hint: str = "") -> None:
    """Compare the configured columns with those of the table; `hint` says what to do when they are not there.

    Raises:
        DataError: One of them is not there; names the columns that are.
    """
    for key, column in needed_columns(config).items():
        if column not in columns:
            raise DataError(
                explain(
                    f"no column {column!r}; the columns are: {', '.join(map(repr, columns)) or 'none'}",
                    where=where,
                    fix=hint or f"set reports.{key} to one of them (--reports.{key}=...)",
                )
            )


def _plain(value: Any) -> str | None:
    """A cell of an id, organ or group column as a string; None if it is empty."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).strip() or None


def table_row(config: ReportsConfig, cells: Mapping[str, Any], where: str) -> Row:
    """A row from the cells of a table.

    Raises:
        DataError: The text is no text, or the id is missing.
    """
    text = cells.get(config.text_column)
    if text is None or (isinstance(text, float) and math.isnan(text)):
        text = ""
    if not isinstance(text, str):
        raise DataError(
            explain(
                f"column {config.text_column!r} holds {type(text).__name__}, not text",
                where=where,
                fix="set reports.text_column to the column with the reports' text",
            )
        )
    report_id = _plain(cells.get(config.id_column)) if config.id_column else None
    if config.id_column and report_id is None:
        raise DataError(
            explain(
                f"no id in column {config.id_column!r}", where=where, fix="fill it in, or leave reports.id_column out"
            )
        )
    organ = _plain(cells.get(config.organ_column)) if config.organ_column else None
    group = _plain(cells.get(config.group_column)) if config.group_column else None
    label = _plain(cells.get(config.label_column)) if config.label_column else None
    return Row(where, text, report_id, organ, group, label)
