"""Tiles labelled by several annotators: label modes, splits, notes and invalid annotation tables."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_tiles import load_tiles
from PIL import Image

from clipit.config.load import validate
from clipit.errors import ConfigError, DataError
from clipit.evaluation.human_ceiling import human_ceiling
from clipit.reporting.annotators_section import ceiling_note, explain_ceiling
from clipit.tiles.annotations import join_annotators, read_annotators
from clipit.tiles.tileset import TileSet

CLASSES = ("benign", "tumour")
# Correct class of each tile. Cleo labels half of the tiles correctly; ann, ben and dora label all correctly.
TRUTH = [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
SPLIT = ["train"] * 6 + ["validation"] * 2 + ["test"] * 4
Table = Callable[..., dict[str, Any]]


def labels_of(tile: int) -> dict[str, str]:
    right, wrong = CLASSES[TRUTH[tile]], CLASSES[1 - TRUTH[tile]]
    return {"ann": right, "ben": right, "cleo": wrong if tile % 4 < 2 else right, "dora": right}


def write(path: Path, rows: Sequence[str]) -> str:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Write twelve tiles without labels and an annotation table; return a function that gives the section `tiles`."""
    for tile in range(len(TRUTH)):
        Image.new("RGB", (8, 8), (tile, 0, 0)).save(tmp_path / f"t{tile}.png")
    paths = [f"t{tile}.png,{split}" for tile, split in enumerate(SPLIT)]

    def make(rows: Sequence[str] | None = None, *, source_labels: bool = False, **keys: Any) -> dict[str, Any]:
        if rows is None:
            rows = [
                f"t{tile}.png,{name},{label}" for tile in range(len(TRUTH)) for name, label in labels_of(tile).items()
            ]
        header = keys.pop("header", "tile,annotator,label")
        source = [f"{row},{CLASSES[1 - TRUTH[t]]}" for t, row in enumerate(paths)] if source_labels else paths
        tiles = write(tmp_path / "tiles.csv", ["path,split" + ",label" * source_labels, *source])
        annotators = write(tmp_path / "annotations.csv", [header, *rows])
        return {"source": "table", "path": tiles, "annotations": {"path": annotators, **keys}}

    return make


def load(values: dict[str, Any], **keys: Any) -> TileSet:
    return load_tiles(validate({"tiles": values | keys}, "test").tiles, seed=0)


def labels(tiles: TileSet) -> dict[str, int]:
    return dict(zip(tiles.ids.tolist(), tiles.labels.tolist(), strict=True))


@pytest.mark.parametrize("mode", ["majority", "consensus", "posterior"])
def test_annotators_label_the_tiles_of_a_table_without_labels(table: Table, mode: str) -> None:
    tiles = load(table(labels=mode))
    assert tiles.classes == CLASSES and tiles.labels.tolist() == TRUTH == tiles.truth.tolist()
    assert tiles.annotations is not None
    posteriors = tiles.annotations.posteriors(["t0.png", "t8.png"])
    assert posteriors[0].argmax() == 0 and posteriors[0].sum() == pytest.approx(1) and not posteriors[1].any(), (
        "training posteriors do not cover test tiles"
    )
    assert any(note.startswith("training labels:") for note in tiles.notes)


def test_test_labels_come_from_other_annotators_or_a_warning_is_given(table: Table) -> None:
    same = load(table())
    assert any(note.startswith("WARNING: the annotators of the test labels also label") for note in same.notes)
    assert same.annotations is not None and same.annotations.independent == "no"
    # Cleo and dora disagree on two of four test tiles; their labels never reach the training tiles.
    other = load(table(test_annotators=["cleo"]))
    assert other.annotations is not None and other.annotations.independent == "yes"
    wrong = [TRUTH[t] if t % 4 >= 2 else 1 - TRUTH[t] for t in range(8, 12)]
    assert other.of_split("test").labels.tolist() == wrong
    assert other.of_split("train").labels.tolist() == TRUTH[:6]
    assert other.annotations.training.votes.annotators == ("ann", "ben", "dora")
    assert any("none of them labels a training tile" in note for note in other.notes)
    # Ben labels only the test tiles, although test_annotators does not name him.
    rows = [f"t{t}.png,{'ben' if t > 7 else name},{CLASSES[TRUTH[t]]}" for t in range(12) for name in ("ann", "cleo")]
    disjoint = load(table(sorted(set(rows)))).annotations
    assert disjoint is not None and disjoint.independent == "yes" and disjoint.shared == ()


