"""The linter: each kind of finding, and silence where all is well."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from clipit.prompts.files import packaged
from clipit.prompts.lint import LintMessage, lint_file, lint_prompts, normalise_text
from clipit.prompts.prompt_set import PromptSet, load_prompts

ROOT = Path(__file__).parents[2]


def lint(classes: dict[str, tuple[str, ...]], templates: tuple[str, ...] = ("{}.",)) -> list[LintMessage]:
    return lint_prompts(PromptSet("x", "1", templates, classes))


def keys(findings: Sequence[LintMessage]) -> list[tuple[str, str]]:
    return [(finding.level, finding.key) for finding in findings]


def test_nothing_to_find() -> None:
    assert lint({"a": ("adenoma", "polyp"), "b": ("normal mucosa",)}, ("{}.", "an image of {}.")) == []


@pytest.mark.parametrize(
    "other", ["in situ carcinoma", "In-Situ  Carcinoma", "in situ carcinoma.", "in_situ carcinoma"]
)
def test_a_name_under_two_classes(other: str) -> None:
    found = lint({"a": ("in situ carcinoma",), "b": ("normal", other)})
    assert keys(found) == [("error", "classes.b[1]")]
    assert "classes.a[0]" in found[0].problem and found[0].fix


def test_the_overlap_of_published_sets_is_caught() -> None:
    # Histo-VL's names for BACH: the third of Normal is also the first of Benign.
    found = lint(
        {"Normal": ("normal breast tissue", "non-cancerous breast tissue"), "Benign": ("non-cancerous breast tissue",)}
    )
    assert keys(found) == [("error", "classes.Benign[0]")]


def test_names_within_a_class() -> None:
    found = lint({"a": ("fat", "Fat", "fat-cells", "fat cells", " ", "..."), "b": ("stroma",), "c": ()})
    assert keys(found) == [
        ("error", "classes.c"),
        ("error", "classes.a[4]"),
        ("error", "classes.a[5]"),
        ("error", "classes.a[1]"),
        ("warning", "classes.a[3]"),
    ]


def test_alike_across_classes() -> None:
    found = lint(
        {"a": ("carcinoma of the lung", "tumor"), "b": ("lung carcinoma", "tumor-associated stroma", "tumorous")}
    )
    assert keys(found) == [("warning", "classes.b[0]"), ("warning", "classes.b[1]")]
    assert "same words" in found[0].problem
    assert "contains 'tumor'" in found[1].problem


def test_containment_is_reported_at_the_longer_name() -> None:
    found = lint({"a": ("lymph node with tumour",), "b": ("lymph node",)})
    assert keys(found) == [("warning", "classes.a[0]")]


def test_templates() -> None:
    found = lint({"a": ("x",), "b": ("y",)}, ("an image", "{} and {}", "of {}.", "OF  {}."))
    assert keys(found) == [("error", f"templates[{i}]") for i in (0, 1, 3)]
    assert keys(lint({"a": ("x",), "b": ("y",)}, ())) == [("error", "templates")]


def test_classes_of_the_tiles() -> None:
    prompts = PromptSet("x", "1", ("{}",), {"a": ("fat",), "b": ("stroma",)})
    found = lint_prompts(prompts, classes=["a", "c"])
    assert keys(found) == [("error", "classes"), ("warning", "classes.b")]
    assert "class c is missing" in found[0].problem
    assert lint_prompts(prompts, classes=["b", "a"]) == []
    assert keys(lint({"a": ("fat",)})) == [("error", "classes")]


def test_token_budget_counts_what_is_cut() -> None:
    prompts = PromptSet("x", "1", ("{}", "an image of {}"), {"a": ("fat cells here",), "b": ("stroma",)})
    found = lint_prompts(prompts, None, lambda texts: [len(text.split()) for text in texts], 4)
    assert keys(found) == [("warning", "classes.a")]
    assert found[0].problem == "1 of 2 texts has more than 4 tokens; 2 tokens are dropped in total"


def test_fold() -> None:
    assert normalise_text(" H&E,  In-situ_carcinoma. ") == "h e in situ carcinoma"


@pytest.mark.parametrize("name", packaged("sets"))
def test_no_packaged_set_has_an_error(name: str) -> None:
    assert [finding for finding in lint_file(name) if finding.level == "error"] == []


def test_a_published_warning() -> None:
    found = lint_file("crc")
    assert ("warning", "classes.STR[1]") in keys(found)  # tumor-associated stroma: a name of TUM is in it
    assert lint_file("crc_plip", classes=tuple(load_prompts("crc").classes)) == []


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        yaml.safe_dump({"name": "bad", "version": 1, "templates": ["no place"], "classes": {"a": ["x"]}, "z": 1})
    )
    found = lint_file(path)
    assert {(f.level, f.key) for f in found} == {("error", "z"), ("error", "templates[0]"), ("error", "classes")}


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nversion: 1\ntemplates: ['{}']\nclasses: {a: [in situ], b: [in-situ]}\n")
    command = [sys.executable, str(ROOT / "scripts/prompts.py"), "lint", "crc_plip", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "crc_plip: no problems" in done.stdout
    assert "error: classes.b[0]: 'in-situ' is also classes.a[0]" in done.stdout
    missing = subprocess.run([*command[:3], "no_such"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert missing.returncode == 2
    (tmp_path / "broken.yaml").write_text("a: [")
    several = [*command[:3], "no_such", "crc_plip", str(tmp_path / "broken.yaml"), str(path)]
    done = subprocess.run(several, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.count("error: ") == 2
    assert "no_such" in done.stderr and "broken.yaml, line 1" in done.stderr
    assert "crc_plip: no problems" in done.stdout and "bad.yaml: " in done.stdout
    assert "Traceback" not in missing.stderr and "fix:" in missing.stderr
