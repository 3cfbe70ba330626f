"""Test leak detection: altered copies in every orientation are found, without false alarms."""

import csv
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from clipit.config.run import LeaksConfig
from clipit.errors import DataError
from clipit.pairing.leaks import Leak, exact_leaks, find_leaks, group_leaks, near_hashes, near_leaks, report_leaks
from clipit.patients import patient, patient_in
from clipit.reports.readers import Report
from clipit.tiles.hold_out import hold_out_validation
from clipit.tiles.perceptual import PerceptualHashes, dihedral_hashes, oriented, perceptual_hashes, pixel_digest
from clipit.tiles.splits import check_groups
from clipit.tiles.tileset import TileSet

NEAR = LeaksConfig(pixels="near")


class NoReader:
    def read(self, row: int) -> Image.Image:
        raise OSError("no image available")

    def where(self, row: int) -> str:
        return f"row {row}"


def tile_set(ids: Sequence[str], splits: Sequence[str], groups: Sequence[str] | None = None) -> TileSet:
    n = len(ids)
    zeros = np.zeros(n, dtype=np.int64)
    return TileSet(
        ids=np.asarray(ids, dtype=np.str_),
        labels=zeros,
        truth=zeros,
        splits=np.asarray(splits, dtype="<U10"),
        groups=np.asarray(groups or [""] * n, dtype=np.str_),
        mpp=np.full(n, np.nan),
        classes=("a",),
        reader=NoReader(),
        rows=np.arange(n, dtype=np.int64),
        stamps=np.asarray(["s"] * n, dtype=np.str_),
    )


def picture(seed: int, side: int = 96) -> Image.Image:
    """Make an image of random soft blobs."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def pairs(leaks: Sequence[Leak]) -> list[tuple[str, str]]:
    return [(leak.id, leak.other_id) for leak in leaks]


# Hashes -----------------------------------------------------------------------------------------------------------


def test_hashes_of_orientations_match_those_of_the_rotated_image() -> None:
    grey = np.random.default_rng(0).random((5, 32, 32)).astype(np.float32)
    hashes = dihedral_hashes(grey)
    seen = set()
    for orientation in range(8):
        rotated = np.ascontiguousarray(oriented((grey * 255).astype(np.uint8), orientation))
        seen.add(rotated[0].tobytes())
        rotated_hashes = dihedral_hashes(np.ascontiguousarray(oriented_floats(grey, orientation)))
        different_bits = np.bitwise_count(rotated_hashes[:, 0] ^ hashes[:, orientation])
        assert different_bits.max() <= 1  # a coefficient near zero may change sign
    assert len(seen) == 8


def oriented_floats(grey: np.ndarray, orientation: int) -> np.ndarray:
    """Reference implementation with NumPy's own functions."""
    rotated = np.stack([picture.T for picture in grey]) if orientation & 4 else grey
    rotated = np.stack([np.flipud(picture) for picture in rotated]) if orientation & 1 else rotated
    return np.stack([np.fliplr(picture) for picture in rotated]) if orientation & 2 else rotated


def test_hashes_of_unrelated_images_differ_in_about_half_of_the_bits() -> None:
    hashes = perceptual_hashes([picture(seed) for seed in range(40)]).hashes
    distances = np.bitwise_count(hashes[:, None, 0] ^ hashes[None, :, 0])[np.triu_indices(40, 1)]
    assert 28 < distances.mean() < 36 and distances.min() > 12


@pytest.mark.parametrize("distance", [0, 3, 4, 7, 9])
def test_near_hashes_match_an_exhaustive_search(distance: int) -> None:
    rng = np.random.default_rng(distance)
    base = rng.integers(0, 2**63, 400, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, size=k % 13, replace=False)) for k in range(200)]
    queries = base[:200] ^ np.asarray(flips, dtype=np.uint64)
    base[300:] = base[:100]  # repeated hashes
    hits = [
        hit
        for rows, query_rows, bits in near_hashes(base, queries, distance)
        for hit in zip(rows, query_rows, bits, strict=True)
    ]
    distances = [
        (row, query, int(base[row] ^ queries[query]).bit_count()) for row in range(400) for query in range(200)
    ]  # fmt: skip
    assert sorted(map(tuple, hits)) == [hit for hit in distances if hit[2] <= distance]
    assert len(hits) > 20