def test_annotators_without_a_label_in_a_part_are_left_out_of_its_estimates_and_notes(table: Table) -> None:
    names_of = {"train": "ann ben cleo", "validation": "ann ben cleo", "test": "ben dora eve"}  # ben labels both parts
    rows = [f"t{t}.png,{name},{CLASSES[TRUTH[t]]}" for t in range(12) for name in names_of[SPLIT[t]].split()]
    tiles = load(table(rows))
    assert tiles.annotations is not None
    assert tiles.annotations.training.votes.annotators == ("ann", "ben", "cleo")
    assert tiles.annotations.test.votes.annotators == ("ben", "dora", "eve") == tiles.annotations.test_annotators
    notes = " ".join(tiles.notes)
    assert "3 annotators (ben, dora, eve) on 4 of 4 test tiles" in notes
    assert "without a common tile" not in notes and "ann 0" not in notes
    panel = load(table(rows, test_annotators=["cleo", "dora", "eve"]))
    assert panel.annotations is not None and panel.annotations.test_annotators == ("dora", "eve")
    assert "test_annotators without a label for a test tile: cleo" in panel.notes


def test_labels_of_a_named_annotator_or_of_the_most_accurate_one(table: Table) -> None:
    cleo = load(table(labels="annotator", annotator="cleo"))
    assert cleo.of_split("train").labels.tolist() == [1, 0, 0, 1, 1, 0]
    best = load(table(labels="annotator"))
    assert best.of_split("train").labels.tolist() == TRUTH[:6]
    assert any("the most accurate one" in note for note in best.notes)
    assert cleo.of_split("test").labels.tolist() == best.of_split("test").labels.tolist(), (
        "test labels do not depend on the arm"
    )


def test_test_labels_can_come_from_the_source(table: Table) -> None:
    tiles = load(table(source_labels=True, test_labels="source"))
    assert tiles.of_split("test").labels.tolist() == [1 - label for label in TRUTH[8:]]
    assert tiles.of_split("train").labels.tolist() == TRUTH[:6], "training labels come from the annotators"


@pytest.mark.parametrize(
    ("origin", "independent", "note"),
    [
        ("unknown", "unknown", "it is unknown whether they come from annotators of the training tiles"),
        ("others", "yes", "not given by the annotators"),
        ("same", "no", "WARNING: the test labels of the source come from annotators who also label"),
    ],
)
def test_independence_of_source_labels_is_as_configured(table: Table, origin: str, independent: str, note: str) -> None:
    tests = load(table(source_labels=True, test_labels="source", source_annotators=origin)).of_split("test")
    ceiling = human_ceiling(tests)
    assert ceiling is not None and ceiling["independent"] == independent
    assert any(note in line for line in tests.notes)
    text = explain_ceiling(ceiling) + ceiling_note(ceiling, "accuracy")
    assert "the others" not in text and "too low" not in text, (
        "the reference is the source's labels, not the other annotators"
    )
    assert ("too high" in text) == (independent != "yes") and ("unknown" in text) == (independent == "unknown")


@pytest.mark.parametrize("test_labels", ["source", "consensus"])
def test_mhist_labels_are_not_independent_of_its_votes(table: Table, test_labels: str) -> None:
    rows = [f"t{tile}.png,{6 if label else 1}" for tile, label in enumerate(TRUTH)]
    keys = {"header": "tile,t", "counts": {"tumour": "t"}, "voters": 7, "rest": "benign", "test_labels": test_labels}
    values = table(rows, source_labels=True, **keys)
    tiles, config = load(values), validate({"tiles": values | {"source": "mhist"}}, "test").tiles
    joined = join_annotators(replace(tiles, annotations=None), read_annotators(config), config)[1]
    assert joined is not None
    (mhist, other) = (joined.label(tiles).annotations, tiles.annotations)
    assert mhist is not None and mhist.independent == "no" and other is not None and other.independent == "unknown"


def test_every_label_mode_keeps_the_same_labelled_tiles(table: Table) -> None:
    def labelled_ids(**keys: Any) -> list[str]:
        tiles = load(table(**keys), labels={"kind": "per_class", "value": 2})
        return tiles.ids[(tiles.splits != "test") & (tiles.labels >= 0)].tolist()

    expected = labelled_ids(labels="majority")
    assert expected == labelled_ids(labels="posterior") == labelled_ids(labels="annotator", annotator="cleo"), (
        "cleo mislabels half of them"
    )
    # Dora labels only two training tiles, so some of the same tiles have no label.
    rows = [f"t{t}.png,{name},{label}" for t in range(12) for name, label in labels_of(t).items()
            if name != "dora" or t in (0, 1)]  # fmt: skip
    sparse = load(table(rows, labels="annotator", annotator="dora"), labels={"kind": "per_class", "value": 2})
    labelled = sparse.ids[(sparse.splits == "train") & (sparse.labels >= 0)].tolist()
    assert set(labelled) == {"t0.png", "t1.png"} & set(expected)
    assert any("have no label from the chosen annotator" in n for n in sparse.notes)


