"""Run a notebook in jupytext's percent format, and render it as Markdown with its outputs and pictures."""

import ast
import contextlib
import io
import linecache
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RenderedNotebook:
    """Markdown of a notebook, and its pictures (PNG) by file name."""

    markdown: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)


def render_notebook(path: Path) -> RenderedNotebook:
    """Run the cells of a notebook in one namespace, in a temporary folder, and render them with their outputs.

    As in a notebook, the value of a cell's last expression is shown, and so are open figures. An error of a cell ends
    the run.

    Args:
        path: Python file with `# %%` cells.
    """
    import jupytext
    import matplotlib

    cells = jupytext.read(path).cells
    rendered = RenderedNotebook()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    parts = []
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for number, cell in enumerate(cells):
                if cell.cell_type == "markdown":
                    parts.append(cell.source)
                else:
                    parts.append(f"```python\n{cell.source}\n```")
                    output = _run(cell.source, f"<{path.name}, cell {number}>", namespace)
                    parts += [output.replace(f"{Path(folder).resolve()}/", "")] if output else []
                    parts += _pictures(f"{path.stem}-{number}", rendered.pictures)
    finally:
        matplotlib.use(before)
    rendered.markdown = "\n\n".join(parts) + "\n"
    return rendered


def _run(source: str, name: str, namespace: dict[str, Any]) -> str:
    """Run a cell; return what it prints and the value of its last expression."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # lines of a traceback
    tree = ast.parse(source, name)
    last: ast.Expression | None = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        value: Any = None if last is None else eval(compile(last, name, "eval"), namespace)
    if hasattr(value, "_repr_html_"):
        return f"{_text(printed.getvalue())}\n\n{value._repr_html_()}".strip()
    return _text(printed.getvalue() + ("" if value is None else repr(value)))


def _text(text: str) -> str:
    """Return a block of text; "" for none."""
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def _pictures(stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """Save the open figures of a cell, and yield their links."""
    import matplotlib.pyplot as plt

    for place, number in enumerate(plt.get_fignums()):
        stream = io.BytesIO()
        plt.figure(number).savefig(stream, format="png", dpi=110, metadata={"Software": None})
        name = f"{stem}-{place}.png"
        pictures[name] = stream.getvalue()
        yield f"![Figure of the cell above]({name})"
    plt.close("all")


if __name__ == "__main__":
    import sys

    print(render_notebook(Path(sys.argv[1])).markdown)
