"""Prediction of images with an exported classifier: inputs, resuming, processes, damaged images and output files."""

import csv
import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from launching import ROOT, run_two
from PIL import Image
from slide_files import picture, write_slide
from tiny_classifier import CLASSES, save_classifier

import clipit
from clipit.cli.predict import main
from clipit.config.data import SlidesConfig
from clipit.errors import ArtifactError, ConfigError, DataError, ModelError
from clipit.images.image_set import open_images
from clipit.models.inference import Classifier
from clipit.runs import predict_images as predict_images_module
from clipit.runs import prediction_chunks
from clipit.runs.predict_images import predict_images
from clipit.runs.prediction_chunks import PredictionOptions, chunk_starts
from clipit.runs.prediction_inputs import embed_classes, open_inputs, read_prompts

SMALL = PredictionOptions(batch_size=4, workers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a classifier with a text branch, and of its VLM."""
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return clipit.load_classifier(folder / "run/classifier", "cpu", vlm=str(folder / "clip"))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 37 images, of which three are damaged, and a text file."""
    root = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for number in range(37):
        path = root / f"case {number % 3}" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    for name in ("case 0/00.png", "case 1/19.png"):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])
    (root / "case 2/35.png").write_bytes(b"")
    (root / "case 2/notes.txt").write_text("not an image")
    return root


def readable(tiles: Path) -> list[Path]:
    return [path for path in sorted(tiles.rglob("*.png")) if path.name not in ("00.png", "19.png", "35.png")]


def files(out: Path) -> dict[str, bytes]:
    """Contents of the visible files of a prediction, without its hidden lock file."""
    visible = [path for path in out.parent.iterdir() if path.is_file() and not path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in visible}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_tables_of_predictions_and_of_damaged_images(classifier: Classifier, tiles: Path, tmp_path: Path) -> None:
    prompts = embed_classes(classifier, "stored")
    for name in ("a/p.parquet", "p.csv"):
        summary = predict_images(classifier, open_images(tiles), tmp_path / name, zero_shot=prompts, options=SMALL)
    whole = pq.read_table(tmp_path / "a/p.parquet").to_pydict()
    paths = readable(tiles)
    assert whole["id"] == [path.relative_to(tiles).as_posix() for path in paths]
    np.testing.assert_allclose(
        np.stack([whole[f"p_{name}"] for name in CLASSES], 1), classifier.predict_proba(paths), atol=1e-6
    )
    np.testing.assert_allclose(
        np.stack([whole[f"zs_{name}"] for name in CLASSES], 1), classifier.zero_shot(paths), atol=1e-5
    )
    assert whole["predicted"] == classifier.predict(paths)
    rows = table(tmp_path / "p.csv")
    assert list(rows[0]) == [
        "id",
        "predicted",
        *(f"p_{c}" for c in CLASSES),
        "zero_shot",
        *(f"zs_{c}" for c in CLASSES),
    ]
    assert [row["id"] for row in rows] == whole["id"] and [row["zero_shot"] for row in rows] == whole["zero_shot"]
    assert max(abs(float(row["p_gland"]) - value) for row, value in zip(rows, whole["p_gland"], strict=True)) < 1e-6
    damaged = table(tmp_path / "p.unreadable.csv")
    assert [row["id"] for row in damaged] == ["case 0/00.png", "case 1/19.png", "case 2/35.png"]
    assert all(Path(row["file"]).is_file() and row["reason"] for row in damaged)
    assert (summary["images"], summary["predicted"], summary["unreadable"]) == (37, 34, 3)
    shares = summary["classes"]
    assert sum(values["images"] for values in shares.values()) == 34
    assert shares["tumour"]["images"] == whole["predicted"].count("tumour")
    assert not (tmp_path / "p.csv.partial").exists()


def test_the_page_shows_the_least_and_most_certain_images(classifier: Classifier, tiles: Path, tmp_path: Path) -> None:
    predict_images(classifier, open_images(tiles), tmp_path / "p.csv", options=SMALL)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    confidence = {row["id"]: max(float(row[f"p_{name}"]) for name in CLASSES) for row in table(tmp_path / "p.csv")}
    order = sorted(confidence, key=lambda name: confidence[name])
    least, rest = page.split("Least certain")[-1].split("Most certain")
    assert least.index(f"id {order[0]}<") < least.index(f"id {order[1]}<") and f"id {order[-1]}<" in rest
    assert f"of {len(confidence)} images, the least certain first: class and its probability" in least
    assert re.search(r"tumour: \d+ of \d+ images, the most certain first", rest)
    assert f"id {order[-1]}<" not in least and "data:image/jpeg" in least and "case 2/35.png" in page


