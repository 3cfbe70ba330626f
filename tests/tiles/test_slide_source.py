"""Slides as a source of tiles: tables and folders of slides, labels and splits per slide, unusable slides."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from slide_files import levels_of, picture, write_dicom, write_slide

from clipit.config.data import LabelsConfig, SlidesConfig, TilesConfig
from clipit.errors import ConfigError, DataError
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.slide_source import is_slide_input, list_slides, slides_in_folder


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def section(path: Path, **changes: object) -> TilesConfig:
    slides = SlidesConfig(mpp=1.0, pixels=64, grids=str(path.parent / "grids"))
    return TilesConfig(source="slides", path=str(path), slides=slides, **changes)  # type: ignore[arg-type]


def write_slides(folder: Path, **mpp: float | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in mpp.items():
        write_slide(folder / f"{name}.tiff", picture(), value)


def test_tiles_have_the_label_split_and_patient_of_their_slide(tmp_path: Path) -> None:
    write_slides(tmp_path / "images", a=1.0, b=1.0, c=1.0, d=None)
    rows = [
        {"slide": "a.tiff", "label": "tumour", "split": "train", "group": "P1", "mpp": ""},
        {"slide": "b", "label": "normal", "split": "train", "group": "P2", "mpp": ""},
        {"slide": "c", "label": "", "split": "validation", "group": "", "mpp": 1.0},
        {"slide": "d", "label": "tumour", "split": "test", "group": "P4", "mpp": 0.5},
    ]
    table = write_table(tmp_path / "slides.csv", rows)
    tiles = read_tiles(section(table, images=str(tmp_path / "images")))
    assert tiles.classes == ("normal", "tumour")
    slides = [name.split("@")[0] for name in tiles.ids]
    of_slide = {name: [row for row, slide in enumerate(slides) if slide == name] for name in "abcd"}
    assert {name: (set(tiles.labels[rows].tolist()), set(tiles.splits[rows]), set(tiles.groups[rows]))
            for name, rows in of_slide.items()} == {
        "a": ({1}, {"train"}, {"P1"}),
        "b": ({0}, {"train"}, {"P2"}),
        "c": ({-1}, {"validation"}, {"c"}),
        "d": ({1}, {"test"}, {"P4"}),
    }  # fmt: skip
    assert tiles.lone_slides == {"c"}
    assert set(tiles.mpp.tolist()) == {1.0} and tiles.read(0).size == (64, 64)
    # At 0.5 um per pixel, a tile of 64 um covers 128 pixels of level 0.
    assert tiles.ids[of_slide["d"][0]].endswith(",128") and tiles.ids[0].endswith(",64")
    assert len({*tiles.stamps}) == 4


def test_slides_with_a_doubtful_resolution_are_named(tmp_path: Path) -> None:
    write_slides(tmp_path / "slides", good=1.0, coarse=5.0)
    coarse = SlidesConfig(mpp=2.0, pixels=64, grids=str(tmp_path / "grids"))
    labels = LabelsConfig(kind="none")
    tiles = read_tiles(TilesConfig(source="slides", path=str(tmp_path / "slides"), slides=coarse, labels=labels))
    (warning,) = [note for note in tiles.notes if note.startswith("WARNING")]
    assert "1 of 2 slides may be wrong" in warning and "coarse: 5 µm per pixel: coarser" in warning


def test_slides_with_an_ignored_channel_are_counted(tmp_path: Path) -> None:
    write_slides(tmp_path / "slides", plain=1.0, other=1.0)
    pixels = np.concatenate([picture(), np.zeros((400, 600, 1), np.uint8)], axis=-1)
    tifffile.imwrite(
        tmp_path / "slides" / "four.tiff", pixels, tile=(64, 64), photometric="rgb", extrasamples=["unspecified"],
        metadata=None, resolution=(1e4, 1e4), resolutionunit="CENTIMETER",
    )  # fmt: skip
    tiles = read_tiles(section(tmp_path / "slides", labels=LabelsConfig(kind="none")))
    assert {name.split("@")[0] for name in tiles.ids} == {"four", "other", "plain"}
    assert "1 of 3 slides has content that is not read: four: a fourth channel without a stated meaning" in tiles.notes


def test_unusable_slides_are_errors_or_listed(tmp_path: Path) -> None:
    write_slides(tmp_path, a=1.0, silent=None)
    (tmp_path / "empty.svs").write_bytes(b"")
    rows = [{"slide": name, "label": "x", "split": "test"} for name in ("a", "silent", "empty")]
    table = write_table(tmp_path / "slides.csv", rows)
    with pytest.raises(DataError, match=r"2 of 3 slides cannot be used:[\s\S]*silent[\s\S]*`mpp` column") as caught:
        read_tiles(section(table))
    assert "the file is empty" in str(caught.value)
    tiles = read_tiles(section(table, unreadable="quarantine"))
    assert {name.split("@")[0] for name in tiles.ids} == {"a"}
    assert any(note.startswith("dropped 2 of 3 slides (cannot be used): silent:") for note in tiles.notes)
    # tiles.mpp is the resolution of the slides, not of the tiles.
    assert len(read_tiles(section(table, unreadable="quarantine", mpp=1.0))) == 2 * len(tiles)


def test_inconsistent_tables_are_refused(tmp_path: Path) -> None:
    write_slides(tmp_path, a=1.0, b=1.0)
    columns = ("slide", "label", "split", "group")

    def read(*rows: tuple[str, ...]) -> None:
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        read_tiles(section(write_table(tmp_path / "slides.csv", named)))

    with pytest.raises(DataError, match=r"a.tiff in rows 1, 2 \(splits test, train\)"):
        read(("a", "x", "train", ""), ("a.tiff", "x", "test", ""))
    with pytest.raises(DataError, match=r"P1 .*train, test|P1 .*test, train"):
        read(("a", "x", "train", "P1"), ("b", "x", "test", "P1"))
    with pytest.raises(DataError, match=r"1 of 2 slides does not exist in .*: c"):
        read(("a", "x", "train", ""), ("c", "x", "test", ""))


def test_a_folder_of_slides_has_no_labels_and_other_files_are_counted(tmp_path: Path) -> None:
    write_slides(tmp_path / "images", a=1.0)
    (tmp_path / "images" / "notes.txt").write_text("x")
    (tmp_path / "images" / "more.txt").symlink_to(tmp_path / "absent")
    (tmp_path / "images" / ".old").mkdir()
    (tmp_path / "images" / ".old" / "b.svs").write_bytes(b"not read")
    (tmp_path / "images" / "._a.svs").write_bytes(b"not read")
    with pytest.raises(DataError, match="a folder of slides has no labels"):
        read_tiles(section(tmp_path / "images"))
    unlabelled = LabelsConfig(kind="none")
    tiles = read_tiles(section(tmp_path / "images", labels=unlabelled), hold_out=False)
    assert len(tiles) and any("1 file skipped (not slides)" in note for note in tiles.notes)
    assert any("skipped 2 hidden slides: ._a.svs, .old/b.svs" in note for note in tiles.notes)
    for name in ("gone.svs", "gone_folder"):
        (tmp_path / "images" / name).symlink_to(tmp_path / "absent")
        with pytest.raises(DataError, match=rf"links to missing files.*{name}"):
            read_tiles(section(tmp_path / "images", labels=unlabelled), hold_out=False)
        (tmp_path / "images" / name).unlink()
    undecodable = tmp_path / "images" / os.fsdecode(b"M\xfcller.svs")
    undecodable.touch()
    with pytest.raises(DataError, match=r"(?s)names that are not UTF-8.*convmv"):
        read_tiles(section(tmp_path / "images", labels=unlabelled), hold_out=False)
    undecodable.unlink()
    (tmp_path / "images" / "a.svs").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 slide name occurs more than once: a \(.*, .*\)"):
        read_tiles(section(tmp_path / "images", labels=unlabelled), hold_out=False)


def test_the_files_of_a_dicom_series_form_one_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in ("A", "B"):
        (tmp_path / case).mkdir()
        for number, level in enumerate(levels_of(picture(), 2)):
            write_dicom(tmp_path / case / f"DCM_{number}.dcm", level, mpp=2.0**number)
    listed = slides_in_folder(tmp_path)
    assert [slide.name for slide in listed.slides] == ["A", "B"]
    assert listed.notes == ("additional levels or images of DICOM slides: 2 files",)
    unlabelled = LabelsConfig(kind="none")
    table = write_table(tmp_path / "slides.csv", [{"slide": "first", "path": "A"}])
    assert list_slides(section(table, labels=unlabelled)).slides[0].path == tmp_path / "A/DCM_0.dcm"
    monkeypatch.chdir(tmp_path / "A")
    assert [slide.name for slide in slides_in_folder(Path()).slides] == ["A"]
    write_table(table, [{"slide": "A"}, {"slide": "B/DCM_1.dcm"}])
    assert [slide.name for slide in list_slides(section(table, labels=unlabelled)).slides] == ["A", "B"]
    write_table(table, [{"slide": f"s{number}", "path": f"A/DCM_{number}.dcm"} for number in range(2)])
    with pytest.raises(DataError, match=r"1 slide is listed more than once: DCM_0.dcm in rows 1, 2"):
        list_slides(section(table, labels=unlabelled))


def test_slide_options_are_refused_for_other_sources(tmp_path: Path) -> None:
    config = TilesConfig(source="folders", path=str(tmp_path), slides=SlidesConfig())
    with pytest.raises(ConfigError, match=r"tiles.slides \(slides only\)"):
        read_tiles(config)


def test_a_folder_counts_as_slides_if_all_its_tiffs_have_levels(tmp_path: Path) -> None:
    write_slides(tmp_path / "slides", a=1.0, b=1.0)
    assert is_slide_input(tmp_path / "slides") and is_slide_input(tmp_path / "slides/a.tiff")
    write_slide(tmp_path / "slides/flat.tiff", picture(), levels=1)
    assert not is_slide_input(tmp_path / "slides") and not is_slide_input(tmp_path / "slides/flat.tiff")


def test_unused_columns_are_noted_and_missing_ones_named(tmp_path: Path) -> None:
    write_slides(tmp_path, a=1.0)
    table = write_table(tmp_path / "slides.csv", [{"slide": "a", "labels": "x", "mask": "m.png"}])
    unlabelled = LabelsConfig(kind="none")
    assert list_slides(section(table, labels=unlabelled)).notes == ("unused columns: labels",)
    write_table(table, [{"name": "a", "label": "x"}])
    with pytest.raises(DataError, match="no column 'slide' or 'path' that names the slide files; the table has: name"):
        list_slides(section(table, labels=unlabelled))
    table.write_text("slide|label\na|x\n")
    with pytest.raises(DataError, match=r"one column that contains '\|': save the table as comma-separated"):
        list_slides(section(table, labels=unlabelled))


def test_an_unused_patient_column_in_a_slide_table_is_named(tmp_path: Path) -> None:
    write_slides(tmp_path, a=1.0, b=1.0, c=1.0)
    rows: list[dict[str, object]] = [{"slide": name, "label": "x", "case_id": f"P{name == 'c'}"} for name in "abc"]
    table = write_table(tmp_path / "slides.csv", rows)
    assert list_slides(section(table)).notes == (
        "unused columns: case_id",
        "WARNING: the column case_id identifies 2 patients or slides, but is not used: rename it to group, or name it "
        "in a configuration (tiles.columns.group)",
    )
    assert list_slides(section(table, columns={"group": "case_id"})).notes == ()


def test_slides_coarser_than_their_tiles_are_noted(tmp_path: Path) -> None:
    write_slides(tmp_path, fine=1.0, coarse=2.0)
    notes = read_tiles(section(tmp_path, labels=LabelsConfig(kind="none"))).notes
    (note,) = [note for note in notes if "enlarged" in note]
    assert note == ("1 of 2 slides is coarser than 1 µm per pixel, so tiles are enlarged: coarse: 2")
