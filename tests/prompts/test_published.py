"""Published prompt files, read as they are, and the list of packaged sets."""

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
needs_data = pytest.mark.skipif(not DATA, reason="CLIPIT_TEST_DATA is not set: no published prompt files here")
SAMPLES: dict[str, Any] = {
    "0": {"classnames": {"a": "adenoma", "b": "normal mucosa"}, "templates": "an image of CLASSNAME."},
    "1": {"classnames": {"a": "polyp", "b": "normal mucosa"}, "templates": ["CLASSNAME.", "an image of CLASSNAME."]},
}


def write(folder: Path, content: Any, name: str = "prompts.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent="\t"), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value) and "fix:" in str(caught.value)
    return str(caught.value)


def test_samples_are_read_as_the_pool_that_they_were_drawn_from(tmp_path: Path) -> None:
    prompts = load_prompts(write(tmp_path, SAMPLES, "mine.json"))
    assert prompts.classes == {"a": ("adenoma", "polyp"), "b": ("normal mucosa",)}
    assert prompts.templates == ("an image of {}.", "{}.") and prompts.name == "mine"
    one = load_prompts(write(tmp_path, SAMPLES["0"]))
    assert one.texts("a") == ["an image of adenoma."], "one set without a number"


def test_the_samples_of_a_file_are_also_read_one_by_one(tmp_path: Path) -> None:
    first, second = load_prompt_draws(write(tmp_path, SAMPLES, "mine.json"))
    assert (first.name, second.name) == ("mine-0", "mine-1")
    assert first.texts("a") == ["an image of adenoma."]
    assert second.texts("a") == ["polyp.", "an image of polyp."]
    alone = load_prompt_draws(write(tmp_path, SAMPLES["0"]))
    assert [each.texts("a") for each in alone] == [["an image of adenoma."]]
    entry = json.dumps(SAMPLES["0"])
    with pytest.raises(DataError, match="0: is given twice"):
        load_prompt_draws(write(tmp_path, f'{{"0": {entry}, "0": {entry}, "1": {entry}}}'))


def test_a_set_of_ours_may_be_json(tmp_path: Path) -> None:
    ours = {"name": "two", "version": 1, "templates": ["{}."], "classes": {"a": ["adenoma"], "b": ["mucosa"]}}
    assert load_prompts(write(tmp_path, ours)).texts("b") == ["mucosa."]


def test_a_file_of_two_structures_or_none_names_what_is_expected(tmp_path: Path) -> None:
    both = {**SAMPLES["0"], "classes": {"a": ["adenoma"]}}
    for content, message in (
        ({**both, **SAMPLES}, "mixes 3 structures"),
        (both, "mixes 2 structures"),
        ({"templates": ["CLASSNAME."]}, "has an unknown structure; its keys are templates"),
        ({"colon": {"names": ["adenoma"]}}, "has an unknown structure; its keys are colon"),
        ({}, "it has no keys"),
    ):
        text = refused(write(tmp_path, content))
        assert message in text and "name, version, templates and classes" in text and "MI-Zero" in text


def test_a_file_of_another_kind_is_recognised_instead_of_its_keys_listed_one_by_one(tmp_path: Path) -> None:
    configuration = {"name": "own", "prompts": "own.yaml", "tiles": {}, "reports": {}, "training": {}}
    text = refused(write(tmp_path, configuration))
    assert "a configuration, not a prompt file" in text and "use the file that its key `prompts` names" in text
    del configuration["prompts"]
    assert "name, version, templates and classes" in refused(write(tmp_path, configuration))
    summary = {"images": 4, "predicted": 4, "mean_confidence": 0.8, "sha256": "0", "classes": {"a": 1, "b": 3}}
    assert "has an unknown structure; its keys are images, predicted" in refused(write(tmp_path, summary))
    # Incomplete sets, and sets with keys of their own, are told which keys are missing or unknown.
    assert "version: is missing" in refused(write(tmp_path, {"name": "own", "classes": {"a": ["x"], "b": ["y"]}}))
    own = {"name": "own", "templates": ["{}."], "classes": {"a": ["x"], "b": ["y"]}, **dict.fromkeys("uvwxyz", 1)}
    assert "u: unknown key" in refused(write(tmp_path, own))


def test_a_folder_is_not_a_prompt_file(tmp_path: Path) -> None:
    text = refused(tmp_path)
    assert "a folder, not a prompt file" in text and "name a YAML or JSON file" in text
    (tmp_path / "own.yaml").touch()
    assert "name one of its files: own.yaml" in refused(tmp_path)


def test_all_problems_of_a_published_file_are_listed(tmp_path: Path) -> None:
    wrong = {
        **SAMPLES,
        "2": {"classnames": {"a": "adenoma", "c": ""}, "templates": "an image of {}."},
        "3": {"classnames": ["adenoma"], "templates": "CLASSNAME."},
        "4": "adenoma",
    }
    text = refused(write(tmp_path, wrong))
    assert "2.classnames: classes differ from those of the first entry: b, c" in text
    assert "2.classnames.c[0]: is empty" in text
    assert "2.templates: 'an image of {}.' must contain CLASSNAME exactly once" in text
    assert "3.classnames: must be a mapping" in text and "4: must contain exactly classnames and templates" in text
    shared = {"0": {"classnames": {"a": "adenoma", "b": "adenoma"}, "templates": "CLASSNAME."}}
    assert "'adenoma' is also a name of a" in refused(write(tmp_path, shared))
    assert [finding.level for finding in lint_file(write(tmp_path, shared))] == ["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": 1,}', "not valid JSON"), ("[1]", "not a JSON object"), ('{"a": "\\ud83d"}', "not valid JSON"),
     ('{"0": {"templates": "CLASSNAME."}, "0": {}}', "structures"), ("[" * 100_000, "not valid JSON")],
)  # fmt: skip
def test_a_damaged_file_is_an_error_that_names_it(content: str, message: str, tmp_path: Path) -> None:
    assert message in refused(write(tmp_path, content))


