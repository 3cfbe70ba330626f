"""Run a notebook in jupytext's percent format, and render it as Markdown with its outputs and pictures."""

import ast
import base64
import contextlib
import hashlib
import importlib.metadata
import io
import json
import linecache
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipit.output_files.artifacts import write_json

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "notebook"
"""Folder in which `make docs` and the tests cache the rendering."""


@dataclass
class RenderedNotebook:
    """Markdown of a notebook, and its pictures (PNG) by file name."""

    markdown: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)


def render_notebook(path: Path) -> RenderedNotebook:
    """Run the cells of a notebook in one namespace, in a temporary folder, and render them with their outputs.

    As in a notebook, the value of a cell's last expression and open figures are shown. An error in a cell ends the run.

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


def rendered_notebook(path: Path, cache: Path) -> RenderedNotebook:
    """Return the rendering of a notebook; run it only if the notebook, the package or Python has changed.

    Args:
        path: Python file with `# %%` cells.
        cache: Folder of the last rendering.
    """
    key = _digest(path)
    file = cache / "notebook.json"
    if file.is_file():
        cached = json.loads(file.read_text(encoding="utf-8"))
        if cached["key"] == key:
            pictures = {name: base64.b64decode(picture) for name, picture in cached["pictures"].items()}
            return RenderedNotebook(cached["markdown"], pictures)
    rendered = render_notebook(path)
    texts = {name: base64.b64encode(picture).decode("ascii") for name, picture in rendered.pictures.items()}
    write_json(file, {"key": key, "markdown": rendered.markdown, "pictures": texts})
    return rendered


def _digest(path: Path) -> str:
    """Compute a digest of a notebook and of everything that affects its outputs: package, dependencies, this file."""
    versions = sorted({f"{package.name} {package.version}" for package in importlib.metadata.distributions()})
    digest = hashlib.sha256("\n".join([sys.version, *versions]).encode())
    folders = [ROOT / "clipit", ROOT / "configs"]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    for file in [path, Path(__file__), *sorted(files)]:
        digest.update(str(file).encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


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
    """Format text as a Markdown block; "" for an empty string."""
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
    print(render_notebook(Path(sys.argv[1])).markdown)
