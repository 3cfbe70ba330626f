"""Synthetic slides: openslide reads them, masks match the pixels, and the bundled VLM classifies their tiles."""

import csv
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from clipit.cli.world import main
from clipit.config.run import VLMConfig
from clipit.errors import ArtifactError, DataError
from clipit.models.vlm import load_vlm
from clipit.synthetic.latents import CLASSES, HIGH, LOW, NECROSIS, NORMAL, Latents, attributes, stream
from clipit.synthetic.slide_layout import (
    ARTEFACTS,
    BLUR,
    FOLD,
    GLASS,
    PEN,
    SlideLayout,
    SmoothNoise,
    draw_artefacts,
    draw_layout,
)
from clipit.synthetic.slide_render import draw_stains, scan_slide
from clipit.synthetic.slide_world import SLIDE_LABELS, SlideWorldConfig, draw_slide, ensure_slides, write_slides
from clipit.synthetic.tile_draws import VLM_CENTRES
from clipit.synthetic.tissues import draw_tissue
from tools.embedded.measure_slides import correct_tiles

openslide = pytest.importorskip("openslide")
pytest.importorskip("tifffile")

SMALL = SlideWorldConfig(seed=2, train=1, validation=1, test=5, slides_per_patient=2, size=320)
ONE = SlideWorldConfig(seed=2, train=0, validation=0, test=1, size=256)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_slides(tmp_path_factory.mktemp("slides") / "world", SMALL)


