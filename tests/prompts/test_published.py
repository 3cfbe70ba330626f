"""Test reading published prompt files in their original formats, and the list of packaged sets."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from clipit.cli.prompts import main
from clipit.errors import DataError
from clipit.prompts.catalogue import catalogue_page, count_prompts, packaged_sets
from clipit.prompts.lint import lint_file
from clipit.prompts.prompt_set import load_prompt_draws, load_prompts

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("CLIPIT_TEST_DATA")
needs_data = pytest.mark.skipif(
    not DATA, reason="CLIPIT_TEST_DATA is not set: published prompt files are not available"
)
SAMPLES: dict[str, Any] = {
    "0": {"classnames": {"a": "adenoma", "b": "normal mucosa"}, "templates": "an image of CLASSNAME."},
    "1": {"classnames": {"a": "polyp", "b": "normal mucosa"}, "templates": ["CLASSNAME.", "an image of CLASSNAME."]},
}


def write(folder: Path, content: Any, name: str = "prompts.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent="\t"), encoding="utf-8")
    return path


def load_error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value) and "fix:" in str(caught.value)
    return str(caught.value)


def test_draws_are_merged_into_the_pool_that_they_were_drawn_from(tmp_path: Path) -> None:
    prompts = load_prompts(write(tmp_path, SAMPLES, "mine.json"))
    assert prompts.classes == {"a": ("adenoma", "polyp"), "b": ("normal mucosa",)}
    assert prompts.templates == ("an image of {}.", "{}.") and prompts.name == "mine"
    single = load_prompts(write(tmp_path, SAMPLES["0"]))
    assert single.texts("a") == ["an image of adenoma."], "a single draw without a number"


def test_draws_of_a_file_can_be_read_separately(tmp_path: Path) -> None:
    first, second = load_prompt_draws(write(tmp_path, SAMPLES, "mine.json"))
    assert (first.name, second.name) == ("mine-0", "mine-1")
    assert first.texts("a") == ["an image of adenoma."]
    assert second.texts("a") == ["polyp.", "an image of polyp."]
    single = load_prompt_draws(write(tmp_path, SAMPLES["0"]))
    assert [draw.texts("a") for draw in single] == [["an image of adenoma."]]
    entry = json.dumps(SAMPLES["0"])
    with pytest.raises(DataError, match="0: is given twice"):
        load_prompt_draws(write(tmp_path, f'{{"0": {entry}, "0": {entry}, "1": {entry}}}'))


def test_a_prompt_set_may_be_json(tmp_path: Path) -> None:
    content = {"name": "two", "version": 1, "templates": ["{}."], "classes": {"a": ["adenoma"], "b": ["mucosa"]}}
    assert load_prompts(write(tmp_path, content)).texts("b") == ["mucosa."]


def test_a_file_with_mixed_or_unknown_structures_lists_the_expected_ones(tmp_path: Path) -> None:
    both = {**SAMPLES["0"], "classes": {"a": ["adenoma"]}}
    for content, message in (
        ({**both, **SAMPLES}, "mixes 3 structures"),
        (both, "mixes 2 structures"),
        ({"templates": ["CLASSNAME."]}, "has an unknown structure; its keys are templates"),
        ({"colon": {"names": ["adenoma"]}}, "has an unknown structure; its keys are colon"),
        ({}, "it has no keys"),
    ):
        text = load_error(write(tmp_path, content))
        assert message in text and "name, version, templates and classes" in text and "MI-Zero" in text


def test_other_kinds_of_files_are_recognised(tmp_path: Path) -> None:
    configuration = {"name": "own", "prompts": "own.yaml", "tiles": {}, "reports": {}, "training": {}}
    text = load_error(write(tmp_path, configuration))
    assert "a configuration, not a prompt file" in text and "use the file that its key `prompts` names" in text
    del configuration["prompts"]
    assert "name, version, templates and classes" in load_error(write(tmp_path, configuration))
    summary = {"images": 4, "predicted": 4, "mean_confidence": 0.8, "sha256": "0", "classes": {"a": 1, "b": 3}}
    assert "has an unknown structure; its keys are images, predicted" in load_error(write(tmp_path, summary))
    # For incomplete sets and sets with extra keys, the error lists the missing or unknown keys.
    assert "version: is missing" in load_error(write(tmp_path, {"name": "own", "classes": {"a": ["x"], "b": ["y"]}}))
    content = {"name": "own", "templates": ["{}."], "classes": {"a": ["x"], "b": ["y"]}, **dict.fromkeys("uvwxyz", 1)}
    assert "u: unknown key" in load_error(write(tmp_path, content))


def test_a_folder_is_not_a_prompt_file(tmp_path: Path) -> None:
    text = load_error(tmp_path)
    assert "a folder, not a prompt file" in text and "name a YAML or JSON file" in text
    (tmp_path / "own.yaml").touch()
    assert "name one of its files: own.yaml" in load_error(tmp_path)


def test_all_problems_of_a_published_file_are_listed(tmp_path: Path) -> None:
    wrong = {
        **SAMPLES,
        "2": {"classnames": {"a": "adenoma", "c": ""}, "templates": "an image of {}."},
        "3": {"classnames": ["adenoma"], "templates": "CLASSNAME."},
        "4": "adenoma",
    }
    text = load_error(write(tmp_path, wrong))
    assert "2.classnames: classes differ from those of the first entry: b, c" in text
    assert "2.classnames.c[0]: is empty" in text
    assert "2.templates: 'an image of {}.' must contain CLASSNAME exactly once" in text
    assert "3.classnames: must be a mapping" in text and "4: must contain exactly classnames and templates" in text
    shared = {"0": {"classnames": {"a": "adenoma", "b": "adenoma"}, "templates": "CLASSNAME."}}
    assert "'adenoma' is also a name of a" in load_error(write(tmp_path, shared))
    assert [message.level for message in lint_file(write(tmp_path, shared))] == ["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": 1,}', "not valid JSON"), ("[1]", "not a JSON object"), ('{"a": "\\ud83d"}', "not valid JSON"),
     ('{"0": {"templates": "CLASSNAME."}, "0": {}}', "structures"), ("[" * 100_000, "not valid JSON")],
)  # fmt: skip
def test_a_damaged_file_is_named_in_the_error(content: str, message: str, tmp_path: Path) -> None:
    assert message in load_error(write(tmp_path, content))


def test_a_repeated_entry_is_an_error(tmp_path: Path) -> None:
    entry = json.dumps(SAMPLES["0"])
    assert "0: is given twice" in load_error(write(tmp_path, f'{{"0": {entry}, "0": {entry}}}'))


@needs_data
def test_every_published_file_can_be_read() -> None:
    assert DATA is not None
    prompt_sets = {path.name: load_prompts(path) for path in (Path(DATA) / "prompts").glob("*_prompt*.json")}
    assert len(prompt_sets) == 11
    assert prompt_sets["kep_kather_prompts_100.json"].classes.keys() == load_prompts("crc_kep").classes.keys()
    assert prompt_sets["conch_crc100k_prompts_all_per_class.json"].hash == load_prompts("crc").hash
    assert prompt_sets["keep_bach_prompt.json"].hash == load_prompts("bach_keep").hash
    rcc = prompt_sets["mizero_rcc_prompts.json"]
    assert list(rcc.classes) == ["CHRCC", "CCRCC", "PRCC"] and (len(rcc.templates), count_prompts(rcc)) == (16, 192)
    assert "has an unknown structure" in load_error(Path(DATA) / "prompts/kep_templates.json")


@needs_data
def test_slide_prompts_of_mi_zero_and_conch_have_all_classes_and_draws() -> None:
    assert DATA is not None
    folder = Path(DATA) / "prompts"
    classes = {"brca": ["IDC", "ILC"], "nsclc": ["LUAD", "LUSC"], "rcc": ["CHRCC", "CCRCC", "PRCC"]}
    for task, names in classes.items():
        draws = load_prompt_draws(folder / f"mizero_{task}_prompts.json")
        assert len(draws) == 50 and all(list(draw.classes) == names for draw in draws)
        assert all(len(texts) == 1 for draw in draws for texts in draw.classes.values())
    (conch,) = load_prompt_draws(folder / "conch_nsclc_prompts_all_per_class.json")
    assert list(conch.classes) == classes["nsclc"] and len(conch.templates) == 22


def test_the_list_shows_every_packaged_set_with_source_and_licence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["clipit prompts", "list"])
    main()
    printed = capsys.readouterr().out
    for name, prompts in packaged_sets().items():
        assert f"\n{name} " in printed and prompts.source in printed
        assert prompts.licence, name


def test_the_page_of_prompt_sets_is_up_to_date() -> None:
    text = (ROOT / "docs/prompts.md").read_text(encoding="utf-8")
    assert text == catalogue_page(packaged_sets()), "run python -m clipit.prompts.catalogue > docs/prompts.md"