def test_training_annotations_are_not_read_without_labels(table: Table) -> None:
    values = table() | {"labels": {"kind": "none"}}
    tiles = load(values)
    assert (tiles.of_split("train").truth == -1).all() and tiles.of_split("test").truth.tolist() == TRUTH[8:]


def test_splits_are_the_same_for_every_label_mode(table: Table) -> None:
    def splits(**keys: Any) -> list[str]:
        values = table(**keys)
        path = Path(values["path"])
        path.write_text("path\n" + "\n".join(f"t{tile}.png" for tile in range(len(TRUTH))), encoding="utf-8")
        return load(values, test_fraction=0.4).splits.tolist()

    expected = splits(labels="majority")
    assert expected == splits(labels="posterior") == splits(labels="annotator", annotator="cleo")
    assert set(expected) == {"train", "validation", "test"}


def test_vote_counts_per_class_as_published_by_mhist(table: Table) -> None:
    rows = [f"t{tile}.png,{5 + tile % 3 if label else tile % 3}" for tile, label in enumerate(TRUTH)]
    keys = {"counts": {"tumour": "Tumour (Out of 7)"}, "voters": 7, "rest": "benign", "columns": {"tile": "Image"}}
    tiles = load(table(rows, header="Image,Tumour (Out of 7)", **keys))
    assert tiles.labels.tolist() == TRUTH and tiles.annotations is not None
    assert tiles.annotations.votes.counts()[:2].tolist() == [[7, 0], [1, 6]]
    assert any(note.startswith("WARNING: annotators are not named") for note in tiles.notes)
    # Test tiles 8 to 11 have 2, 5, 1 and 7 votes for tumour; each vote is compared with the majority of the other six.
    ceiling = human_ceiling(tiles.of_split("test"))
    assert ceiling is not None and ceiling["mean"]["accuracy"] == pytest.approx((5 + 5 + 6 + 7) / 28)
    assert ceiling["labels_per_tile"] == 7.0 and "same weight" not in explain_ceiling(ceiling)