def test_hashes_are_searched_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipit.pairing.leaks._MAX_CANDIDATES", 7)
    same = np.full(30, 5, dtype=np.uint64)
    portions = [np.stack([rows, query_rows]) for rows, query_rows, _ in near_hashes(same, same[:11], 2)]
    assert len(portions) > 10
    assert {tuple(hit) for portion in portions for hit in portion.T.tolist()} == {
        (a, b) for a in range(30) for b in range(11)
    }


# Pixels -----------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: jpeg(image, 50),
    "smaller": lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
    "larger": lambda image: jpeg(image.resize((224, 224), Image.Resampling.BICUBIC), 90),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "turned": lambda image: jpeg(image.transpose(Image.Transpose.ROTATE_90), 60),
    "mirrored": lambda image: jpeg(image.transpose(Image.Transpose.TRANSVERSE), 60),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_only_altered_copies_are_found(change: str) -> None:
    images = [picture(seed) for seed in range(60)]
    hashes = perceptual_hashes([*images, *(CHANGES[change](image) for image in images[:20])])
    ids = [f"a{k:02d}" for k in range(60)] + [f"b{k:02d}" for k in range(20)]
    tiles = tile_set(ids, ["train"] * 60 + ["test"] * 20)
    leaks = near_leaks(tiles, hashes, NEAR)
    assert pairs(leaks) == [(f"a{k:02d}", f"b{k:02d}") for k in range(20)]
    assert all(leak.distance is not None and leak.distance <= 7 for leak in leaks)
    assert all(leak.similarity is not None and leak.similarity >= 0.9 for leak in leaks)
    assert {(leak.kind, leak.split, leak.other_split) for leak in leaks} == {("near", "train", "test")}


def test_equal_pixels_are_found_across_file_formats_and_splits_only() -> None:
    first, second = picture(0), picture(1)
    stream = io.BytesIO()
    first.save(stream, "BMP")
    images = [first, second, Image.open(stream).convert("RGB"), second, first]
    tiles = tile_set(["d", "c", "b", "a", "e"], ["test", "train", "train", "train", "validation"])
    leaks = exact_leaks(tiles, perceptual_hashes(images).digests)
    assert pairs(leaks) == [("b", "d"), ("b", "e"), ("e", "d")]  # "a" and "c" are in the same split
    assert {leak.kind for leak in find_leaks(tiles, NEAR, perceptual_hashes(images))} == {"exact"}


def test_digests_depend_on_the_shape_of_an_image() -> None:
    wide = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(2, 8, 3))
    tall = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(8, 2, 3))
    assert wide.tobytes() == tall.tobytes()
    assert pixel_digest(wide).tolist() != pixel_digest(tall).tolist()


def test_empty_background_is_not_a_duplicate() -> None:
    rng = np.random.default_rng(0)
    white = [Image.new("RGB", (96, 96), (240, 240, 240))] * 4
    dusty = [Image.fromarray((240 + rng.integers(0, 3, (96, 96, 3))).astype(np.uint8)) for _ in range(4)]
    tiles = tile_set([f"t{k}" for k in range(8)], ["train", "test"] * 4)
    hashes = perceptual_hashes([*white, *dusty])
    assert find_leaks(tiles, NEAR, hashes) == []
    assert not hashes.digests[:4].any() and hashes.digests[4:].any(axis=1).all()


def test_faint_shading_of_the_background_is_not_a_duplicate() -> None:
    shade = np.asarray(picture(7)).astype(np.int16) // 30  # faint and equal in both images
    rng = np.random.default_rng(0)
    views = [Image.fromarray((230 + shade + rng.integers(0, 2, shade.shape)).astype(np.uint8)) for _ in range(2)]
    tiles, hashes = tile_set(["a", "b"], ["train", "test"]), perceptual_hashes(views)
    assert near_leaks(tiles, hashes, NEAR) == []
    assert pairs(near_leaks(tiles, hashes, NEAR.model_copy(update={"spread": 0.0}))) == [("a", "b")]


