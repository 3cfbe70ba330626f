"""Test prompt sets: packaged sets, validation errors, and the texts of each class."""

import json
import os
from pathlib import Path

import pytest

from clipit.errors import DataError
from clipit.prompts.prompt_set import check_classes, load_prompt_bag, load_prompts, unused_classes
from clipit.tiles.datasets import DATASETS

DATA = os.environ.get("CLIPIT_TEST_DATA")
needs_data = pytest.mark.skipif(
    not DATA, reason="CLIPIT_TEST_DATA is not set: published prompt files are not available"
)

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


def load_error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)
    assert "fix:" in str(caught.value)
    return str(caught.value)


def test_a_folder_does_not_hide_a_packaged_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("crc", "morphology"):
        (tmp_path / name).mkdir()
    assert load_prompts("crc").name == "crc" and load_prompt_bag("morphology").texts
    with pytest.raises(DataError, match="a folder, not a prompt file"):
        load_prompts("./crc")
    (tmp_path / "crc").rmdir()
    write(tmp_path, GOOD).rename("crc")
    assert load_prompts("crc").name == "two"


def test_every_name_is_inserted_into_every_template(tmp_path: Path) -> None:
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


def test_the_hash_depends_on_the_texts_but_not_on_the_name(tmp_path: Path) -> None:
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
def test_crc_matches_the_published_prompts() -> None:
    assert DATA is not None
    published = json.loads((Path(DATA) / "prompts/conch_crc100k_prompts_all_per_class.json").read_text())["0"]
    prompts = load_prompts("crc")
    assert {name: list(names) for name, names in prompts.classes.items()} == published["classnames"]
    assert list(prompts.templates) == [text.replace("CLASSNAME", "{}") for text in published["templates"]]


@needs_data
def test_bach_contains_the_published_names() -> None:
    assert DATA is not None
    draws = json.loads((Path(DATA) / "prompts/kep_bach_prompts_100.json").read_text())
    for name, names in load_prompts("bach").classes.items():
        assert set(names) == {draw["classnames"][name] for draw in draws.values()}


PUBLISHED_CLASSES = {
    "crc_quilt8": "ADI DEB LYM MUC MUS NORM STR TUM",
    "crc_thunder": "ADI BACK DEB LYM MUC MUS NORM STR TUM",
    "crc_kep": "ADI BACK DEB LYM MUC MUS NORM STR TUM",
    "pcam_quilt": "no_tumor tumor",
    "pcam_keep": "no_tumor tumor",
    "bach_quilt": "Benign InSitu Invasive Normal",
    "bach_keep": "Benign InSitu Invasive Normal",
    "bach_thunder": "Benign InSitu Invasive Normal",
    "lc25000_lung": "lung_aca lung_n lung_scc",
    "lc25000_lung_quilt": "lung_aca lung_n lung_scc",
    "lc25000_colon": "colon_aca colon_n",
    "lc25000_colon_quilt": "colon_aca colon_n",
    "mhist": "HP SSA",
    "sicapv2": "G3 G4 G5 NC",
    "sicapv2_quilt": "G3 G4 G5 NC",
    "lc25000": "colon_aca colon_n lung_aca lung_n lung_scc",
    "breakhis": "benign malignant",
    "breakhis_types": "A DC F LC MC PC PT TA",
    "breakhis_thunder": "DC F MC TA",
    "kather2016": "01_TUMOR 02_STROMA 03_COMPLEX 04_LYMPHO 05_DEBRIS 06_MUCOSA 07_ADIPOSE 08_EMPTY",
    "wsss4luad": "normal tumor",
    "wsss4luad_kep": "normal stroma tumor",
    "digestpath": "benign malignant",
    "pannuke": "benign malignant",
    "glas": "background gland",
    "glas_grades": "benign malignant",
}


@pytest.mark.parametrize("name", PUBLISHED_CLASSES)
def test_classes_of_published_sets_are_those_of_their_data_sets(name: str) -> None:
    prompts = load_prompts(name)
    assert sorted(prompts.classes) == PUBLISHED_CLASSES[name].split()
    assert prompts.name == name and prompts.source and prompts.version == "1"


@pytest.mark.parametrize("name", [name for name, row in DATASETS.items() if row.classes])
def test_every_data_set_has_a_prompt_set_with_its_classes(name: str) -> None:
    prompts = load_prompts({"nct_crc": "crc"}.get(name, name))
    assert set(prompts.classes) == set(DATASETS[name].classes)


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "dropped"),
    [
        ("crc_kep", "kep_kather_prompts_100.json", ()),
        ("bach", "kep_bach_prompts_100.json", ()),
        ("sicapv2", "kep_sicap_prompts_100.json", ("Tumor",)),
        ("wsss4luad_kep", "kep_wsss4luad_prompts_100.json", ()),
    ],
)
def test_synonym_sets_contain_the_names_that_kep_draws_from(name: str, file: str, dropped: tuple[str, ...]) -> None:
    assert DATA is not None
    draws = list(json.loads((Path(DATA) / "prompts" / file).read_text()).values())
    published = {key: {draw["classnames"][key] for draw in draws} for key in draws[0]["classnames"]}
    prompts = load_prompts(name)
    assert {key: set(names) for key, names in prompts.classes.items()} == {
        key: names for key, names in published.items() if key not in dropped
    }
    assert {draw["templates"].replace("CLASSNAME", "{}") for draw in draws} <= set(prompts.templates)