@contextmanager
def killed_after_two_chunks() -> Iterator[None]:
    finish, written = prediction_chunks._Chunk.finish, []

    def stop(chunk: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(chunk.start)
        return finish(chunk)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prediction_chunks._Chunk, "finish", stop)
        yield


def test_a_resumed_command_writes_the_same_files(
    classifier: Classifier, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    out = tmp_path / "twice/p.csv"
    with killed_after_two_chunks():
        predict_images(classifier, open_images(tiles), out, options=SMALL)
    assert not out.exists() and len(list(tmp_path.rglob("rows-*.parquet"))) == 2
    read: list[int] = []
    add = prediction_chunks._Chunk.add
    monkeypatch.setattr(
        prediction_chunks._Chunk, "add", lambda self, rows, *rest: (read.extend(rows), add(self, rows, *rest))
    )
    predict_images(classifier, open_images(tiles), out, options=SMALL)
    assert read == list(range(8, 37)), "the two finished chunks of four images are skipped"
    predict_images(classifier, open_images(tiles), tmp_path / "once/p.csv", options=SMALL)
    assert files(out) == files(tmp_path / "once/p.csv")


@pytest.mark.parametrize("change", ["packed", "dropped", "reordered", "retyped", "renamed", "text", "null", "negative"])
def test_a_rewritten_chunk_is_accepted_only_with_the_same_rows(
    classifier: Classifier, tiles: Path, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "p.csv"
    with killed_after_two_chunks():
        predict_images(classifier, open_images(tiles), out, options=SMALL)
    chunk = sorted(tmp_path.rglob("rows-*.parquet"))[0 if change == "renamed" else 1]
    table = pq.read_table(chunk)
    if change == "renamed":
        table = table.rename_columns(["id", *table.column_names[1:-2], "p_othor", table.column_names[-1]])
    elif change == "dropped":
        table = table.slice(1)
    elif change == "reordered":
        table = table.take(list(reversed(range(table.num_rows))))
    elif change == "retyped":
        table = table.set_column(0, "id", table.column("id").cast("large_string"))
    elif change == "text":
        table = table.set_column(2, table.column_names[2], table.column(2).cast("string"))
    elif change in ("null", "negative"):
        values = pa.array([None if change == "null" else -0.1] * table.num_rows, pa.float32())
        table = table.set_column(2, table.column_names[2], values)
    pq.write_table(table, chunk, compression="zstd", row_group_size=1)
    if change != "packed":
        problem = "impossible probabilities" if change in ("null", "negative") else "its rows or columns differ"
        with pytest.raises(ArtifactError, match=rf"this file has changed: .*{problem}"):
            predict_images(classifier, open_images(tiles), out, options=SMALL)
        chunk.unlink()
    predict_images(classifier, open_images(tiles), out, options=SMALL)
    predict_images(classifier, open_images(tiles), tmp_path / "once.csv", options=SMALL)
    assert out.read_bytes() == (tmp_path / "once.csv").read_bytes()


def test_a_command_can_be_resumed_with_another_batch_size(
    classifier: Classifier, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole, larger = tmp_path / "p.csv", tmp_path / "whole.csv", PredictionOptions(batch_size=5)
    with killed_after_two_chunks():
        predict_images(classifier, open_images(tiles), out, options=SMALL)
    read: list[range] = []
    add = prediction_chunks._Chunk.add
    monkeypatch.setattr(
        prediction_chunks._Chunk, "add", lambda self, rows, *rest: (read.append(rows), add(self, rows, *rest))
    )
    predict_images(classifier, open_images(tiles), out, options=larger)
    assert read[0] == range(8, 12) and read[-1].stop == 37, "chunks keep the size of the first command"
    predict_images(classifier, open_images(tiles), whole, options=larger)
    pd.testing.assert_frame_equal(pd.read_csv(out), pd.read_csv(whole), rtol=1e-4)
    before = files(out)
    predict_images(classifier, open_images(tiles), out, options=larger)
    predict_images(classifier, open_images(tiles), out, options=SMALL)
    assert files(out) == before, "a finished command is not repeated for another batch size"


def test_a_command_killed_while_writing_files_is_resumed(
    classifier: Classifier, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clipit.runs.predict_images.write_text", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_images(classifier, open_images(tiles), tmp_path / "p.csv", options=SMALL)
    assert (tmp_path / "p.csv").is_file() and not (tmp_path / "p.summary.json").exists()
    predict_images(classifier, open_images(tiles), tmp_path / "p.csv", options=SMALL)
    assert set(files(tmp_path / "p.csv")) == {"p.csv", "p.html", "p.summary.json", "p.unreadable.csv"}


def test_temporary_files_of_killed_attempts_are_deleted(classifier: Classifier, tiles: Path, tmp_path: Path) -> None:
    names = (".p.csv.999999999.tmp", f".p.html.{os.getppid()}.tmp", ".q.csv.999999999.tmp")
    dead, alive, other = (tmp_path / name for name in names)
    for path in (dead, alive, other):
        path.touch()
    predict_images(classifier, open_images(tiles), tmp_path / "p.csv", options=SMALL)
    assert (dead.exists(), alive.exists(), other.exists()) == (False, True, True)


def test_a_command_that_waits_for_an_identical_one_uses_its_result(
    classifier: Classifier,
    tiles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "clipit")
    out, finish, second = tmp_path / "p.csv", predict_images_module._finish, []

    def predict() -> dict[str, object]:
        return predict_images(classifier, open_images(tiles), out, options=SMALL)

    def finish_while_another_waits(*arguments: object) -> None:
        second.append(threads.submit(predict))
        while "waiting: another process" not in caplog.text:
            time.sleep(0.01)
        finish(*arguments)

    monkeypatch.setattr(predict_images_module, "_finish", finish_while_another_waits)
    with ThreadPoolExecutor(1) as threads:
        first = predict()
        assert second[0].result() == first
    assert "nothing to do: the same command has already finished" in caplog.text
    assert not list(tmp_path.glob("*.partial"))


def test_finished_files_are_kept_and_never_overwritten_by_another_command(
    classifier: Classifier, tiles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    predict_images(classifier, open_images(tiles), out, options=SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    predict_images(classifier, open_images(tiles), out, options=SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(ArtifactError, match="other inputs or options: images"):
        predict_images(classifier, open_images(tiles / "case 2"), out, options=SMALL)
    out.write_text(out.read_text("utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="have changed"):
        predict_images(classifier, open_images(tiles), out, options=SMALL)
    (tmp_path / "mine.html").write_text("a page of the user")
    with pytest.raises(ArtifactError, match=r"belong to a different command or have changed(.|\n)*mine\.html"):
        predict_images(classifier, open_images(tiles), tmp_path / "mine.csv", options=SMALL)


@pytest.mark.parametrize("suffix", [".unreadable.csv", ".html"])
def test_missing_files_of_a_finished_command_are_an_error(
    classifier: Classifier, tiles: Path, tmp_path: Path, suffix: str
) -> None:
    predict_images(classifier, open_images(tiles), tmp_path / "p.csv", options=SMALL)
    (tmp_path / f"p{suffix}").unlink()
    with pytest.raises(ArtifactError, match=rf"are incomplete: .*p{suffix} is missing"):
        predict_images(classifier, open_images(tiles), tmp_path / "p.csv", options=SMALL)


@pytest.mark.parametrize("content", [b"", b"id,file,reason\n", b"\xff\xfe\x00"])
def test_changed_lists_of_unreadable_images_are_an_error(
    classifier: Classifier, tiles: Path, tmp_path: Path, content: bytes
) -> None:
    result = clipit.predict(classifier, tiles, tmp_path / "p.csv", batch_size=4)
    assert len(result.unreadable) == 3 and result.unreadable_file is not None
    result.unreadable_file.write_bytes(content)
    with pytest.raises(ArtifactError, match="has changed since it was written"):
        replace(result).unreadable  # noqa: B018 (a new object has read nothing yet)
    with pytest.raises(ArtifactError, match=r"have changed: .*p\.unreadable\.csv"):
        predict_images(classifier, open_images(tiles), tmp_path / "p.csv", options=SMALL)


def test_no_files_are_left_if_no_image_can_be_read(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "bad" / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"no image can be read \(2 tried\)(.|\n)*a\.png"):
        predict_images(classifier, open_images(tmp_path / "bad"), tmp_path / "p.csv")
    assert not list(tmp_path.glob("p*"))


def test_chunks_are_whole_batches_and_divide_small_sets() -> None:
    assert chunk_starts(10_000, 64) == range(0, 10_000, 640)
    assert chunk_starts(10**6, 64) == range(0, 10**6, 1024)
    assert chunk_starts(10**6, 3000) == range(0, 10**6, 3000)
    assert chunk_starts(100, 4) == range(0, 100, 8) and len(chunk_starts(1, 64)) == 1


def test_non_finite_outputs_are_an_error_that_names_the_image(
    classifier: Classifier, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = classifier.forward

    def overflow(pixels: Any) -> Any:
        logits, projected = forward(pixels)
        logits[1] = float("nan")
        return logits, projected

    monkeypatch.setattr(classifier, "forward", overflow)
    with pytest.raises(ModelError, match=r"NaN or infinite for 1 of 3 images(.|\n)*06\.png"):
        predict_images(classifier, open_images(tiles), tmp_path / "p.csv", options=SMALL)


def test_bfloat16_agrees_with_float32(folder: Path, tiles: Path, tmp_path: Path) -> None:
    values = []
    for bf16 in (False, True):
        out = tmp_path / f"{bf16}.parquet"
        result = clipit.predict(folder / "run", tiles, out, bf16=bf16, device="cpu")
        values.append(result.predictions["p_gland"].to_numpy())
        assert result.summary["inputs"]["precision"] == ("bfloat16" if bf16 else "float32")
    assert 0 < np.abs(values[0] - values[1]).max() < 0.05


def test_tables_with_path_and_id_columns_and_ignored_labels(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,label,key\ncase 1/01.png,NA,x\ncase 0/03.png,,y\n")
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for name in ("case 0/03.png", "case 1/01.png"):
            archive.write(tiles / name, name)
    for images in (tiles, tmp_path / "t.zip"):
        opened = open_inputs([tmp_path / "t.csv"], images, "file", "key")
        assert list(opened.ids) == ["x", "y"]
        expected = np.asarray(Image.open(tiles / "case 1/01.png"))
        np.testing.assert_array_equal(np.asarray(opened.read(0)), expected)
    assert list(open_inputs([tmp_path / "t.csv"], tiles, "file").ids) == ["case 1/01.png", "case 0/03.png"]
    with pytest.raises(DataError, match=r"missing columns: path(.|\n)*--path-column"):
        open_inputs([tmp_path / "t.csv"], tiles)
    with pytest.raises(ConfigError, match=r"options for tables are given \(--images\)"):
        open_inputs([tiles], images=tiles)
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    for images in (tiles, None):
        with pytest.raises(DataError, match=r"unknown table format \.xlsx(.|\n)*save the sheet as \.csv"):
            open_inputs([tmp_path / "t.xlsx"], images)
    with pytest.raises(DataError, match=r"(?s)the table does not exist.*fix: correct the path;"):
        open_inputs([tmp_path / "none.xlsx"], None)
    shutil.copytree(tiles / "case 0", tmp_path / "others")
    both = open_inputs([tmp_path / "others", tmp_path / "t.csv"], tiles, "file", "key")
    assert list(both.ids)[-3:] == ["36.png", "x", "y"]


@pytest.mark.parametrize(("edge", "mpp", "expect_note"), [(32, "", False), (128, "", True), (128, "0.25", False)])
def test_images_that_show_more_tissue_than_the_training_tiles_are_noted(
    classifier: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture, edge: int, mpp: str, expect_note: bool
) -> None:
    caplog.set_level("INFO")
    Image.new("RGB", (edge, edge), "pink").save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(f"path,mpp\na.png,{mpp}\n")
    summary = predict_images(classifier, open_inputs([tmp_path / "t.csv"]), tmp_path / "p.csv", options=SMALL)
    expected = "1 of 1 sampled image shows 4 times the width of the training tiles (32 pixels at 1 µm per pixel)"
    assert (expected in summary["note"], expected in caplog.text) == (expect_note, expect_note)


def test_images_that_are_not_square_are_noted(
    classifier: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name, width in (("a", 40), ("b", 32), ("c", 33)):
        Image.new("RGB", (width, 32), "pink").save(tmp_path / f"{name}.png")
    out = tmp_path / "p.csv"
    images = open_inputs([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"])
    summary = predict_images(classifier, images, out, options=SMALL)
    expected = "WARNING: 1 of 3 sampled images is not square: images of 40 x 32 px are cropped to the centre square"
    assert expected in summary["note"] and expected in caplog.text and "20% of their pixels" in summary["note"]
    assert "not square" in out.with_suffix(".html").read_text()


def test_pyramidal_tiffs_among_images_are_recognised_by_their_content(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mixed/a.png")
    write_slide(tmp_path / "mixed/flat.tif", picture(), levels=1)
    assert open_inputs([tmp_path / "mixed"]).ids == ["a.png", "flat.tif"]
    write_slide(tmp_path / "mixed/slide.tif", picture())
    (tmp_path / "t.csv").write_text("path\nmixed/a.png\nmixed/slide.tif\n")
    for given, count in (("mixed", 3), ("t.csv", 2)):
        with pytest.raises(DataError, match=rf"whole slides among {count} images: (mixed/)?slide.tif"):
            open_inputs([tmp_path / given])
    tiles_of_slides = SlidesConfig(mpp=1.0, pixels=64, grids=str(tmp_path / "grids"))
    listed = open_inputs([tmp_path / "mixed/a.png", tmp_path / "mixed/slide.tif"], slides=tiles_of_slides)
    assert listed.ids[0] == "a.png" and all(name.startswith("slide@") for name in listed.ids[1:]) and len(listed) > 9
    write_slide(tmp_path / "glass.tif", np.full((200, 200, 3), 250, np.uint8))
    with pytest.raises(DataError, match="no tissue") as error:
        open_inputs([tmp_path / "glass.tif"], slides=tiles_of_slides)
    assert error.value.fix == (
        "lower --min-tissue, or add contours of the tissue (--contours); clipit slides score has these options"
    )


def test_zero_shot_classes_come_from_files_names_and_the_command_line(
    classifier: Classifier, world: dict[str, Any]
) -> None:
    prompts = read_prompts(world["prompts"], None)
    assert prompts is not None
    zero_shot = embed_classes(classifier, prompts)
    texts = {name: prompts.texts(name) for name in prompts.classes}
    np.testing.assert_allclose(zero_shot.embeddings, classifier.prompt_embeddings(texts))
    named = read_prompts(None, "necrosis; normal mucosa ;")
    assert named is not None and embed_classes(classifier, named).classes == ("necrosis", "normal mucosa")
    np.testing.assert_allclose(
        embed_classes(classifier, named).embeddings,
        classifier.prompt_embeddings({"necrosis": "necrosis", "normal mucosa": "normal mucosa"}),
    )
    assert read_prompts("stored", None) is None and embed_classes(classifier, "stored").classes == CLASSES
    with pytest.raises(DataError, match=r"unknown prompt set 'absent'(.|\n)*stored"):
        embed_classes(classifier, "absent")
    for wrong in ("one", "a; a", ";"):
        with pytest.raises(ConfigError, match=r"(?s)two or more .*separated by semicolons.*fix: separate"):
            read_prompts(None, wrong)
    with pytest.raises(ConfigError, match=r"control character: li\\nes, a\\x00\n"):
        read_prompts(None, "b; li\nes; a\0")
    for listed in ("b; t\udcfcm", ["b", "t\udcfcm"], "t\udcfcm"):
        with pytest.raises(ConfigError, match=r"not valid UTF-8: t\\udcfcm\n.*--classes"):
            read_prompts(None, listed)
    with pytest.raises(DataError, match=r"a text is not valid UTF-8: x\\udcfc"):
        classifier.prompt_embeddings({"a": ["x\udcfc"], "b": ["y"]})


def test_names_that_are_not_utf8_are_read_but_not_written(classifier: Classifier, tiles: Path, tmp_path: Path) -> None:
    table = tmp_path / "t\udcfc.parquet"
    rows = pa.table({"path": ["case 1/01.png"]})
    with table.open("wb") as stream:
        pq.write_table(rows, stream)
    result = clipit.predict(classifier, table, tmp_path / "p.csv", images=tiles)
    assert list(result.predictions["id"]) == ["case 1/01.png"]
    with pytest.raises(ConfigError, match=r"the path is not valid UTF-8\n.*p\\udcfc.csv"):
        clipit.predict(classifier, table, tmp_path / "p\udcfc.csv", images=tiles)


def test_the_python_function_returns_data_frames(classifier: Classifier, tiles: Path, tmp_path: Path) -> None:
    for name in ("a/p.csv", "b/p.parquet"):
        result = clipit.predict(classifier, tiles, tmp_path / name, prompts="stored", batch_size=4)
        rows = result.predictions
        assert len(rows) == result.summary["predicted"] == 34 and list(rows["id"]) == sorted(rows["id"])
        assert set(rows["zero_shot"]) <= set(CLASSES)
        assert rows.filter(regex="^p_").sum(axis=1).between(0.999, 1.001).all()
        assert list(result.unreadable["id"]) == ["case 0/00.png", "case 1/19.png", "case 2/35.png"]
        changed = bytearray(result.table.read_bytes())
        changed[len(changed) // 2] ^= 1
        result.table.write_bytes(bytes(changed))
        with pytest.raises(ArtifactError, match="has changed since it was written"):
            replace(result).predictions  # noqa: B018 (a new object has read nothing yet)
    whole = clipit.predict(classifier, str(tiles / "case 2/02.png"), tmp_path / "c/p.csv")
    assert whole.unreadable_file is None and whole.unreadable.empty and list(whole.predictions["id"]) == ["02.png"]


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["clipit predict", *map(str, arguments)])
    main()


def test_the_command_prints_class_shares_and_output_paths(
    folder: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new/p.csv"
    run_command(
        monkeypatch, folder / "run", "--out", out, "--classes", "necrosis; mucin", "--vlm", folder / "clip",
        "--device", "cpu", tiles / "case 0", tiles / "case 1/01.png",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "13 images predicted, mean confidence 0." in printed and "note: 1 image could not be read; see " in printed
    assert all(name in printed for name in (*CLASSES, "necrosis", "mucin", str(out), str(out.with_suffix(".html"))))
    summary = json.loads(out.with_suffix(".summary.json").read_text("utf-8"))
    assert f"{summary['classes']['stroma']['share']:.1%}" in printed
    run_command(
        monkeypatch, folder / "run", "--out", out, "--classes", "necrosis; mucin", "--vlm", folder / "clip",
        "--device", "cpu", tiles / "case 0", tiles / "case 1/01.png",
    )  # fmt: skip
    assert "the same command has already finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message_part"),
    [
        (("{tiles}", "--out", "{tmp}/p.txt"), "unknown table format"),
        (("{tmp}/gone", "--out", "{tmp}/p.csv"), "fix: correct the path; "),
        (("{tiles}/case 0", "{tiles}/case 0", "--out", "{tmp}/p.csv"), "image files belong to more than one input"),
        (("{tiles}", "--out", "{tmp}/p.csv", "--prompts", "absent"), "unknown prompt set 'absent'"),
        (("{tiles}", "--out", "{tmp}/p.csv", "--device", "tpu9"), "device"),
    ],
)
def test_input_errors_are_printed_without_a_traceback(
    arguments: tuple[str, ...], message_part: str, folder: Path, tiles: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        run_command(
            monkeypatch, folder / "run/classifier", *(part.format(tiles=tiles, tmp=tmp_path) for part in arguments)
        )
    message = capsys.readouterr().err
    assert message_part in message and "fix:" in message and "Traceback" not in message


@pytest.mark.slow
def test_two_processes_write_the_same_files_as_one(
    classifier: Classifier, folder: Path, tiles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two/p.csv"
    done = run_two(
        ROOT / "scripts/predict.py", str(folder / "run"), str(tiles), "--out", str(out), "--batch-size", "4",
        "--prompts", "stored",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("34 images predicted") == 1
    (tmp_path / "one").mkdir()
    prompts = embed_classes(classifier, "stored")
    predict_images(classifier, open_images(tiles), tmp_path / "one/p.csv", zero_shot=prompts, options=SMALL)
    assert files(out) == files(tmp_path / "one/p.csv")