def test_many_copies_of_one_image_are_all_reported_in_few_rows() -> None:
    image = picture(3)
    copies = [jpeg(image, quality) for quality in range(30, 90)]
    tiles = tile_set([f"t{k:02d}" for k in range(60)], ["train", "validation", "test"] * 20)
    leaks = near_leaks(tiles, perceptual_hashes(copies), NEAR)
    assert {leak.id for leak in leaks} == set(tiles.ids[tiles.splits != "test"].tolist())
    assert {leak.other_id for leak in leaks} >= set(tiles.ids[tiles.splits == "test"].tolist())
    assert len(leaks) <= 2 * 60


def test_pixels_are_compared_only_on_request() -> None:
    tiles = tile_set(["a", "b"], ["train", "test"])
    hashes = perceptual_hashes([picture(0), picture(0)])
    kinds = {
        mode: [leak.kind for leak in find_leaks(tiles, LeaksConfig(pixels=mode), hashes)] for mode in ("off", "exact")
    }
    assert kinds == {"off": [], "exact": ["exact"]}


def test_an_empty_tile_set_has_no_leaks() -> None:
    assert find_leaks(tile_set([], []), NEAR, perceptual_hashes([])) == []


# Groups and reports -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("TCGA-A6-2671-01Z-00-DX1.abc", "TCGA-A6-2671"),
        ("tcga-a6-2671", "TCGA-A6-2671"),
        ("TCGA-A6-26710", "TCGA-A6-26710"),
        ("patient TCGA-A6-2671", "patient TCGA-A6-2671"),
        (" TCGA-A6-2671", "TCGA-A6-2671"),
        ("slides/TCGA-A6-2671-01Z", "TCGA-A6-2671"),
        ("slides\\TCGA-A6-2671-01Z", "TCGA-A6-2671"),
        (" 17 ", "17"),
        ("a/b", "a/b"),
        ("", ""),
    ],
)
def test_patient_of_a_group(group: str, name: str) -> None:
    assert patient(group) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("images/TCGA-A6-2671-01Z_12_40.png", "TCGA-A6-2671"),
        ("TCGA-A6-2671-01Z-00-DX1/12_40.png", "TCGA-A6-2671"),
        ("tum_tcga-a6-2671.png", "TCGA-A6-2671"),
        ("xTCGA-A6-2671.png", ""),
        ("TCGA-A6-26710.png", ""),
        ("train/000001", ""),
    ],
)
def test_patient_in_the_name_of_a_tile(name: str, expected: str) -> None:
    assert patient_in(name) == expected


def test_slides_of_one_patient_stay_together_in_the_validation_split() -> None:
    slides = [f"TCGA-AA-{number // 4:04d}-01Z-00-DX{number % 4}" for number in range(120)]
    tiles = tile_set([f"t{number:03d}" for number in range(120)], ["train"] * 120, slides)
    held_out = hold_out_validation(tiles, 0.2, seed=0)
    assert (held_out.splits == "validation").sum() == 24
    assert group_leaks(held_out) == []
    with pytest.raises(DataError, match="TCGA-AA-0000"):
        check_groups(tile_set(["a", "b"], ["train", "test"], slides[:2]))


def test_groups_in_two_splits_are_leaks_from_the_earlier_split() -> None:
    tiles = tile_set(
        ["a", "b", "c", "d", "e", "f"],
        ["train", "validation", "test", "train", "train", "test"],
        ["TCGA-A6-2671-01Z-00-DX1", "TCGA-A6-2671-11A", "TCGA-A6-2671", "p", "", ""],
    )
    leaks = group_leaks(tiles)
    assert pairs(leaks) == [("a", "c"), ("b", "c")]
    assert {leak.group for leak in leaks} == {"TCGA-A6-2671"}
    assert group_leaks(tiles.select(tiles.splits == "train")) == []


