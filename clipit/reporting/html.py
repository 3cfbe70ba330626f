"""Self-contained HTML pages from typed parts, rendered with the Jinja2 templates in `templates/`.

Jinja2 escapes all text; the SVG from `plots.inline_svg` is the only markup passed in. The content security policy of
a page allows only its own script, by hash, and images as data URIs, so that a page can neither load nor send anything.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from clipit.reporting.tables import UNDEFINED


@dataclass(frozen=True)
class Text:
    """A paragraph, or preformatted lines."""

    text: str
    preformatted: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Link:
    """A table cell that links to another local file, by its path relative to the page's folder."""

    label: str
    path: str


@dataclass(frozen=True)
class Table:
    """A table whose first column contains row headings; None is shown as n/a.

    Attributes:
        rows: Cells, one per column of the header.
        traces: Source of each row's values, listed in a collapsed element below the table; empty for no list.
        source: File and key of the table's data, shown in a collapsed element below the table.
        left: Number of left-aligned columns; the others contain numbers and are right-aligned.
        shades: Fractions in [0, 1] that set the shading of all cells of a row except its heading, as in a confusion
            matrix.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    traces: Sequence[str] = ()
    caption: str = ""
    source: str = ""
    left: int = 1
    shades: Sequence[Sequence[float]] = ()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Rows:
    """Rows in a collapsed table with a search box."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str
    source: str = ""
    kind: ClassVar[str] = "rows"

    @property
    def id(self) -> str:
        """Id of the table within its page, for the search box."""
        return "rows-" + hashlib.sha256(repr((self.caption, self.header)).encode()).hexdigest()[:8]

    @property
    def numeric(self) -> list[bool]:
        """Whether each column contains only numbers."""
        columns = ([row[i] for row in self.rows if row[i] is not None] for i in range(len(self.header)))
        return [
            all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
            for column in columns
        ]


@dataclass(frozen=True)
class Figure:
    """A picture with a caption.

    Attributes:
        picture: SVG from `plots.inline_svg`, which has its own alternative text, the bytes of a PNG, or the path of a
            PNG, which the page embeds; in a study, it is relative to the study's folder.
        alt: Alternative text of a PNG; by default, the caption.
        source: File and key of the data, shown in a collapsed element below the figure.
    """

    picture: Markup | bytes | Path
    caption: str
    alt: str = ""
    source: str = ""
    kind: ClassVar[str] = "figure"

    @property
    def png(self) -> str:
        """Base64 text of the PNG; empty for an SVG."""
        picture = self.picture.read_bytes() if isinstance(self.picture, Path) else self.picture
        return base64.b64encode(picture).decode() if isinstance(picture, bytes) else ""


@dataclass(frozen=True)
class Card:
    """A tile: data URI of its picture (None for no picture), alternative text, and lines of text."""

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
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Quote:
    """A quoted text with its origin.

    Attributes:
        segments: Consecutive pieces of the text, each with the name of its mark; "" for no mark. The name is shown in
            brackets after the piece, so that marks do not depend on colour.
    """

    source: str
    segments: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Passage:
    """A heading, a line of facts, quotes, and a line below them; "" omits a line."""

    heading: str
    facts: str
    quotes: Sequence[Quote]
    below: str = ""


@dataclass(frozen=True)
class Passages:
    """Quoted passages, one below the other."""

    passages: Sequence[Passage]
    kind: ClassVar[str] = "passages"


@dataclass(frozen=True)
class Include:
    """A template of this package, such as a form that a script fills in; the template reads `part.values`."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar[str] = "include"


@dataclass(frozen=True)
class Links:
    """Links to other local files, as a table.

    Attributes:
        rows: Names with their links; each link is a label and a path relative to the page's folder.
    """

    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    caption: str = ""
    kind: ClassVar[str] = "links"


@dataclass(frozen=True)
class Folded:
    """Parts that stay collapsed until their summary is clicked."""

    summary: str
    parts: Sequence["Part"]
    kind: ClassVar[str] = "folded"


Part = Text | Table | Rows | Figure | Cards | Passages | Include | Links | Folded


@dataclass(frozen=True)
class PageSection:
    """A heading and its parts; if `folded`, collapsed until the heading is clicked or a link to it is followed."""

    heading: str
    parts: Sequence[Part]
    folded: bool = False


def page(
    title: str,
    note: str,
    sections: Sequence[PageSection],
    *,
    verdict: str = "",
    script: str = "filter_script.html",
    library: str = "",
    data: Any = None,
) -> str:
    """Render a complete page.

    Args:
        title: Heading of the page and title of the window.
        note: Warning shown at the top of the page; "" for none.
        sections: Sections in order; if there are several, links to them are shown at the top.
        verdict: Sentence shown in large type under the title; "" for none.
        script: Template of the page's script.
        library: JavaScript of a library that runs before the script; "" for none.
        data: JSON-serialisable value that the script reads from the element `data`; None for none.

    Raises:
        ValueError: The data contains NaN or infinity, which JSON does not support.
    """
    environment = _environment()
    code = library + environment.get_template(script).render()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        title=title,
        note=note,
        verdict=verdict,
        sections=sections,
        script=Markup(code),
        script_hash=f"sha256-{digest}",
        data=data,
    )


def facts_table(values: Mapping[str, object], source: str = "") -> Table:
    """Build a two-column table of facts; facts with the value "" are omitted."""
    return Table(("quantity", "value"), [fact for fact in values.items() if fact[1] != ""], source=source, left=2)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("clipit.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # ASCII only, so that a line separator (U+2028) in a report cannot end a line of the script element
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "ensure_ascii": True}
    environment.filters |= {"cell": _show_cell, "code": _mark_code, "quote_path": quote}
    return environment


def _show_cell(value: object) -> str:
    if value is None:
        return UNDEFINED
    if isinstance(value, Link):
        return Markup('<a href="{}">{}</a>').format(quote(value.path), value.label)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _mark_code(text: str) -> Markup:
    """Mark text between backticks as code, as in Markdown."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))
