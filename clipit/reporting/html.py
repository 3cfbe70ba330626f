"""Self-contained HTML pages: parts as plain data in, one text without any outside resource out.

Every text is escaped here; charts come from `charts.py`, which escapes its own. A page's content security policy allows
its own script by its hash, pictures as data, and nothing else: a page cannot load or send anything.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clipit.artifacts import whole_file
from clipit.reporting.tables import UNDEFINED

_DEEP = 0.55  # shares from here on are written in white on the dark shade


@dataclass(frozen=True)
class Text:
    """A paragraph, or lines as they are (`fixed`: of one width, as on a terminal)."""

    text: str
    fixed: bool = False


@dataclass(frozen=True)
class Table:
    """Cells are shown as `str` shows them (None: n/a); the first of a row is its heading.

    Attributes:
        header: One name per column.
        rows: As long as the header.
        traces: Per row, where its figures come from: a last column in small print. None at all: no such column.
        caption: What the table shows.
        source: Where all of it comes from (file and key), in small print below.
        left: So many columns are words, aligned left; the others are figures, aligned right.
        shades: Per row and cell after the first, a share of 0 to 1 that colours it (a confusion matrix).
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    traces: Sequence[str] = ()
    caption: str = ""
    source: str = ""
    left: int = 1
    shades: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Rows:
    """Raw rows, folded away, with a box that filters them by words."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str
    source: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture: SVG markup made by `charts.py` (str; put in as it is), or the bytes of a PNG.

    Attributes:
        picture: See above.
        caption: What it shows, below it.
        alt: The same for who does not see it (a PNG; an SVG has its own label).
        source: Where its figures come from, in small print.
    """

    picture: str | bytes
    caption: str
    alt: str = ""
    source: str = ""


@dataclass(frozen=True)
class Card:
    """A tile: its picture (a data URI of `jpeg_uri`, None when there is none) and lines about it."""

    picture: str | None
    alt: str
    lines: Sequence[str]
    trace: str = ""


@dataclass(frozen=True)
class Cards:
    """Tiles side by side."""

    cards: Sequence[Card]
    caption: str = ""
    source: str = ""


@dataclass(frozen=True)
class Markup:
    """HTML that a template of this package holds; never anything from outside."""

    html: str


@dataclass(frozen=True)
class Links:
    """Links to other files on this disk, as a table.

    Attributes:
        rows: A name and its links: what each is called and where it lies, as a path relative to the page's folder.
        caption: What they lead to.
    """

    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    caption: str = ""


@dataclass(frozen=True)
class Folded:
    """Parts that are shown after a click on their summary."""

    summary: str
    parts: Sequence["Part"]


Part = Text | Table | Rows | Figure | Cards | Markup | Links | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; `folded`: shown after a click on the heading, or by a link to it."""

    heading: str
    parts: Sequence[Part]
    folded: bool = False


def page(title: str, note: str, sections: Sequence[Section], *, script: str = "filter.html", data: Any = None) -> str:
    """A whole page.

    Args:
        title: Heading and name of the window.
        note: A warning that belongs beside everything; empty for none.
        sections: In order; each gets a link at the top.
        script: Template of the page's script.
        data: JSON-like value that the script reads from the element `data`; None for none.
    """
    code = template(script)
    found = re.search(r"<script>(.*)</script>", code, re.DOTALL)
    digest = hashlib.sha256((found.group(1) if found else "").encode()).digest()
    embedded = "" if data is None else f'<script type="application/json" id="data">{json_in_html(data)}</script>\n'
    links = [f'<li><a href="#s{i}">{escape(part.heading)}</a></li>' for i, part in enumerate(sections)]
    return template(
        "page.html",
        allowed=f"'sha256-{base64.b64encode(digest).decode()}'",
        title=escape(title),
        style=template("style.html"),
        note=f'<p class="note"><strong>Note.</strong> {escape(note)}</p>' if note.strip() else "",
        contents=f'<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav>' if len(links) > 1 else "",
        body="\n".join(_section(i, section) for i, section in enumerate(sections)),
        script=embedded + code,
    )


def write_page(path: Path, text: str) -> None:
    """Write a page, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def template(name: str, **values: str) -> str:
    """A file of `templates/` with its `{{name}}` marks filled in, each once: values are not searched for marks."""
    text = files("clipit.reporting").joinpath("templates", name).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: values[mark.group(1)], text) if values else text


