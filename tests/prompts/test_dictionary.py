"""Test the prompt dictionary: packaged entries, the bag of texts per entry, and validation errors."""

from pathlib import Path

import pytest
import yaml

import clipit
from clipit.errors import DataError
from clipit.prompts.dictionary import KINDS, MAX_TEXTS, load_dictionary

ENTRY = {"id": "e1", "term": "fat", "variants": ["adipose tissue", "fat tissue"], "kind": "tissue", "organ": "any"}
ENTRY |= {"source": "general histology"}


def write(path: Path, *entries: object, **keys: object) -> Path:
    content = {"name": "own", "version": 1, "entries": list(entries)} | keys
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_the_packaged_dictionary() -> None:
    dictionary = load_dictionary("histology")
    assert len(dictionary.entries) >= 300
    assert {entry.kind for entry in dictionary.entries.values()} == set(KINDS)
    assert all(entry.source and 2 <= len(entry.variants) <= 5 for entry in dictionary.entries.values())
    assert dictionary.texts("change-necrosis")[:2] == ["necrosis", "necrotic tissue"]
    chapters = Path(clipit.__file__).parent / "prompts/dictionaries/histology"
    heads = [path.read_text(encoding="utf-8").split("name:")[0] for path in chapters.glob("*.yaml")]
    assert len(heads) == 9
    assert all("in the style of CPLIP's dictionary, which is not public" in head for head in heads)


def test_a_bag_contains_each_text_of_an_entry_once(tmp_path: Path) -> None:
    full = ENTRY | {"findings": ["rim of nuclei", "fat"], "causes": ["food"]}
    dictionary = load_dictionary(write(tmp_path / "d.yaml", full))
    assert dictionary.bag("e1") == ["fat", "adipose tissue", "fat tissue", "rim of nuclei", "food"]
    packaged = load_dictionary()
    assert max(len(packaged.bag(entry)) for entry in packaged.entries) <= MAX_TEXTS == 12
    with pytest.raises(DataError, match="did you mean e1"):
        dictionary.bag("e11")


def test_the_hash_depends_on_the_texts_only(tmp_path: Path) -> None:
    first = load_dictionary(write(tmp_path / "d.yaml", ENTRY)).hash
    assert load_dictionary(write(tmp_path / "d.yaml", ENTRY, name="another")).hash == first
    assert load_dictionary(write(tmp_path / "d.yaml", ENTRY | {"term": "lard"})).hash != first


def test_all_problems_of_a_dictionary_are_reported_together(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.yaml",
        ENTRY,
        ENTRY | {"term": "Fat."},
        ENTRY | {"id": "e2", "term": "lipid", "variants": ["Fat", "lipids"]},
        ENTRY | {"id": "e3", "term": "oil", "kind": "organelle", "variants": ["one"], "colour": "red"},
        ENTRY | {"id": "e4", "term": "wax", "variants": ["wax", "candle"], "causes": ["a", "b", "c", "d"]},
        {"id": "e5"},
        "just text",
        shape="round",
    )
    with pytest.raises(DataError) as caught:
        load_dictionary(path)
    for part in (
        "entries[1].id: e1 is given twice",
        "entries[1].term: 'Fat.' is also the term of e1",
        "e2.variants: 'Fat' is the term of e1",
        "entries[3].kind: 'organelle'",
        "entries[3].variants: 1 text; 2 to 5",
        "entries[3].colour: unknown key",
        "entries[4].variants: contains the term itself",
        "entries[4].causes: 4 texts",
        "entries[5].term: is missing",
        "entries[6]: is not a mapping",
        "shape: unknown key",
    ):
        assert part in str(caught.value)


def test_chapters_are_merged_and_must_share_their_version(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", ENTRY)
    write(tmp_path / "b.yaml", ENTRY | {"id": "e2", "term": "muscle", "variants": ["muscle tissue", "muscle cells"]})
    assert list(load_dictionary(tmp_path).entries) == ["e1", "e2"]
    write(tmp_path / "b.yaml", version=2)
    with pytest.raises(DataError, match="differ between chapters"):
        load_dictionary(tmp_path)


def test_an_unknown_dictionary_lists_the_packaged_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one of: histology"):
        load_dictionary(tmp_path / "none")
