"""Download published data sets: show the licence, verify the files, and unpack them into one folder."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from clipit.config.shipped import data_card
from clipit.errors import DataError, counted
from clipit.output_files.artifacts import locked, write_json
from clipit.tiles.archives import fetch, file_md5, unpack
from clipit.tiles.datasets import DATASETS, DataSet, Remote

logger = logging.getLogger(__name__)


def licence_notice(name: str) -> str:
    """Format the notice shown before a download: title, licence, page, citation and known issues."""
    data_set = DATASETS[name]
    lines = [
        data_set.title,
        f"  licence: {data_set.licence}",
        f"  page: {data_set.page}",
        f"  cite: {data_set.citation}",
    ]
    if data_set.faults:
        lines.append(f"  known issue: {data_set.faults}")
    return "\n".join([*lines, f"  data card: {data_card(data_set.card)}"])


def download(name: str, folder: Path, *, accept: Callable[[], bool]) -> Path:
    """Download, verify and unpack a data set; existing files are verified and kept.

    Args:
        name: Key of `DATASETS`.
        folder: Output folder, created if needed.
        accept: Function that returns whether the user accepts the licence, called after the licence notice is logged.

    Returns:
        Folder to use as `tiles.path`.

    Raises:
        DataError: There is no direct download, the licence is not accepted, or a file is unavailable or damaged.
        ArtifactError: The disk is full or not writable.
    """
    data_set = DATASETS[name]
    logger.info(licence_notice(name))
    if not data_set.files:
        raise DataError(
            f"{data_set.title} has no public download with a checksum",
            where=data_set.page,
            fix=f"{data_set.access}; then set tiles.source to {name} and tiles.path to the folder that contains "
            f"{data_set.layout}",
        )
    if not accept():
        raise DataError(
            "the licence was not accepted, so nothing was downloaded", fix="answer yes, or pass --accept-licence"
        )
    with locked(folder / f".{name}"):
        _get(data_set, folder)
    logger.info(f"{data_set.title} is in {folder}: use it with tiles.source={name} and tiles.path={folder}")
    return folder


def _get(data_set: DataSet, folder: Path) -> None:
    for remote in data_set.files:
        content = folder / remote.unpacked
        if content.exists():
            logger.info(f"{remote.unpacked}: {_verify_existing(content, remote, data_set.page)}")
            continue
        logger.info(f"{remote.name}: downloading")
        archive = fetch(remote.url, folder / remote.name, remote.md5, page=data_set.page)
        logger.info(f"{remote.name}: checksum verified, unpacking")
        unpack(archive, remote.unpacked)
        if content.is_dir():
            write_json(_stamp(content), {"archive": remote.name, "md5": remote.md5, **_count_files(content)})
        else:
            _check_file(content, remote, data_set.page)
        archive.unlink()


def _verify_existing(path: Path, remote: Remote, page: str) -> str:
    """Verify an existing file or folder, and describe what was verified.

    Raises:
        DataError: The content differs from the published file, or from the files that were unpacked.
    """
    if path.is_file():
        return "exists" + (", checksum verified" if _check_file(path, remote, page) else ", not verified")
    stamp = _stamp(path)
    if not stamp.is_file():
        return "exists, but was not unpacked by this command: not verified"
    try:
        recorded = json.loads(stamp.read_text(encoding="utf-8"))
    except ValueError:
        recorded = {}
    content = _count_files(path)
    if {key: recorded.get(key) for key in content} != content:
        raise DataError(
            f"the folder contains {counted(content['files'], 'file')} with {content['bytes']} bytes, but "
            f"{recorded.get('files')} files with {recorded.get('bytes')} bytes were unpacked",
            where=path,
            fix=f"delete {path} and {stamp}, and run the same command again",
        )
    return f"exists, with all {counted(content['files'], 'file')}"


def _check_file(file: Path, remote: Remote, page: str) -> bool:
    """Compare a file with its published checksum; return False if none is published.

    Raises:
        DataError: The checksums differ.
    """
    if not remote.unpacked_md5:
        return False
    actual = file_md5(file)
    if actual != remote.unpacked_md5:
        raise DataError(
            f"not the published file: the MD5 is {actual}, expected {remote.unpacked_md5}",
            where=file,
            fix=f"delete it and run the same command again, or see {page}",
        )
    return True


def _stamp(folder: Path) -> Path:
    """Return the path of an unpacked folder's record, which lies outside, so that the folder stays as published."""
    return folder.with_name(f".{folder.name}.unpacked.json")


def _count_files(folder: Path) -> dict[str, int]:
    """Count the files of a folder and their total size in bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}