def json_in_html(value: Any) -> str:
    """JSON that may stand within a script element: no character of it ends the element or a line of it.

    Raises:
        ValueError: It holds NaN or infinity, which JSON does not know.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def markup(part: Part) -> str:
    """One part as HTML."""
    if isinstance(part, Text):
        return f"<pre>{escape(part.text)}</pre>" if part.fixed else f"<p>{_coded(part.text)}</p>"
    if isinstance(part, Table):
        return _table(part) + _source(part.source)
    if isinstance(part, Rows):
        return _rows(part) + _source(part.source)
    if isinstance(part, Figure):
        return _figure(part)
    if isinstance(part, Cards):
        caption = f"<p>{_coded(part.caption)}</p>" if part.caption else ""
        return f'{caption}<ul class="cards">{"".join(map(_card, part.cards))}</ul>{_source(part.source)}'
    if isinstance(part, Links):
        return _links(part)
    if isinstance(part, Folded):
        inside = "\n".join(map(markup, part.parts))
        return f"<details><summary>{escape(part.summary)}</summary>\n{inside}\n</details>"
    return part.html


def _section(number: int, section: Section) -> str:
    inside = "\n".join(markup(part) for part in section.parts)
    heading = f'<h2 id="s{number}">{escape(section.heading)}</h2>'
    if section.folded:
        whole = f'<details class="section"><summary>{heading}</summary>\n{inside}\n</details>'
    else:
        whole = f"{heading}\n{inside}"
    return f'<section aria-labelledby="s{number}">\n{whole}\n</section>'


def _links(links: Links) -> str:
    """Quoted as paths, so that no name can be taken for an address of another kind (`javascript:`)."""
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>'
        + " ".join(f'<a href="{escape(quote(path))}">{escape(text)}</a>' for text, path in found)
        + "</td></tr>"
        for name, found in links.rows
    )
    caption = f"<caption>{escape(links.caption)}</caption>" if links.caption else ""
    return f'<div class="scroll"><table class="links">{caption}<tbody>\n{body}\n</tbody></table></div>'


def _source(source: str) -> str:
    return f'<p class="source">from {escape(source)}</p>' if source else ""


def _coded(text: str) -> str:
    """Escaped, with what stands between backticks as code, as Markdown shows it."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _shown(value: object) -> str:
    if value is None:
        return UNDEFINED
    return f"{value:.6g}" if isinstance(value, float) else escape(str(value))


def _table(table: Table) -> str:
    header = [*table.header, *(["source"] if table.traces else [])]
    right = [i >= table.left and i < len(table.header) for i in range(len(header))]
    top = "".join(
        f'<th scope="col"{" class=n" * number}>{escape(name)}</th>' for name, number in zip(header, right, strict=True)
    )
    body = []
    for i, row in enumerate(table.rows):
        cells = [f'<th scope="row">{_shown(row[0])}</th>']
        for column in range(1, len(row)):
            kind = ' class="n"' if right[column] else ' class="wide"'
            if table.shades:
                share = table.shades[i][column - 1]
                deep = " deep" if share > _DEEP else ""
                kind = f' class="heat{deep}" style="background: rgba(var(--heat), {share:.3f})"'
            cells.append(f"<td{kind}>{_shown(row[column])}</td>")
        if table.traces:
            cells.append(f'<td class="trace">{escape(table.traces[i])}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    caption = f"<caption>{_coded(table.caption)}</caption>" if table.caption else ""
    rows = "\n".join(body)
    return f'<div class="scroll"><table>{caption}<thead><tr>{top}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def _rows(rows: Rows) -> str:
    name = "rows-" + hashlib.sha256(repr((rows.caption, rows.header)).encode()).hexdigest()[:8]
    figures = [all(row[i] is None or _right(row[i]) for row in rows.rows) for i in range(len(rows.header))]
    top = "".join(
        f'<th scope="col"{" class=n" * number}>{escape(title)}</th>'
        for title, number in zip(rows.header, figures, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(f"<td{_right(value)}>{_shown(value)}</td>" for value in row) + "</tr>" for row in rows.rows
    )
    return (
        f"<details><summary>{escape(rows.caption)} ({len(rows.rows)} rows)</summary>\n"
        f'<div class="filter" data-table="{name}" hidden><label>rows with <input type="search"></label> '
        f'<output aria-live="polite">{len(rows.rows)} rows</output></div>\n'
        f'<div class="scroll"><table id="{name}"><thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
        "</details>"
    )


def _right(value: object) -> str:
    return ' class="n"' if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _figure(figure: Figure) -> str:
    picture = figure.picture
    if isinstance(picture, bytes):
        data = base64.b64encode(picture).decode()
        picture = f'<img alt="{escape(figure.alt or figure.caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}<figcaption>{escape(figure.caption)}</figcaption></figure>{_source(figure.source)}"


def _card(card: Card) -> str:
    picture = (
        f'<img alt="{escape(card.alt)}" loading="lazy" src="{escape(card.picture)}">'
        if card.picture
        else '<span class="none">no picture</span>'
    )
    lines = "".join(
        f"<span{' class=first' if i == 0 else ''}>{escape(line)}</span>" for i, line in enumerate(card.lines)
    )
    trace = f'<span class="source">{escape(card.trace)}</span>' if card.trace else ""
    return f"<li>{picture}{lines}{trace}</li>"


def facts_table(values: Mapping[str, object], source: str = "") -> Table:
    """A two-column table of facts."""
    return Table(("what", "value"), list(values.items()), source=source, left=2)
