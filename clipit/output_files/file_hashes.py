"""Hash finished files, so that commands that reuse them detect changes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipit.errors import disk_errors
from clipit.output_files.artifacts import file_sha256


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file, by path relative to a folder.

    Args:
        names: Names of existing files, and of folders in which all visible files are hashed.
    """
    digests = {}
    with disk_errors(folder):
        for name in names:
            inside = sorted((folder / name).rglob("*")) if (folder / name).is_dir() else [folder / name]
            for path in inside:
                if path.is_file() and not path.name.startswith("."):
                    digests[path.relative_to(folder).as_posix()] = file_sha256(path)
    return digests


def are_unchanged(folder: Path, names: Iterable[str], recorded: Any) -> bool:
    """Return whether the files are exactly those recorded, with the same SHA-256.

    Args:
        names: As in `hash_files`; missing files count as changed.
        recorded: SHA-256 by path, as returned by `hash_files`. If this is not a mapping, as in records of earlier
            versions, the files count as unchanged.
    """
    if not isinstance(recorded, Mapping):
        return True
    names = list(names)
    return all((folder / name).exists() for name in names) and hash_files(folder, names) == dict(recorded)
