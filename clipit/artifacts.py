"""Artefacts: folders with a manifest that are written atomically.

The folder of an artefact is named by its kind and the fingerprint of its inputs, which makes it its own cache key. It
is built in `<folder>.partial`, from which a later attempt resumes after a kill, and renamed once it is complete.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clipit.errors import ArtifactError, disk_errors

logger = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST = "manifest.json"
_SMALL = 4 * 2**20  # bytes; the SHA-256 of files up to this size is always verified
_RECORDED_PACKAGES = (
    "torch", "timm", "open_clip_torch", "transformers", "peft", "accelerate", "faiss-cpu", "faiss-gpu",
    "numpy", "scikit-learn",
)  # fmt: skip


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
        """Return the fingerprint of the artefact's inputs."""
        return self.manifest.fingerprint

    def file(self, name: str) -> Path:
        """Return the path of one of the artefact's files."""
        return self.folder / name


def fingerprint(value: Any) -> str:
    """Compute a fingerprint of a JSON-like value: 16 hexadecimal digits, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that can affect results."""
    return installed(_RECORDED_PACKAGES)


def installed(names: Collection[str]) -> dict[str, str]:
    """Return the versions of these distributions, without those that are not installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def git_commit() -> str:
    """Return the commit of this package's checkout, with `+` for local changes; "" outside a checkout."""
    package = Path(__file__).resolve().parent
    command = ["git", "-C", str(package), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


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
                "the folder cannot be created", where=path, fix="choose another folder with --output"
            ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, which replaces `path` if the block succeeds."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")


def open_artifact(folder: Path, kind: str, *, verify: bool = False) -> Artifact:
    """Open a complete artefact of the given kind.

    Args:
        folder: Folder of the artefact.
        kind: Expected kind.
        verify: Whether to verify the SHA-256 of every file. Otherwise, verify it for small files, and the size of all.

    Raises:
        ArtifactError: The artefact is missing, incomplete, damaged, or of another kind or schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"no complete {kind} in this folder", where=folder, fix="build it first, or correct the path"
        )
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        files = {folder / name: (digest, manifest.sizes.get(name)) for name, digest in manifest.files.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"unreadable manifest: {error}", where=path, fix="delete the folder and rebuild it"
        ) from error
    if manifest.schema != SCHEMA or manifest.kind != kind:
        raise ArtifactError(
            f"expected {kind} (schema {SCHEMA}), found {manifest.kind} (schema {manifest.schema})",
            where=path,
            fix="give the right folder, or delete this one and rebuild it",
        )
    for file, (digest, size) in files.items():
        if not _unchanged(file, digest, size, verify=verify):
            raise ArtifactError("a file is missing or changed", where=file, fix="delete the folder and rebuild it")
    return Artifact(folder, manifest)


def _unchanged(file: Path, digest: str, size: int | None, *, verify: bool) -> bool:
    """Compare a file with its manifest; large files by size alone, unless `verify`."""
    if not file.is_file():
        return False
    actual = file.stat().st_size
    if size is not None and actual != size:
        return False
    return file_sha256(file) == digest if verify or actual <= _SMALL else True


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """Read a JSON object that this package wrote.

    Args:
        path: JSON file.
        fix: What to do if it is damaged, for the error.

    Raises:
        ArtifactError: The file is missing, or does not contain a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise ArtifactError(f"unreadable: {error}", where=path, fix=fix) from error
    if not isinstance(value, dict):
        raise ArtifactError("not a JSON object", where=path, fix=fix)
    return value


def artifact_folder(root: Path, kind: str, inputs: Mapping[str, Any]) -> Path:
    """Return the folder of the artefact with this kind and these inputs, whether or not it exists."""
    return root / f"{kind}-{fingerprint(dict(inputs))}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `<path>.lock`; if another process holds it, log once and wait."""
    with disk_errors(path):
        make_folder(path.parent)
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info(f"waiting: another process is building {path}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def start_partial(folder: Path) -> Path:
    """Create the folder in which `folder` is built, or reuse the one left by a killed attempt with the same inputs."""
    partial = folder.with_name(folder.name + ".partial")
    make_folder(partial)
    return partial


def finish_partial(folder: Path, kind: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> Artifact:
    """Write the manifest of `<folder>.partial`, and rename it to `folder`."""
    partial = folder.with_name(folder.name + ".partial")
    for leftover in partial.rglob(".*.tmp"):  # left by a killed attempt; all processes have finished writing
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
        files={name: file_sha256(path) for name, path in files.items()},
        sizes={name: path.stat().st_size for name, path in files.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git_commit(),
        versions=versions(),
    )
    write_json(partial / MANIFEST, asdict(manifest))
    with disk_errors(folder):
        if folder.exists():  # an incomplete or foreign folder of that name
            shutil.rmtree(folder)
        partial.rename(folder)
    return open_artifact(folder, kind)
