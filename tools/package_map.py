"""The map of the package in docs/concepts.md: every file with the first line of its docstring.

`python -m tools.package_map` rewrites it; tests/test_house.py checks that it is up to date.
"""

import ast
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "concepts.md"
START, END = "<!-- map: python -m tools.package_map -->", "<!-- end of map -->"
SUBPACKAGES = (
    "output_files", "input_files", "images", "config", "slides", "annotators", "models", "tiles", "reports", "prompts",
    "synthetic", "stores", "evaluation", "reporting", "pairing", "workspace", "training", "runs",
    "comparison", "studies", "sweeps", "slide_tasks", "mil", "vlm_training", "segmentation", "doctor", "api", "cli",
)  # fmt: skip


def package_map() -> str:
    """Return the map as Markdown, one heading per subpackage, the lowest first."""
    package = ROOT / "clipit"
    lines = ["### The package itself", "", *_files(package), ""]
    for name in SUBPACKAGES:
        lines += _section(package / name, level=3)
    return "\n".join(lines)


def updated_page(page: str) -> str:
    """Return the page with the map between the markers replaced by the current one."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n\n{package_map()}\n{END}{rest.partition(END)[2]}"


def _section(folder: Path, level: int) -> list[str]:
    title = folder.relative_to(ROOT / "clipit").as_posix()
    lines = [
        "#" * level + f" {title}",
        "",
        *textwrap.wrap(_summary(folder / "__init__.py"), 100),
        "",
        *_files(folder),
        "",
    ]
    for inner in sorted(folder.iterdir()):
        if (inner / "__init__.py").is_file():
            lines += _section(inner, level + 1)
    return lines


def _files(folder: Path) -> list[str]:
    lines = []
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            lines += textwrap.wrap(f"- `{path.name}`: {_summary(path)}", 100, subsequent_indent="  ")
    return lines


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(updated_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
