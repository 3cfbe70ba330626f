"""Test the YAML reader: plain data only, size limits, and errors with file and line."""

import re
import time
from pathlib import Path

import pytest

from clipit.config.load import read_yaml
from clipit.errors import ConfigError, DataError
from clipit.input_files import yaml_file
from clipit.input_files.yaml_file import load_mapping, load_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2024-01-31", {"a": "2024-01-31"}),
        ("a: 2024-13-45", {"a": "2024-13-45"}),
        ("a: 2001-12-14 21:59:43.10", {"a": "2001-12-14 21:59:43.10"}),
        ("a: =", {"a": "="}),
        ("a: !!str 12", {"a": "12"}),
        ("a: [1, 0.5, true, null, x]", {"a": [1, 0.5, True, None, "x"]}),
        ("a: [0, -0, 0x1F, 00.5, '030', 08]", {"a": [0, 0, 31, 0.5, "030", "08"]}),
        ("b: &b {x: 1, y: 2}\nc: {<<: *b, x: 3}", {"b": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}}),
        ("", None),
    ],
)
def test_plain_data_is_loaded(tmp_path: Path, text: str, value: object) -> None:
    assert load_yaml(write(tmp_path, text)) == (value, [])


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: !!int a", 2, "not a valid !!int"),
        ("a: !!bool maybe", 1, "not a valid !!bool"),
        ("a: 1\n\nb: !!timestamp foo", 3, "the tag !!timestamp is not supported"),
        ("a: !!python/object:os.system x", 1, "the tag !!python/object:os.system is not supported"),
        ("a: !own x", 1, "the tag !own is not supported"),
        ("a: !!map b", 1, "expected a mapping"),
        ("a: 0" + "7" * 6000, 1, "not a valid !!int"),
        ("a: " + "9" * 6000, 1, "not a valid !!int"),
        ("a: 1\nclasses: [030]", 2, "030 is ambiguous"),
        ("a: -017", 1, "write '-017' in quotes"),
        ("time: 1:30", 1, "1:30 is ambiguous"),
        ("time: 1:30.5", 1, "1:30.5 is ambiguous"),
        ('a: "\\ud800"', 1, "not a valid !!str"),
        ("a: 1\nb: " + "[" * 20_000, 2, "nested more than"),
        ("a: [" * 20_000, 1, "nested more than"),
        ("- " * 20_000, 1, "nested more than"),
        (BOMB, 5, "aliases repeat more than"),
        ("a: 1\nb: &b [*b]", 2, "the alias *b contains itself"),
        ("a: *b", 1, "undefined alias"),
        ("a: 1\n? [b]\n: c", 2, "unhashable"),
        ("a: [", 1, "flow"),
        ("a: 1\nb: \x07", 2, "the character #x0007 is not allowed"),
        (b"a: 1\nb: \xff", 2, "not UTF-8"),
        ("a: 1\n---\nb: 2", 2, "single document"),
    ],
)
def test_other_content_is_an_error_with_its_line(tmp_path: Path, text: str | bytes, line: int, problem: str) -> None:
    path, start = write(tmp_path, text), time.monotonic()
    for kind in (ConfigError, DataError):
        with pytest.raises(kind, match=re.escape(problem)) as error:
            load_yaml(path, kind)
        assert f"{path}, line {line}\n" in str(error.value)
    assert time.monotonic() - start < 10


def test_two_merge_keys_in_one_mapping_are_duplicates(tmp_path: Path) -> None:
    text = "a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc:\n  <<: *a\n  <<: *b\nd: {<<: [*a, *b], z: 4}"
    value, repeated = load_yaml(write(tmp_path, text))
    assert repeated == [("<<", 5)] and value["d"] == {"x": 1, "y": 3, "z": 4}
    with pytest.raises(ConfigError, match=r"(?s)repeated keys.*'<<' \(line 5\).*merged with one key, <<: \[\*a, \*b\]"):
        read_yaml(write(tmp_path, text))


def test_large_files_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 8 MiB"):
        load_yaml(write(tmp_path, b"#" * (8 * 2**20 + 1)))


def test_no_other_module_loads_yaml() -> None:
    root = Path(__file__).parents[2]
    files = [path for folder in ("clipit", "scripts", "benchmarks", "tools") for path in (root / folder).rglob("*.py")]
    others = [path.name for path in files if re.search(r"yaml\.(\w*load|compose|parse)", path.read_text("utf-8"))]
    assert others == []


def test_parsed_files_are_cached_without_sharing_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a: &a [1, 2]\nb: *a\na: [3]")
    first, repeated = load_yaml(path)
    first["a"].append(4)
    first["b"].append(5)
    repeated.clear()
    parsed_texts: list[str] = []
    monkeypatch.setattr(yaml_file, "_parse", lambda text: parsed_texts.append(text) or (None, []))
    assert load_yaml(path) == ({"a": [3], "b": [1, 2]}, [("a", 3)]) and not parsed_texts
    assert load_yaml(write(tmp_path, "a: [6]")) == (None, []) and parsed_texts == ["a: [6]"], (
        "changed content should be parsed again"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("README.md", b"# Title\nkey: a\n- b\n"), ("tiles.zip", b"PK\x03\x04\xff"), ("notes.txt", b"a: \x00"),
     ("table.csv", b"path,label\na.png,b\n")],
)  # fmt: skip
def test_files_of_other_formats_are_recognised_before_parsing(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)^not a YAML file\n.*fix: choose a YAML file; if this is one, "):
        load_mapping(path, "`name:`")
    path.rename(tmp_path / "own.yaml")
    with pytest.raises(DataError, match=r"^not (valid YAML|UTF-8|a YAML mapping)"):
        load_mapping(tmp_path / "own.yaml", "`name:`")