def rows(world: Path) -> list[dict[str, str]]:
    with (world / "slides.csv").open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def digests(world: Path) -> dict[str, str]:
    files = (path for path in world.rglob("*") if path.is_file())
    return {str(path.relative_to(world)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def masks(world: Path, row: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    path = world / row["mask"]
    return np.asarray(Image.open(path)), np.asarray(Image.open(path.with_stem(f"{path.stem}_artefacts")))


def test_openslide_reads_a_pyramid_with_one_micrometre_per_pixel(world: Path) -> None:
    for row in rows(world):
        with openslide.OpenSlide(world / row["path"]) as slide:
            assert slide.properties["openslide.vendor"] == "generic-tiff"
            assert slide.level_dimensions == ((320, 320), (160, 160))
            assert slide.level_downsamples == (1.0, 2.0)
            assert float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == 1.0
            assert not slide.associated_images


def test_the_second_level_averages_the_first(world: Path) -> None:
    with openslide.OpenSlide(world / rows(world)[0]["path"]) as slide:
        fine, coarse = (
            np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"), dtype=np.float64)
            for level in (0, 1)
        )
    assert np.abs(fine.reshape(160, 2, 160, 2, 3).mean((1, 3)) - coarse).max() <= 0.5


def test_the_file_contains_the_drawn_pixels(world: Path) -> None:
    row = rows(world)[0]
    facts = json.loads((world / "masks/train-S000.json").read_text())
    drawn = draw_slide(SMALL, row["slide"], CLASSES.index(row["label"]), facts["centres"][0])
    with openslide.OpenSlide(world / row["path"]) as slide:
        assert np.array_equal(np.asarray(slide.read_region((0, 0), 0, (320, 320)).convert("RGB")), drawn.image)
    assert np.array_equal(masks(world, row)[0], drawn.labels)
    assert np.array_equal(masks(world, row)[1], drawn.artefacts)


def test_areas_match_the_metadata_and_the_label_matches_the_tumour(world: Path) -> None:
    for row in rows(world):
        facts = json.loads((world / row["mask"]).with_suffix(".json").read_text())
        labels, artefacts = masks(world, row)
        assert facts["pixels"] == {name: int((labels == value).sum()) for name, value in facts["values"].items()}
        assert facts["artefact_pixels"] == {name: int((artefacts == value).sum()) for name, value in ARTEFACTS.items()}
        assert min(facts["artefact_pixels"].values()) > 0
        assert facts["values"] == {"glass": 0} | {name: k + 1 for k, name in enumerate(CLASSES)}
        tumours = {CLASSES[k] for k in (LOW, HIGH) if facts["pixels"][CLASSES[k]]}
        assert tumours == ({row["label"]} - {CLASSES[NORMAL]})
        assert facts["pixels"][row["label"]] > 0.05 * (labels > 0).sum()
        assert labels.max() <= len(CLASSES) and 0.2 < (labels > 0).mean() < 0.7


def test_glass_tissue_and_artefacts_match_their_masks(world: Path) -> None:
    for row in rows(world):
        labels, artefacts = masks(world, row)
        with openslide.OpenSlide(world / row["path"]) as slide:
            image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), dtype=np.float64)
        clean = artefacts == 0
        glass = image[(labels == GLASS) & clean]
        assert np.quantile(glass.min(1), 0.02) > 190
        for k, name in enumerate(CLASSES):
            region = (labels == k + 1) & clean
            if name != "adipose" and region.sum() > 500:
                assert image[region].mean() < glass.mean() - 15
        assert image[artefacts == PEN].mean() < 130
        folded = (artefacts == FOLD) & (labels > 0)
        assert (folded == (artefacts == FOLD)).all()


def test_folds_darken_the_tissue_and_blur_removes_detail() -> None:
    with_artefacts = draw_slide(SMALL, "one", LOW, 6)
    without = draw_slide(SMALL.model_copy(update={"artefacts": False}), "one", LOW, 6)
    assert np.array_equal(with_artefacts.labels, without.labels) and not without.artefacts.any() and without.ink == ""
    fold, patch = with_artefacts.artefacts == FOLD, with_artefacts.artefacts == BLUR
    assert with_artefacts.image[fold].mean() < without.image[fold].mean() - 10
    steps = [np.abs(np.diff(slide.image.astype(float).mean(-1), axis=1)) for slide in (with_artefacts, without)]
    assert steps[0][patch[:, 1:]].mean() < 0.6 * steps[1][patch[:, 1:]].mean()
    untouched = with_artefacts.artefacts == 0
    assert (np.abs(with_artefacts.image.astype(int) - without.image)[untouched] > 30).mean() < 0.01


def test_a_pen_mark_covers_glass_and_tissue() -> None:
    for seed in range(20):
        layout = draw_layout(stream(seed, "layout"), 256, 1 + seed % 2, LOW, (0, 1))
        pen = draw_artefacts(stream(seed, "artefacts"), layout).mask == PEN
        assert (pen & (layout.labels == GLASS)).sum() > 20
        assert (pen & (layout.labels > GLASS)).sum() > 20


def test_two_pieces_may_have_two_stains() -> None:
    config = ONE.model_copy(update={"second_stain": 1.0, "artefacts": False})
    slides = {name: draw_slide(config, name, LOW, 6).centres for name in ("a", "b", "c", "d", "e", "f")}
    assert set(slides.values()) == {(6,), (6, 7)}
    two_stains = next(name for name, centres in slides.items() if len(centres) == 2)
    assert draw_slide(config.model_copy(update={"second_stain": 0.0}), two_stains, LOW, 6).centres == (6, 6)
    assert draw_slide(config.model_copy(update={"centres": (6,)}), two_stains, LOW, 6).centres == (6, 6)


def test_slides_of_a_patient_share_split_and_label(world: Path) -> None:
    table = rows(world)
    assert list(table[0]) == ["slide", "path", "label", "split", "group", "mpp", "mask"]
    assert {row["mpp"] for row in table} == {"1.0"}
    facts = json.loads((world / "world.json").read_text())
    assert facts["counts"]["test"] == dict(zip(SLIDE_LABELS, (2, 2, 1), strict=True))
    patients: dict[str, set[tuple[str, str]]] = {}
    for row in table:
        patients.setdefault(row["group"], set()).add((row["split"], row["label"]))
    assert len(patients) == 5 and all(len(pairs) == 1 for pairs in patients.values())


def test_slides_are_reproducible_and_do_not_depend_on_the_count(world: Path, tmp_path: Path) -> None:
    write_slides(tmp_path, SMALL.model_copy(update={"validation": 0, "test": 1}))
    smaller, original = digests(tmp_path), digests(world)
    shared = {name for name in smaller if name.startswith(("slides/", "masks/"))}
    assert len(shared) == 4 * 2
    assert all(smaller[name] == original[name] for name in shared)
    seeds = [draw_slide(ONE.model_copy(update={"seed": seed}), "test-S000", NORMAL, 6).labels for seed in (2, 3)]
    assert not np.array_equal(*seeds)


def test_a_finished_world_is_kept_and_a_different_one_is_refused(world: Path, tmp_path: Path) -> None:
    before = digests(world)
    assert ensure_slides(world, SMALL) == world and digests(world) == before
    with pytest.raises(ArtifactError, match="size"):
        ensure_slides(world, SMALL.model_copy(update={"size": 384}))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="other files"):
        ensure_slides(tmp_path, SMALL)


