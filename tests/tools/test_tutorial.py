"""Rendering of the Python API notebook for the documentation site."""

import re
import tempfile
from pathlib import Path

import pytest

from tools import tutorial
from tools.tutorial import CACHE, render_notebook, rendered_notebook

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_notebook_runs_and_contains_tables_and_figures() -> None:
    rendered = rendered_notebook(ROOT / "docs/tutorial_python.py", CACHE)  # cached after `make docs`
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", rendered.markdown)
    assert links == [*rendered.pictures] and len(links) == 3
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 3000 for picture in rendered.pictures.values())
    assert rendered.markdown.count("<table") == 4 and "did you mean 'lora.rank'?" in rendered.markdown
    assert tempfile.gettempdir() not in rendered.markdown and "Traceback" not in rendered.markdown


def test_cells_share_names_and_an_error_names_its_cell(tmp_path: Path) -> None:
    path = tmp_path / "small.py"
    path.write_text("# %% [markdown]\n# # Title\n\n# %%\nx = 2\nprint('printed')\n\n# %%\nx + 1\n", encoding="utf-8")
    rendered = render_notebook(path)
    assert rendered.markdown.startswith("# Title\n") and "```text\nprinted\n```" in rendered.markdown
    assert "```text\n3\n```" in rendered.markdown and not rendered.pictures
    path.write_text("# %%\n1 / 0\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        render_notebook(path)


def test_a_rendering_is_cached_until_an_input_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache, root = tmp_path / "small.py", tmp_path / "cache", tmp_path / "root"
    (root / "clipit").mkdir(parents=True)
    code = root / "clipit/code.py"
    code.write_text("old")
    monkeypatch.setattr(tutorial, "ROOT", root)
    path.write_text("# %%\nimport time\ntime.time_ns()\n", encoding="utf-8")

    def render() -> str:
        return rendered_notebook(path, cache).markdown

    first = render()
    assert render() == first
    code.write_text("new")
    second = render()
    assert second != first and render() == second
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert render() != second
    monkeypatch.setattr("importlib.metadata.distributions", lambda: [])
    assert render() != second
