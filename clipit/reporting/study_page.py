"""Rows, provenance and pages of studies."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import pyarrow as pa

from clipit.config.run import RunConfig
from clipit.output_files.leftovers import delete_leftovers
from clipit.output_files.whole_files import write_parquet, write_text
from clipit.prompts.prompt_set import PromptSet
from clipit.reporting.html import Figure, PageSection, Part, Rows, Table, Text, facts_table, page
from clipit.reporting.page_note import compose_note
from clipit.reporting.tables import UNDEFINED, markdown_line, markdown_table, markdown_text
from clipit.versions import command_line, git_commit, versions

PROVENANCE = (
    "subject", "split", "classes", "metric", "tiles_fingerprint", "pixels", "preprocess", "model", "fingerprint",
    "seed", "prompts", "prompts_hash", "vlm", "vlm_fingerprint", "index", "commit", "versions", "command",
)  # fmt: skip
"""Columns of every row of every study. The columns for prompts, VLM and index are empty if these were not used;
`commit` is empty outside a Git checkout."""
MAX_TABLE_ROWS = 40
"""Maximum number of rows of a plain table; longer tables are collapsed on the page and get a filter box."""


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """Row of a study's table; mappings are expanded to one column per key.

    Fields that are None are filled from the provenance of the model and the study.

    Attributes:
        subject: Name of the evaluated model.
        seed: Seed, if it differs from that of the study.
        index: Fingerprint of the index whose mean was subtracted from the text embeddings.
        tiles_fingerprint: Fingerprint of the tiles, if they differ from those of the study.
    """

    subject: str
    metric: str | None = None
    seed: int | None = None
    prompts: str | None = None
    prompts_hash: str | None = None
    index: str | None = None
    tiles_fingerprint: str | None = None


def collect_provenance() -> dict[str, str]:
    """Return the Git commit, command line and package versions of this process."""
    packages = json.dumps(versions(), sort_keys=True)
    return {"commit": git_commit(), "command": command_line(), "versions": packages}


class PromptColumns(TypedDict):
    """Columns that identify a prompt set."""

    prompts: str | None
    prompts_hash: str | None


def prompt_columns(prompts: PromptSet | None) -> PromptColumns:
    """Return the name and hash of a prompt set as columns; both are None without prompts."""
    return {"prompts": prompts.name if prompts else None, "prompts_hash": prompts.hash if prompts else None}


def describe_model(facts: Mapping[str, object]) -> str:
    """Describe the provenance of a model in one line."""
    identity = f"{facts['model']}, fingerprint {facts['fingerprint']}"
    return f"{identity}, {facts['pixels']} pixels, preprocessing {facts['preprocess']}"


def add_provenance(
    rows: Sequence[StudyRow], study: Mapping[str, object], models: Mapping[str, Mapping[str, object]]
) -> pd.DataFrame:
    """Build a table with the full provenance in every row.

    Values of the row take precedence over those of its model, and those of the model over those of the study. Missing
    values are None.

    Args:
        rows: Rows of one type.
        study: Values that are the same for the whole study, by column.
        models: Provenance of each model, by its name (`subject`).
    """
    flat = [_flatten(row) for row in rows]
    names = (*PROVENANCE, *study, *(name for facts in (*models.values(), *flat) for name in facts))
    columns = list(dict.fromkeys(names))
    records = []
    for row in flat:
        defined = {name: value for name, value in row.items() if value is not None}
        values = {**study, **models[str(row["subject"])], **defined}
        records.append([values.get(name) for name in columns])
    return pd.DataFrame(records, columns=columns, dtype=object)


def _flatten(row: StudyRow) -> dict[str, object]:
    columns: dict[str, object] = {}
    for name, value in vars(row).items():
        columns |= value if isinstance(value, Mapping) else {name: value}
    return columns


def iter_rows(frame: pd.DataFrame) -> Iterator[Any]:
    """Iterate over rows as named tuples with fields of type `Any` (pandas-stubs types them as a union)."""
    yield from frame.itertuples()


def iter_groups(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Iterate over groups with the same values in the columns `by`, in order of first appearance."""
    yield from frame.groupby(list(by), sort=False, dropna=False)


def pivot_cells(
    frame: pd.DataFrame, index: Sequence[str], column: str, format_cell: Callable[[Any], str]
) -> tuple[list[Any], list[list[object]]]:
    """Arrange formatted rows as a table, in order of first appearance.

    Args:
        frame: Table with at most one row per combination of `index` and `column`.
        index: Columns whose values are the first cells of each line.
        column: Column whose distinct values become headings.
        format_cell: Function that formats a row (a named tuple) as a cell; cells of missing rows are empty.

    Returns:
        Headings and lines of the table.
    """
    headings = list(dict.fromkeys(frame[column]))
    lines: list[list[object]] = []
    for key, group in iter_groups(frame, index):
        cells = {getattr(row, column): format_cell(row) for row in iter_rows(group)}
        lines.append([*key, *(cells.get(heading, "") for heading in headings)])
    return headings, lines


