"""Artefacts: folders with a manifest that are written atomically.

The folder of an artefact is named after its kind and the fingerprint of its inputs; this name serves as the cache key.
It is built in `<folder>.partial`, where an interrupted attempt is resumed, and renamed when it is complete.

The SHA-256 of a file is verified when a process first reads it, and again if the file has changed since.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from clipit.errors import ArtifactError, ClipitError, disk_errors, is_limit
from clipit.output_files.json_record import JsonRecord
from clipit.output_files.leftovers import delete_leftovers, is_temporary
from clipit.versions import git_commit, versions

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

logger = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST = "manifest.json"
_CHECKSUM = "checksum"  # key of the checksum in JSON files
REBUILD = "delete the folder and rebuild it"
_SMALL = 4 * 2**20  # bytes; files up to this size are verified when the artefact is opened
_SETTLED = 2 * 10**9  # nanoseconds; a more recent change may be followed by another with the same timestamp
known_digests: dict[tuple[str | int, ...], str] = {}  # SHA-256 of verified files, by name, inode, size and times


@dataclass(frozen=True)
class Manifest:
    """Kind, inputs and files of an artefact."""

    kind: str
    fingerprint: str
    inputs: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, str]
    """Name -> SHA-256."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Name -> size in bytes; empty in earlier manifests."""
    schema: int = SCHEMA
    created: str = ""
    commit: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A complete artefact: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the artefact's inputs."""
        return self.manifest.fingerprint

    def file(self, name: str) -> Path:
        """Return the path of one of the artefact's files, after verifying its SHA-256.

        Raises:
            ArtifactError: The artefact has no such file, or the file is missing or changed.
        """
        path = self.folder / name
        digest = self.manifest.files.get(name)
        if digest is None or not path.is_file() or _sha256_once(path) != digest:
            raise ArtifactError("a file is missing or changed", where=path, fix=REBUILD)
        return path

    def table(self, name: str, columns: Sequence[str] | None = None) -> "pa.Table":
        """Read a Parquet file of the artefact.

        Args:
            columns: Columns to read; None for all.

        Raises:
            ArtifactError: The file is missing, changed or unreadable.
        """
        import pyarrow.parquet as pq

        path = self.file(name)
        with reading(path), pq.ParquetFile(path) as file:  # `read_table` would import pandas, which takes half a second
            return file.read(columns=columns)

    def array(self, name: str, mode: Literal["r"] | None = None) -> "np.ndarray":
        """Read a NumPy file of the artefact.

        Args:
            mode: `r` to map the file into memory instead of reading it.

        Raises:
            ArtifactError: The file is missing, changed or unreadable.
        """
        import numpy as np

        path = self.file(name)
        with reading(path):
            array: np.ndarray = np.load(path, mmap_mode=mode, allow_pickle=False)
            return array


def fingerprint(value: Any) -> str:
    """Compute a fingerprint of a JSON-like value: 16 hexadecimal digits, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_once(path: Path) -> str:
    """Return the SHA-256 of a file, which is computed once per process unless the file changes."""
    stat = path.stat()
    key = (path.name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    digest = known_digests.get(key)
    if digest is None:
        digest = file_sha256(path)
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED:
            known_digests[key] = digest
    return digest


@contextmanager
def reading(path: Path, fix: str = REBUILD) -> Iterator[None]:
    """Turn the errors that a library raises for a damaged file into an `ArtifactError` that names the file.

    Args:
        path: File being read.
        fix: What to do if the file is damaged, for the error message.
    """
    try:
        yield
    except (PermissionError, ClipitError):
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError) as error:
        # pyarrow, NumPy and faiss raise all of these for damaged files
        if is_limit(error):
            raise
        raise ArtifactError(f"unreadable: {error}", where=path, fix=fix) from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents, if they do not exist.

    Raises:
        ArtifactError: The folder cannot be created.
    """
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # a file system without folders, such as /proc
            raise ArtifactError(
                "the folder cannot be created", where=path, fix="choose a different folder with --output or --out"
            ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, which replaces `path` if the block succeeds.

    The file's mode follows the umask, even if the writer sets another one, as safetensors does.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            if temporary.stat().st_mode != mode:  # some file systems do not allow chmod
                temporary.chmod(mode)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write a folder completely or not at all: yield an empty folder, which replaces `path` if the block succeeds.

    The modes of its files follow the umask.
    """
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    with disk_errors(path):
        if old.exists() and not path.exists():  # an earlier process was killed between the two renames
            old.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        try:
            yield partial
            _apply_umask(partial)
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.rename(old)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Set the mode of all files in a folder to that of a new file; safetensors, for example, sets a different one."""
    created = folder / ".mode"
    created.touch()
    mode = created.stat().st_mode
    created.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode != mode:  # some file systems do not allow chmod
            path.chmod(mode)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON atomically, with a checksum that `read_json` verifies."""
    write_json(path, with_checksum(value))


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a checksum of its content under the key `checksum`."""
    record: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return record | {_CHECKSUM: fingerprint(record)}


def without_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object without its checksum; objects of earlier versions, which have no checksum, are accepted.

    Raises:
        ValueError: The content does not match the checksum.
    """
    record = {name: value for name, value in values.items() if name != _CHECKSUM}
    if values.get(_CHECKSUM) not in (None, fingerprint(record)):
        raise ValueError("its content has changed since it was written")
    return record


def open_artifact(folder: Path, kind: str, *, verify: bool = False) -> Artifact:
    """Open a complete artefact of the given kind.

    Args:
        verify: Whether to verify the SHA-256 of every file now. Otherwise, only the SHA-256 of small files and the
            sizes of all files are verified now, and large files when they are first read.

    Raises:
        ArtifactError: The artefact is missing, incomplete, damaged, or of a different kind, schema or fingerprint.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"no complete {kind} in this folder", where=folder, fix="build it first, or correct the path"
        )
    manifest = _read_manifest(path)
    if manifest.schema != SCHEMA or manifest.kind != kind:
        raise ArtifactError(
            f"expected {kind} (schema {SCHEMA}), found {manifest.kind} (schema {manifest.schema})",
            where=path,
            fix="choose the right folder, or delete this one and rebuild it",
        )
    fingerprint_in_name = folder.name.removeprefix(f"{kind}-")
    if fingerprint_in_name not in (folder.name, manifest.fingerprint):
        raise ArtifactError(
            f"this {kind} has the fingerprint {manifest.fingerprint}, which differs from the folder's name",
            where=folder,
            fix=REBUILD,
        )
    artifact = Artifact(folder, manifest)
    for name in manifest.files:
        file, size = folder / name, manifest.sizes.get(name)
        actual = file.stat().st_size if file.is_file() else None
        if actual is None or (size is not None and actual != size):
            raise ArtifactError("a file is missing or changed", where=file, fix=REBUILD)
        if verify or actual <= _SMALL:
            artifact.file(name)
    return artifact


