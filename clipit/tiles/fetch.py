"""One file from the web: resumed where it was cut off, used only when its checksum is right."""

import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from clipit.errors import DataError, disk_errors, explain

logger = logging.getLogger(__name__)

_BLOCK = 2**20
_TIMEOUT_S = 60.0
_RETRY = "start the same command again: it goes on where it stopped"


def fetch(url: str, target: Path, md5: str, *, page: str) -> Path:
    """Download a file to `target`; until it is whole and verified it is called `<target>.partial`.

    A file whose checksum is wrong is kept aside as `<target>.bad`, and not used.

    Args:
        url: Direct address.
        target: Where it goes; when it is there already it is verified only.
        md5: Published checksum of its bytes, in hexadecimal digits.
        page: Page of the data set, for messages.

    Raises:
        DataError: No network, the server refuses or breaks off, or the checksum is wrong.
        ArtifactError: The disk is full or may not be written.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            _verify(target, target, md5, page)
            return target
        partial = target.with_name(target.name + ".partial")
        try:
            _load(url, partial)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise DataError(
                explain(
                    f"the download failed: {error}",
                    where=url,
                    fix=f"check the network and {_RETRY}; or get the file by hand from {page} and put it at {target}",
                )
            ) from error
        _verify(partial, target, md5, page)
        partial.replace(target)
    return target


def _load(url: str, partial: Path) -> None:
    """Append what is missing to the partial file."""
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "clipit"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send: whole already, or not the same file any more
            if error.headers.get("Content-Range", "") != f"bytes */{start}":
                partial.unlink()
                _load(url, partial)
            return
        raise
    with answer:
        goes_on = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-")
        if start and not goes_on:
            logger.info("the server does not go on where it stopped: from the start")
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        with partial.open("ab" if start else "wb") as stream:
            got = start + _copy(answer, stream, start, total)
    if total is not None and got < total:
        raise ConnectionError(f"the connection broke off after {got} of {total} bytes")


def _copy(answer: http.client.HTTPResponse, stream: IO[bytes], start: int, total: int | None) -> int:
    """Copy the answer, saying every tenth of the whole; gives the number of bytes."""
    done, said = start, start * 10 // total if total else 0
    if start:
        logger.info(f"going on at {start / 2**20:.1f} MiB")
    while block := answer.read(_BLOCK):
        stream.write(block)
        done += len(block)
        if total and done * 10 // total > said:
            said = done * 10 // total
            logger.info(f"{done / 2**20:.1f} of {total / 2**20:.1f} MiB")
    return done - start


def _verify(file: Path, target: Path, md5: str, page: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found == md5:
        return
    bad = target.with_name(target.name + ".bad")
    file.replace(bad)
    raise DataError(
        explain(
            f"the checksum is wrong: md5 {found}, published is {md5}; the file was set aside and is not used",
            where=bad,
            fix=f"delete it and start the same command again; if that gives the same, compare with {page}",
        )
    )
