"""Test bags read from tile stores and from feature files."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mil_bags import tiles_of, write_features
from tiny_models import write_store

from clipit.config.data import TilesConfig
from clipit.config.mil import MilConfig
from clipit.config.run import RunConfig
from clipit.errors import DataError
from clipit.mil.feature_file_bags import HeldOut, bags_of_files
from clipit.mil.inputs import read_inputs
from clipit.mil.mil_bags import MilBags
from clipit.mil.tile_store_bags import bags_of_tiles
from clipit.tiles.tileset import SPLITS

HELD_OUT = HeldOut(0.4, 0.4)


def test_tiles_form_bags_by_group_or_patient(tmp_path: Path) -> None:
    ids = [f"t{row:02d}" for row in range(12)]
    groups = [f"TCGA-AA-{1000 + row % 6 // 2}-01Z-DX{row % 2}" for row in range(12)]  # two slides per patient
    splits = [["train", "validation", "test"][row % 6 // 2] for row in range(12)]
    tiles = tiles_of(ids, groups, [row % 6 // 2 for row in range(12)], splits)
    generator = np.random.default_rng(0)
    vectors, stores = {}, {}
    for split in SPLITS:
        inside = [name for name, each in zip(ids, splits, strict=True) if each == split]
        rows = generator.normal(size=(len(inside), 5)).astype(np.float16)
        vectors |= dict(zip(inside, rows, strict=True))
        order = [3, 0, 2, 1]  # rows of a store are looked up by id
        stores[split] = write_store(tmp_path / split, [inside[k] for k in order], rows[order])
    slides, by_patient = bags_of_tiles(tiles, stores, "slide"), bags_of_tiles(tiles, stores, "patient")
    assert sorted(slides.names.tolist()) == sorted(set(groups)) and slides.sizes.tolist() == [2] * 6
    assert by_patient.names.tolist() == ["TCGA-AA-1002", "TCGA-AA-1000", "TCGA-AA-1001"]  # test, train, validation
    assert by_patient.labels.tolist() == [2, 0, 1] and by_patient.sizes.tolist() == [4] * 3
    assert by_patient.notes == ()
    assert by_patient.ids(1) == ["t00", "t01", "t06", "t07"]
    assert np.array_equal(by_patient.features(1), np.stack([vectors[name] for name in by_patient.ids(1)]))
    validation = slides.of_split("validation")
    assert validation.ids(1) == ["t03", "t09"]
    assert np.array_equal(validation.features(1), np.stack([vectors["t03"], vectors["t09"]]))


def test_slides_are_parsed_from_tile_ids_and_mixed_labels_are_counted(tmp_path: Path) -> None:
    ids = [f"a@b@{n},0,8" if n < 4 else f"c@{n},0,8" for n in range(6)]
    tiles = tiles_of(ids, ["p"] * 6, [0, 0, 0, 1, 2, -1], ["test"] * 6)
    store = write_store(tmp_path, ids, np.zeros((6, 2)))
    bags = bags_of_tiles(tiles, {"test": store}, "slide")
    assert bags.names.tolist() == ["a@b", "c"] and bags.patients.tolist() == ["p", "p"]
    assert bags.labels.tolist() == [-1, 2]
    assert bags.notes == ("1 bag has no label, because their tiles or slides have different classes: a@b",)
    patients = bags_of_tiles(tiles, {"test": store}, "patient")
    assert patients.names.tolist() == ["p"] and patients.sizes.tolist() == [6]


def test_slides_without_a_group_have_no_known_patient(tmp_path: Path) -> None:
    ids = [f"{'abc'[n // 2]}@{n},0,8" for n in range(6)]
    tiles = replace(tiles_of(ids, ["a", "a", "p", "p", "c", "c"], [0] * 6, ["test"] * 6), lone_slides=frozenset("a"))
    bags = bags_of_tiles(tiles, {"test": write_store(tmp_path, ids, np.ones((6, 2)))}, "slide")
    assert bags.patients.tolist() == ["a", "p", "c"] and bags.known_patients.tolist() == ["", "p", "c"]
    assert bags.select(np.array([0])).known_patients.tolist() == [""]


def test_tiles_without_a_patient_are_rejected(tmp_path: Path) -> None:
    tiles = tiles_of(["x", "y", "z"], ["", "p", ""], [0, 0, 0], ["test"] * 3)
    store = write_store(tmp_path, ["x", "y", "z"], np.zeros((3, 2)))
    for unit in ("slide", "patient"):
        with pytest.raises(DataError, match=f"2 tiles belong to no {unit}: x, z"):
            bags_of_tiles(tiles, {"test": store}, unit)  # type: ignore[arg-type]


def _write_table_and_features(
    folder: Path, table: str, dims: dict[str, int] | None = None, sizes: dict[str, int] | None = None
) -> Path:
    generator = np.random.default_rng(0)
    for number in range(12):
        name = f"s{number:02d}"
        shape = ((sizes or {}).get(name, 3), (dims or {}).get(name, 4))
        write_features(folder / "h5" / f"{name}.h5", generator.normal(size=shape).astype(np.float32))
    path = folder / "slides.csv"
    path.write_text(table, encoding="utf-8")
    return path


def _table_rows(groups: bool = True) -> list[str]:
    return [f"s{n:02d}.svs,{'ab'[n // 2 % 2]},{f'p{n // 2}' if groups else ''}" for n in range(12)]


def test_feature_files_form_bags_by_slide_or_patient(tmp_path: Path) -> None:
    table = _write_table_and_features(
        tmp_path, "\n".join(["slide,label,group", *_table_rows(), "unknown,a,p9"]), sizes={"s03": 0}
    )
    write_features(tmp_path / "h5" / "other.h5", np.zeros((1, 4), np.float32))
    slides = bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)
    assert len(slides) == 11 and slides.dim == 4 and slides.classes == ("a", "b")
    assert {"train", "validation", "test"} == set(slides.splits.tolist())
    notes = " ".join(slides.notes)
    for part in ("dropped 1 slide without features: unknown", "row in the table: other"):
        assert part in notes
    assert "dropped 1 slide without tiles: s03" in notes
    assert slides.ids(0) == ["s00:0_0", "s00:256_0", "s00:512_0"]
    patients = bags_of_files(tmp_path / "h5", table, "patient", HELD_OUT)
    assert patients.names.tolist() == [f"p{n}" for n in range(6)]
    assert patients.sizes.tolist() == [6, 3, 6, 6, 6, 6]
    assert np.array_equal(patients.features(0), np.concatenate([slides.features(0), slides.features(1)]))
    assert patients.ids(0) == slides.ids(0) + slides.ids(1)
    before = slides.fingerprint
    write_features(tmp_path / "h5" / "s00.h5", np.ones((3, 4), np.float32))
    assert bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT).fingerprint != before


def test_training_slides_of_test_patients_are_dropped_on_request(tmp_path: Path) -> None:
    splits = ["train", "validation", "train", "validation", "test", "test"]
    rows = [f"{row},{splits[n // 2]}" for n, row in enumerate(_table_rows())]
    rows[9] = rows[9].replace("p4", "p0")  # s00 and s01 of p0 are training slides
    table = _write_table_and_features(tmp_path, "\n".join(["slide,label,patient,split", *rows]))
    section = TilesConfig(source="slides", path=str(table), columns={"group": "patient", "label": "tile_class"})
    with pytest.raises(DataError, match=r"p0 \(test, train\)"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT, section)
    slides = bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT, section, exclude_leaks=True)
    assert {*slides.names.tolist()} == {f"s{n:02d}" for n in range(2, 12)}
    assert "dropped 2 slides of patients who are also in a later split (leaks.policy: exclude)" in slides.notes
    table.write_text(table.read_text(encoding="utf-8").replace("s01.svs,a,p0", "s01.svs,a,p7"), encoding="utf-8")
    slides = bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT, section, exclude_leaks=True)
    assert "dropped 1 slide of a patient who is also in a later split (leaks.policy: exclude)" in slides.notes


def test_unknown_suffixes_belong_to_the_name_of_a_slide(tmp_path: Path) -> None:
    rows = [row.replace("s00.svs", "s00.2").replace("s01.svs", "C:\\scans\\s01.NDPI") for row in _table_rows()]
    slides = bags_of_files(
        tmp_path / "h5", _write_table_and_features(tmp_path, "\n".join(["slide,label,group", *rows])), "slide", HELD_OUT
    )
    assert slides.names.tolist() == [f"s{n:02d}" for n in range(1, 12)]
    assert "dropped 1 slide without features: s00.2" in slides.notes
    assert "dropped 1 feature file without a row in the table: s00" in slides.notes


def test_inconsistent_feature_files_and_tables_are_rejected(tmp_path: Path) -> None:
    good = [
        "slide,label,group,split",
        *(f"{row},{'train' if n < 6 else 'test'}" for n, row in enumerate(_table_rows())),
    ]
    table = _write_table_and_features(tmp_path, "\n".join(good), dims={"s05": 7})
    with pytest.raises(DataError, match=r"different dimensions: s00 \(4\).*s05 \(7\)"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)
    table = _write_table_and_features(tmp_path, "\n".join([*good, "s00.svs,a,p0,train"]))
    with pytest.raises(DataError, match=r"listed more than once: s00 \(.*line \d+\), .*line \d+\)"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)
    table.write_text("\n".join(good).replace("s07.svs,b,p3", "s07.svs,b,p0"), encoding="utf-8")
    with pytest.raises(DataError, match=r"p0 \(test, train\)"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)
    table.write_text("slide,label,group\ns00,a,p\ns01,b,p\n", encoding="utf-8")
    with pytest.raises(DataError, match="too few patients to hold any out; the table has 2 slides with features"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)
    table.write_text("slide,label\nx,a\n", encoding="utf-8")
    with pytest.raises(DataError, match="no slide in the table has features"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)


@pytest.mark.parametrize("header", ["slide_id,label,group", "slide,diagnosis,group", "slide,Label,group"])
def test_other_column_names_are_rejected_with_suitable_advice(tmp_path: Path, header: str) -> None:
    table = _write_table_and_features(tmp_path, "\n".join([header, *_table_rows()]))
    with pytest.raises(DataError, match="fix: give the table the columns slide, label and") as error:
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)
    assert "tiles.columns" not in str(error.value)


def test_slides_and_files_that_differ_in_leading_zeros_are_rejected(tmp_path: Path) -> None:
    table = _write_table_and_features(tmp_path, "\n".join(["slide,label,group", *_table_rows(), "88,a,p7"]))
    write_features(tmp_path / "h5" / "088.h5", np.zeros((1, 4), np.float32))
    with pytest.raises(DataError, match=r"only in spelling, such as leading zeros.*: '88' and '088'"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)
    table.write_text("slide,label\n88,a\n", encoding="utf-8")
    with pytest.raises(DataError, match="'88' and '088'"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)


def _append_again(path: Path, times: int = 1) -> None:
    """Append all tiles of a file again, like an extraction that was resumed."""
    with h5py.File(path, "r+") as file:
        for name in ("features", "coords"):
            values = np.concatenate([file[name][:]] * (times + 1))
            del file[name]
            file[name] = values


def _split_table() -> list[str]:
    return [
        "slide,label,group,split",
        *(f"{row},{'train' if n < 6 else 'test'}" for n, row in enumerate(_table_rows())),
    ]


def test_slides_of_one_case_in_two_splits_give_a_warning(tmp_path: Path) -> None:
    rows = [
        f"s{n:02d}.svs,{'ab'[n // 2 % 2]},C{n % 6}-{'AB'[n // 6]},{'train' if n < 6 else 'test'}" for n in range(12)
    ]
    bags = bags_of_files(
        tmp_path / "h5",
        _write_table_and_features(tmp_path, "\n".join(["slide,label,group,split", *rows])),
        "slide",
        HELD_OUT,
    )
    warnings = [note for note in bags.notes if "slides of one patient" in note]
    assert re.match(r"WARNING: \d train slides may belong to patients with validation or test slides", warnings[0])
    assert "-A' and 'C" in warnings[0]


def test_tiles_appended_twice_are_counted_once(tmp_path: Path) -> None:
    table = _write_table_and_features(tmp_path, "\n".join(_split_table()))
    once = bags_of_files(tmp_path / "h5", table, "patient", HELD_OUT)
    sizes, ids, features = once.sizes.tolist(), once.ids(1), once.features(1)
    _append_again(tmp_path / "h5/s03.h5")
    bags = bags_of_files(tmp_path / "h5", table, "patient", HELD_OUT)
    assert bags.sizes.tolist() == sizes and bags.ids(1) == ids
    assert np.array_equal(bags.features(1), features)
    assert "dropped 3 repeated tiles in 1 slide: s03: 3" in bags.notes
    with h5py.File(tmp_path / "h5/s03.h5", "r+") as file:
        file["features"][4, 0] = 9.0
    with pytest.raises(DataError, match=r"1 tile occurs twice with different features: s03:256_0(.|\n)*s03.h5"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)


def test_rows_of_zeros_are_rejected(tmp_path: Path) -> None:
    table = _write_table_and_features(tmp_path, "\n".join(_split_table()))
    with h5py.File(tmp_path / "h5/s03.h5", "r+") as file:
        file["features"][1:] = 0
    bags = bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)
    with pytest.raises(DataError, match="s03 has 2 feature vectors with only zeros: s03:256_0, s03:512_0"):
        bags.features(bags.names.tolist().index("s03"))


def test_copies_of_a_file_under_another_name_are_detected(tmp_path: Path) -> None:
    table = _write_table_and_features(tmp_path, "\n".join(_split_table()))
    shutil.copy(tmp_path / "h5/s04.h5", tmp_path / "h5/s05.h5")
    assert any(
        "same features: s04 = s05" in note for note in bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT).notes
    )
    for other in ("s02", "s08"):  # of a different class, and in a different split
        shutil.copy(tmp_path / "h5/s04.h5", tmp_path / f"h5/{other}.h5")
        with pytest.raises(DataError, match=f"different splits or have different labels: .*{other}"):
            bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)


def test_a_file_of_another_slide_is_rejected_and_different_settings_are_noted(tmp_path: Path) -> None:
    table = _write_table_and_features(tmp_path, "\n".join(_split_table()))
    for number in range(12):
        with h5py.File(tmp_path / f"h5/s{number:02d}.h5", "r+") as file:
            file["coords"].attrs.update({"name": f"former {number}", "target_magnification": 10 if number == 3 else 20})
    notes = bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT).notes
    assert any(
        "differ in target_magnification: 20: 11 (s00, s01, s02 and 8 more); 10: 1 (s03)" in note for note in notes
    )
    with h5py.File(tmp_path / "h5/s03.h5", "r+") as file:
        file["coords"].attrs["name"] = "s04"
    with pytest.raises(DataError, match=r"1 feature file contains the name of a different slide: s03.h5 \(s04\)"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)


def _warnings_after_change(numbers: dict[int, Any], tmp_path: Path) -> list[str]:
    """Replace the vectors of some slides, and return the warnings."""
    table = _write_table_and_features(
        tmp_path, "\n".join(_split_table()), dims={f"s{number:02d}": 64 for number in range(12)}
    )
    for number, change in numbers.items():
        with h5py.File(tmp_path / f"h5/s{number:02d}.h5", "r+") as file:
            file["features"][...] = change(file["features"][...])
    return [note for note in bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT).notes if "WARNING" in note]


def test_vectors_on_a_different_scale_give_a_warning(tmp_path: Path) -> None:
    assert not _warnings_after_change({4: lambda vectors: 2 * vectors}, tmp_path / "alike")
    (note,) = _warnings_after_change(
        {3: lambda vectors: 1000 * vectors, 7: lambda vectors: vectors / 10}, tmp_path / "scaled"
    )
    assert "2 of 12 slides have vectors on a different scale" in note and "s03 (7.91e+03), s07 (0.82" in note

    def unit(vectors: Any) -> Any:
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    (note,) = _warnings_after_change({3: unit, 5: unit}, tmp_path / "unit")
    assert "2 of 12 slides have unit-norm vectors" in note and note.count("s03, s05") == 1
    (note,) = _warnings_after_change({number: unit for number in range(12) if number != 9}, tmp_path / "raw")
    assert "1 of 12 slides has vectors that are not unit-norm, unlike the others: s09" in note
    assert not _warnings_after_change(dict.fromkeys(range(12), unit), tmp_path / "all_unit")


def test_slides_with_identical_vectors_give_a_warning(tmp_path: Path) -> None:
    (note,) = _warnings_after_change({2: lambda vectors: vectors * 0 + vectors[:1]}, tmp_path)
    assert "1 of 12 slides has the same vector for all tiles: s02" in note


@pytest.mark.parametrize(
    ("before", "after", "what"), [("s07.svs,b,", "s07.svs,B,", "classes"), (",p3", ",P3 ", "groups")]
)
def test_classes_and_patients_that_differ_only_in_spelling_are_rejected(
    before: str, after: str, what: str, tmp_path: Path
) -> None:
    table = _write_table_and_features(tmp_path, "\n".join(_split_table()).replace(before, after, 1))
    with pytest.raises(DataError, match=f"{what} with almost the same name"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)


def _study_bags(tmp_path: Path, table: str, **tiles: Any) -> MilBags:
    """Read bags like `clipit mil` does, with the given keys of the section `tiles`."""
    path = _write_table_and_features(tmp_path, table)
    keys: dict[str, Any] = {"name": "t", "prompts": None, "output": str(tmp_path / "out")}
    keys["tiles"] = {"source": "slides", "path": "none", **tiles}
    files = {"features": "h5", "h5": str(tmp_path / "h5"), "slides": str(path)}
    mil = MilConfig.model_validate(
        {**files, "arms": ["mean", "attention"], "validation_fraction": 0.4, "test_fraction": 0.4}
    )
    return read_inputs(RunConfig.model_validate(keys), mil).bags


def test_a_test_split_is_held_out_of_a_table_with_training_and_validation_slides(tmp_path: Path) -> None:
    rows = [f"{row},{'train' if n < 8 else 'validation'}" for n, row in enumerate(_table_rows())]
    bags = _study_bags(tmp_path, "\n".join(["slide,label,group,split", *rows]))
    assert bags.of_split("validation").names.tolist() == [f"s{n:02d}" for n in range(8, 12)]
    assert {len(bags.of_split(split).names) for split in ("train", "test")} == {4}
    assert any(note.startswith("test: ") and "held out with seed 0" in note for note in bags.notes)


def test_splits_and_classes_of_the_table_can_be_mapped(tmp_path: Path) -> None:
    folds = "\n".join(["slide,label,group,split", *(f"{row},{n // 2}" for n, row in enumerate(_table_rows()))])
    with pytest.raises(DataError, match=r"(?s)unknown split values: 0, 1.*tiles\.splits"):
        _study_bags(tmp_path, folds)
    splits = {"train": ["0", "1", "2"], "test": ["3", "4"]}
    with pytest.raises(DataError, match=r"(?s)unknown split values: 5.*other_parts"):
        _study_bags(tmp_path, folds, splits=splits)
    bags = _study_bags(tmp_path, folds, splits=splits, other_parts="ignore", class_map={"a": "x", "b": "y"})
    assert bags.names.tolist() == [f"s{n:02d}" for n in range(10)] and bags.classes == ("x", "y")
    assert (bags.splits == "test").sum() == 4
    assert "dropped 2 slides in other splits (5: 2)" in bags.notes
    decomposed = "\n".join(_split_table()).replace(".svs,a", ".svs,u\u0308")
    assert _study_bags(tmp_path, decomposed, classes=["\u00fc", "b"]).classes == ("\u00fc", "b")
    three = "\n".join(["slide,label,group,split", *(_split_table()[1:])]).replace("s01.svs,a", "s01.svs,c")
    bags = _study_bags(tmp_path, three, class_map={"a": "x", "b": "y"}, classes=["y", "x"])
    assert "s01" not in bags.names.tolist() and bags.classes == ("y", "x")
    assert "dropped 1 slide with labels outside tiles.class_map (c: 1)" in bags.notes
    with pytest.raises(DataError, match=r"tiles\.class_map names labels that do not occur: z; the labels are a, b, c"):
        _study_bags(tmp_path, three, class_map={"z": "x"})


def test_features_of_different_models_are_rejected_and_different_downsamples_are_noted(tmp_path: Path) -> None:
    table = _write_table_and_features(tmp_path, "\n".join(_split_table()))
    for number in range(12):
        with h5py.File(tmp_path / f"h5/s{number:02d}.h5", "r+") as file:
            file["features"].attrs["encoder"] = "uni_v1"
            file["coords"].attrs["downsample"] = np.array([4.0, 4.0003]) if number != 3 else np.array([2.0, 2.0])
    notes = bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT).notes
    assert any("differ in downsample: 4: 11 (s00, s01, s02 and 8 more); 2: 1 (s03)" in note for note in notes)
    with h5py.File(tmp_path / "h5/s03.h5", "r+") as file:
        file["features"].attrs["encoder"] = "conch_v1"
    with pytest.raises(DataError, match=r"different models: uni_v1: 11 \(s00.*\); conch_v1: 1 \(s03\)"):
        bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT)


def test_an_unused_patient_column_gives_a_warning(tmp_path: Path) -> None:
    splits = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    for header in ("case_id", "patient_id"):
        rows = [f"{row},{split}" for row, split in zip(_table_rows(), splits, strict=True)]
        table = _write_table_and_features(tmp_path, "\n".join([f"slide,label,{header},split", *rows]))
        warning = f"WARNING: the column {header} identifies 6 patients or slides, but is not used: rename it to group"
        assert warning in bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT).notes
        table.write_text(table.read_text(encoding="utf-8").replace(header, "group"), encoding="utf-8")
        assert not any("not used" in note for note in bags_of_files(tmp_path / "h5", table, "slide", HELD_OUT).notes)
