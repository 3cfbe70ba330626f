"""Test scores of instance maps against masks, with floor and ceiling."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipit.errors import DataError
from clipit.mil.map_scores import (
    CEILING,
    FLOOR,
    SlideTruth,
    attention_scores,
    check_values,
    class_scores,
    map_agreement,
    read_truth,
    reference_maps,
    score_slide,
    score_table,
    slide_score_table,
    tile_auroc,
)
from clipit.reporting import mil_page
from clipit.slides.grid import SlideGrid


def grid(columns: int = 2, rows: int = 2, edge: int = 8) -> SlideGrid:
    """Grid of adjacent tiles that cover the whole slide."""
    places = np.arange(columns * rows)
    x, y = (places % columns * edge).astype(np.int32), (places // columns * edge).astype(np.int32)
    tissue = np.ones(len(places), dtype=np.float32)
    return SlideGrid("s", columns * edge, rows * edge, 1.0, edge, float(edge), x, y, tissue)


@pytest.fixture
def truth(tmp_path: Path) -> SlideTruth:
    """Mask with class 7 in the upper left tile and half of the upper right; a quarter of the lower right is ignored."""
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:8, :12] = 7
    mask[12:, 12:] = 255
    Image.fromarray(mask).save(tmp_path / "s.png")
    return read_truth(tmp_path / "s.png", grid(), 1, 7)


def test_masks_are_resampled_to_the_pixels_of_the_map(truth: SlideTruth) -> None:
    expected = np.zeros((8, 8), dtype=int)  # a pixel of the map is 2 x 2 pixels of the slide
    expected[:4, :6] = 1
    expected[6:, 6:] = -1
    assert truth.cell == 2 and np.array_equal(truth.truth, expected)
    assert truth.tiles.tolist() == [1, 0, 0, 0]  # ties go to the first class, 0


def test_masks_without_their_class_and_unlisted_values_are_counted(tmp_path: Path) -> None:
    def truths(*masks: dict[int, int]) -> dict[str, SlideTruth]:
        truth_by_slide = {}
        for number, shares in enumerate(masks):
            rows = [value for value, count in shares.items() for _ in range(count)]
            Image.fromarray(np.array(rows, np.uint8).repeat(16).reshape(16, 16)).save(tmp_path / f"s{number}.png")
            truth_by_slide[f"s{number}"] = read_truth(tmp_path / f"s{number}.png", grid(), 1, 1)
        return truth_by_slide

    assert check_values(truths({0: 8, 1: 8}, {0: 4, 1: 12}), ("a", "b"), tmp_path) == []
    mixed = " ".join(check_values(truths({0: 8, 1: 8}, {0: 8, 255: 8}), ("a", "b"), tmp_path))
    assert "1 of 2 masks contains ignored pixels (255), 25.00%" in mixed and "rewrite them with one value: s1" in mixed
    assert "1 of 2 masks contains no pixel of the slide's class: s1 (values 0, 255)" in mixed
    other = check_values(truths({0: 8, 1: 8}, {0: 8, 2: 8}), ("a", "b"), tmp_path)
    assert other[-1] == "mask values that are not in mil.mask_values belong to no class: 0 (in 2 masks), 2 (in 1 mask)"
    with pytest.raises(DataError, match=r"no mask of a slide labelled b contains the value 1 .* masks contain 0, 255"):
        check_values(truths({0: 8, 255: 8}, {0: 16}), ("a", "b"), tmp_path)


def test_dice_of_maps_floor_and_ceiling_on_a_small_example(truth: SlideTruth) -> None:
    # 24 of 60 labelled pixels have the class; the map predicts it for the two upper tiles, 32 pixels
    probabilities = np.array([[0.1, 0.9], [0.4, 0.6], [0.6, 0.4], [0.9, 0.1]], dtype=np.float32)
    assert map_agreement(truth, class_scores(probabilities, 1)).dice[1] == pytest.approx(2 * 24 / (24 + 32))
    attention = np.array([0.6, 0.2, 0.15, 0.05], dtype=np.float32)  # only the first tile is above the mean weight
    assert map_agreement(truth, attention_scores(attention)).dice[1] == pytest.approx(2 * 16 / (24 + 16))
    dice = {name: agreement.dice[1] for name, agreement in reference_maps(truth)}
    assert dice[FLOOR] == pytest.approx(2 * 24 / (24 + 60))  # 2 p / (1 + p) with p = 24 / 60
    assert dice[CEILING] == pytest.approx(2 * 16 / (24 + 16))


def test_auroc_of_tiles_is_undefined_if_all_tiles_have_one_class(truth: SlideTruth) -> None:
    scores = np.array([[0.2, 0.8], [0.1, 0.9], [0.7, 0.3], [0.9, 0.1]], dtype=np.float32)
    assert tile_auroc(truth, class_scores(scores, 1)) == pytest.approx(2 / 3)
    one_class = replace(truth, tiles=np.ones(4, dtype=np.int64))
    assert tile_auroc(one_class, class_scores(scores, 1)) is None


def test_map_scores_are_listed_by_arm_and_seed_before_floor_and_ceiling(truth: SlideTruth) -> None:
    scores = class_scores(np.array([[0.1, 0.9]] * 4, dtype=np.float32), 1)
    maps = {("mean", "instance logits", 3): scores}
    slide_scores = score_slide(truth, maps, "s", "p") + score_slide(truth, maps, "t", "q")
    table = score_table(slide_scores, 10)
    assert table[["arm", "map", "slides", "auroc_slides"]].to_numpy().tolist() == [
        ["mean", "instance logits", 2, 2], ["", FLOOR, 2, 0], ["", CEILING, 2, 0],
    ]  # fmt: skip
    assert table["dice"][0] == pytest.approx(table["dice"][1])
    assert table["dice_low"].isna().all() and table["reason"].str.startswith("2 independent units").all()
    slides = slide_score_table(slide_scores)
    assert slides[["slide", "patient", "map"]].to_numpy().tolist()[:2] == [
        ["s", "p", "instance logits"], ["s", "p", FLOOR],
    ]  # fmt: skip


def test_intervals_of_maps_resample_patients_and_average_seeds(truth: SlideTruth) -> None:
    """Pixels are pooled over patients, half with good and half with bad maps."""
    good = class_scores(np.array([[0.1, 0.9], [0.4, 0.6], [0.6, 0.4], [0.9, 0.1]], dtype=np.float32), 1)
    bad = class_scores(np.array([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]], dtype=np.float32), 1)
    slide_scores = []
    for number in range(22):
        first = good if number < 11 else bad
        maps = {("mean", "instance logits", 0): first, ("mean", "instance logits", 1): good}
        slide_scores += score_slide(truth, maps, f"s{number}", f"p{number // 2}")
    table = score_table(slide_scores, 200)
    rows = table[table["arm"] == "mean"]
    best, worst = map_agreement(truth, good), map_agreement(truth, bad)
    pooled = best.plus(worst)
    assert rows["dice"].tolist() == pytest.approx([pooled.dice[1], best.dice[1]])
    assert rows["dice_low"].nunique() == 1 and set(rows["slides"]) == {22}
    low, high = rows[["dice_low", "dice_high"]].iloc[0]
    assert (worst.dice[1] + best.dice[1]) / 2 < low < rows["dice"].mean() < high < best.dice[1]
    assert rows["auroc_low"].iloc[0] < rows["auroc"].mean() < rows["auroc_high"].iloc[0]
    ceiling = table[table["map"] == CEILING].iloc[0]
    assert np.isnan([ceiling["dice_low"], ceiling["dice_high"]]).all()  # no interval if all patients are equal


def test_the_page_counts_the_slides_that_have_an_auroc(truth: SlideTruth) -> None:
    scores = class_scores(np.array([[0.1, 0.9]] * 4, dtype=np.float32), 1)
    maps = {("mean", "instance logits", 0): scores}
    one_class = replace(truth, tiles=np.ones_like(truth.tiles))
    complete, partial = (
        score_table(score_slide(truth, maps, "s", "p") + score_slide(other, maps, "t", "q"), 0)
        for other in (truth, one_class)
    )
    cells = [mil_page._map_table(table)[1][0] for table in (complete, partial)]
    assert [row[2] for row in cells] == [2, 2]
    assert [str(row[4]).endswith(" (1 slide)") for row in cells] == [False, True]


def test_masks_that_do_not_match_the_slide_are_rejected(tmp_path: Path) -> None:
    Image.new("L", (16, 8)).save(tmp_path / "flat.png")
    with pytest.raises(DataError, match=r"16 x 8 pixels\) does not have the aspect ratio of the slide \(16 x 16\)"):
        read_truth(tmp_path / "flat.png", grid(), 0, 1)
    truncated = io.BytesIO()  # shapes are compared before pixels are decoded
    Image.new("L", (3000, 2000)).save(truncated, "PNG")
    (tmp_path / "cut.png").write_bytes(truncated.getvalue()[:60])
    with pytest.raises(DataError, match=r"3000 x 2000 pixels\) does not have the aspect ratio"):
        read_truth(tmp_path / "cut.png", grid(), 0, 1)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("L", (16, 8), 1).save(tmp_path / "turned.png", exif=exif)
    assert read_truth(tmp_path / "turned.png", grid(columns=1), 0, 1).tiles.tolist() == [1, 1]
    Image.new("L", (16, 16), 255).save(tmp_path / "ignored.png")
    with pytest.raises(DataError, match="no labelled pixel"):
        read_truth(tmp_path / "ignored.png", grid(), 0, 1)
    Image.new("RGB", (16, 16), (1, 2, 3)).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match="colour image"):
        read_truth(tmp_path / "colour.png", grid(), 0, 1)
