"""Features of TRIDENT and CLAM as a tile store: supported layouts, errors, and pairs."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from logged_lines import capture_log
from tiny_models import MakeFile

import clipit
from clipit.errors import DataError
from clipit.stores.feature_import import import_features
from clipit.stores.slide_features import find_feature_files, open_slide_features
from clipit.workspace.workspace import Workspace


def write(path: Path, features: Any, coords: Any, **attributes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if features is not None:
            file["features"] = features
        if coords is not None:
            file["coords"] = coords
            file["coords"].attrs.update(attributes)
    return path


def grid(n: int) -> np.ndarray:
    return np.stack([np.arange(n) * 256, np.zeros(n)], axis=1).astype(np.int64)


@pytest.mark.parametrize(
    "attributes",
    [
        {"patch_size": 256, "patch_level": 0, "downsample": np.array([1.0, 1.0])},
        {"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])},
        {"patch_size": 512, "patch_level": 0, "custom_downsample": 2},
        {"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20, "level0_magnification": 40},
        {"patch_size": 256, "patch_size_level0": 512, "overlap": 128},
    ],
)
def test_positions_are_pixels_of_the_finest_level_in_all_layouts(attributes: dict[str, Any], tmp_path: Path) -> None:
    corners = np.array([[1000, 3000], [1512, 3000], [0, 97280]])
    slide = open_slide_features(write(tmp_path / "s.h5", np.eye(3, dtype=np.float32), corners, **attributes))
    assert slide.coords.tolist() == corners.tolist()
    assert slide.ids == ["s:1000_3000", "s:1512_3000", "s:0_97280"]


@pytest.mark.parametrize("shape", [(5, 24), (1, 5, 24)])
def test_both_shapes_with_coordinates_and_attributes(shape: tuple[int, ...], tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    attributes = {"patch_size": 256, "name": b"slide", "level_dim": np.array([4, 5])}
    slide = open_slide_features(write(tmp_path / "TCGA-A.h5", vectors, grid(5), **attributes))
    assert (slide.slide, len(slide), slide.dim) == ("TCGA-A", 5, 24)
    assert slide.ids[1] == "TCGA-A:256_0"
    assert slide.attributes == {"patch_size": 256, "name": "slide", "level_dim": [4, 5]}
    assert np.array_equal(slide.vectors(1, 3), vectors.reshape(5, 24)[1:3].astype(np.float32))


@pytest.mark.parametrize(
    ("features", "coords", "message"),
    [
        (None, grid(2), "no dataset features; the file contains coords"),
        (np.zeros((2, 3)), None, "no dataset coords"),
        (np.zeros((2, 3)), grid(3), "features have the shape [2, 3], coords [3, 2]"),
        (np.zeros((2, 2, 3)), grid(2), "features have the shape [2, 2, 3]"),
        (np.zeros(3), grid(3), "features have the shape [3]"),
        (np.zeros((2, 3), np.int64), grid(2), "features must be floats"),
    ],
)
def test_other_layouts_are_an_error(features: Any, coords: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", features, coords)
    with pytest.raises(DataError) as caught:
        open_slide_features(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "coords` [n, 2]" in str(caught.value)


def test_missing_damaged_and_duplicate_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such feature file"):
        open_slide_features(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        open_slide_features(tmp_path / "text.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no feature files"):
        find_feature_files([tmp_path / "empty"])
    paths = [write(tmp_path / name / "same.h5", np.zeros((1, 3)), grid(1)) for name in ("a", "b")]
    with pytest.raises(DataError, match=r"slides with the same name: same \(.*same\.h5, .*same\.h5\)"):
        find_feature_files(paths)
    (tmp_path / "a" / "gone.h5").symlink_to(tmp_path / "absent.h5")
    with pytest.raises(DataError, match=r"links to missing files.*: gone\.h5"):
        find_feature_files([tmp_path / "a"])
    (tmp_path / "a" / "gone.h5").rename(tmp_path / "a" / "notes.txt")
    assert find_feature_files([tmp_path / "a"]) == paths[:1]


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 2.0**60])
def test_coordinates_that_are_not_whole_pixels_are_an_error(value: float, tmp_path: Path) -> None:
    coords = grid(3).astype(np.float64)
    assert open_slide_features(write(tmp_path / "float.h5", np.zeros((3, 2)), coords)).ids[1] == "float:256_0"
    coords[1, 1] = value
    with pytest.raises(DataError, match="coords must be whole numbers of pixels; those of tile 1 are"):
        open_slide_features(write(tmp_path / "a.h5", np.zeros((3, 2)), coords))


def test_incomplete_features_are_an_error(tmp_path: Path) -> None:
    for name, options in {"contiguous": {}, "chunks": {"chunks": (10, 8)}}.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            features = file.create_dataset("features", shape=(50, 8), dtype="f4", **options)
            file["coords"] = grid(50)
            if options:
                features[:30] = 1.0  # as if the writer had been killed
        with pytest.raises(DataError, match=r"features of shape \[50, 8\] are not stored completely"):
            open_slide_features(tmp_path / f"{name}.h5")


def test_damaged_headers_are_errors(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.h5", np.ones((20, 8), np.float32), grid(20), patch_size=256).read_bytes()
    shape = np.array([20, 8], np.uint64).tobytes()
    place = whole.index(bytes.fromhex("2000170800177f"))  # bit layout of the 32-bit float type
    (tmp_path / "type.h5").write_bytes(whole[: place + 6] + b"\xbe\x0e\x0b\x42" + whole[place + 10 :])
    (tmp_path / "size.h5").write_bytes(whole.replace(shape, np.array([20, 2**46], np.uint64).tobytes()))
    for name in ("type.h5", "size.h5"):
        with pytest.raises(DataError, match=name):
            open_slide_features(tmp_path / name)
    named = whole.replace(b"patch_size", b"patch\xff\xfesiz")
    (tmp_path / "named.h5").write_bytes(named)
    assert all(isinstance(name, str) for name in open_slide_features(tmp_path / "named.h5").attributes)


def test_damaged_vectors_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    with h5py.File(path, "w") as file:
        place = file.create_dataset("features", data=vectors, chunks=(50, 8), compression="gzip").id
        file["coords"] = grid(50)
        begin = place.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[begin : begin + 100] = bytes(100)
    path.write_bytes(content)
    slide = open_slide_features(path)
    with pytest.raises(DataError, match=r"not a readable HDF5 file(.|\n)*a\.h5(.|\n)*copy or compute it again"):
        slide.vectors()


def test_a_missing_hdf5_filter_is_not_reported_as_damage(tmp_path: Path) -> None:
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_chunk((4, 8))
    options.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)  # Blosc
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((4, 8))
        features = h5py.h5d.create(file.id, b"features", h5py.h5t.NATIVE_FLOAT, space, options)
        features.write_direct_chunk((0, 0), np.ones((4, 8), np.float32).tobytes(), 0)
        file["coords"] = grid(4)
    with pytest.raises(DataError, match=r"(?s)a filter that h5py does not include.*a\.h5.*h5repack"):
        open_slide_features(tmp_path / "a.h5").vectors()


def test_pairs_of_features_match_pairs_of_tiles(configure_file: MakeFile, tmp_path: Path) -> None:
    config = configure_file()
    workspace = Workspace(config.run)
    store = workspace.tile_store("train")
    vectors = store.rows(np.arange(len(store.ids)))
    for name, part in (("one", slice(0, 40)), ("two", slice(40, None))):
        write(tmp_path / f"{name}.h5", vectors[part], grid(len(vectors[part])), patch_size=256)
    write(tmp_path / "without_tissue.h5", np.zeros((0, 24)), np.zeros((0, 2)))
    result = clipit.pair(config, features=tmp_path)
    assert result.page is None and result.places is not None
    assert result.places.loc["two:256_0"].tolist() == ["two", 256, 0]
    expected = workspace.pairs.table.to_pandas()
    assert result.pairs["snippet_id"].tolist() == expected["snippet_id"].tolist()
    assert np.allclose(result.pairs["similarity"], expected["score"], atol=2e-3)
    assert result.pairs["tile_id"].tolist()[40:42] == ["two:0_0", "two:256_0"]


def test_skipped_feature_files_and_copies_of_slides_are_logged(configure_file: MakeFile, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    first = write(folder / "one.h5", np.eye(3, 24), grid(3))
    for name, vectors in (("two.hdf5", np.eye(2, 24)), ("three.H5", np.eye(1, 24)), ("sub/four.h5", np.eye(2, 24))):
        write(folder / name, vectors, grid(len(vectors)))
    shutil.copy(first, folder / "one (1).h5")
    (folder / "five.pt").write_bytes(b"features")
    (folder / "._one.h5").write_bytes(b"macOS metadata")
    lines = capture_log()
    result = clipit.pair(configure_file(), features=folder)
    assert result.places is not None
    assert sorted(set(result.places["slide"])) == ["one", "one (1)", "three", "two"]
    (skipped,) = [line for line in lines if "are skipped" in line]
    assert "2 feature files are skipped" in skipped and "five.pt" in skipped and "four.h5" in skipped
    assert "note: 1 group of slides has the same features: one (1) = one" in lines


def test_features_that_do_not_match_the_vlm_or_are_damaged_are_errors(configure_file: MakeFile, tmp_path: Path) -> None:
    config = configure_file()
    vlm = Workspace(config.run).vlm
    with pytest.raises(DataError, match=r"do not have the 24 dimensions of .*wrong\.h5 \(3\)"):
        import_features(tmp_path, [write(tmp_path / "wrong.h5", np.zeros((2, 3)), grid(2))], vlm)
    with pytest.raises(DataError, match=r"tiles that occur twice: twice:0_0 \(.*twice\.h5"):
        import_features(tmp_path, [write(tmp_path / "twice.h5", np.eye(2, 24), np.zeros((2, 2)))], vlm)
    with pytest.raises(DataError, match=r"(?s)a median norm of 3 instead of 1.*with_proj=True"):
        import_features(tmp_path, [write(tmp_path / "raw.h5", 3 * np.eye(2, 24), grid(2))], vlm)
    with pytest.raises(DataError, match="the files contain no tiles"):
        import_features(tmp_path, [write(tmp_path / "no.h5", np.ones((0, 24)), np.zeros((0, 2)))], vlm)
    damaged = np.eye(2, 24)
    damaged[1, 3] = np.nan
    with pytest.raises(
        DataError, match=r"(?s)1 feature vector is not finite: nan:256_0.*nan\.h5.*compute the features"
    ):
        import_features(tmp_path, [write(tmp_path / "nan.h5", damaged, grid(2))], vlm)
    damaged[1] = 0
    with pytest.raises(DataError, match="1 feature vector is all zeros: zero:256_0"):
        import_features(tmp_path, [write(tmp_path / "zero.h5", damaged, grid(2))], vlm)
    late = np.tile(np.eye(2, 24), (600, 1))
    late[1100] *= 3  # beyond the rows that are checked first
    with pytest.raises(DataError, match="1 vector has a norm other than 1: late:281600_0"):
        import_features(tmp_path, [write(tmp_path / "late.h5", late, grid(1200))], vlm)


def test_features_of_different_encoders_or_swapped_slides_are_errors(configure_file: MakeFile, tmp_path: Path) -> None:
    vlm = Workspace(configure_file().run).vlm
    first = write(tmp_path / "h5" / "a.h5", np.eye(2, 24), grid(2), name="a", patch_size=256)
    second = write(tmp_path / "h5" / "b.h5", np.eye(3, 24), grid(3), name="b", patch_size=512)
    for path in (first, second):
        with h5py.File(path, "r+") as file:
            file["features"].attrs["encoder"] = "conch_v1"
    lines = capture_log()
    assert len(import_features(tmp_path, [first.parent], vlm).ids) == 5
    assert f"note: the feature files name the encoder conch_v1; the configured VLM is {vlm.name}" in lines
    assert any("the tiles of the slides differ in patch_size" in line for line in lines)
    with h5py.File(second, "r+") as file:
        file["features"].attrs["encoder"] = "uni_v2"
    with pytest.raises(DataError, match=r"computed by different models: conch_v1: 1 \(a\); uni_v2: 1 \(b\)"):
        import_features(tmp_path, [first.parent], vlm)
    with h5py.File(second, "r+") as file:
        file["features"].attrs["encoder"] = "conch_v1"
        file["coords"].attrs["name"] = "a"
    with pytest.raises(DataError, match=r"1 feature file contains the name of a different slide: b\.h5 \(a\)"):
        import_features(tmp_path, [first.parent], vlm)
