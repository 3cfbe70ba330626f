"""Download archives (resumable, with verified checksums) and unpack them."""

import gzip
import hashlib
import http.client
import logging
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from clipit.errors import DataError, disk_errors
from clipit.images.image_readers import zip_stamps
from clipit.output_files.artifacts import whole_file

logger = logging.getLogger(__name__)

_BLOCK = 2**20  # bytes read at a time
_TIMEOUT_S = 60.0
_RETRY = "run the same command again, which resumes the download"


def fetch(url: str, target: Path, md5: str, *, page: str) -> Path:
    """Download a file to `target`, resuming `<target>.partial` if it exists.

    A file with a wrong checksum is renamed to `<target>.bad` and not used.

    Args:
        target: Output path; an existing file is verified and not downloaded again.
        md5: Published MD5 checksum, as hexadecimal digits.
        page: Web page of the data set, for error messages.

    Raises:
        DataError: The network or the server fails, or the checksum is wrong.
        ArtifactError: The disk is full or not writable.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            _verify(target, target, md5, page)
            return target
        partial = target.with_name(target.name + ".partial")
        try:
            _download_rest(url, partial)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise DataError(
                f"the download failed: {error}",
                where=url,
                fix=f"check the network and {_RETRY}; or download the file by hand from {page} to {target}",
            ) from error
        _verify(partial, target, md5, page)
        partial.replace(target)
    return target


def _download_rest(url: str, partial: Path) -> None:
    """Download the missing bytes into the partial file."""
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "clipit"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # already complete, or the file on the server has changed
            if error.headers.get("Content-Range", "") != f"bytes */{start}":
                partial.unlink()
                _download_rest(url, partial)
            return
        raise
    with response:
        resumed = response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(
            f"bytes {start}-"
        )
        if start and not resumed:
            logger.info("the server cannot resume downloads: starting over")
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with partial.open("ab" if start else "wb") as stream:
            received = start + _copy(response, stream, start, total)
    if total is not None and received < total:
        raise ConnectionError(f"the connection was lost after {received} of {total} bytes")


def _copy(response: http.client.HTTPResponse, stream: IO[bytes], start: int, total: int | None) -> int:
    """Copy the response to a file, log progress every 10%, and return the number of bytes."""
    done, logged = start, start * 10 // total if total else 0
    if start:
        logger.info(f"resuming at {start / 2**20:.1f} MiB")
    while block := response.read(_BLOCK):
        stream.write(block)
        done += len(block)
        if total and done * 10 // total > logged:
            logged = done * 10 // total
            logger.info(f"{done / 2**20:.1f} of {total / 2**20:.1f} MiB")
    return done - start


def file_md5(file: Path) -> str:
    """Return the MD5 checksum of a file, as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _verify(file: Path, target: Path, md5: str, page: str) -> None:
    actual = file_md5(file)
    if actual == md5:
        return
    rejected = target.with_name(target.name + ".bad")
    file.replace(rejected)
    raise DataError(
        f"wrong checksum: the MD5 is {actual}, expected {md5}; the file was renamed and is not used",
        where=rejected,
        fix=f"delete it and run the same command again; if the checksum is still wrong, compare it with {page}",
    )


def unpack(archive: Path, content: str) -> Path:
    """Unpack a zip or gzip file into its folder, completely or not at all, and return the path of the content.

    Args:
        archive: Path of a zip file with one top-level folder, or of a gzip file.
        content: Name of that folder, or of the decompressed file.

    Raises:
        DataError: The archive is damaged, has unexpected content, or contains a link or a path outside its folder.
    """
    target = archive.parent / content
    if archive.suffix == ".gz":
        _gunzip(archive, target)
    else:
        _unzip(archive, target)
    return target


def _gunzip(archive: Path, target: Path) -> None:
    try:
        with whole_file(target) as temporary, gzip.open(archive) as source, temporary.open("wb") as stream:
            shutil.copyfileobj(source, stream, 2**20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(archive, error) from error


def _unzip(archive: Path, target: Path) -> None:
    zip_stamps(archive)  # raises for encrypted or unreadable members before anything is written
    temporary = target.with_name(f".{target.name}.unpacking")
    with disk_errors(target):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with zipfile.ZipFile(archive) as source:
                for member in source.infolist():
                    _check_name(archive, member)
                    source.extract(member, temporary)
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise _damaged(archive, error) from error
        if not (temporary / target.name).is_dir():
            names = ", ".join(sorted(entry.name for entry in temporary.glob("*"))) or "nothing"
            raise DataError(
                f"the zip contains {names}, not the folder {target.name}", where=archive, fix="unpack it by hand"
            )
        (temporary / target.name).rename(target)
        shutil.rmtree(temporary)


def _check_name(archive: Path, member: zipfile.ZipInfo) -> None:
    """Reject links and paths outside the folder."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    drive = bool(path.parts) and path.parts[0].endswith(":")
    link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or drive or link:
        raise DataError(
            f"the zip contains a link or a path outside its folder: {member.filename!r}",
            where=archive,
            fix="do not use this file; download the data set from its own page",
        )


def _damaged(archive: Path, error: Exception) -> DataError:
    return DataError(f"the archive is damaged: {error}", where=archive, fix="delete it and run the same command again")
