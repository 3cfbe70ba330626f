"""Tiling, scoring and mapping of slides: files, resuming, failures, labels, zero-shot and two processes."""

import csv
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from launching import ROOT, run_two
from no_plots import MAP_PLOTS, leave_out_plots
from slide_files import damage_tile, picture, write_slide
from tiny_classifier import CLASSES, save_classifier

import clipit
from clipit.api.slides import SlidesResult
from clipit.errors import ArtifactError, ConfigError, DataError
from clipit.output_files.artifacts import locked
from clipit.slide_tasks import tile_scores
from clipit.slide_tasks.slide_inputs import list_inputs
from clipit.slides.geojson import read_contours
from clipit.slides.grid import parse_tile_id
from clipit.slides.opening import open_slide
from clipit.slides.prepare import FailedSlide, PreparedSlide
from clipit.slides.slide_file import SlideFile


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run and its VLM."""
    return save_classifier(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of five slides with labels, splits and patients; the last file is empty."""
    root = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    rows = []
    for number, (label, split) in enumerate([("gland", "val"), ("stroma", "validation"), ("gland", "test"),
                                             ("stroma", "test"), ("tumour", "test")]):  # fmt: skip
        pixels = np.clip(picture(300, 300).astype(int) + rng.integers(-20, 20, (300, 300, 3)), 0, 255)
        write_slide(root / f"s{number}.tiff", pixels.astype(np.uint8), levels=2)
        rows.append({"slide": f"s{number}", "label": label, "split": split, "group": f"P{number}"})
    (root / "s4.tiff").write_bytes(b"")
    pd.DataFrame(rows).to_csv(root / "slides.csv", index=False)
    return root / "slides.csv"


@pytest.fixture(scope="module")
def mapped(models: Path, slides: Path, tmp_path_factory: pytest.TempPathFactory) -> SlidesResult:
    """Scores and maps of the slides."""
    out = tmp_path_factory.mktemp("mapped")
    return clipit.score_slides(slides, out, classifier=models / "run", maps=True, top=2, batch_size=16)


