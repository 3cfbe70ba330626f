"""Test that artefacts are written completely or not at all."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from logged_lines import capture_log

from clipit.distributed import build_once
from clipit.errors import ArtifactError, DataError
from clipit.output_files.artifacts import (
    MANIFEST,
    artifact_folder,
    file_sha256,
    fingerprint,
    finish_partial,
    locked,
    open_artifact,
    read_json,
    start_partial,
    whole_file,
    whole_folder,
    write_json,
    write_record,
)

INPUTS = {"a": 1}
OUT = Path("/proc/out/facts.json")


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_one(folder: Path) -> dict[str, int]:
    (folder / "data.txt").write_text("content")
    return {"rows": 1}


def finished_artifact(root: Path) -> Path:
    folder = artifact_folder(root, "thing", INPUTS)
    (start_partial(folder) / "data.txt").write_text("content")
    return finish_partial(folder, "thing", INPUTS, {"rows": 1}).folder


def test_fingerprint_ignores_only_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"b": [1, 2]}) != fingerprint({"b": [2, 1]})
    assert fingerprint({"a": "é"}) != fingerprint({"a": "e"})


def test_whole_file_keeps_the_old_file_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert file_names(tmp_path) == ["table"]


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: str, encoding: str | None = None) -> int:
        with self.open("w") as stream:
            stream.write(text[:5])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        write_json(tmp_path / "account.json", {"a": 1})
    assert file_names(tmp_path) == []


def test_a_folder_without_write_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match=r"no permission(?s:.*)--output"):
        build_once(tmp_path, "thing", INPUTS, make_one)


def test_an_output_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("")
    with pytest.raises(ArtifactError, match=r"outputs(?s:.*)--output"):
        build_once(tmp_path / "outputs", "thing", INPUTS, make_one)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is not available")
def test_an_output_folder_that_cannot_be_created_is_an_error() -> None:
    for attempt in (lambda: build_once(Path("/proc/out"), "thing", INPUTS, make_one), lambda: write_json(OUT, {})):
        with pytest.raises(ArtifactError, match=r"(?s)the folder cannot be created.*/proc/out.*--output"):
            attempt()


def test_a_path_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"(?s)too long.*--output"):
        write_json(tmp_path / ("n" * 300) / "facts.json", {})


def test_the_manifest_records_inputs_facts_and_versions(tmp_path: Path) -> None:
    artifact = open_artifact(finished_artifact(tmp_path), "thing", verify=True)
    assert artifact.manifest.inputs == INPUTS
    assert artifact.manifest.facts == {"rows": 1}
    assert list(artifact.manifest.files) == ["data.txt"]
    assert artifact.folder.name == f"thing-{artifact.fingerprint}"
    assert "torch" in artifact.manifest.versions


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"kind": "thing"}', "\xff"])
def test_a_damaged_manifest_is_an_error(tmp_path: Path, damage: str) -> None:
    folder = finished_artifact(tmp_path)
    (folder / MANIFEST).write_bytes(damage.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"manifest(?s:.*)rebuild"):
        open_artifact(folder, "thing")


def test_a_different_kind_or_schema_is_an_error(tmp_path: Path) -> None:
    folder = finished_artifact(tmp_path)
    with pytest.raises(ArtifactError, match=r"expected pairs .* found thing"):
        open_artifact(folder, "pairs")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(ArtifactError, match="schema 99"):
        open_artifact(folder, "thing")


def test_missing_and_changed_files_are_errors(tmp_path: Path) -> None:
    folder = finished_artifact(tmp_path)
    (folder / "data.txt").write_text("changed")  # same length as before
    with pytest.raises(ArtifactError, match=r"changed(?s:.*)data\.txt"):
        open_artifact(folder, "thing")
    (folder / "data.txt").unlink()
    with pytest.raises(ArtifactError, match=r"data\.txt"):
        open_artifact(folder, "thing")


def test_a_large_file_is_verified_on_first_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished_artifact(tmp_path)
    monkeypatch.setattr("clipit.output_files.artifacts._SMALL", 3)
    artifact = open_artifact(folder, "thing")
    assert artifact.file("data.txt").read_text() == "content"
    (folder / "data.txt").write_text("changed")  # same length as before
    for opened in (artifact, open_artifact(folder, "thing")):
        with pytest.raises(ArtifactError, match=r"(?s)changed.*data\.txt.*delete the folder"):
            opened.file("data.txt")
    with pytest.raises(ArtifactError, match="changed"):
        open_artifact(folder, "thing", verify=True)
    (folder / "data.txt").write_text("cont")
    with pytest.raises(ArtifactError, match="changed"):
        open_artifact(folder, "thing")


def test_an_unchanged_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def count(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    folder = finished_artifact(tmp_path)
    monkeypatch.setattr("clipit.output_files.artifacts.file_sha256", count)
    open_artifact(folder, "thing").file("data.txt")
    assert len(hashed) == 2  # a recent file may change again within the resolution of its timestamp
    monkeypatch.setattr("clipit.output_files.artifacts._SETTLED", 0)
    for _ in range(3):
        open_artifact(folder, "thing").file("data.txt")
    assert len(hashed) == 3
    os.utime(folder / "data.txt", ns=(1, 1))
    open_artifact(folder, "thing").file("data.txt")
    assert len(hashed) == 4


def test_a_file_that_is_not_in_the_manifest_is_an_error(tmp_path: Path) -> None:
    artifact = open_artifact(finished_artifact(tmp_path), "thing")
    (artifact.folder / "mean.npy").write_bytes(b"of another")
    with pytest.raises(ArtifactError, match=r"mean\.npy"):
        artifact.file("mean.npy")


def test_an_artefact_copied_to_another_name_is_an_error(tmp_path: Path) -> None:
    folder = finished_artifact(tmp_path)
    other = artifact_folder(tmp_path, "thing", {"a": 2})
    shutil.copytree(folder, other)
    with pytest.raises(ArtifactError, match=r"(?s)differs from the folder's name.*delete the folder"):
        build_once(tmp_path, "thing", {"a": 2}, make_one)


@pytest.mark.parametrize(
    "change", [{"inputs": {"a": 2}}, {"fingerprint": "0" * 16}, {"facts": {"rows": 2}}, {"created": "2020-01-01"}]
)
def test_a_changed_manifest_is_an_error(tmp_path: Path, change: dict[str, object]) -> None:
    folder = finished_artifact(tmp_path)
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(values | change))
    with pytest.raises(ArtifactError, match=r"(?s)manifest has changed.*delete the folder"):
        open_artifact(folder, "thing")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1PAR1PAR1", b"\x93NUMPY\x01\x00v\x00{", b"\x80\x04K\x01."])
def test_damaged_files_are_named_in_errors(tmp_path: Path, content: bytes) -> None:
    folder = artifact_folder(tmp_path, "thing", INPUTS)
    (start_partial(folder) / "data.bin").write_bytes(content)
    artifact = finish_partial(folder, "thing", INPUTS, {})
    for read in (artifact.table, artifact.array):
        with pytest.raises(ArtifactError, match=r"(?s)unreadable.*data\.bin.*delete the folder"):
            read("data.bin")


def test_manifests_without_sizes_can_be_opened(tmp_path: Path) -> None:
    folder = finished_artifact(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest.pop("sizes") == {"data.txt": 7}
    del manifest["checksum"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert open_artifact(folder, "thing").manifest.sizes == {}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "files": ["data.txt"]}))
    with pytest.raises(ArtifactError, match="unreadable manifest"):
        open_artifact(folder, "thing")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_invalid_json_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"(?s)(unreadable|no.*object).*facts\.json.*make it again"):
        read_json(path, "make it again")


def test_a_partial_folder_is_continued_and_never_read(tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path, "thing", INPUTS)
    partial = start_partial(folder)
    (partial / "first.txt").write_text("kept")
    (partial / ".second.txt.123.tmp").write_text("half")  # left by a killed whole_file
    (partial / ".tmpWAkYZw").write_text("half")  # left by safetensors
    with pytest.raises(ArtifactError, match="no complete thing in this folder"):
        open_artifact(folder, "thing")

    def resume(place: Path) -> dict[str, int]:
        assert (place / "first.txt").read_text() == "kept"
        return make_one(place)

    artifact = build_once(tmp_path, "thing", INPUTS, resume)
    assert file_names(artifact.folder) == ["data.txt", "first.txt", MANIFEST]
    assert not partial.exists()


def test_a_failed_build_keeps_the_partial_folder_and_releases_the_lock(tmp_path: Path) -> None:
    def fail(place: Path) -> dict[str, int]:
        (place / "first.txt").write_text("kept")
        raise DataError("no")

    with pytest.raises(DataError):
        build_once(tmp_path, "thing", INPUTS, fail)
    folder = artifact_folder(tmp_path, "thing", INPUTS)
    assert not folder.exists()
    assert (folder.with_name(folder.name + ".partial") / "first.txt").is_file()
    assert build_once(tmp_path, "thing", INPUTS, make_one).folder == folder


def test_a_folder_without_manifest_is_rebuilt(tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path, "thing", INPUTS)
    folder.mkdir()
    (folder / "data.txt").write_text("half")
    assert build_once(tmp_path, "thing", INPUTS, make_one).file("data.txt").read_text() == "content"


def test_concurrent_builds_of_an_artefact_run_once(tmp_path: Path) -> None:
    builds, log_lines = [], capture_log()
    building = threading.Event()

    def slow(place: Path) -> dict[str, int]:
        builds.append(place)
        building.set()
        time.sleep(0.3)
        return make_one(place)

    first = threading.Thread(target=build_once, args=(tmp_path, "thing", INPUTS, slow))
    first.start()
    building.wait()
    artifact = build_once(tmp_path, "thing", INPUTS, slow)
    first.join()
    assert len(builds) == 1
    assert artifact.manifest.facts == {"rows": 1}
    assert len(log_lines) == 1 and "another process" in log_lines[0]


def test_the_lock_is_released_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "run"):
        raise ZeroDivisionError
    with locked(tmp_path / "run"):
        pass


def test_a_complete_artefact_is_opened_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_once(tmp_path, "thing", INPUTS, make_one).folder
    monkeypatch.setattr("clipit.distributed.locked", lambda _: pytest.fail("the folder should not be locked"))
    assert build_once(tmp_path, "thing", INPUTS, make_one).folder == folder


def test_a_changed_record_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_record(path, {"score": 0.5, "where": tmp_path, "nothing": float("nan")})
    assert read_json(path, "again")["where"] == str(tmp_path)
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(ArtifactError, match=r"(?s)changed since it was written.*results\.json.*fix: again"):
        read_json(path, "again")
    path.write_text('{"score": 0.5}')  # written by an earlier version
    assert read_json(path, "again") == {"score": 0.5}


def test_a_folder_with_the_name_of_the_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.mkdir()
    with pytest.raises(ArtifactError, match=r"(?s)a folder with the same name.*results\.json.*delete or rename"):
        write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with whole_folder(folder) as partial:
        (partial / "a").write_text("1")
    with pytest.raises(ValueError, match="killed"), whole_folder(folder) as partial:
        (partial / "a").write_text("2")
        raise ValueError("killed")
    assert [path.name for path in tmp_path.iterdir()] == ["results"] and (folder / "a").read_text() == "1"
    with whole_folder(folder) as partial:
        (partial / "b").write_text("3")
    assert [path.name for path in tmp_path.rglob("*")] == ["results", "b"]


def test_locking_a_folder_deletes_temporary_files_of_killed_processes(tmp_path: Path) -> None:
    dead, alive = (tmp_path / f".scores.json.{process}.tmp" for process in (99999999, os.getpid()))
    for path in (dead, alive):
        path.write_text("half")
    with locked(tmp_path):
        assert alive.exists() and not dead.exists()


def test_a_folder_is_restored_if_its_replacement_was_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with whole_folder(folder) as partial:
        (partial / "scores.json").write_text("{}")
    (tmp_path / "results").rename(tmp_path / ".results.old")  # killed between the two renames
    with pytest.raises(RuntimeError), whole_folder(folder):
        raise RuntimeError("the next process fails before it writes anything")
    assert (folder / "scores.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