def study_note(config: RunConfig, *remarks: str) -> str:
    """Compose the note above the results of a study that evaluates the backbone and the VLM.

    Args:
        remarks: Remarks on the scores, such as the classes that they cover (`describe_coverage`); "" for none.
    """
    note = compose_note(config.note, backbones=[config.backbone.name], vlms=[config.vlm.name])
    return " ".join(filter(None, (note, *remarks)))


def write_study(
    folder: Path, name: str, title: str, note: str, sections: Sequence[PageSection], frame: pd.DataFrame,
    schema: pa.Schema | None = None, verdict: str = "",
) -> None:  # fmt: skip
    """Write the study as <name>.parquet, <name>.md and <name>.html.

    Args:
        folder: Output folder, which already contains the files of the figures.
        name: Name of the files, without suffix.
        title: Heading of the page and the Markdown.
        note: Note shown at the top; "" for none.
        sections: Content of the Markdown and the page; the page also lists every row.
        frame: Table from `add_provenance`.
        schema: Schema of the Parquet table; inferred if None.
        verdict: Main result in one sentence, shown under the title; "" for none.
    """
    columns = schema.names if schema else [str(name) for name in frame.columns]
    records = frame[columns].to_dict("records")
    write_parquet(folder / f"{name}.parquet", pa.Table.from_pylist(records, schema=schema), checksums=True)
    write_text(folder / f"{name}.md", render_markdown(title, note, sections, verdict))
    embedded = [
        replace(section, parts=[_in_folder(part, folder) for part in section.parts])
        for section in (*sections, all_rows_section(frame, f"{name}.parquet"))
    ]
    write_text(folder / f"{name}.html", page(title, note, embedded, verdict=verdict))
    delete_leftovers(folder)


def render_markdown(title: str, note: str, sections: Sequence[PageSection], verdict: str = "") -> str:
    """Render the sections as Markdown; plots are links to files in the same folder."""
    parts = [f"# {markdown_line(title)}", *([f"**{markdown_line(verdict)}**"] if verdict else [])]
    parts += [f"> **Note.** {markdown_line(note)}"] if note else []
    for section in sections:
        parts += [f"## {markdown_line(section.heading)}", *map(_render_part, section.parts)]
    return "\n\n".join(parts) + "\n"


def all_rows_section(frame: pd.DataFrame, source: str) -> PageSection:
    """Build the section with all rows: constant columns once, the others as a filterable table.

    Args:
        frame: Table from `add_provenance`. Columns that contain lists are omitted; the Parquet file has them.
        source: Name of the Parquet file.
    """
    if frame.empty:
        return PageSection("All rows", [Text("There are no rows.")])
    columns = [key for key in frame.columns if not any(isinstance(value, list | dict) for value in frame[key])]
    constant = {key: frame[key].iloc[0] for key in columns if frame[key].nunique(dropna=False) == 1}
    # Provenance is long, so it comes after the scores.
    varying = sorted(
        (key for key in columns if key not in constant), key=lambda k: k in PROVENANCE[1:] and k != "metric"
    )
    shown = {key: value for key, value in constant.items() if value not in (None, "")}
    table = facts_table(shown, f"{source}: columns that are the same in every row")
    rows = frame[varying].to_numpy().tolist()
    return PageSection("All rows", [table, Rows(varying, rows, "All rows, without constant columns", source)])


def long_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], caption: str, source: str, left: int
) -> Table | Rows:
    """Build a table, or filterable rows if there are more than `MAX_TABLE_ROWS`.

    Args:
        left: Number of left-aligned text columns.
    """
    if len(rows) > MAX_TABLE_ROWS:
        return Rows(header, rows, caption, source)
    return Table(header, rows, caption=caption, source=source, left=left)


def undefined_section(reasons: Sequence[tuple[str, str]], source: str) -> list[PageSection]:
    """Build the section on undefined values and their reasons, without duplicates; empty if there are none."""
    if not reasons:
        return []
    table = long_table(("value", "reason"), sorted(set(reasons)), "Undefined values", source, left=2)
    return [PageSection("Undefined values", [table])]


def _in_folder(part: Part, folder: Path) -> Part:
    if isinstance(part, Figure) and isinstance(part.picture, Path):
        return replace(part, picture=folder / part.picture)
    return part


def _render_part(part: Part) -> str:
    if isinstance(part, Text):
        return markdown_text(part.text)
    if isinstance(part, Figure) and isinstance(part.picture, Path):
        return f"![{markdown_line(part.caption)}]({part.picture})"
    if not isinstance(part, Table | Rows):
        raise TypeError(f"{type(part).__name__} cannot be written as Markdown")
    cells = [[UNDEFINED if value is None else value for value in row] for row in part.rows]
    table = markdown_table(part.header, cells, left=part.left if isinstance(part, Table) else 1)
    return f"**{markdown_line(part.caption)}**\n\n{table}" if part.caption else table
