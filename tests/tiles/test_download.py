"""Downloading a whole data set from a local server: licence, files, checksums and folders."""

import dataclasses
import gzip
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from logged_lines import capture_log

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.tiles.datasets import DATASETS, Remote
from clipit.tiles.download import download, licence_notice
from clipit.tiles.load_tiles import read_tiles

from .servers import State, serve

SCRIPT = Path(__file__).parents[2] / "scripts" / "download.py"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """Serve Kather 2016 as a small zip and a gzipped file."""
    folder = tmp_path / "served"
    folder.mkdir()
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        archive.writestr("Tiles/01_TUMOR/1.tif", "a tile")
    (folder / "labels.h5.gz").write_bytes(gzip.compress(b"labels"))
    with serve(folder) as state:
        files = tuple(
            Remote(f"{state.url}/{name}", hashlib.md5((folder / name).read_bytes()).hexdigest(), makes)
            for name, makes in (("set.zip", "Tiles"), ("labels.h5.gz", "labels.h5"))
        )
        monkeypatch.setitem(DATASETS, "kather2016", dataclasses.replace(DATASETS["kather2016"], files=files))
        yield state


def run(folder: Path, *, yes: bool = True) -> list[str]:
    log_lines = capture_log()
    download("kather2016", folder, accept=lambda: yes)
    return log_lines


def test_everything_is_fetched_once(served: State, tmp_path: Path) -> None:
    log_lines = run(tmp_path / "data")
    assert (tmp_path / "data" / "Tiles" / "01_TUMOR" / "1.tif").read_text() == "a tile"
    assert (tmp_path / "data" / "labels.h5").read_bytes() == b"labels"
    assert "CC BY 4.0" in log_lines[0] and "https://zenodo.org/records/53169" in log_lines[0]
    assert not list((tmp_path / "data").glob("*.zip")) and not list((tmp_path / "data").glob("*.gz"))
    repeated_lines = run(tmp_path / "data")
    assert len(served.requested) == 2
    assert "Tiles: exists, with all 1 file" in repeated_lines
    assert "labels.h5: exists, not verified" in repeated_lines


def test_nothing_is_fetched_before_the_licence_is_accepted(served: State, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="licence was not accepted"):
        run(tmp_path / "data", yes=False)
    assert not served.requested and not (tmp_path / "data").exists()


def test_a_corrupt_file_is_not_unpacked_and_the_next_start_resumes(served: State, tmp_path: Path) -> None:
    good = (served.folder / "labels.h5.gz").read_bytes()
    (served.folder / "labels.h5.gz").write_bytes(gzip.compress(b"other!"))
    with pytest.raises(DataError, match=r"labels.h5.gz.bad"):
        run(tmp_path)
    assert (tmp_path / "Tiles").is_dir() and not (tmp_path / "labels.h5").exists()
    (served.folder / "labels.h5.gz").write_bytes(good)
    run(tmp_path)
    assert (tmp_path / "labels.h5").read_bytes() == b"labels"
    assert (tmp_path / "labels.h5.gz.bad").exists()


@pytest.mark.parametrize("name", sorted(name for name, row in DATASETS.items() if not row.files))
def test_sets_without_a_download_name_their_page(name: str, tmp_path: Path) -> None:
    log_lines = capture_log()
    with pytest.raises(DataError, match=rf"(?s)no public download with a checksum.*tiles.source to {name}"):
        download(name, tmp_path, accept=lambda: True)
    assert DATASETS[name].page in log_lines[0] and DATASETS[name].licence in log_lines[0]


def test_the_licence_notice_names_known_problems_and_the_data_card() -> None:
    assert "augmented copies" in licence_notice("lc25000") and "data_cards/lc25000.md" in licence_notice("lc25000")


def test_the_script_asks_for_the_licence_and_treats_no_answer_as_refusal(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "bach", "--to", str(tmp_path / "data")]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "CC BY-NC-ND 4.0" in result.stdout and "Do you accept" in result.stdout
    assert "pass --accept-licence" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "data").exists()


def test_a_folder_with_missing_files_is_refused(served: State, tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "Tiles" / "01_TUMOR" / "1.tif").unlink()
    with pytest.raises(
        DataError, match=r"(?s)0 files with 0 bytes, but 1 files with 6 bytes were unpacked.*delete .*Tiles and"
    ):
        run(tmp_path)


def test_a_folder_from_another_source_is_not_reported_as_verified(served: State, tmp_path: Path) -> None:
    (tmp_path / "Tiles").mkdir()
    assert "Tiles: exists, but was not unpacked by this command: not verified" in run(tmp_path)


def test_an_unpacked_file_is_verified_with_its_own_checksum(
    served: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = DATASETS["kather2016"]
    md5 = hashlib.md5(b"labels").hexdigest()
    files = (row.files[0], dataclasses.replace(row.files[1], unpacked_md5=md5))
    monkeypatch.setitem(DATASETS, "kather2016", dataclasses.replace(row, files=files))
    (tmp_path / "labels.h5").write_bytes(b"labels")
    assert "labels.h5: exists, checksum verified" in run(tmp_path)
    (tmp_path / "labels.h5").write_bytes(b"damage")
    with pytest.raises(DataError, match=rf"(?s)not the published file.*expected {md5}.*labels.h5.*delete it"):
        run(tmp_path)


def test_all_unpacked_pcam_files_have_a_checksum() -> None:
    sums = {remote.unpacked_md5 for remote in DATASETS["pcam"].files}
    assert len(sums) == 6 and all(len(value) == 32 for value in sums)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_missing_set_names_the_command_that_fetches_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_tiles(TilesConfig.model_validate({"source": name, "path": str(tmp_path / "none")}))
    command = f"clipit download {name} --to data/{name}"
    assert (command in str(error.value)) == bool(DATASETS[name].files)