def _read_manifest(path: Path) -> Manifest:
    """Read a manifest, and check that it has not changed since it was written."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        checksum = values.pop(_CHECKSUM, None)  # not in earlier manifests
        manifest = Manifest(**values)
        complete = all(isinstance(part, dict) for part in (manifest.inputs, manifest.facts, manifest.files))
        if not complete or not isinstance(manifest.sizes, dict):
            raise TypeError("inputs, facts, files and sizes are not objects")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"unreadable manifest: {error}", where=path, fix=REBUILD) from error
    if manifest.schema == SCHEMA and (
        fingerprint(manifest.inputs) != manifest.fingerprint
        or (checksum is not None and checksum != fingerprint(values))
    ):
        raise ArtifactError("the manifest has changed since it was written", where=path, fix=REBUILD)
    return manifest


def read_json(path: Path, fix: str) -> JsonRecord:
    """Read a JSON object written by this package; its checksum, if it has one, is verified and removed.

    Looking up a key that the object lacks, as in a file of an earlier version, also raises an `ArtifactError`.

    Args:
        fix: What to do if the file is damaged or lacks a key, for the error message.

    Raises:
        ArtifactError: The file is missing or changed, or does not contain a JSON object.
    """
    with reading(path, fix):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ArtifactError("not a JSON object", where=path, fix=fix)
        return JsonRecord(without_checksum(value), path, fix)


def artifact_folder(root: Path, kind: str, inputs: Mapping[str, Any]) -> Path:
    """Return the folder of the artefact with this kind and these inputs, whether or not it exists."""
    return root / f"{kind}-{fingerprint(dict(inputs))}"


def lock_file(path: Path) -> Path:
    """Return the hidden lock file of a path. It is never deleted, because two processes could then hold the lock."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a path, waiting for other processes; temporary files left in a locked folder are deleted."""
    with disk_errors(path):
        make_folder(path.parent)
        lock = FileLock(lock_file(path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info(f"waiting: another process is building {path}")
            lock.acquire()
    try:
        delete_leftovers(path)
        yield
    finally:
        lock.release()


def start_partial(folder: Path) -> Path:
    """Create the folder in which `folder` is built, or reuse the one that an interrupted attempt left behind."""
    partial = folder.with_name(folder.name + ".partial")
    make_folder(partial)
    return partial


def finish_partial(folder: Path, kind: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> Artifact:
    """Write the manifest of `<folder>.partial`, and rename it to `folder`."""
    partial = folder.with_name(folder.name + ".partial")
    for leftover in filter(is_temporary, partial.rglob(".*")):  # left by a killed process; all processes have finished
        leftover.unlink()
    files = {
        str(path.relative_to(partial)): path
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    }
    manifest = Manifest(
        kind=kind,
        fingerprint=fingerprint(dict(inputs)),
        inputs=dict(inputs),
        facts=dict(facts),
        files={name: _sha256_once(path) for name, path in files.items()},
        sizes={name: path.stat().st_size for name, path in files.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git_commit(),
        versions=versions(),
    )
    write_record(partial / MANIFEST, asdict(manifest))
    with disk_errors(folder):
        if folder.exists():  # an incomplete or unrelated folder with that name
            shutil.rmtree(folder)
        partial.rename(folder)
    return open_artifact(folder, kind)