def test_a_repeated_entry_is_not_silently_the_last_one(tmp_path: Path) -> None:
    entry = json.dumps(SAMPLES["0"])
    assert "0: is given twice" in refused(write(tmp_path, f'{{"0": {entry}, "0": {entry}}}'))


@needs_data
def test_every_published_file_is_read_as_it_is() -> None:
    assert DATA is not None
    read = {path.name: load_prompts(path) for path in (Path(DATA) / "prompts").glob("*_prompt*.json")}
    assert len(read) == 11
    assert read["kep_kather_prompts_100.json"].classes.keys() == load_prompts("crc_kep").classes.keys()
    assert read["conch_crc100k_prompts_all_per_class.json"].hash == load_prompts("crc").hash
    assert read["keep_bach_prompt.json"].hash == load_prompts("bach_keep").hash
    rcc = read["mizero_rcc_prompts.json"]
    assert list(rcc.classes) == ["CHRCC", "CCRCC", "PRCC"] and (len(rcc.templates), count_prompts(rcc)) == (16, 192)
    assert "has an unknown structure" in refused(Path(DATA) / "prompts/kep_templates.json")


@needs_data
def test_the_slide_sets_of_mi_zero_and_conch_name_their_classes_and_have_all_draws() -> None:
    assert DATA is not None
    folder = Path(DATA) / "prompts"
    classes = {"brca": ["IDC", "ILC"], "nsclc": ["LUAD", "LUSC"], "rcc": ["CHRCC", "CCRCC", "PRCC"]}
    for task, names in classes.items():
        draws = load_prompt_draws(folder / f"mizero_{task}_prompts.json")
        assert len(draws) == 50 and all(list(draw.classes) == names for draw in draws)
        assert all(len(texts) == 1 for draw in draws for texts in draw.classes.values())
    (conch,) = load_prompt_draws(folder / "conch_nsclc_prompts_all_per_class.json")
    assert list(conch.classes) == classes["nsclc"] and len(conch.templates) == 22


def test_the_list_has_every_packaged_set_with_source_and_licence(
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