def test_barcodes_in_names_are_used_if_the_group_is_empty() -> None:
    names = ["a/TCGA-A6-2671-01Z_1.png", "b/TCGA-A6-2671-01Z_2.png", "TCGA-A6-2671_3.png", "d", "e"]
    tiles = tile_set(names, ["train", "test", "train", "test", "train"], ["", "", "other", "", ""])
    (leak,) = group_leaks(tiles)
    assert (leak.id, leak.other_id, leak.group) == (names[0], names[1], "TCGA-A6-2671")
    assert [leak.id for leak in report_leaks([Report("TCGA-A6-2671.x", "text")], tiles)] == ["TCGA-A6-2671.x"]
    with pytest.raises(DataError, match="TCGA-A6-2671"):
        check_groups(tiles)


def test_barcodes_in_names_keep_patients_together_in_the_validation_split() -> None:
    names = [f"TCGA-AA-{number // 4:04d}-01Z_{number}.png" for number in range(120)]
    held_out = hold_out_validation(tile_set(names, ["train"] * 120, [""] * 120), 0.2, seed=0)
    assert (held_out.splits == "validation").sum() == 24 and group_leaks(held_out) == []
    assert not any("groups unknown" in note for note in held_out.notes)


def test_reports_of_validation_and_test_patients_are_leaks() -> None:
    tiles = tile_set(
        ["a", "b", "c", "d"], ["train", "validation", "test", "test"], ["TCGA-AA-0001", "17", "TCGA-AA-0003-01Z", "9"]
    )
    reports = [
        Report("TCGA-AA-0001.x", "text"),  # reports of training patients may be used
        Report("r17", "text", group="17"),
        Report("r170", "text", group="170"),
        Report("TCGA-AA-0003.9f1c", "text"),
        Report("9", "text"),  # an id identifies a patient only if it is a barcode
        Report("r3", "text", group="tcga-aa-0003-11"),
    ]
    leaks = report_leaks(reports, tiles)
    assert [(leak.id, leak.other_id, leak.other_split) for leak in leaks] == [
        ("TCGA-AA-0003.9f1c", "c", "test"),
        ("r17", "b", "validation"),
        ("r3", "c", "test"),
    ]


# Real tiles -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lc25000() -> tuple[list[str], list[str], PerceptualHashes]:
    """Ids, groups and hashes of tiles; a group contains the augmented copies of one image in LC25000."""
    data = os.environ.get("CLIPIT_TEST_DATA")
    if not data:
        pytest.skip("CLIPIT_TEST_DATA is not set: real tiles are not available")
    folder = Path(data) / "lc25000_colon"
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with zipfile.ZipFile(folder / "lc25000_colon_tiles.zip") as archive:
        images = [Image.open(io.BytesIO(archive.read(row["path"]))).convert("RGB") for row in rows]
    return [row["path"] for row in rows], [row["group"] for row in rows], perceptual_hashes(images)


def test_a_random_split_of_real_augmented_tiles_has_leaks(
    lc25000: tuple[list[str], list[str], PerceptualHashes],
) -> None:
    ids, groups, hashes = lc25000
    splits = ["test" if k % 3 == 0 else "train" for k in range(len(ids))]
    leaks = near_leaks(tile_set(ids, splits), hashes, NEAR)
    group_of = dict(zip(ids, groups, strict=True))
    assert len(leaks) >= 20
    assert all(group_of[leak.id] == group_of[leak.other_id] for leak in leaks)  # no false alarms


def test_a_grouped_split_of_real_augmented_tiles_has_no_leaks(
    lc25000: tuple[list[str], list[str], PerceptualHashes],
) -> None:
    ids, groups, hashes = lc25000
    names = sorted(set(groups))
    splits = ["test" if names.index(group) % 3 == 0 else "train" for group in groups]
    assert find_leaks(tile_set(ids, splits, groups), NEAR, hashes) == []
