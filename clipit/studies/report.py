"""What the three studies (probing, prompts, robustness) share: the columns beside each figure, and how it is shown."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import git_commit, versions, whole_file
from clipit.config.run import RunConfig
from clipit.prompts.prompt_set import PromptSet
from clipit.reporting.html import Figure, Rows, Section, Table, Text, facts_table, page, write_page
from clipit.reporting.tables import UNDEFINED, markdown_table

Row = Mapping[str, Any]
RECORD = (
    "subject", "split", "classes", "metric", "tiles_fingerprint", "pixels", "preprocess", "model", "fingerprint",
    "seed", "prompts", "prompts_hash", "vlm", "vlm_fingerprint", "index", "commit", "versions", "command",
)  # fmt: skip
"""Columns that every row of every study has."""
MAY_BE_EMPTY = ("prompts", "prompts_hash", "vlm", "vlm_fingerprint", "index", "commit")
"""Those that are empty where no prompt, VLM or index had a part in the figure, or where there is no checkout."""


LONGEST = 40
"""Rows of a table; a longer one is folded away on the page, with a box that filters it."""


@dataclass(frozen=True)
class Plot:
    """A PNG of the study's folder: beside the Markdown, and embedded in the page."""

    file: str
    caption: str
    source: str


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands under it, in the Markdown and on the page alike."""

    heading: str
    parts: Sequence[Text | Table | Rows | Plot]


def made_by() -> dict[str, str]:
    """Commit, command and versions of this process."""
    told = json.dumps(versions(), sort_keys=True)
    return {"commit": git_commit(), "command": shlex.join(sys.argv), "versions": told}


def asked_with(prompts: PromptSet | None) -> dict[str, str | None]:
    """The columns of a prompt set; empty without one."""
    return {"prompts": prompts.name if prompts else None, "prompts_hash": prompts.hash if prompts else None}


def recorded(rows: Sequence[Row], common: Row, facts: Mapping[str, Row]) -> list[dict[str, Any]]:
    """The rows with all that must stand beside a figure, every row with the same columns.

    Args:
        rows: Each with its `subject`; what a row says itself goes before the following.
        common: Of the whole study.
        facts: Subject -> its model, fingerprint, preprocessing, ...; these go before `common`.
    """
    whole = [{**dict.fromkeys(RECORD), **common, **facts[row["subject"]], **row} for row in rows]
    columns = list(dict.fromkeys(key for row in whole for key in row))
    return [{key: row.get(key) for key in columns} for row in whole]


def study_note(config: RunConfig) -> str:
    """What the reader must know before the figures: what the embedded models do not say, and the configuration's note.

    Args:
        config: Its `vlm`, `backbone` and `note`.
    """
    models = {"backbone": config.backbone.name, "VLM": config.vlm.name}
    used = [what for what, name in models.items() if name == "embedded"]
    told = f"The embedded {' and '.join(used)} only saw synthetic tiles: on real tiles these figures prove the path."
    return " ".join(part for part in (told if used else "", " ".join(config.note.split())) if part)


def write_study(
    folder: Path,
    name: str,
    title: str,
    note: str,
    chapters: Sequence[Chapter],
    rows: Sequence[Row],
    schema: pa.Schema | None = None,
) -> None:
    """Write <name>.parquet, <name>.md and <name>.html.

    Args:
        folder: Where the plots lie already.
        name: Of the files.
        title: Heading.
        note: A warning that belongs beside everything; empty for none.
        chapters: What both show; the page also has every row.
        rows: Of `recorded`.
        schema: Of the table; None takes it from the rows.
    """
    with whole_file(folder / f"{name}.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), temporary)
    with whole_file(folder / f"{name}.md") as temporary:
        temporary.write_text(study_markdown(title, note, chapters), encoding="utf-8")
    every = [*chapters, rows_chapter(rows, f"{name}.parquet")]
    write_page(folder / f"{name}.html", study_page(title, note, every, folder))


def study_markdown(title: str, note: str, chapters: Sequence[Chapter]) -> str:
    """The chapters as Markdown; plots are links to the files beside it."""
    parts = [f"# {title}", *([f"> **Note.** {note}"] if note else [])]
    for chapter in chapters:
        parts += [f"## {chapter.heading}", *map(_markdown, chapter.parts)]
    return "\n\n".join(parts) + "\n"


def study_page(title: str, note: str, chapters: Sequence[Chapter], folder: Path) -> str:
    """The chapters as a self-contained page.

    Args:
        title: Heading.
        note: A warning that belongs beside everything; empty for none.
        chapters: In order.
        folder: Where the plots lie.
    """
    sections = []
    for chapter in chapters:
        parts = [
            Figure((folder / part.file).read_bytes(), part.caption, alt=part.caption, source=part.source)
            if isinstance(part, Plot)
            else part
            for part in chapter.parts
        ]
        sections.append(Section(chapter.heading, parts))
    return page(title, note, sections)


def rows_chapter(rows: Sequence[Row], source: str) -> Chapter:
    """Every row of a study: what is the same in all of them once, the rest as a table that can be filtered.

    Args:
        rows: With the same columns each. Columns of lists are left out; the file has them.
        source: The file.
    """
    if not rows:
        return Chapter("All rows", [Text("There is no row.")])
    columns = [key for key in rows[0] if not any(isinstance(row[key], list | dict) for row in rows)]
    same = [key for key in columns if all(row[key] == rows[0][key] for row in rows)]
    # Figures first: what stands beside them is long.
    varying = sorted((key for key in columns if key not in same), key=lambda key: key in RECORD[1:] and key != "metric")
    told = {key: rows[0][key] for key in same if rows[0][key] not in (None, "")}
    cells = [[row[key] for key in varying] for row in rows]
    return Chapter(
        "All rows",
        [
            facts_table(told, f"{source}: columns that are the same in every row"),
            Rows(varying, cells, "Every row, with the columns that differ", source),
        ],
    )


def long_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], caption: str, source: str, left: int
) -> Table | Rows:
    """A table, or filterable rows where there are more than 40.

    Args:
        header: One name per column.
        rows: As long as the header.
        caption: What they show.
        source: File and columns that they come from.
        left: So many columns are words (of a table).
    """
    if len(rows) > LONGEST:
        return Rows(header, rows, caption, source)
    return Table(header, rows, caption=caption, source=source, left=left)


def undefined_chapter(reasons: Sequence[tuple[str, str]], source: str) -> list[Chapter]:
    """What is not defined and why, each once; no chapter where everything is.

    Args:
        reasons: (figure, why).
        source: File and column that the reasons come from.
    """
    if not reasons:
        return []
    table = long_table(("figure", "why"), sorted(set(reasons)), "What is not defined", source, left=2)
    return [Chapter("Not defined", [table])]


def _markdown(part: Text | Table | Rows | Plot) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Plot):
        return f"![{part.caption}]({part.file})"
    cells = [[UNDEFINED if value is None else value for value in row] for row in part.rows]
    table = markdown_table(part.header, cells, left=part.left if isinstance(part, Table) else 1)
    return f"**{part.caption}**\n\n{table}" if part.caption else table