@pytest.fixture(autouse=True)
def no_maps(mapped: SlidesResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing all maps except the shared ones, which are created first."""
    leave_out_plots(monkeypatch, MAP_PLOTS)


@pytest.fixture
def real_slide() -> Path:
    """An Aperio slide with a label and a macro image."""
    place = os.environ.get("CLIPIT_TEST_DATA")
    if not place:
        pytest.skip("CLIPIT_TEST_DATA is not set: no real slides to test with")
    return Path(place) / "slides" / "CMU-1-Small-Region.svs"


def contents(folder: Path, pattern: str = "slides/*/tiles.parquet") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_tiling_writes_grid_thumbnail_and_requested_files(slides: Path, tmp_path: Path) -> None:
    result = clipit.tile_slides(slides, tmp_path, tile_mpp=1.0, tile_pixels=32, extras=("h5", "png"))
    table = result.slides
    assert table["status"].tolist() == ["ok"] * 4 + ["failed"]
    assert table["reason"].tolist()[-1] == "the file is empty" and table["tiles"].tolist()[-1] == 0
    folder = tmp_path / "slides" / "s0"
    grid = pd.read_parquet(folder / "grid.parquet")
    assert table["tiles"][0] == len(grid) == len(list((folder / "tiles").glob("*.png")))
    assert {path.stem for path in (folder / "tiles").iterdir()} == set(grid["id"])
    with h5py.File(folder / "coords.h5") as file:
        assert file["coords"][:].tolist() == grid[["x", "y"]].to_numpy().tolist()
        assert dict(file["coords"].attrs)["patch_size_level0"] == 32
    assert read_contours(folder / "tissue.geojson", 300, 300) and (folder / "tiles.png").is_file()
    assert "1 slide cannot be used" in result.text


def test_scoring_writes_tile_scores_slide_scores_and_maps(mapped: SlidesResult) -> None:
    folder = mapped.folder
    for name in ("s0", "s3"):
        files = {path.name for path in (folder / "slides" / name).iterdir()}
        assert files >= {
            "tiles.parquet",
            "tiles.geojson",
            "regions.geojson",
            "heat_map.ome.tif",
            "index.html",
            "map.json",
        }
        tiles = pd.read_parquet(folder / "slides" / name / "tiles.parquet")
        assert np.allclose(tiles[[f"score_{c}" for c in CLASSES]].sum(axis=1), 1, atol=1e-5)
        features = json.loads((folder / "slides" / name / "tiles.geojson").read_text())["features"]
        assert len(features) == len(tiles)
    scores = mapped.scores
    means = scores.query("slide == 's0' and pooling == 'mean' and not smoothed")[[f"score_{c}" for c in CLASSES]]
    tiles = pd.read_parquet(folder / "slides/s0/tiles.parquet")
    assert np.allclose(means.to_numpy()[0], tiles[[f"score_{c}" for c in CLASSES]].mean(), atol=1e-5)
    assert "s4" not in set(scores["slide"]) and "the file is empty" in mapped.text
    assert (folder / "slides/s0/index.html").read_text(encoding="utf-8").count("(chosen on validation slides)") == 1
    page = (folder / "slides.html").read_text(encoding="utf-8")
    assert "slides/s0/index.html" in page and "s4" in page
    metrics = pd.read_csv(folder / "slide_metrics.csv")
    assert set(metrics["split"]) == {"validation", "test"} and metrics["chosen"].any()


def test_tiles_are_read_at_the_training_resolution_of_the_classifier(mapped: SlidesResult) -> None:
    record = json.loads((mapped.folder / "scoring.json").read_text())
    assert (record["tiles"]["mpp"], record["tiles"]["pixels"]) == (1.0, 32)
    assert mapped.slides["tiles"][0] == len(pd.read_parquet(mapped.folder / "slides/s0/tiles.parquet"))


def test_predicting_a_slide_matches_scoring_it(
    models: Path, slides: Path, mapped: SlidesResult, tmp_path: Path
) -> None:
    result = clipit.predict(models / "run", slides.parent / "s1.tiff", tmp_path / "p.csv", batch_size=16)
    scored = pd.read_parquet(mapped.folder / "slides/s1/tiles.parquet")
    assert result.predictions["id"].tolist() == scored["id"].tolist()
    assert np.allclose(result.predictions[f"p_{CLASSES[0]}"], scored[f"score_{CLASSES[0]}"], atol=1e-5)
    pd.DataFrame({"path": ["s1.tiff"]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"whole slides among 1 image: s1.tiff[\s\S]*clipit slides score"):
        clipit.predict(models / "run", tmp_path / "t.csv", tmp_path / "q.csv", images=slides.parent)
    with pytest.raises(ConfigError, match="--mpp and --tile-mpp apply only to slides"):
        clipit.predict(models / "run", tmp_path / "no.png", tmp_path / "q.csv", mpp=0.5)


def flip_bit(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(bytes(data))


def test_changed_maps_are_rewritten_and_changed_scores_are_an_error(
    models: Path, slides: Path, mapped: SlidesResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(shutil.copytree(mapped.folder, tmp_path / "out"))
    whole = contents(out, "slides/s0/*.*")

    def rerun() -> None:
        clipit.score_slides(slides, out, classifier=models / "run", maps=True, top=2, batch_size=16)

    caplog.set_level("INFO")
    for name in ("tiles.geojson", "regions.geojson", "heat_map.ome.tif", "index.html"):
        flip_bit(out / "slides/s0" / name)
        rerun()
        assert "mapping 1 slide again, because scores, labels or options have changed" in caplog.text, name
        assert contents(out, f"slides/s0/{name}") == {f"slides/s0/{name}": whole[f"slides/s0/{name}"]}
        caplog.clear()
    table = pq.read_table(out / "slides/s0/tiles.parquet")
    scores = table.column(f"score_{CLASSES[0]}").to_numpy().copy()
    scores[1] += 0.01
    changed = table.set_column(table.column_names.index(f"score_{CLASSES[0]}"), f"score_{CLASSES[0]}", [scores])
    pq.write_table(changed, out / "slides/s0/tiles.parquet")
    with pytest.raises(ArtifactError, match="the scores have changed since they were written"):
        rerun()


def test_changed_files_of_a_tiled_slide_are_rewritten(
    slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clipit.tile_slides(slides, tmp_path, tile_mpp=1.0, tile_pixels=32)
    whole = contents(tmp_path, "slides/s0/*.*")
    caplog.set_level("INFO")
    for name in ("tissue.geojson", "grid.parquet", "tiles.png"):
        flip_bit(tmp_path / "slides/s0" / name)
    clipit.tile_slides(slides, tmp_path, tile_mpp=1.0, tile_pixels=32)
    assert contents(tmp_path, "slides/s0/*.*") == whole
    assert "note: s0: writing its grid, tissue and thumbnail again, because they have changed" in caplog.text


def test_two_processes_write_the_same_files_as_one(
    models: Path, slides: Path, mapped: SlidesResult, tmp_path: Path
) -> None:
    options = ("--classifier", models / "run", "--top", "2", "--batch-size", "16")
    done = run_two(ROOT / "scripts" / "slides.py", "map", slides, "--out", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("page:") == 1, "only the main process prints"
    for pattern in ("slides.csv", "slides/*/*.geojson", "slides/*/*.png", "grids/*/grid.parquet"):
        assert contents(tmp_path, pattern) == contents(mapped.folder, pattern)
    all_files = "slides/**/*"
    assert {path.relative_to(tmp_path) for path in tmp_path.glob(all_files)} == {
        path.relative_to(mapped.folder) for path in mapped.folder.glob(all_files)
    }
    columns = [f"score_{name}" for name in CLASSES]
    for name in ("slide_scores.csv", *(f"slides/s{number}/tiles.parquet" for number in range(4))):
        read = pd.read_csv if name.endswith(".csv") else pd.read_parquet
        two, one = read(tmp_path / name), read(mapped.folder / name)
        assert two.drop(columns=columns).equals(one.drop(columns=columns))
        assert np.allclose(two[columns], one[columns], atol=1e-5)


def test_a_resumed_command_keeps_finished_slides(
    models: Path, slides: Path, mapped: SlidesResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Callable[..., None] = tile_scores._write
    scored: list[str] = []

    def killed(slide: Any, *rest: Any) -> None:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(slide.name)
        write(slide, *rest)

    monkeypatch.setattr(tile_scores, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        clipit.score_slides(slides, tmp_path, classifier=models / "run", batch_size=16)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("slides/*/tiles.parquet")}
    assert len(before) == 2
    monkeypatch.setattr(tile_scores, "_write", write)
    clipit.score_slides(slides, tmp_path, classifier=models / "run", batch_size=16)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(tmp_path) == contents(mapped.folder)


def test_scores_of_another_model_are_replaced_and_a_damaged_table_is_an_error(
    models: Path, slides: Path, tmp_path: Path
) -> None:
    slide = slides.parent / "s0.tiff"
    clipit.score_slides(slide, tmp_path, classifier=models / "run")
    first = contents(tmp_path)
    text = "gland; stroma; tumour"
    clipit.score_slides(slide, tmp_path, vlm=str(models / "clip"), classes=text, tile_mpp=1.0, tile_pixels=32)
    assert contents(tmp_path) != first
    table = tmp_path / "slides/s0/tiles.parquet"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="delete this file and start the same command again"):
        clipit.score_slides(slide, tmp_path, classifier=models / "run")


def test_zero_shot_scores_are_cosine_similarities(models: Path, slides: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"classes": "gland; stroma", "tile_mpp": 1.0, "tile_pixels": 32}
    by_vlm = clipit.score_slides(slides.parent / "s0.tiff", tmp_path / "a", vlm=str(models / "clip"), **options)
    by_student = clipit.score_slides(
        slides.parent / "s0.tiff",
        tmp_path / "b",
        classifier=models / "run",
        vlm=str(models / "clip"),
        maps=True,
        **options,
    )
    for result in (by_vlm, by_student):
        tiles = pd.read_parquet(result.folder / "slides/s0/tiles.parquet")
        assert (tiles[["score_gland", "score_stroma"]].abs().to_numpy() <= 1 + 1e-6).all()
        assert "cosine similarities" in (result.folder / "summary.md").read_text(encoding="utf-8")
        assert "Provenance" not in result.text and not re.search("^[#>*]", result.text, re.M)
    page = (tmp_path / "b/slides/s0/index.html").read_text(encoding="utf-8")
    assert "Nearest prompts" in page


def test_sampled_prompt_sets_are_scored_individually_and_as_an_ensemble(
    models: Path, slides: Path, tmp_path: Path
) -> None:
    names = [{"gland": "gland", "stroma": "stroma"}, {"gland": "stroma", "stroma": "gland"}, {"gland": "atypia",
             "stroma": "fibrosis"}]  # fmt: skip
    draws = {str(i): {"classnames": each, "templates": ["CLASSNAME."]} for i, each in enumerate(names)}
    (tmp_path / "draws.json").write_text(json.dumps(dict(list(draws.items())[::2])), encoding="utf-8")
    options: dict[str, Any] = {"vlm": str(models / "clip"), "tile_mpp": 1.0, "tile_pixels": 32}
    table = pd.read_csv(slides)[:4]
    table["slide"] = [str(slides.parent / f"{name}.tiff") for name in table["slide"]]
    table.to_csv(tmp_path / "slides.csv", index=False)
    result = clipit.score_slides(tmp_path / "slides.csv", tmp_path / "out", prompts=tmp_path / "draws.json", **options)
    assert "Zero-shot scores by prompts" in result.text and "2 published draws" in result.text
    by_draw = pd.read_parquet(result.folder / "slides/s0/prompt_draws.parquet")
    assert by_draw.groupby("draw").size().tolist() == [7, 7]
    (tmp_path / "one.json").write_text(json.dumps({"0": draws["0"]}), encoding="utf-8")
    alone = clipit.score_slides(tmp_path / "slides.csv", tmp_path / "one", prompts=tmp_path / "one.json", **options)
    expected = alone.scores.query("slide == 's0' and not smoothed")[["score_gland", "score_stroma"]].to_numpy()
    np.testing.assert_allclose(by_draw[by_draw.draw == 0][["score_gland", "score_stroma"]], expected, atol=1e-6)
    assert "published draws" not in alone.text and not (alone.folder / "slides/s0/prompt_draws.parquet").exists()


def test_invalid_options_are_errors_before_a_model_is_loaded(models: Path, slides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scoring model is given"):
        clipit.score_slides(slides, tmp_path)
    with pytest.raises(DataError, match="unknown prompt set 'nothing'"):
        clipit.score_slides(slides, tmp_path, vlm="embedded", prompts="nothing")
    with pytest.raises(ConfigError, match="a VLM is given, but neither prompts nor classes"):
        clipit.score_slides(slides, tmp_path, classifier=models / "run", vlm="embedded")
    with pytest.raises(ConfigError, match="a VLM is given, but neither prompts nor classes"):
        clipit.predict(models / "run", slides.parent / "s0.tiff", tmp_path / "p.csv", vlm="embedded")
    with pytest.raises(ConfigError, match="the resolution of the model's training tiles is unknown"):
        clipit.score_slides(slides, tmp_path, vlm=str(models / "clip"), classes="a; b")
    with pytest.raises(DataError, match=r"no such slide, folder or table(?s:.*)fix: /.* is empty"):
        clipit.score_slides(tmp_path / "missing.svs", tmp_path, classifier=models / "run")
    with pytest.raises(ConfigError, match="invalid tile options: overlap"):
        clipit.tile_slides(slides, tmp_path, overlap=1.5)
    with pytest.raises(DataError, match=r"no slide can be used \(1 failed\):[\s\S]*the file is empty"):
        clipit.tile_slides(slides.parent / "s4.tiff", tmp_path)


def test_tables_without_labels(models: Path, slides: Path, tmp_path: Path) -> None:
    with (tmp_path / "some.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["slide"], ["s0"], ["s1"]])
    leftover = tmp_path / "out" / ".slide_scores.csv.99999999.tmp"  # leftover of a killed process
    leftover.parent.mkdir()
    leftover.write_text("half")
    result = clipit.score_slides(
        tmp_path / "some.csv", tmp_path / "out", classifier=models / "run", images=slides.parent
    )
    assert set(result.scores["slide"]) == {"s0", "s1"} and not (tmp_path / "out/slide_metrics.csv").exists()
    assert not leftover.exists()


def test_tiles_are_replaced_only_if_the_options_change(
    slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    slide, folder = slides.parent / "s0.tiff", tmp_path / "slides/s0"

    def tile(pixels: int, *extras: Literal["png", "h5"]) -> set[str]:
        clipit.tile_slides(slide, tmp_path, tile_mpp=1.0, tile_pixels=pixels, extras=extras)
        assert not list(folder.glob(".*.tmp"))
        return {path.stem for path in folder.glob("tiles/*.png")}

    small = tile(32, "png", "h5")
    (folder / ".grid.parquet.999999999.tmp").write_bytes(b"leftover")
    written = (folder / "grid.parquet").stat().st_mtime_ns
    assert tile(32, "png") == small and (folder / "grid.parquet").stat().st_mtime_ns == written
    (folder / "tiles.png").unlink()
    assert tile(32) == small and (folder / "coords.h5").exists(), "a new thumbnail does not change the tiles"
    assert (folder / "tiles.png").exists() and "deleting" not in caplog.text
    large = tile(64, "png")
    assert "note: s0: deleting coords.h5 and tiles, which may belong to other tiles" in caplog.text
    assert large == set(pd.read_parquet(folder / "grid.parquet")["id"]) and not large & small
    assert not (folder / "coords.h5").exists()


def test_damaged_tiles_are_skipped_and_counted(models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_slide(tmp_path / "s.tiff", picture(), levels=3)
    damage_tile(path, 200, 140)  # x 192 to 256, y 128 to 192; the coarser levels are intact
    caplog.set_level("INFO")
    clipit.tile_slides(path, tmp_path / "tiles", tile_mpp=1.0, tile_pixels=32, extras=("png",))
    grid = pd.read_parquet(tmp_path / "tiles/slides/s/grid.parquet")
    pictures = list((tmp_path / "tiles/slides/s/tiles").iterdir())
    assert len(pictures) == len(grid) - 4
    assert f"s: skipped 4 of {len(grid)} tiles (unreadable)" in caplog.text
    result = clipit.score_slides(path, tmp_path / "maps", classifier=models / "run", maps=True, top=2)
    assert len(pd.read_parquet(tmp_path / "maps/slides/s/tiles.parquet")) == len(grid) - 4
    assert "note: unreadable tiles: s: 4\n" in result.text and "its page shows a coarser overview" in caplog.text
    assert (tmp_path / "maps/slides/s/index.html").is_file()


def test_maps_and_metrics_of_earlier_scores_are_deleted(models: Path, slides: Path, tmp_path: Path) -> None:
    pd.read_csv(slides).iloc[:1].to_csv(slides.parent / "one.csv", index=False)
    clipit.score_slides(slides.parent / "one.csv", tmp_path, classifier=models / "run", maps=True, top=1)
    folder = tmp_path / "slides/s0"
    assert all((folder / name).exists() for name in tile_scores.MAPS) and (tmp_path / "slide_metrics.csv").is_file()
    options: dict[str, Any] = {"classifier": models / "run", "tile_pixels": 64}
    clipit.score_slides(slides.parent / "s0.tiff", tmp_path, **options)
    assert not any((folder / name).exists() for name in tile_scores.MAPS)
    assert not (tmp_path / "slide_metrics.csv").exists()


def test_a_slide_deleted_during_scoring_is_listed_and_the_others_are_scored(
    models: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s0", "s1"):
        shutil.copy(slides.parent / f"{name}.tiff", tmp_path)

    def delete_and_score(prepared: Sequence[PreparedSlide], *rest: Any) -> list[FailedSlide]:
        (tmp_path / "s0.tiff").unlink(missing_ok=True)
        return score_tiles(prepared, *rest)

    score_tiles = tile_scores.score_tiles
    monkeypatch.setattr("clipit.slide_tasks.score.score_tiles", delete_and_score)
    result = clipit.score_slides([tmp_path / "s0.tiff", tmp_path / "s1.tiff"], tmp_path, classifier=models / "run")
    assert result.slides["reason"].fillna("").tolist() == ["no such slide", ""]
    assert set(result.scores["slide"]) == {"s1"}


@pytest.mark.parametrize("module", ["tile_scores", "map"])
def test_a_command_resumes_after_a_full_disk(
    module: str, models: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_disk_full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    arguments: dict[str, Any] = {"classifier": models / "run", "maps": module == "map", "top": 1}
    with monkeypatch.context() as patched:
        patched.setattr(
            "pyarrow.parquet.write_table" if module == "tile_scores" else "PIL.Image.Image.save", raise_disk_full
        )
        with pytest.raises(ArtifactError, match="No space left on device"):
            clipit.score_slides(slides.parent / "s0.tiff", tmp_path, **arguments)
    assert not [path for path in tmp_path.rglob("*.tmp") if path.is_file()]
    clipit.score_slides(slides.parent / "s0.tiff", tmp_path, **arguments)
    assert (tmp_path / "slides/s0/tiles.parquet").is_file()


def test_patients_that_differ_only_in_spelling_are_an_error(tmp_path: Path) -> None:
    for number in range(2):
        write_slide(tmp_path / f"s{number}.tiff", picture(), levels=1)
    table = tmp_path / "slides.csv"
    for first, second in (("1", "01"), ("p1", "P1"), ("p1", "P2")):
        table.write_text(f"slide,group,split\ns0,{first},validation\ns1,{second},test\n", encoding="utf-8")
        if second != "P2":
            with pytest.raises(DataError, match="groups with almost the same name"):
                list_inputs([table])
        else:
            assert list(list_inputs([table]).groups) == ["p1", "P2"]
    table.write_text("slide,group\ns0,p1\ns1,p-1\n", encoding="utf-8")
    assert any("'p-1' and 'p1'" in note for note in list_inputs([table]).notes)


def test_deleted_files_are_rewritten(models: Path, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tiff", picture(200, 200), levels=1)
    grids: dict[str, Any] = {"tile_mpp": 1.0, "tile_pixels": 32}
    clipit.tile_slides(path, tmp_path / "tiles", **grids)
    clipit.score_slides(path, tmp_path / "maps", classifier=models / "run", maps=True, top=1)
    deleted = [tmp_path / "tiles/slides/s" / name for name in ("grid.parquet", "tissue.geojson", "tiles.png")]
    deleted += [tmp_path / "maps/slides/s" / name for name in ("tiles.geojson", "regions.geojson", "heat_map.ome.tif")]
    for file in deleted:
        file.unlink()
    clipit.tile_slides(path, tmp_path / "tiles", **grids)
    clipit.score_slides(path, tmp_path / "maps", classifier=models / "run", maps=True, top=1)
    assert [file.name for file in deleted if not file.is_file()] == []


def test_ignored_qupath_annotations_are_excluded_from_contours(tmp_path: Path) -> None:
    path, contours = write_slide(tmp_path / "s.tiff", picture(), levels=1), tmp_path / "s.geojson"
    whole, left = ([[0, 0], [right, 0], [right, 400], [0, 400], [0, 0]] for right in (600, 320))

    def tile(other: str, out: str) -> pd.DataFrame:
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "annotation", "classification": {"name": name}},
            }
            for ring, name in ((left, other), (whole, "Tissue"))
        ]
        contours.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
        clipit.tile_slides(path, tmp_path / out, contours=contours, tile_mpp=1.0, tile_pixels=32)
        return pd.read_parquet(tmp_path / out / "slides/s/grid.parquet")

    assert tile("Tumor", "all")["x"].min() == 0
    assert tile("Ignore*", "part")["x"].min() == 320


def test_two_contour_files_for_a_slide_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "contours").mkdir()
    ring = [[0, 0], [600, 0], [600, 400], [0, 400], [0, 0]]
    for name in ("a.geojson", "b.json", "b.geojson"):
        write_slide(tmp_path / f"{name[0]}.tiff", picture(), levels=1)
        (tmp_path / "contours" / name).write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    for slides in ([tmp_path / "a.tiff", tmp_path / "b.tiff"], tmp_path / "b.tiff"):
        with pytest.raises(DataError, match=r"two contour files for slide b: b\.geojson and b\.json"):
            clipit.tile_slides(slides, tmp_path / "out", contours=tmp_path / "contours", tile_mpp=1.0, tile_pixels=32)


def test_qupath_coordinates_are_relative_to_the_scanned_area(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path / "s.tiff", picture(), levels=1)

    def with_bounds(path: Path) -> SlideFile:
        slide = open_slide(path)
        slide.origin = (90, 70)
        return slide

    monkeypatch.setattr("clipit.slides.prepare.open_slide", with_bounds)
    tiles: dict[str, Any] = {"tile_mpp": 1.0, "tile_pixels": 32}
    clipit.tile_slides(path, tmp_path / "tiles", **tiles)
    outlines = tmp_path / "tiles/slides/s/tissue.geojson"
    corners = read_contours(outlines, 600, 400)[0].exterior
    assert np.abs(corners.min(axis=0) - (100 - 90, 80 - 70)).max() <= 8  # the tissue starts at x = 100, y = 80
    clipit.tile_slides(path, tmp_path / "again", contours=outlines, **tiles)
    first, second = (pd.read_parquet(tmp_path / name / "slides/s/grid.parquet") for name in ("tiles", "again"))
    assert first["id"].tolist() == second["id"].tolist()
    clipit.score_slides(path, tmp_path / "maps", classifier=models / "run", maps=True, top=1)
    feature = json.loads((tmp_path / "maps/slides/s/tiles.geojson").read_text())["features"][0]
    _, x, y, _ = parse_tile_id(feature["properties"]["name"])
    assert feature["geometry"]["coordinates"][0][0] == [x - 90, y - 70]
    regions = json.loads((tmp_path / "maps/slides/s/regions.geojson").read_text())["features"]
    least = np.min([np.min(region["geometry"]["coordinates"][0], axis=0) for region in regions], axis=0)
    assert least.tolist() == [first["x"].min() - 90, first["y"].min() - 70]


def test_a_second_command_waits_and_folders_of_other_commands_are_an_error(
    models: Path, slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    slide = slides.parent / "s0.tiff"
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "tiles/slides"):
            waiting = pool.submit(clipit.tile_slides, slide, tmp_path / "tiles")
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            assert not (tmp_path / "tiles/slides.csv").exists() and "waiting: another process" in caplog.text
        assert len(waiting.result().slides) == 1
    with pytest.raises(ConfigError, match="contains the tables of clipit slides tile"):
        clipit.score_slides(slide, tmp_path / "tiles", classifier=models / "run")
    clipit.score_slides(slide, tmp_path / "scores", classifier=models / "run")
    before = contents(tmp_path / "scores", "slides.csv")
    with pytest.raises(ConfigError, match=r"contains the tables of clipit slides score[\s\S]*--out"):
        clipit.tile_slides(slide, tmp_path / "scores")
    assert contents(tmp_path / "scores", "slides.csv") == before


def test_heat_maps_in_a_folder_are_not_listed_as_slides(mapped: SlidesResult, slides: Path, tmp_path: Path) -> None:
    shutil.copy(slides.parent / "s0.tiff", tmp_path)
    for name in ("s1", "s2"):
        (tmp_path / "maps" / name).mkdir(parents=True)
        shutil.copy(mapped.folder / "slides" / name / "heat_map.ome.tif", tmp_path / "maps" / name)
    assert [slide.name for slide in list_inputs([tmp_path]).slides] == ["s0"]


def test_inputs_that_are_not_slides_are_errors(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "slides.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"slide tables in \.xlsx format are not supported"):
        list_inputs([tmp_path / "slides.xlsx"])
    with pytest.raises(DataError, match=r"no such slide, folder or table(?s:.*)fix: /.* contains slides.xlsx"):
        list_inputs([tmp_path / "missing.csv"])
    for mpp in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"micrometres per pixel of a slide must be between 0\.05 and 20"):
            list_inputs([slides], mpp)
    with pytest.raises(ConfigError, match="--images is given, but no input is a table"):
        list_inputs([slides.parent], slides=tmp_path)


def test_label_and_macro_images_are_never_read(
    real_slide: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openslide

    with openslide.OpenSlide(real_slide) as slide:
        assert {"label", "macro"} & set(slide.associated_images)

    def fail(self: object) -> None:
        raise AssertionError("associated images were read")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(fail))
    options: dict[str, Any] = {"tile_mpp": 8.0, "tile_pixels": 32}
    clipit.tile_slides(real_slide, tmp_path / "tiles", extras=("png", "h5"), **options)
    result = clipit.score_slides(real_slide, tmp_path / "maps", classifier=models / "run", maps=True, top=1, **options)
    assert (result.folder / "slides" / real_slide.stem / "index.html").is_file()


def test_unknown_labels_are_an_error_before_anything_is_scored(models: Path, slides: Path, tmp_path: Path) -> None:
    table = pd.read_csv(slides)
    table["label"] = table["label"].replace("stroma", "stomra")
    table.to_csv(tmp_path / "typo.csv", index=False)
    with pytest.raises(DataError, match=r"labels that are not classes of the model: stomra; its classes are gland"):
        clipit.score_slides(tmp_path / "typo.csv", tmp_path / "out", classifier=models / "run", images=slides.parent)
    assert not list((tmp_path / "out").glob("slides/*"))


def test_slides_of_unknown_patients_are_counted(models: Path, slides: Path, tmp_path: Path) -> None:
    pd.read_csv(slides).drop(columns="group").to_csv(tmp_path / "alone.csv", index=False)
    result = clipit.score_slides(
        tmp_path / "alone.csv", tmp_path / "out", classifier=models / "run", images=slides.parent
    )
    assert "Slides of unknown patients, each counted as a separate patient: 4" in result.text
    assert "slides of unknown patients" in result.text and re.search(r"of \d+ patients", result.text) is None