def test_the_human_ceiling_compares_each_annotator_with_the_others(table: Table) -> None:
    tests = load(table()).of_split("test")
    ceiling = human_ceiling(tests)
    assert ceiling is not None and ceiling["independent"] == "no"
    by_annotator = {record["annotator"]: record for record in ceiling["annotators"]}
    assert by_annotator["ann"]["metrics"]["accuracy"] == 1.0 and by_annotator["cleo"]["metrics"]["accuracy"] == 0.5
    assert by_annotator["cleo"]["tiles"] == 4 and "3 others" in by_annotator["cleo"]["reference"]
    assert ceiling["mean"]["accuracy"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    text = explain_ceiling(ceiling)
    assert "too low, especially for tiles with few labels (here, 4.0 per tile on average)" in text
    assert "every annotator the same weight" in text
    panel = human_ceiling(load(table(test_annotators=["ann", "cleo", "dora"], labels="majority")).of_split("test"))
    assert panel is not None and panel["labels_per_tile"] == 3.0, "ben is not a test annotator"
    # The source's labels are inverted, so against them every correct label is an error.
    with_reference = human_ceiling(load(table(source_labels=True, test_labels="source")).of_split("test"))
    assert with_reference is not None and with_reference["mean"]["accuracy"] == pytest.approx((0 + 0 + 0.5 + 0) / 4)
    assert human_ceiling(tests.select([])) is None


def test_dropped_rows_are_listed(table: Table) -> None:
    rows = [f"t{tile}.png,{name},{label}" for tile in range(12) for name, label in labels_of(tile).items()]
    extra = ["elsewhere.png,ann,tumour", "t0.png,ann,benign", "t1.png,eve,"]
    notes = " ".join(load(table([*rows, *extra])).notes)
    assert "dropped annotators' labels for 1 tile outside the data set: elsewhere.png" in notes
    assert "1 repeated row" in notes and "1 row without a label from the annotation table" in notes
    mapped = load(
        table([*rows, "t2.png,fay,artefact"]),
        classes=["B", "T"],
        class_map={"benign": "B", "tumour": "T"},
    )
    assert "annotation table: dropped 1 label that tiles.class_map does not list (artefact: 1)" in " ".join(
        mapped.notes
    )
    assert mapped.labels.tolist() == TRUTH


def test_minus_one_among_integers_is_not_a_class(table: Table) -> None:
    rows = [
        f"t{tile}.png,{name},{CLASSES.index(label)}" for tile in range(12) for name, label in labels_of(tile).items()
    ]
    expected = load(table(rows))
    for mark in ("-1", "-1.0"):
        tiles = load(table([*rows, f"t0.png,eve,{mark}", f"t1.png,fay,{mark}"]))
        assert tiles.classes == expected.classes == ("0", "1")
        assert tiles.labels.tolist() == expected.labels.tolist()
        assert "dropped 2 rows without a label from the annotation table" in tiles.notes
    configured = load(table([*rows, "t0.png,eve,-1"], labels="majority"), classes=["-1", "0", "1"])
    assert not any("without a label" in note for note in configured.notes)
    with pytest.raises(DataError, match="-1 may be a class or mark missing labels"):
        load(table([row for row in rows if row.endswith("1")] + ["t0.png,eve,-1"]))


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        (["t0.png,ann,benign", "t0.png,ann,tumour"], {}, "1 tile has several labels from one annotator: ann on t0.png"),
        (["t0.png,ann,NaN", "t1.png,ann,tumour"], {}, "1 label marks a missing value in many programs: line 2 (NaN)"),
        (["t0.png,ann,-1", "t1.png,ann,tumour"], {}, "1 label marks a missing value in many programs: line 2 (-1)"),
        (["t0.png,,benign", ",ann,tumour"], {}, "2 rows without a tile or an annotator: line 2, line 3"),
        (["t0.png,ann,cancer"], {"classes": CLASSES}, "annotators' labels that are not classes: 'cancer' in 1 row"),
        (["t0.png,ann,tumour", "t1.png,ann,Tumour"], {}, "classes with almost the same name"),
        (["x.png,ann,benign"], {}, "none of the 1 tile in the annotation table is among the 12 tiles"),
        (["t0.png,ann,benign", "t1.png,ben,tumour"], {}, "no tile has labels from two annotators"),
        (["t0.png,ann,benign", "t0.png,ben,tumour"], {}, "no annotator labelled more than one tile"),
        (["t0.png,ann,benign", "t8.png,ben,tumour"], {"labels": "annotator"}, "the best annotator cannot be found"),
        (["t0.png,ann,benign"], {"test_annotators": ["zoe"]}, "annotators without a label for these tiles: zoe"),
        (["t0.png,ann,benign"], {"test_annotators": ["ann"]}, "none is left for the training tiles"),
        (["t8.png,ann,benign"], {"labels": "majority"}, "no training or validation tile has a label"),
        (["t0.png,ann,benign", "t0.png,Ann,tumour"], {}, "annotators with almost the same name: 'Ann' and 'ann'"),
        (["t0.png,1,benign", "t1.png,01,tumour"], {}, "annotators with almost the same name: '01' and '1'"),
        ([], {}, "the table has no rows"),
        (["t0.png,0", "t1.png,0"], {"header": "tile,t", "counts": {"tumour": "t"}}, "dropped 2 rows without a vote"),
        (["t0.png,ann,"], {"classes": CLASSES}, "the annotation table has no label: dropped 1 row without a label"),
        (["t0.png,ann,benign"], {"header": "tile,reader,label"}, "missing columns: annotator"),
        (["t0.png,8"], {"header": "tile,t", "counts": {"tumour": "t"}, "voters": 7, "rest": "benign"}, "at most 7"),
        (
            ["t0.png,1", f"t1.png,{10**20 - 1}"],
            {"header": "tile,t", "counts": {"tumour": "t"}},
            "999,999 votes: line 3",
        ),
        (
            ["t0.png,3", "t0.png,2"],
            {"header": "tile,t", "counts": {"tumour": "t"}},
            "tiles with several rows: t0.png (line 2, line 3)",
        ),
    ],
)
def test_invalid_annotation_tables_are_errors(
    table: Table, rows: list[str], keys: dict[str, Any], message: str
) -> None:
    section = {"classes": keys.pop("classes")} if "classes" in keys else {}
    values = table(rows, **keys)
    with pytest.raises(DataError) as error:
        load(values, **section)
    assert message in str(error.value) and "fix:" in str(error.value)


