"""Downloads from a local server that drops connections, resumes, or sends different content."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from logged_lines import capture_log

from clipit.errors import ArtifactError, DataError
from clipit.tiles.archives import fetch

from .servers import State, serve

PAGE = "https://example.org/page"
CONTENT = bytes(range(256)) * 20_000  # 5 MB: several blocks
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[State]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "set.zip").write_bytes(CONTENT)
    with serve(folder) as state:
        yield state


def get(state: State, to: Path, md5: str = MD5, name: str = "set.zip") -> tuple[Path, list[str]]:
    log_lines = capture_log()
    return fetch(f"{state.url}/{name}", to / "set.zip", md5, page=PAGE), log_lines


def test_a_complete_download_is_verified_and_logged(server: State, tmp_path: Path) -> None:
    file, log_lines = get(server, tmp_path)
    assert file.read_bytes() == CONTENT
    assert not (tmp_path / "set.zip.partial").exists()
    assert log_lines[-1] == "4.9 of 4.9 MiB"
    assert get(server, tmp_path)[0] == file and len(server.requested) == 1  # the existing file is verified, not fetched


def test_an_interrupted_download_resumes_where_it_stopped(server: State, tmp_path: Path) -> None:
    server.breaks_after = 2_000_000
    with pytest.raises(DataError, match=r"(?s)was lost|failed.*resumes where it stopped.*by hand from https://example"):
        get(server, tmp_path)
    assert (tmp_path / "set.zip.partial").read_bytes() == CONTENT[:2_000_000]
    with pytest.raises(DataError, match="was lost after 4000000 of 5120000 bytes"):
        get(server, tmp_path)
    server.breaks_after = 10**9
    file, log_lines = get(server, tmp_path)
    assert file.read_bytes() == CONTENT
    assert server.requested == [None, "bytes=2000000-", "bytes=4000000-"]
    assert log_lines[0] == "resuming at 3.8 MiB"


def test_a_download_restarts_if_the_server_ignores_ranges(server: State, tmp_path: Path) -> None:
    (tmp_path / "set.zip.partial").write_bytes(b"other" * 100)
    server.ranges = False
    file, log_lines = get(server, tmp_path)
    assert file.read_bytes() == CONTENT
    assert "starting over" in log_lines[0]


def test_a_complete_partial_file_is_used(server: State, tmp_path: Path) -> None:
    (tmp_path / "set.zip.partial").write_bytes(CONTENT)
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.requested == ["bytes=5120000-"]


def test_a_partial_file_that_is_too_long_is_fetched_again(server: State, tmp_path: Path) -> None:
    (tmp_path / "set.zip.partial").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.requested == ["bytes=5120004-", None]


def test_a_wrong_checksum_sets_the_file_aside(server: State, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"(?s)wrong checksum: the MD5 is {MD5}, expected {'0' * 32}.*set.zip.bad"):
        get(server, tmp_path, md5="0" * 32)
    assert (tmp_path / "set.zip.bad").read_bytes() == CONTENT
    assert not (tmp_path / "set.zip").exists() and not (tmp_path / "set.zip.partial").exists()
    assert get(server, tmp_path)[0].read_bytes() == CONTENT  # the next attempt starts over


def test_a_damaged_existing_file_is_not_used(server: State, tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DataError, match="wrong checksum"):
        get(server, tmp_path)
    assert (tmp_path / "set.zip.bad").exists() and not server.requested


def test_an_unreachable_server_and_an_unknown_file_raise_errors(server: State, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/set.zip"
    with pytest.raises(DataError, match=r"(?s)download failed.*refused.*check the network"):
        fetch(url, tmp_path / "set.zip", MD5, page=PAGE)
    with pytest.raises(DataError, match="download failed: HTTP Error 404"):
        get(server, tmp_path, name="other.zip")
    assert list(tmp_path.glob("set*")) == []


def test_a_file_in_place_of_the_folder_is_an_error(server: State, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot write"):
        get(server, tmp_path / "taken")