@needs_data
def test_bach_keep_matches_the_published_prompt() -> None:
    assert DATA is not None
    published = json.loads((Path(DATA) / "prompts/keep_bach_prompt.json").read_text())["0"]
    prompts = load_prompts("bach_keep")
    assert {key: names[0] for key, names in prompts.classes.items()} == {
        key: names if isinstance(names, str) else names[0] for key, names in published["classnames"].items()
    }
    assert prompts.templates == (published["templates"].replace("CLASSNAME", "{}"),)


def test_all_problems_of_a_prompt_set_are_reported_together(tmp_path: Path) -> None:
    message = load_error(
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
  f: ["a {} slide"]
  on: [switched]
""",
        )
    )
    assert "colour: unknown key" in message
    assert "templates[0]" in message and "templates[1]" in message
    assert "templates: '{}.' is given twice, as templates[" in message
    assert "classes.a: 'mucus' is given twice" in message
    assert "classes.b: is empty" in message
    assert "classes.c: 'stroma' is also a name of a" in message
    assert "classes.d: must be a list" in message
    assert "classes.e[0]: 1 is not a string" in message
    assert "classes.f[0]: 'a {} slide' is a template" in message
    assert "classes.True: the class name is not a string" in message
    assert "11 problems" in message


def test_a_repeated_class_is_an_error(tmp_path: Path) -> None:
    assert "b (line 8): is given twice" in load_error(write(tmp_path, GOOD + "  b: [lymphocytes]\n"))


@pytest.mark.parametrize("missing", ["name", "version", "templates"])
def test_missing_keys_are_reported_with_an_example(tmp_path: Path, missing: str) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith(missing)]
    message = load_error(write(tmp_path, "\n".join(lines)))
    assert f"{missing}: is missing" in message and "'an image of {}.'" in message
    assert "'an image of {}.'" not in load_error(write(tmp_path, GOOD + "  b: [lymphocytes]\n"))


@pytest.mark.parametrize("text", ["", "just a sentence", "- a\n- b\n", "a: [b\nc: }"])
def test_other_yaml_content_is_an_error(tmp_path: Path, text: str) -> None:
    assert "fix:" in load_error(write(tmp_path, text))


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: é".encode("latin-1"))
    assert "UTF-8" in load_error(path)


def test_a_misspelled_set_or_path_comes_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)unknown prompt set 'crc_ke'.*did you mean crc_kep\?"):
        load_prompts("crc_ke")
    (tmp_path / "mine.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)no such prompt file: .*mine\.jsn.*contains mine\.json; correct"):
        load_prompts(tmp_path / "mine.jsn")


def test_an_unknown_set_lists_the_packaged_ones() -> None:
    with pytest.raises(DataError, match="crc_plip"):
        load_prompts("crc_typo")


def test_classes_must_match_those_of_the_tiles() -> None:
    prompts = load_prompts("pcam")
    check_classes(prompts, ["tumor", "no_tumor"])
    check_classes(prompts, ["tumor"])
    assert unused_classes(prompts, ["tumor"]) == ["no_tumor"] and unused_classes(prompts, ["tumor", "no_tumor"]) == []
    with pytest.raises(DataError) as caught:
        check_classes(prompts, ["tumor", "normal"])
    assert "without prompts: normal" in str(caught.value)
    assert "without tiles: no_tumor" in str(caught.value)


def test_prompt_bags(tmp_path: Path) -> None:
    morphology, boilerplate = load_prompt_bag("morphology"), load_prompt_bag("boilerplate")
    assert len(morphology.texts) >= 20 and len(boilerplate.texts) >= 20
    assert not set(morphology.texts) & set(boilerplate.texts)
    assert morphology.hash != boilerplate.hash
    path = write(tmp_path, "name: x\ntexts: [a, A, '']\ncolour: red\n")
    with pytest.raises(DataError) as caught:
        load_prompt_bag(path)
    for part in ("version: is missing", "'a' is given twice", "texts[2]", "colour: unknown key"):
        assert part in str(caught.value)


def test_control_characters_in_names_and_templates_are_errors(tmp_path: Path) -> None:
    text = """{"name": "x", "version": "1", "templates": ["a {} \\u0007"],
    "classes": {"a": ["tumour\\u0000", "two\\nlines"], "b\\nc": ["stroma"], "tab\\there": ["mucus", " spaced "]}}"""
    message = load_error(write(tmp_path, text))
    for place in ("templates[0]: 'a {} \\x07'", "classes.a[0]: 'tumour\\x00'", "classes.a[1]: 'two\\nlines'",
                  "classes: 'b\\nc'", "classes: 'tab\\there'"):  # fmt: skip
        assert place in message
    assert "5 problems" in message
