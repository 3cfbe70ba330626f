"""Prompt sets: what ships, what a wrong file is told, and which texts come out."""

import json
import os
from pathlib import Path

import pytest

from clipit.errors import DataError
from clipit.prompts.prompt_bag import load_bag
from clipit.prompts.prompt_set import check_classes, load_prompts

DATA = os.environ.get("CLIPIT_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="CLIPIT_TEST_DATA is not set: no published prompt files here")

GOOD = """
name: two
version: 1
templates: ["an image of {}.", "{}"]
classes:
  a: [adenoma, adenomatous polyp]
  b: [normal mucosa]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "prompts.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)
    assert "to do:" in str(caught.value)
    return str(caught.value)


def test_each_name_goes_into_each_template(tmp_path: Path) -> None:
    prompts = load_prompts(write(tmp_path, GOOD))
    assert prompts.texts("a") == [
        "an image of adenoma.",
        "adenoma",
        "an image of adenomatous polyp.",
        "adenomatous polyp",
    ]
    assert prompts.version == "1"
    with pytest.raises(DataError, match="no class c"):
        prompts.texts("c")


def test_hash_follows_the_texts_and_not_the_name(tmp_path: Path) -> None:
    first = load_prompts(write(tmp_path, GOOD)).hash
    assert load_prompts(write(tmp_path, GOOD.replace("name: two", "name: other"))).hash == first
    assert load_prompts(write(tmp_path, GOOD.replace("normal mucosa", "healthy mucosa"))).hash != first


@pytest.mark.parametrize(
    ("name", "classes", "texts_of_first"),
    [
        ("crc", "ADI BACK DEB LYM MUC MUS NORM STR TUM", 5 * 22),
        ("crc_plip", "ADI BACK DEB LYM MUC MUS NORM STR TUM", 1),
        ("pcam", "no_tumor tumor", 22),
        ("bach", "Benign InSitu Invasive Normal", 3 * 22),
        ("crc_polito5", "AC H S T V", 4 * 6),
    ],
)
def test_packaged_sets(name: str, classes: str, texts_of_first: int) -> None:
    prompts = load_prompts(name)
    assert list(prompts.classes) == classes.split()
    assert len(prompts.texts(next(iter(prompts.classes)))) == texts_of_first
    assert prompts.name == name
    assert prompts.source


@needs_data
def test_crc_is_the_published_list() -> None:
    assert DATA is not None
    published = json.loads((Path(DATA) / "prompts/conch_crc100k_prompts_all_per_class.json").read_text())["0"]
    prompts = load_prompts("crc")
    assert {name: list(names) for name, names in prompts.classes.items()} == published["classnames"]
    assert list(prompts.templates) == [text.replace("CLASSNAME", "{}") for text in published["templates"]]


@needs_data
def test_bach_has_the_published_names() -> None:
    assert DATA is not None
    draws = json.loads((Path(DATA) / "prompts/kep_bach_prompts_100.json").read_text())
    for name, names in load_prompts("bach").classes.items():
        assert set(names) == {draw["classnames"][name] for draw in draws.values()}


def test_all_problems_at_once(tmp_path: Path) -> None:
    message = refused(
        write(
            tmp_path,
            """
name: bad
version: 1
colour: blue
templates: ["an image of CLASSNAME.", "{} and {}", "{}.", "{}."]
classes:
  a: [mucus, Mucus, stroma]
  b: []
  c: [stroma]
  d: just text
  e: [1]
  on: [switched]
""",
        )
    )
    assert "colour: unknown key" in message
    assert "templates[0]" in message and "templates[1]" in message
    assert "templates: '{}.' is given twice" in message
    assert "classes.a: 'mucus' is given twice" in message
    assert "classes.b: is empty" in message
    assert "classes.c: 'stroma' is also a name of a" in message
    assert "classes.d: must be a list" in message
    assert "classes.e[0]: 1 is not a text" in message
    assert "classes.True: the class's name is not a text" in message
    assert "10 problems" in message


def test_a_class_given_twice_is_not_silently_the_last_one(tmp_path: Path) -> None:
    assert "b: is given twice" in refused(write(tmp_path, GOOD + "  b: [lymphocytes]\n"))


@pytest.mark.parametrize("missing", ["name", "version", "templates"])
def test_missing_keys(tmp_path: Path, missing: str) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith(missing)]
    assert f"{missing}: is missing" in refused(write(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize("text", ["", "just a sentence", "- a\n- b\n", "a: [b\nc: }"])
def test_not_a_prompt_file(tmp_path: Path, text: str) -> None:
    assert "to do:" in refused(write(tmp_path, text))


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: é".encode("latin-1"))
    assert "UTF-8" in refused(path)


def test_no_such_set_names_those_that_exist() -> None:
    with pytest.raises(DataError, match="crc_plip"):
        load_prompts("crc_typo")


def test_classes_must_be_those_of_the_tiles() -> None:
    prompts = load_prompts("pcam")
    check_classes(prompts, ["tumor", "no_tumor"])
    with pytest.raises(DataError) as caught:
        check_classes(prompts, ["tumor", "normal"])
    assert "without prompts: normal" in str(caught.value)
    assert "without tiles: no_tumor" in str(caught.value)


def test_bags(tmp_path: Path) -> None:
    morphology, boilerplate = load_bag("morphology"), load_bag("boilerplate")
    assert len(morphology.texts) >= 20 and len(boilerplate.texts) >= 20
    assert not set(morphology.texts) & set(boilerplate.texts)
    assert morphology.hash != boilerplate.hash
    path = write(tmp_path, "name: x\ntexts: [a, A, '']\ncolour: red\n")
    with pytest.raises(DataError) as caught:
        load_bag(path)
    for part in ("version: is missing", "'a' is given twice", "texts[2]", "colour: unknown key"):
        assert part in str(caught.value)
