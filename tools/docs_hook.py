"""MkDocs hook that adds what lies outside docs/: README, CONTRIBUTING, CHANGELOG, data cards and result tables.

The tutorial's notebook is shown with its outputs; it is run only if its last rendering is out of date. Links in the
Markdown files are written for the repository; the hook rewrites them for the site.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_RENAMED = {"README.md": "index.md"}
_ADDED = ("*.md", "data_cards/*.md", "results/*.csv", "results/README.md", "results/tuning/*")
_NOTEBOOK, _NOTEBOOK_PAGE = "tutorial_python.py", "tutorial_python.md"
_SOURCE_LINK = re.compile(r"\[([^\]]*)\]\((?:\.\./)*((?:clipit|configs|scripts|tests|tools)/[^)]*)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files that lie outside docs/, and the page of the notebook."""
    for pattern in _ADDED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, _RENAMED.get(name, name), abs_src_path=str(path)))
    sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path
    from tools.tutorial import CACHE, rendered_notebook

    notebook = rendered_notebook(ROOT / "docs" / _NOTEBOOK, CACHE)
    download = f"[Download this notebook]({_NOTEBOOK}): it is a script, and opens in Jupyter with jupytext.\n"
    files.append(File.generated(config, _NOTEBOOK_PAGE, content=f"{notebook.markdown}\n{download}"))
    for name, picture in notebook.pictures.items():
        files.append(File.generated(config, name, content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links between docs/ and the root of the repository; replace links to source files with their paths."""
    markdown = _SOURCE_LINK.sub(r"\1 (`\2`)", markdown)
    if page.file.src_uri != _NOTEBOOK_PAGE:  # that page offers the script itself
        markdown = markdown.replace(f"{_NOTEBOOK})", f"{_NOTEBOOK_PAGE})")
    if page.file.src_uri in ("index.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        markdown = re.sub(r"(\]\(|!\[[^\]]*\]\()docs/", r"\1", markdown)
        markdown = re.sub(r"\]\((data_cards|results)/?\)", r"](\1/README.md)", markdown)
        return markdown.replace("](README.md)", "](index.md)")
    if "/" in page.file.src_uri:  # data cards and the table of results
        return re.sub(r"\]\(\.\./docs/", "](../", markdown)
    return re.sub(r"\]\(\.\./(data_cards|results|CONTRIBUTING|README)", r"](\1", markdown)
