"""Test that changed bytes in Parquet files with page checksums, as written by Spark, are errors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipit.config.run import LeaksConfig, ReportsConfig, TilesConfig
from clipit.errors import ArtifactError, DataError
from clipit.pairing.blocks import read_blocks, write_blocks
from clipit.reports.readers import read_reports
from clipit.runs.training_tiles import check_test_patients, write_training_tiles
from clipit.tiles.load_tiles import read_tiles
from clipit.workspace.adapted_patients import TRAINING_TILES


def damage(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in a file."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def write_tile_table(folder: Path) -> TilesConfig:
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    columns = {
        "path": [f"{number}.png" for number in range(4)],
        "label": ["stroma", "tumour", "stroma", "tumour"],
        "split": ["train", "train", "validation", "validation"],
        "group": ["patient-1", "patient-2", "patient-3", "patient-4"],
    }
    write_uncompressed(pa.table(columns), folder / "tiles.parquet")
    return TilesConfig(source="table", path=str(folder / "tiles.parquet"))


def write_uncompressed(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)


def test_a_changed_tile_table_is_an_error(tmp_path: Path) -> None:
    config = write_tile_table(tmp_path)
    assert read_tiles(config).classes == ("stroma", "tumour")
    damage(tmp_path / "tiles.parquet", b"\x06\0\0\0stroma\x06\0\0\0tumour", b"\x06\0\0\0stroma\x06\0\0\0tumoux")
    with pytest.raises(DataError, match=r"not a readable parquet file: .*CRC"):
        read_tiles(config)


def test_changed_reports_are_an_error(tmp_path: Path) -> None:
    texts = [f"Adenocarcinoma of the colon, grade {grade}." for grade in range(3)]
    write_uncompressed(pa.table({"text": texts}), tmp_path / "reports.parquet")
    config = ReportsConfig(path=str(tmp_path / "reports.parquet"))
    assert len(read_reports(config).reports) == 3
    damage(tmp_path / "reports.parquet", b"grade 1.", b"grade 9.")
    with pytest.raises(DataError, match=r"cannot read this parquet file: .*CRC"):
        read_reports(config)


def test_a_changed_record_of_training_tiles_is_an_error(tmp_path: Path) -> None:
    tiles = read_tiles(write_tile_table(tmp_path))
    write_training_tiles(tmp_path, tiles, "fingerprint")
    with pytest.raises(DataError, match="4 of 4 test tiles belong to 4 patients"):
        check_test_patients(tmp_path, tiles, LeaksConfig())
    damage(tmp_path / TRAINING_TILES, b"patient-1", b"patient-9")
    with pytest.raises(ArtifactError, match="CRC"):
        check_test_patients(tmp_path, tiles, LeaksConfig())


def test_a_changed_block_of_an_interrupted_computation_is_an_error(tmp_path: Path) -> None:
    files = write_blocks(
        tmp_path, 4, 2, "blocks", lambda rows: pa.table({"name": [f"row number {row}" for row in rows]})
    )
    np.testing.assert_array_equal(read_blocks(files)["name"].to_pylist(), [f"row number {row}" for row in range(4)])
    damage(files[1], b"row number ", b"row numbet ")
    with pytest.raises(ArtifactError, match="CRC"):
        read_blocks(files)