@pytest.mark.parametrize("mode", ["majority", "consensus", "annotator"])
def test_without_training_tiles_only_test_labels_are_derived(table: Table, mode: str) -> None:
    tiles = load(table(labels=mode), splits={"test": ["train", "validation", "test"]})
    assert set(tiles.splits.tolist()) == {"test"} and tiles.truth.tolist() == TRUTH
    assert not any(note.startswith("training labels") for note in tiles.notes)
    unlabelled = load(table(labels=mode), labels={"kind": "none"})
    assert set(unlabelled.of_split("train").labels.tolist()) == {-1}
    assert unlabelled.of_split("test").labels.tolist() == TRUTH[8:]


def test_an_annotator_of_test_tiles_only_cannot_label_training_tiles(table: Table) -> None:
    rows = [f"t{tile}.png,{name},benign" for tile in range(8) for name in ("ann", "ben")] + ["t9.png,dora,tumour"]
    with pytest.raises(DataError, match=r"(?s)annotator dora has labelled no training or.*name one of ann, ben"):
        load(table(rows, labels="annotator", annotator="dora"))


def test_one_annotator_per_tile_is_enough_for_the_majority(table: Table) -> None:
    tiles = load(table([f"t{tile}.png,{'ann' if tile % 2 else 'ben'},{CLASSES[TRUTH[tile]]}" for tile in range(12)],
                       labels="majority"))  # fmt: skip
    assert tiles.labels.tolist() == TRUTH
    assert any("test labels: no tile has labels from two annotators" in note for note in tiles.notes)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"annotator": "ann"}, "annotator requires labels=annotator"),
        ({"labels": "annotator", "annotator": "ann", "test_annotators": ["ann"]}, "cannot also label training tiles"),
        ({"voters": 7}, "set voters and rest together"),
        ({"counts": {"T": "t"}, "test_annotators": ["ann"]}, "votes in counts have no annotator names"),
        ({"counts": {"T": "t"}, "voters": 10**20, "rest": "H"}, "999999"),
        ({"counts": {"T": "t"}, "voters": 7, "rest": "T"}, "so it cannot also be rest"),
        ({"counts": {"T": "t", "H": "t"}}, "named more than once: t"),
        ({"counts": {"T": "t", "H": "tile"}}, "named more than once: tile"),
    ],
)
def test_conflicting_keys_are_errors(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate({"tiles": {"source": "table", "path": "t.csv", "annotations": {"path": "a.csv", **keys}}}, "test")


def test_posteriors_do_not_depend_on_row_order(table: Table) -> None:
    rows = [f"t{tile}.png,{name},{label}" for tile in range(12) for name, label in labels_of(tile).items()]
    first, second = load(table(rows)).annotations, load(table(rows[::-1])).annotations
    assert first is not None and second is not None
    ids = [f"t{tile}.png" for tile in range(8)]
    assert np.allclose(first.posteriors(ids), second.posteriors(ids), atol=1e-9)


def test_tile_paths_are_normalised(table: Table) -> None:
    expected = load(table())
    rows = [
        f"{spelling}t{tile}.png,{name},{label}"
        for tile, spelling in zip(range(12), ("", "./", ".\\") * 4, strict=True)
        for name, label in labels_of(tile).items()
    ]
    tiles = load(table(rows))
    assert tiles.labels.tolist() == expected.labels.tolist() and tiles.notes == expected.notes
    with pytest.raises(DataError, match=r"1 tile name is written in more than one way: t1\.png"):
        load(table([*rows, "t1.png,eve,benign"]))


@pytest.mark.parametrize("column", ["tile", "annotator"])
def test_rounded_tile_and_annotator_names_are_errors(table: Table, column: str) -> None:
    """Spreadsheet programs round long numbers, so different rows become equal and would be dropped as duplicates."""
    row = {"tile": "1.2E+11,ann,benign", "annotator": "t0.png,1.2E+11,benign"}[column]
    with pytest.raises(DataError, match=rf"changed 2 values in column {column}: .*in line 3, .*in line 4"):
        load(table(["t1.png,ann,benign", row, row]))


@pytest.mark.parametrize("source_labels", [False, True])
def test_errors_about_similar_classes_name_the_tables_with_labels(table: Table, source_labels: bool) -> None:
    rows = ["t0.png,ann,benign", "t1.png,ann,tumour", "t3.png,ann,TUMOUR"]
    with pytest.raises(DataError) as caught:
        load(table(rows, source_labels=source_labels))
    assert "annotations.csv" in str(caught.value) and ("tiles.csv" in str(caught.value)) == source_labels
