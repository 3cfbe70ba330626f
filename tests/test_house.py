"""Tests of conventions for the whole package, such as acyclic imports and unique public names."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from clipit.cli.commands import COMMANDS
from tools.package_map import PAGE, updated_page

PACKAGE = Path(__file__).parents[1] / "clipit"


@cache
def _modules() -> dict[str, ast.Module]:
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other
                yield from _executed(other)
            continue
        yield child
        yield from _executed(child)


def _imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of the package that a module imports, including imports inside functions."""
    imported = set()
    for node in _executed(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported |= {f"{node.module}.{alias.name}" for alias in node.names} & modules
            if any(f"{node.module}.{alias.name}" not in modules for alias in node.names):
                imported |= {node.module} & modules
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names} & modules
    return imported


@cache
def _import_graph() -> dict[str, set[str]]:
    """Modules of the package that each module imports, without itself."""
    modules = _modules()
    return {name: _imports(tree, set(modules)) - {name} for name, tree in modules.items()}


def _find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of the first cycle in a graph; empty if the graph is acyclic."""
    finished: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in finished:
            return []
        for target in sorted(graph[node]):
            cycle = visit(target, [*trail, node])
            if cycle:
                return cycle
        finished.add(node)
        return []

    for node in sorted(graph):
        cycle = visit(node, [])
        if cycle:
            return cycle
    return []


def test_imports_are_acyclic_even_inside_functions() -> None:
    graph = _import_graph()
    assert sum(map(len, graph.values())) > 200
    assert _find_cycle(graph) == []


@pytest.mark.parametrize("depth", [2, 3])
def test_imports_between_subpackages_are_acyclic(depth: int) -> None:
    subpackages: dict[str, set[str]] = defaultdict(set)
    for name, targets in _import_graph().items():
        if name == "clipit":  # its lazy imports span all subpackages
            continue
        subpackage = ".".join(name.split(".")[:depth])
        subpackages[subpackage] |= {".".join(target.split(".")[:depth]) for target in targets} - {subpackage}
    assert _find_cycle(dict(subpackages)) == []


def test_cycle_is_found() -> None:
    assert _find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_package_contains_no_assert() -> None:
    """`python -O` removes assertions, and an AssertionError does not tell users what to do."""
    asserts = [
        f"{name}:{node.lineno}"
        for name, tree in _modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert asserts == []


def test_user_errors_have_a_fix() -> None:
    """Errors that join several messages are exempt, since each message has its own fix."""
    names = {node.name for node in _modules()["clipit.errors"].body if isinstance(node, ast.ClassDef)}
    missing = [
        f"{name}:{node.lineno}"
        for name, tree in _modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
        if not any(keyword.arg == "fix" for keyword in node.keywords)
        and not ast.unparse(node.args[0]).startswith(r"'\n'.join(")
    ]
    assert missing == []


def test_no_module_has_more_than_400_lines() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {path: count for path, count in lines.items() if count > 400}


def test_public_classes_have_unique_names() -> None:
    names = Counter(
        node.name
        for tree in _modules().values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name: count for name, count in names.items() if count > 1} == {}


def test_public_functions_and_modules_have_unique_names() -> None:
    """The API, commands, configuration sections and analyses are exempt: they share names with what they wrap."""
    layers = ("clipit.api.", "clipit.cli.", "clipit.config.", "clipit.comparison.analyses.")
    functions: dict[str, list[str]] = defaultdict(list)
    stems: dict[str, list[str]] = defaultdict(list)
    for name, tree in _modules().items():
        if name.startswith(layers):
            continue
        if not (PACKAGE.parent / name.replace(".", "/")).is_dir():
            stems[name.rpartition(".")[2]].append(name)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != "main":
                functions[node.name].append(name)
    assert len(functions) > 900 and {key: names for key, names in functions.items() if len(names) > 1} == {}
    assert len(stems) > 300 and {key: names for key, names in stems.items() if len(names) > 1} == {}


def test_package_map_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert updated_page(page) == page, "run python -m tools.package_map"


def test_test_files_have_unique_names() -> None:
    """pytest cannot import two test files of the same name from folders without `__init__.py`."""
    folders = [path.parent for path in Path(__file__).parent.rglob("test_*.py")]
    loose = {folder for folder in folders if not (folder / "__init__.py").exists()}
    counts = Counter(path.name for folder in loose for path in folder.glob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_nothing_suggests_installing_the_package_from_an_index() -> None:
    root = PACKAGE.parent
    files = [*PACKAGE.rglob("*.py"), *root.glob("docs/*.md"), *root.glob("data_cards/*.md"), *root.glob("*.md")]
    advice = "clipit-pathology" + "["  # the distribution is not published on an index: name the packages instead
    assert len(files) > 300 and [path for path in files if advice in path.read_text(encoding="utf-8")] == []


def test_table_of_artefacts_is_complete() -> None:
    kinds = {"tile_hashes", "tile_digests"}  # named in a loop
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        kinds |= set(re.findall(r'build_once\([^",]+, "(\w+)"', text))
        kinds |= set(re.findall(r'^_?KIND = "(\w+)"', text, re.MULTILINE))
    rows = [line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(kinds) > 15 and kinds - listed == set()


def test_files_in_the_tables_of_changes_exist() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = page[page.index("## Where a change belongs") : page.index("## Subpackages")]
    missing, named = [], 0
    for row in re.findall(r"^\| (?!change)[^|]+ \| ([^|]+) \|$", table, re.MULTILINE):
        folder = PACKAGE.parent
        for name in re.findall(r"`([\w./<>*]+(?:/|\.py|\.html|\.yaml))`", row):
            path = PACKAGE.parent / name if "/" in name else folder / name
            folder = path if name.endswith("/") else path.parent
            exists = folder if "<" in name or "*" in name else path
            named += 1
            missing += [] if exists.exists() or "<" in str(folder) else [f"{name} in {row}"]
    assert named > 200 and missing == []


def test_markdown_table_rows_are_complete() -> None:
    """A row that is wrapped or joined with the next has the wrong number of columns."""
    root, broken, rows = PACKAGE.parent, [], 0
    for page in [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("data_cards/*.md")]:
        columns, fenced = 0, False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            fenced ^= line.startswith("```")
            pipes = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") and not fenced else 0
            columns = columns if pipes and columns else pipes
            rows += bool(pipes)
            broken += [f"{page.name}:{number}"] if pipes != columns or (pipes and not line.endswith("|")) else []
    assert rows > 900 and broken == []


def test_commands_page_lists_all_commands() -> None:
    page = (PACKAGE.parent / "docs/commands.md").read_text(encoding="utf-8")
    commands = {name for group in COMMANDS.values() for name in group}
    assert commands - set(re.findall(r"`clipit ([\w-]+)", page)) == set()


def test_readme_can_be_read_in_two_minutes() -> None:
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 800 and len(text.splitlines()) <= 105


def test_the_contents_of_the_site_list_every_document() -> None:
    root = PACKAGE.parent
    contents = re.findall(r": (\w+\.md)$", (root / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    documents = {path.name for path in [*root.glob("*.md"), *root.glob("docs/*.md")]} - {"README.md"}
    assert documents - set(contents) == set()
