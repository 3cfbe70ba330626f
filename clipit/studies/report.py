"""Rows, provenance and pages shared by the three studies (probing, prompts, robustness)."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import git_commit, versions, whole_file
from clipit.config.run import RunConfig
from clipit.prompts.prompt_set import PromptSet
from clipit.reporting.html import Figure, PageSection, Rows, Table, Text, facts_table, page, write_page
from clipit.reporting.tables import UNDEFINED, markdown_table

PROVENANCE = (
    "subject", "split", "classes", "metric", "tiles_fingerprint", "pixels", "preprocess", "model", "fingerprint",
    "seed", "prompts", "prompts_hash", "vlm", "vlm_fingerprint", "index", "commit", "versions", "command",
)  # fmt: skip
"""Columns that every row of every study has. The prompt, VLM and index columns are empty where these were not used, and
`commit` is empty outside a checkout."""
MAX_TABLE_ROWS = 40
"""Longer tables are collapsed on the page and get a filter box."""


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A row of a study's table; a field that holds a mapping stands for one column per key.

    Fields that are None here are filled from the provenance of the model and the study.

    Attributes:
        subject: Name of the model.
        metric: Name of the score.
        seed: Seed of the row, where it is not that of the study.
        prompts: Name of the prompt set.
        prompts_hash: Hash of the prompt set.
        index: Fingerprint of the index whose mean centred the texts.
        tiles_fingerprint: Fingerprint of the tiles, where they are not those of the study.
    """

    subject: str
    metric: str | None = None
    seed: int | None = None
    prompts: str | None = None
    prompts_hash: str | None = None
    index: str | None = None
    tiles_fingerprint: str | None = None


@dataclass(frozen=True)
class Plot:
    """A PNG in the study's folder: linked from the Markdown and embedded in the page."""

    file: str
    caption: str
    source: str


@dataclass(frozen=True)
class Chapter:
    """A heading with its content, rendered both as Markdown and on the page."""

    heading: str
    parts: Sequence[Text | Table | Rows | Plot]


def collect_provenance() -> dict[str, str]:
    """Commit, command line and package versions of this process."""
    packages = json.dumps(versions(), sort_keys=True)
    return {"commit": git_commit(), "command": shlex.join(sys.argv), "versions": packages}


class PromptColumns(TypedDict):
    """Columns that identify a prompt set."""

    prompts: str | None
    prompts_hash: str | None


def prompt_columns(prompts: PromptSet | None) -> PromptColumns:
    """Name and hash of a prompt set as the columns `prompts` and `prompts_hash`; None without one."""
    return {"prompts": prompts.name if prompts else None, "prompts_hash": prompts.hash if prompts else None}


def describe_model(facts: Mapping[str, object]) -> str:
    """Provenance of a model in one line."""
    described = f"{facts['model']}, fingerprint {facts['fingerprint']}"
    return f"{described}, {facts['pixels']} pixels, preprocessing {facts['preprocess']}"


def add_provenance(
    rows: Sequence[StudyRow], study: Mapping[str, object], models: Mapping[str, Mapping[str, object]]
) -> pd.DataFrame:
    """Table of the rows in which every row carries its full provenance.

    Values of a row take precedence over those of its model, and these over those of the study. Missing values are None.

    Args:
        rows: Rows of one type.
        study: Columns that are the same for the whole study.
        models: Name of a model (`subject`) -> its provenance.
    """
    flat = [_flatten(row) for row in rows]
    names = (*PROVENANCE, *study, *(name for facts in (*models.values(), *flat) for name in facts))
    columns = list(dict.fromkeys(names))
    records = []
    for row in flat:
        given = {name: value for name, value in row.items() if value is not None}
        values = {**study, **models[str(row["subject"])], **given}
        records.append([values.get(name) for name in columns])
    return pd.DataFrame(records, columns=columns, dtype=object)


def _flatten(row: StudyRow) -> dict[str, object]:
    columns: dict[str, object] = {}
    for name, value in vars(row).items():
        columns |= value if isinstance(value, Mapping) else {name: value}
    return columns


