"""Test the prompt linter: each kind of message, and no message for valid sets."""

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


def keys(messages: Sequence[LintMessage]) -> list[tuple[str, str]]:
    return [(message.level, message.key) for message in messages]


def test_a_valid_set_has_no_messages() -> None:
    assert lint({"a": ("adenoma", "polyp"), "b": ("normal mucosa",)}, ("{}.", "an image of {}.")) == []


@pytest.mark.parametrize(
    "other", ["in situ carcinoma", "In-Situ  Carcinoma", "in situ carcinoma.", "in_situ carcinoma"]
)
def test_a_name_in_two_classes_is_an_error(other: str) -> None:
    messages = lint({"a": ("in situ carcinoma",), "b": ("normal", other)})
    assert keys(messages) == [("error", "classes.b[1]")]
    assert "classes.a[0]" in messages[0].problem and messages[0].fix


def test_a_name_shared_by_two_classes_of_a_published_set_is_an_error() -> None:
    # In Histo-VL's names for BACH, the third name of Normal is also the first of Benign.
    messages = lint(
        {"Normal": ("normal breast tissue", "non-cancerous breast tissue"), "Benign": ("non-cancerous breast tissue",)}
    )
    assert keys(messages) == [("error", "classes.Benign[0]")]


def test_repeated_and_empty_names_of_a_class() -> None:
    messages = lint({"a": ("fat", "Fat", "fat-cells", "fat cells", " ", "..."), "b": ("stroma",), "c": ()})
    assert keys(messages) == [
        ("error", "classes.c"),
        ("error", "classes.a[4]"),
        ("error", "classes.a[5]"),
        ("error", "classes.a[1]"),
        ("warning", "classes.a[3]"),
    ]


def test_similar_names_of_different_classes_are_warnings() -> None:
    messages = lint(
        {"a": ("carcinoma of the lung", "tumor"), "b": ("lung carcinoma", "tumor-associated stroma", "tumorous")}
    )
    assert keys(messages) == [("warning", "classes.b[0]"), ("warning", "classes.b[1]")]
    assert "same words" in messages[0].problem
    assert "contains 'tumor'" in messages[1].problem


def test_containment_is_reported_at_the_longer_name() -> None:
    messages = lint({"a": ("lymph node with tumour",), "b": ("lymph node",)})
    assert keys(messages) == [("warning", "classes.a[0]")]


def test_templates_must_be_unique_and_contain_one_placeholder() -> None:
    messages = lint({"a": ("x",), "b": ("y",)}, ("an image", "{} and {}", "of {}.", "OF  {}."))
    assert keys(messages) == [("error", f"templates[{i}]") for i in (0, 1, 3)]
    assert keys(lint({"a": ("x",), "b": ("y",)}, ())) == [("error", "templates")]


def test_prompt_classes_must_match_those_of_the_tiles() -> None:
    prompts = PromptSet("x", "1", ("{}",), {"a": ("fat",), "b": ("stroma",)})
    messages = lint_prompts(prompts, classes=["a", "c"])
    assert keys(messages) == [("error", "classes"), ("warning", "classes.b")]
    assert "class c is missing" in messages[0].problem
    assert lint_prompts(prompts, classes=["b", "a"]) == []
    assert keys(lint({"a": ("fat",)})) == [("error", "classes")]


def test_texts_over_the_token_budget_are_counted() -> None:
    prompts = PromptSet("x", "1", ("{}", "an image of {}"), {"a": ("fat cells here",), "b": ("stroma",)})
    messages = lint_prompts(prompts, None, lambda texts: [len(text.split()) for text in texts], 4)
    assert keys(messages) == [("warning", "classes.a")]
    assert messages[0].problem == "1 of 2 texts has more than 4 tokens; 2 tokens are dropped in total"


def test_normalise_text() -> None:
    assert normalise_text(" H&E,  In-situ_carcinoma. ") == "h e in situ carcinoma"
    assert normalise_text("CD3+") == normalise_text("cd3+.") != normalise_text("CD3-") != normalise_text("CD3")
    assert normalise_text("Ki-67 < 5%") != normalise_text("Ki-67 > 5%")


@pytest.mark.parametrize("name", packaged("sets"))
def test_no_packaged_set_has_an_error(name: str) -> None:
    assert [message for message in lint_file(name) if message.level == "error"] == []


def test_a_published_set_has_a_warning() -> None:
    messages = lint_file("crc")
    assert ("warning", "classes.STR[1]") in keys(messages)  # "tumor-associated stroma" contains a name of TUM
    assert lint_file("crc_plip", classes=tuple(load_prompts("crc").classes)) == []


def test_problems_of_a_file_that_does_not_load_are_messages(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        yaml.safe_dump({"name": "bad", "version": 1, "templates": ["no place"], "classes": {"a": ["x"]}, "z": 1})
    )
    messages = lint_file(path)
    assert {(message.level, message.key) for message in messages} == {
        ("error", "z"),
        ("error", "templates[0]"),
        ("error", "classes"),
    }


def test_the_lint_command_reports_every_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nversion: 1\ntemplates: ['{}']\nclasses: {a: [in situ], b: [in-situ]}\n")
    command = [sys.executable, str(ROOT / "scripts/prompts.py"), "lint", "crc_plip", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert "crc_plip: no problems" in result.stdout
    assert "error: classes.b[0]: 'in-situ' is also classes.a[0]" in result.stdout
    missing = subprocess.run([*command[:3], "no_such"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert missing.returncode == 2
    (tmp_path / "broken.yaml").write_text("a: [")
    several = [*command[:3], "no_such", "crc_plip", str(tmp_path / "broken.yaml"), str(path)]
    result = subprocess.run(several, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2 and result.stderr.count("error: ") == 2
    assert "no_such" in result.stderr and "broken.yaml, line 1" in result.stderr
    assert "crc_plip: no problems" in result.stdout and "bad.yaml: " in result.stdout
    assert "Traceback" not in missing.stderr and "fix:" in missing.stderr
