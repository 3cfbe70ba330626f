"""Artefacts: folders with a manifest that appear whole or not at all.

An artefact's folder is named by what it is and by the fingerprint of its inputs, so "does it exist
already?" is one look at the disk. It is built in `<folder>.partial`, which is kept after a kill so
that the next attempt can go on from it, and is renamed when it is whole.
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
_SMALL = 4 * 2**20  # bytes: up to here a file's SHA-256 costs less than reading it later
_RECORDED_PACKAGES = (
    "torch", "timm", "open_clip_torch", "transformers", "peft", "accelerate", "faiss-cpu", "faiss-gpu",
    "numpy", "scikit-learn",
)  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What an artefact is, what it was made from, and what lies in its folder."""

    kind: str
    fingerprint: str
    inputs: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, str]
    """Name -> SHA-256."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Name -> bytes; earlier manifests have none."""
    schema: int = SCHEMA
    created: str = ""
    commit: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A finished artefact: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the inputs that it was made from."""
        return self.manifest.fingerprint

    def file(self, name: str) -> Path:
        """Path of one of its files."""
        return self.folder / name


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that stand for a JSON-like value; key order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    return installed(_RECORDED_PACKAGES)


def installed(names: Collection[str]) -> dict[str, str]:
    """Versions of those of these distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str:
    """Commit of the checkout this package runs from (`+` if changed since), or an empty string."""
    package = Path(__file__).resolve().parent
    command = ["git", "-C", str(package), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in; nothing happens when it is there.

    Raises:
        ArtifactError: It cannot be.
    """
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # a place that takes no folders, such as /proc
            raise ArtifactError(
                "no folder can be made here", where=path, fix="choose another place with --output"
            ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it takes the place of `path` when the block ends well."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")


def open_artifact(folder: Path, kind: str, *, verify: bool = False) -> Artifact:
    """Open a finished artefact of the given kind.

    Args:
        folder: Where it lies.
        kind: What it must be.
        verify: Compare the SHA-256 of every file (reads all of it); otherwise that of small files, and the size of all.

    Raises:
        ArtifactError: It is missing, incomplete, of another kind or schema, or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"no finished {kind} here", where=folder, fix="build it first, or correct the path")
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
    """Whether a file is as its manifest says; a large one is judged by its size alone, unless `verify`."""
    if not file.is_file():
        return False
    found = file.stat().st_size
    if size is not None and found != size:
        return False
    return file_sha256(file) == digest if verify or found <= _SMALL else True


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """A JSON object that this package wrote.

    Args:
        path: The file.
        fix: What to do when it is damaged.

    Raises:
        ArtifactError: It is missing, no JSON or no object.
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
    """Where the artefact of this kind made from these inputs lies (or will lie)."""
    return root / f"{kind}-{fingerprint(dict(inputs))}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `<path>.lock`; log once when another process holds it, and wait."""
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
    """The folder in which to build `folder`: left over from a killed attempt, or new.

    Only ever the same inputs meet the same name (`artifact_folder`), so what is there can be kept.
    """
    partial = folder.with_name(folder.name + ".partial")
    make_folder(partial)
    return partial


def finish_partial(folder: Path, kind: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> Artifact:
    """Write the manifest of `<folder>.partial` and rename it to `folder`."""
    partial = folder.with_name(folder.name + ".partial")
    for left in partial.rglob(".*.tmp"):  # of a killed attempt; every process has finished writing by now
        left.unlink()
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
        if folder.exists():  # an unfinished or foreign folder of that name
            shutil.rmtree(folder)
        partial.rename(folder)
    return open_artifact(folder, kind)
