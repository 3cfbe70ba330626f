"""Published data sets from the web: licence first, then verified files, unpacked beside each other."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from clipit.artifacts import locked, write_json
from clipit.errors import DataError
from clipit.tiles.archives import fetch, unpack
from clipit.tiles.datasets import DATASETS, DataSet, Remote

logger = logging.getLogger(__name__)


def terms(name: str) -> str:
    """What a user should read before the download: title, licence, page, citation, known faults."""
    row = DATASETS[name]
    lines = [row.title, f"  licence: {row.licence}", f"  page: {row.page}", f"  cite: {row.citation}"]
    if row.faults:
        lines.append(f"  known fault: {row.faults}")
    return "\n".join([*lines, f"  data card: data_cards/{row.card}.md"])


def download(name: str, folder: Path, *, accept: Callable[[], bool]) -> Path:
    """Download, verify and unpack a data set; what is there already is verified and left as it is. Gives `tiles.path`.

    Args:
        name: A key of `DATASETS`.
        folder: Where it goes; made if needed.
        accept: Asks whether the licence is accepted, after the terms were said.

    Raises:
        DataError: It has no direct download, the licence is not accepted, or a file cannot be got or is damaged.
        ArtifactError: The disk is full or may not be written.
    """
    row = DATASETS[name]
    logger.info(terms(name))
    if not row.files:
        raise DataError(
            f"{row.title} has no public direct address with a checksum",
            where=row.page,
            fix=f"{row.access}; then give tiles.source {name} and tiles.path the folder with {row.layout}",
        )
    if not accept():
        raise DataError(
            "the licence was not accepted: nothing was downloaded", fix="answer yes, or give --accept-licence"
        )
    with locked(folder / f".{name}"):
        _get(row, folder)
    logger.info(f"{row.title} is in {folder}: tiles.source {name}, tiles.path {folder}")
    return folder


def _get(row: DataSet, folder: Path) -> None:
    for remote in row.files:
        place = folder / remote.makes
        if place.exists():
            logger.info(f"{remote.makes}: {_standing(place, remote, row.page)}")
            continue
        logger.info(f"{remote.name}: downloading")
        archive = fetch(remote.url, folder / remote.name, remote.md5, page=row.page)
        logger.info(f"{remote.name}: checksum right, unpacking")
        unpack(archive, remote.makes)
        if place.is_dir():
            write_json(_stamp(place), {"archive": remote.name, "md5": remote.md5, **_content(place)})
        else:
            _check_file(place, remote, row.page)
        archive.unlink()  # verified and unpacked: kept once, not twice


def _standing(place: Path, remote: Remote, page: str) -> str:
    """What is known of a file or folder that is there already: verified now, or nothing.

    Raises:
        DataError: It is not what was published, or not what was unpacked.
    """
    if place.is_file():
        return "there already" + (", checksum right" if _check_file(place, remote, page) else ", not verified")
    stamp = _stamp(place)
    if not stamp.is_file():
        return "there already, but not unpacked by this command: not verified"
    try:
        noted = json.loads(stamp.read_text(encoding="utf-8"))
    except ValueError:
        noted = {}
    found = _content(place)
    if {key: noted.get(key) for key in found} != found:
        raise DataError(
            f"{found['files']} files with {found['bytes']} bytes, but {noted.get('files')} with "
            f"{noted.get('bytes')} were unpacked here",
            where=place,
            fix=f"delete {place} and {stamp}, and start the same command again",
        )
    return f"there already, with all of its {found['files']} files"


def _check_file(file: Path, remote: Remote, page: str) -> bool:
    """Compare with the published checksum of the unpacked file; False where none is published.

    Raises:
        DataError: They differ.
    """
    if not remote.unpacked_md5:
        return False
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != remote.unpacked_md5:
        raise DataError(
            f"not the published file: its MD5 is {found}, published is {remote.unpacked_md5}",
            where=file,
            fix=f"delete it and start the same command again, or see {page}",
        )
    return True


def _stamp(folder: Path) -> Path:
    """Where it is written what was unpacked into a folder: beside it, so that the folder stays as published."""
    return folder.with_name(f".{folder.name}.unpacked.json")


def _content(folder: Path) -> dict[str, int]:
    """Number of files, and of their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}