def iter_rows(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples, with fields of type `Any` (the stubs of pandas know only their union)."""
    yield from frame.itertuples()


def iter_groups(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Groups with equal values in the columns `by`, in order of first appearance."""
    yield from frame.groupby(list(by), sort=False, dropna=False)


def pivot_cells(
    frame: pd.DataFrame, index: Sequence[str], column: str, format_cell: Callable[[Any], str]
) -> tuple[list[Any], list[list[object]]]:
    """Arrange formatted rows as a table, in order of first appearance.

    Args:
        frame: Table with at most one row per index and column.
        index: Columns whose values start each line.
        column: Column whose distinct values become the headings.
        format_cell: Text of a row, given as a named tuple; a missing row gives an empty cell.

    Returns:
        The headings and the lines.
    """
    headings = list(dict.fromkeys(frame[column]))
    lines: list[list[object]] = []
    for key, group in iter_groups(frame, index):
        cells = {getattr(row, column): format_cell(row) for row in iter_rows(group)}
        lines.append([*key, *(cells.get(heading, "") for heading in headings)])
    return headings, lines


def study_note(config: RunConfig) -> str:
    """Caution to show above the results: limits of the embedded models, and the configuration's note."""
    models = {"backbone": config.backbone.name, "VLM": config.vlm.name}
    embedded = " and ".join(role for role, name in models.items() if name == "embedded")
    caution = f"The embedded {embedded} saw only synthetic tiles: on real tiles these figures only show that it runs."
    return " ".join(part for part in (caution if embedded else "", " ".join(config.note.split())) if part)


def write_study(
    folder: Path, name: str, title: str, note: str, chapters: Sequence[Chapter], frame: pd.DataFrame,
    schema: pa.Schema | None = None,
) -> None:  # fmt: skip
    """Write <name>.parquet, <name>.md and <name>.html.

    Args:
        folder: Output folder, which already holds the plots.
        name: Base name of the files.
        title: Title of the page.
        note: Caution to show at the top; "" for none.
        chapters: Content of the Markdown and the page; the page also lists every row.
        frame: Table of `add_provenance`.
        schema: Schema of the Parquet table; None infers it.
    """
    columns = schema.names if schema else [str(name) for name in frame.columns]
    records = frame[columns].to_dict("records")
    with whole_file(folder / f"{name}.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(records, schema=schema), temporary)
    with whole_file(folder / f"{name}.md") as temporary:
        temporary.write_text(render_markdown(title, note, chapters), encoding="utf-8")
    sections = [
        PageSection(
            chapter.heading, [_embed(part, folder) if isinstance(part, Plot) else part for part in chapter.parts]
        )
        for chapter in (*chapters, all_rows_chapter(frame, f"{name}.parquet"))
    ]
    write_page(folder / f"{name}.html", page(title, note, sections))


def render_markdown(title: str, note: str, chapters: Sequence[Chapter]) -> str:
    """Render the chapters as Markdown; plots link to the files beside it."""
    parts = [f"# {title}", *([f"> **Note.** {note}"] if note else [])]
    for chapter in chapters:
        parts += [f"## {chapter.heading}", *map(_render_part, chapter.parts)]
    return "\n\n".join(parts) + "\n"


def all_rows_chapter(frame: pd.DataFrame, source: str) -> Chapter:
    """Every row of a study: constant columns once, the others as a filterable table.

    Args:
        frame: Table of `add_provenance`; columns of lists are only in the file.
        source: Name of the file.
    """
    if frame.empty:
        return Chapter("All rows", [Text("There is no row.")])
    columns = [key for key in frame.columns if not any(isinstance(value, list | dict) for value in frame[key])]
    constant = {key: frame[key].iloc[0] for key in columns if frame[key].nunique(dropna=False) == 1}
    # Provenance is long, so it comes after the scores.
    varying = sorted(
        (key for key in columns if key not in constant), key=lambda k: k in PROVENANCE[1:] and k != "metric"
    )
    shown = {key: value for key, value in constant.items() if value not in (None, "")}
    table = facts_table(shown, f"{source}: columns that are the same in every row")
    rows = frame[varying].to_numpy().tolist()
    return Chapter("All rows", [table, Rows(varying, rows, "Every row, with the columns that differ", source)])


def long_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], caption: str, source: str, left: int
) -> Table | Rows:
    """A table, or filterable rows if there are more than `MAX_TABLE_ROWS`.

    Args:
        header: Column headings.
        rows: Cells per row.
        caption: Caption.
        source: File and columns of the values.
        left: Number of left-aligned text columns.
    """
    if len(rows) > MAX_TABLE_ROWS:
        return Rows(header, rows, caption, source)
    return Table(header, rows, caption=caption, source=source, left=left)


def undefined_chapter(reasons: Sequence[tuple[str, str]], source: str) -> list[Chapter]:
    """Chapter of undefined values with their reasons, without duplicates; empty if everything is defined.

    Args:
        reasons: Pairs of value and reason.
        source: File and column of the reasons.
    """
    if not reasons:
        return []
    table = long_table(("figure", "why"), sorted(set(reasons)), "Undefined values", source, left=2)
    return [Chapter("Undefined values", [table])]


def _embed(plot: Plot, folder: Path) -> Figure:
    return Figure((folder / plot.file).read_bytes(), plot.caption, alt=plot.caption, source=plot.source)


def _render_part(part: Text | Table | Rows | Plot) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Plot):
        return f"![{part.caption}]({part.file})"
    cells = [[UNDEFINED if value is None else value for value in row] for row in part.rows]
    table = markdown_table(part.header, cells, left=part.left if isinstance(part, Table) else 1)
    return f"**{part.caption}**\n\n{table}" if part.caption else table