def test_leftovers_of_a_killed_attempt_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "world.partial" / "slides" / "test-S009.tif"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("cut off")
    world = ensure_slides(tmp_path / "world", ONE)
    assert [path.name for path in (world / "slides").iterdir()] == ["test-S000.tif"]
    assert not leftover.parent.parent.exists()


def test_invalid_options_and_a_missing_package_raise_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValidationError, match="used to train the bundled VLM"):
        SlideWorldConfig(centres=(VLM_CENTRES[0],))
    out = ["--output", str(tmp_path / "out")]
    for options, message in (
        (["--slides", "0"], "nothing to write"),
        (["--slides", "1", "--size", "300"], "multiple of 64"),
        (["--slides", "1", "--cases"], "--slides and --cases cannot be combined"),
        (["--size", "320"], "add --slides"),
        (["--seed", "-1"], "a seed cannot be negative"),
    ):
        monkeypatch.setattr(sys, "argv", ["world", *out, *options])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert message in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install tifffile"):
        ensure_slides(tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_all_tissue_is_stained_and_glass_is_not() -> None:
    """The mosaic covers the whole slide, including edges and corners."""
    labels = np.full((256, 256), NECROSIS + 1, dtype=np.uint8)
    labels[100:120] = GLASS
    _, eosin = draw_stains(stream(0, "mosaic"), labels)
    assert (eosin[labels == GLASS] == 0).all()
    assert (eosin[labels > GLASS] != 0).all()


def test_strips_of_noise_join_seamlessly() -> None:
    noise = SmoothNoise.draw(stream(0, "noise"), 100, 7.5)
    whole = noise.rows(0, 100)
    assert np.array_equal(np.concatenate([noise.rows(0, 33), noise.rows(33, 100)]), whole)
    assert np.abs(np.diff(whole, axis=0)).max() < 1.5 and 0.3 < whole.std() < 1.0


def test_a_fixed_direction_rotates_fibres_and_changes_no_other_draw() -> None:
    """Tile worlds, whose fibres have random directions, must stay byte-identical."""
    tissue = np.full(4, CLASSES.index("stroma"))
    plain = Latents(tissue, np.full(4, -1), np.zeros(4), **attributes(stream(0, "a"), tissue))
    directed = Latents(
        tissue, plain.second, plain.share, **attributes(stream(0, "a"), tissue), direction=np.zeros(4, np.float32)
    )
    first, second = stream(0, "b"), stream(0, "b")
    fixed, random = draw_tissue(first, directed), draw_tissue(second, plain)
    assert not np.array_equal(fixed.eosin, random.eosin)
    assert first.random() == second.random()
    steps = [np.abs(np.diff(fixed.eosin, axis=axis)).mean() for axis in (1, 2)]
    assert steps[0] > 1.5 * steps[1]


def test_the_embedded_vlm_classifies_tiles_of_the_mosaic(world: Path) -> None:
    """Fields and seams must resemble tiles; with independent fibre directions, accuracy on stroma was 0.5."""
    labels = np.repeat(np.arange(1, 9, dtype=np.uint8), 64 * 512).reshape(512, 512)
    haematoxylin, eosin = draw_stains(stream(0, "bands"), labels)
    layout = SlideLayout(labels, np.ones_like(labels), np.zeros((1, 4)))
    image = scan_slide(stream(0, "scan"), haematoxylin, eosin, layout, (6,))
    tiles = image.reshape(8, 64, 8, 64, 3).swapaxes(1, 2).reshape(64, 64, 64, 3)
    correct = correct_tiles(load_vlm(VLMConfig()), tiles, np.repeat(np.arange(8), 8), world / "prompts.yaml")
    assert correct.mean() > 0.85
    assert correct.reshape(8, 8).mean(1).min() >= 0.6
