"""Training examples from pairs: tables and shards of images with texts, and their errors."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_models import WORDS, MakeConfig

from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptConfig, PairsConfig
from clipit.errors import DataError
from clipit.vlm_training.bag_batches import BagExamples
from clipit.vlm_training.captions import fit_texts
from clipit.vlm_training.examples import examples_content, make_examples, validation_examples
from clipit.vlm_training.pair_examples import draw_partners
from clipit.vlm_training.pair_sources import read_captioned
from clipit.workspace.workspace import Workspace

Row = tuple[str, str, str]
"""Path, text and group of an image."""


def rows(count: int = 24) -> list[Row]:
    """Return one text for each of some training images, with four images per patient."""
    return [
        (f"images/train-{n:03d}.png", f"{WORDS[n % 19]} with {WORDS[n % 13 + 3]} {n}", f"train-{n // 4}")
        for n in range(count)
    ]


@pytest.fixture
def config(configure: MakeConfig) -> RunConfig:
    return configure({"reports": None})


def write_table(path: Path, config: RunConfig, content: Sequence[Row]) -> AdaptConfig:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("filepath", "title", "user"))
        writer.writerows(content)
    columns = {"path": "filepath", "text": "title", "group": "user"}
    pairs = {"path": str(path), "images": str(Path(config.tiles.path).parent), "columns": columns}
    return AdaptConfig.model_validate({"data": "pairs", "batch_size": 8, "pairs": pairs})


def make(
    config: RunConfig, section: AdaptConfig, arm: Any = "text", split: str = "train", seed: int = 0
) -> BagExamples:
    return make_examples(config, section, arm, seed, split, Workspace(config))


def pairs_in_batches(examples: BagExamples, steps: int = 6) -> set[tuple[str, str]]:
    """Return the ids of images and their texts in the first batches."""
    pairs = set()
    for step in range(steps):
        batch = examples.batch(step)
        for tile, text in zip(batch.image_members[:, 0], batch.other_members[:, 0], strict=True):
            pairs.add((examples.tile_ids[batch.tiles[tile]], examples.texts[batch.texts[text]]))
    return pairs


def test_missing_values_are_not_texts(config: RunConfig, tmp_path: Path) -> None:
    content = [*rows(), ("images/train-003.png", "nan", "train-0"), ("images/train-004.png", "NULL", "train-1")]
    section = write_table(tmp_path / "pairs.csv", config, content)
    assert {"nan", "NULL"}.isdisjoint(make(config, section).texts)


def test_symbols_in_texts_are_translated(config: RunConfig, tmp_path: Path) -> None:
    content = [*rows(), ("images/train-003.png", "\uf062-catenin \uf03c 5%", "train-0")]
    texts = make(config, write_table(tmp_path / "pairs.csv", config, content)).texts
    assert "\u03b2-catenin < 5%" in texts


def test_parquet_tables_may_have_lists_of_texts_but_not_numbers(config: RunConfig, tmp_path: Path) -> None:
    content = [(path, [text, f"{text} again"], group) for path, text, group in rows()]
    section = write_table(tmp_path / "pairs.csv", config, [])
    frame = pd.DataFrame(content, columns=["filepath", "title", "user"])
    frame.to_parquet(tmp_path / "pairs.parquet")
    pairs = section.pairs.model_copy(update={"path": str(tmp_path / "pairs.parquet")})
    captioned = read_captioned(pairs, tmp_path)
    assert [captioned.captions_of(row) for row in range(24)] == [texts for _, texts, _ in content]
    frame.assign(title=[1.5, *[None] * 23]).to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=r"(?s)the text of row 1 is a number \(1\.5\).*adapt\.pairs\.columns\.text"):
        read_captioned(pairs, tmp_path)
    frame.assign(title=float("nan")).to_parquet(tmp_path / "pairs.parquet")
    assert set(map(tuple, read_captioned(pairs, tmp_path).captions)) == {("",)}


def test_faults_of_texts_are_warnings(config: RunConfig, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    assert read_captioned(write_table(table, config, rows()).pairs, tmp_path).tiles.notes == ()
    faulty = [
        "Entz\u00c3\u00bcndung",
        "Entz\ufffdndung",
        "<p>tumour &lt; 5 %</p>",
        "see \\u00e4",
        "atypia < 5 % & mitoses",
    ]
    content = [(path, text, group) for (path, _, group), text in zip(rows(5), faulty, strict=True)]
    notes = read_captioned(write_table(table, config, content).pairs, tmp_path).tiles.notes
    assert len(notes) == 4 and all(note.startswith("WARNING: ") for note in notes)
    for part in (
        "misread characters in texts, such as \u00c3\u00bc",
        "1 text contains replacement",
        "1 text contains HTML",
    ):
        assert part in " ".join(notes)


def test_a_column_of_caption_ids_is_named(config: RunConfig, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    content = [*rows(), ("images/train-003.png", "a second text", "train-0")]
    pairs = write_table(table, config, content).pairs
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([f"id,{lines[0]}", *(f"{n},{line}" for n, line in enumerate(lines[1:]))]))
    with pytest.raises(DataError, match=r"(?s)record 25 .*\(id\).*set --adapt\.pairs\.columns\.id=filepath; otherwise"):
        read_captioned(pairs, tmp_path)
    captioned = read_captioned(pairs.model_copy(update={"columns": {**pairs.columns, "id": "filepath"}}), tmp_path)
    assert captioned.captions_of(3) == [content[3][1], "a second text"]


def test_encoded_images_in_texts_are_dropped() -> None:
    fitted = fit_texts([["see figure " + "iVBORw0KGgo" * 50]], lambda texts: [len(text) // 4 + 2 for text in texts], 20)
    assert fitted.texts == ["see figure"] and fitted.counts["long_words"] == 1


def test_every_image_is_paired_with_its_texts_and_groups_do_not_cross_splits(config: RunConfig, tmp_path: Path) -> None:
    content = [*rows(), ("images/train-003.png", "a second text", "train-0")]
    section = write_table(tmp_path / "pairs.csv", config, content)
    workspace = Workspace(config)
    train = make_examples(config, section, "text", 0, "train", workspace)
    held_out = validation_examples(config, section, "text", 0, workspace)
    assert held_out is not None and len(held_out) == 4, "one of six patients is held out"
    expected = {(path, text) for path, text, _ in content}
    assert pairs_in_batches(train, 8) | pairs_in_batches(held_out, 8) == expected
    assert not set(train.tile_ids) & set(held_out.tile_ids)
    groups = {path: group for path, _, group in content}
    assert not {groups[name] for name in train.tile_ids} & {groups[name] for name in held_out.tile_ids}
    assert train.summary["tiles"] + held_out.summary["tiles"] == 24


def test_an_unused_patient_column_is_named(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    section = write_table(path, config, rows())
    path.write_text(path.read_text(encoding="utf-8").replace("user", "patient_id"), encoding="utf-8")
    pairs = section.pairs.model_copy(update={"columns": {"path": "filepath", "text": "title"}})
    note = "the column patient_id identifies 6 patients or slides, but is not used: set --adapt.pairs.columns.group"
    assert note in " ".join(read_captioned(pairs, tmp_path).tiles.notes)


def test_texts_are_split_dropped_and_counted(config: RunConfig, tmp_path: Path) -> None:
    long = ". ".join(f"{word.capitalize()} with atypia and mild fibrosis of the {word}" for word in WORDS[:4]) + "."
    content = [*rows(20), ("images/train-020.png", long, "train-5"), ("images/train-021.png", " -- ", "train-5")]
    content += [("images/train-000.png", content[0][1] + "\n ", "train-0"), ("images/train-022.png", "same", "train-5")]
    section = write_table(tmp_path / "pairs.csv", config, content)
    workspace = Workspace(config)
    parts = [make_examples(config, section, "text", 0, split, workspace) for split in ("train", "validation")]
    summary = parts[0].summary
    assert (summary["empty_texts"], summary["split_texts"], summary["repeated_texts"]) == (1, 1, 1)
    assert summary["tiles_without_text"] == 1
    limit = workspace.vlm.context_length
    assert max(workspace.vlm.count_tokens(parts[0].texts)) <= limit < workspace.vlm.count_tokens([long])[0]
    split = [text for part in parts for name, text in pairs_in_batches(part, 40) if name == "images/train-020.png"]
    assert sorted(split) == sorted(f"{sentence.rstrip('.')}." for sentence in long.split(". "))


def test_equal_texts_and_equal_pixels_are_not_negatives(config: RunConfig, tmp_path: Path) -> None:
    content = [(path, "mild atypia" if n < 8 else text, group) for n, (path, text, group) in enumerate(rows())]
    source = Path(config.tiles.path).parent
    (tmp_path / "images").mkdir()
    for path, _, _ in content:
        (tmp_path / path).write_bytes((source / path).read_bytes())
    (tmp_path / content[9][0]).write_bytes((source / content[10][0]).read_bytes())
    section = write_table(tmp_path / "pairs.csv", config, content)
    pairs = section.pairs.model_copy(update={"images": str(tmp_path)})
    examples = make(config, section.model_copy(update={"pairs": pairs, "batch_size": 20}))
    batch = examples.batch(0)
    names = [examples.tile_ids[batch.tiles[row[0]]] for row in batch.image_members]
    text_of = {path: text for path, text, _ in content}
    twins = {content[9][0], content[10][0]}
    expected = [[text_of[a] == text_of[b] or {a, b} <= twins for b in names] for a in names]
    assert np.array_equal(batch.same, expected) and not batch.same.all()
    assert set(names) >= twins


def test_shuffled_texts_come_from_other_patients(config: RunConfig, tmp_path: Path) -> None:
    section = write_table(tmp_path / "pairs.csv", config, rows())
    examples = make(config, section, "shuffled_text")
    group_of = {path: group for path, _, group in rows()}
    owner = {text: group for _, text, group in rows()}
    pairs = pairs_in_batches(examples, 5)
    assert len(pairs) == 20 == len({text for _, text in pairs}), "every text is used once"
    assert all(group_of[name] != owner[text] for name, text in pairs)
    images = make(config, section, "images").batch(0)
    assert np.array_equal(images.tiles, images.others) and np.array_equal(images.image_members, images.other_members)


def test_the_fingerprint_depends_on_groups_partners_and_equal_pixels(config: RunConfig, tmp_path: Path) -> None:
    section = write_table(tmp_path / "pairs.csv", config, rows())
    workspace = Workspace(config)
    texts, images = (make_examples(config, section, arm, 0, "train", workspace) for arm in ("text", "shuffled_text"))
    assert texts.fingerprints["pairs"] == images.fingerprints["pairs"]
    assert texts.fingerprints["examples"] != images.fingerprints["examples"]
    repeated = make(config, section).fingerprints
    assert repeated == texts.fingerprints
    twins = np.zeros_like(texts.pixel_codes)
    assert examples_content(replace(texts, pixel_codes=twins)) != texts.fingerprints["examples"]
    assert examples_content(replace(texts, groups=twins)) != texts.fingerprints["examples"]


def test_texts_are_shuffled_even_if_one_patient_has_most_images() -> None:
    owners = np.asarray(["a"] * 7 + ["b", "", ""], dtype=object)
    for seed in range(3):
        partners = draw_partners(owners, seed)
        assert all(owner == "" or owner != other for owner, other in zip(owners, owners[partners], strict=True))
        assert (partners != np.arange(10)).all()
    with pytest.raises(DataError, match="belong to one patient"):
        draw_partners(np.asarray(["a", "a"], dtype=object), 0)


def write_shard(path: Path, config: RunConfig, content: Sequence[Row]) -> None:
    import webdataset as wds

    folder = Path(config.tiles.path).parent
    with wds.TarWriter(str(path)) as writer:
        for number, (name, text, group) in enumerate(content):
            more = {"caption": [text, f"{text} again"], "patient": group}
            image = (folder / name).read_bytes()
            writer.write({"__key__": f"{number:05d}", "png": image, "txt": text, "json": json.dumps(more).encode()})


def test_shards_give_texts_from_members_or_json(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "pairs-000.tar", config, rows())
    section = AdaptConfig.model_validate(
        {"data": "pairs", "batch_size": 8, "pairs": {"source": "webdataset", "path": str(tmp_path / "shards")}}
    )
    assert pairs_in_batches(make(config, section), 3) <= {
        (f"pairs-000/{n:05d}", text) for n, (_, text, _) in enumerate(rows())
    }
    columns = {"text": "caption", "group": "patient"}
    section = section.model_copy(update={"pairs": section.pairs.model_copy(update={"columns": columns})})
    examples = make(config, section)
    assert examples.texts_of.lengths.tolist() == [2] * 20 and examples.summary["patients"] == 5
    invalid = section.model_copy(update={"pairs": section.pairs.model_copy(update={"columns": {"text": "title"}})})
    with pytest.raises(DataError, match=r"(?s)no sample has the text field title.*adapt\.pairs\.columns\.text"):
        make(config, invalid)


def test_texts_in_members_that_are_not_read_are_named(config: RunConfig, tmp_path: Path) -> None:
    import webdataset as wds

    folder, image = Path(config.tiles.path).parent, rows()[0][0]
    for suffix in ("legend", "legend.txt"):
        with wds.TarWriter(str(tmp_path / "val-0.tar")) as writer:
            for number in range(3):
                content = {"png": (folder / image).read_bytes(), suffix: f"text {number}".encode()}
                writer.write({"__key__": str(number), **content})
        section = PairsConfig(source="webdataset", path=str(tmp_path), columns={"text": suffix})
        if suffix == "legend":
            fix = r"name the members \.legend\.txt and set adapt\.pairs\.columns\.text to legend\.txt"
            with pytest.raises(DataError, match=rf"(?s)unread members, by suffix: legend \(3\); .*{fix}"):
                read_captioned(section, tmp_path / "out")
    pairs = read_captioned(section, tmp_path / "out")
    assert pairs.captions == [["text 0"], ["text 1"], ["text 2"]]
    assert pairs.tiles.notes == ("split names were interpreted: val (3 tiles) as validation",)


@pytest.mark.parametrize("kind", ["patient", "pixels"])
def test_evaluated_patients_and_images_among_the_pairs_are_leaks(config: RunConfig, tmp_path: Path, kind: str) -> None:
    leak = ("images/train-030.png", "mild", "test-3") if kind == "patient" else ("images/test-007.png", "mild", "x")
    section = write_table(tmp_path / "pairs.csv", config, [*rows(), leak, ("images/train-031.png", "mild", "y")])
    message = "patient test-3 of test tile" if kind == "patient" else "copy of test tile images/test-007.png"
    with pytest.raises(DataError, match=f"(?s)1 of 26 images.*{message}"):
        make(config, section)
    excluding = config.model_copy(update={"leaks": config.leaks.model_copy(update={"policy": "exclude"})})
    examples = make(excluding, section)
    assert examples.summary["leaking_tiles"] == 1 and leak[0] not in examples.tile_ids


@pytest.mark.parametrize("split", ["held out", "from the table"])
def test_copies_of_held_out_images_are_not_trained_on(config: RunConfig, tmp_path: Path, split: str) -> None:
    """Every image of six patients also occurs under another name and patient."""
    source = Path(config.tiles.path).parent
    (tmp_path / "images").mkdir()
    twins = [(path, path.replace("train", "copy"), text, group) for path, text, group in rows()]
    content = [(path, text, group) for path, _, text, group in twins]
    content += [(twin, f"{text} again", f"copy of {twin}") for _, twin, text, _ in twins]
    for path, twin, _, _ in twins:
        for name in (path, twin):
            (tmp_path / name).write_bytes((source / path).read_bytes())
    section = write_table(tmp_path / "pairs.csv", config, content)
    pairs = section.pairs.model_copy(update={"images": str(tmp_path), "validation_fraction": 0.2})
    section = section.model_copy(update={"pairs": pairs})
    if split == "from the table":
        table = (tmp_path / "pairs.csv").read_text(encoding="utf-8").splitlines()
        parts = ["split", *["validation" if n < 8 else "train" for n in range(48)]]
        lines = [f"{line},{part}" for line, part in zip(table, parts, strict=True)]
        (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"(?s)8 of 48 images.*images/copy-000.png \(copy of validation image"):
            make(config, section)
        config = config.model_copy(update={"leaks": config.leaks.model_copy(update={"policy": "exclude"})})
    workspace = Workspace(config)
    train, held_out = (make_examples(config, section, "text", 0, part, workspace) for part in ("train", "validation"))
    content_of = {name: (tmp_path / name).read_bytes() for name in [*train.tile_ids, *held_out.tile_ids]}
    assert not {content_of[name] for name in train.tile_ids} & {content_of[name] for name in held_out.tile_ids}
    dropped = 48 - len(train) - len(held_out)
    assert len(held_out) >= 8 and dropped == train.summary["copies_of_held_out_tiles"] > 0


def test_texts_equal_to_prompts_are_counted(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = [
        (path, "An image of normal gland" if n % 2 else text, group) for n, (path, text, group) in enumerate(rows())
    ]
    with caplog.at_level("INFO", logger="clipit"):
        summary = make(config, write_table(tmp_path / "pairs.csv", config, content)).summary
    assert summary["texts_like_prompts"] == 1 and summary["examples_like_prompts"] == 10
    assert "the adaptation is trained on labels" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([("images/none.png", "a", "p")], r"none\.png"),
        ([*rows(), ("images/train-000.png", "b", "other")], r"rows of the same image differ.*record 25"),
        ([("", "a", "p"), *rows()], r"1 row has no file name"),
        ([(path, "", group) for path, _, group in rows()], r"no image has a text"),
        ([(path, "same", group) for path, _, group in rows()], r"no bag in a batch has a negative"),
        ([(path, text, "one") for path, text, _ in rows()], r"no validation tiles.*split column.*adapt\.pairs\.valid"),
    ],
)  # fmt: skip
def test_invalid_pairs_are_errors(config: RunConfig, tmp_path: Path, content: list[Row], message: str) -> None:
    section = write_table(tmp_path / "pairs.csv", config, content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        make(config, section)


def test_missing_columns_small_sets_and_damaged_images_are_reported(config: RunConfig, tmp_path: Path) -> None:
    section = write_table(tmp_path / "pairs.csv", config, rows())
    columns = {**section.pairs.columns, "text": "caption"}
    invalid = section.model_copy(update={"pairs": section.pairs.model_copy(update={"columns": columns})})
    with pytest.raises(
        DataError, match=r"(?s)missing columns: caption; the table has: filepath.*adapt\.pairs\.columns"
    ):
        make(config, invalid)
    table = tmp_path / "pairs.csv"
    content = table.read_text()
    table.write_text(content.replace("\n", ",Split\n", 1).replace("\n", ",train\n").replace("Split,train", "Split"))
    with pytest.raises(
        DataError, match=r"no column split; 'Split' would be ignored(.|\n)*adapt\.pairs\.columns\.split"
    ):
        make(config, section)
    table.write_text(content)
    with pytest.raises(DataError, match="only 20 training examples, fewer than a batch of 21"):
        make(config, section.model_copy(update={"batch_size": 21}))
    large = section.model_copy(update={"batch_size": 21})
    assert len(make_examples(config, large, "text", 0, "train", Workspace(config), batches=False)) == 20
    source = Path(config.tiles.path).parent
    (tmp_path / "images").mkdir()
    for number, (path, _, _) in enumerate(rows()):
        content = (source / path).read_bytes()
        (tmp_path / path).write_bytes(content[: len(content) // 2] if number == 5 else content)
    pairs = section.pairs.model_copy(update={"images": str(tmp_path)})
    workspace = Workspace(config)
    parts = [
        make_examples(config, section.model_copy(update={"pairs": pairs}), "text", 0, split, workspace)
        for split in ("train", "validation")
    ]
    assert parts[0].summary["unreadable_tiles"] == 1 and sum(len(part) for part in parts) == 23
