"""Read members of plain tar files (shards) by offset, in any order, without extraction."""

import io
import os
import re
import tarfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt32
from PIL import Image

from clipit.errors import DataError, counted_of, is_limit, shortlist
from clipit.images.decode import ImageError, decode
from clipit.input_files.folder_files import list_files, reject_repeated, reject_unlisted
from clipit.input_files.git_lfs import check_pointer
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.zip_files import reject_compressed

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MAX_SHARDS = 1_000_000
_SCHEME = re.compile(r"^(pipe:|[A-Za-z][A-Za-z0-9+.-]*://)")
_BLOCK = 512  # bytes of a header, and the unit to which members are padded
_READ = 2**20  # bytes read at a time after the end-of-archive marker
_MAX_OPEN = 256  # shards that a process keeps open; others are opened for each read


def expand_braces(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{000..123}` in a pattern, in order, like bash and the webdataset package.

    Raises:
        DataError: A brace is not closed, or there are more than a million results.
    """
    choices: list[list[str]] = []
    begin = 0
    while (start := pattern.find("{", begin)) >= 0:
        stop = _closing(pattern, start)
        choices += [[pattern[begin:start]], _alternatives(pattern[start + 1 : stop], pattern)]
        begin = stop + 1
    choices.append([pattern[begin:]])
    if int(np.prod([len(texts) for texts in choices], dtype=np.float64)) > _MAX_SHARDS:
        raise _bad_braces(pattern, f"the pattern names more than {_MAX_SHARDS:,} shards")
    return ["".join(parts) for parts in product(*choices)]


def _closing(pattern: str, start: int) -> int:
    """Return the index of the brace that closes the one at `start`."""
    depth = 0
    for index in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[index], 0)
        if depth == 0:
            return index
    raise _bad_braces(pattern, "a brace is not closed")


def _alternatives(inner: str, pattern: str) -> list[str]:
    """Expand the content of a pair of braces."""
    numbers = _RANGE.fullmatch(inner)
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= _MAX_SHARDS:
            raise _bad_braces(pattern, f"the pattern names more than {_MAX_SHARDS:,} shards")
        padded = any(text.lstrip("-").startswith("0") and len(text.lstrip("-")) > 1 for text in numbers.groups())
        width = max(map(len, numbers.groups())) if padded else 0
        step = 1 if last >= first else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    parts, depth, begin = list[str](), 0, 0
    for index, char in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(inner[begin:index])
            begin = index + 1
    parts.append(inner[begin:])
    if len(parts) == 1:
        raise _bad_braces(pattern, f"{{{inner}}} is neither a list such as {{a,b}} nor a range such as {{000..123}}")
    return [text for part in parts for text in expand_braces(part)]


def _bad_braces(pattern: str, problem: str) -> DataError:
    return DataError(problem, where=pattern, fix="set tiles.path to a pattern such as shards/train-{000..123}.tar")


def list_shards(path: str) -> list[Path]:
    """List the shards of a path: a tar file, a folder of tar files, or brace patterns joined by `::`.

    Raises:
        DataError: Shards are missing or named twice, the path is a URL or a pipe, a folder has no shards, or a link in
            it leads to a folder that is also read under another path.
    """
    if _SCHEME.match(path):
        raise DataError(
            "shards are read in random order from files, not from a pipe or URL",
            where=path,
            fix="copy the shards to a disk or mount them; a data set on the Hugging Face Hub can be streamed with "
            "tiles.source=huggingface and tiles.streaming=true",
        )
    folder = Path(path).expanduser()
    if folder.is_dir():
        listing = list_files(folder, lambda file: file.suffix.lower() == ".tar" and not file.name.startswith("."))
        reject_unlisted([*listing.dangling, *listing.undecodable], folder)
        reject_repeated(listing.repeated, folder)
        if not listing.files:
            raise DataError("no .tar files in this folder", where=path, fix="correct tiles.path")
        return listing.files
    shards = [Path(name).expanduser() for text in path.split("::") for name in expand_braces(text)]
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        raise DataError(
            f"{counted_of(len(missing), len(shards), 'shard does', 'shards do')} not exist: {shortlist(missing, 3)}",
            where=path,
            fix=f"correct tiles.path; {similar_names(missing[0])}",
        )
    twice = sorted({str(shard) for shard in shards if shards.count(shard) > 1}) if len({*shards}) < len(shards) else []
    if twice:
        raise DataError(f"a shard is named twice: {shortlist(twice, 3)}", where=path, fix="name each shard once")
    return shards


@dataclass(frozen=True)
class TarMember:
    """File in a shard: its name, offset and size in bytes."""

    name: str
    offset: int
    size: int


def scan_tar(path: Path, pattern: "re.Pattern[str]", max_bytes: int) -> Iterator[tuple[TarMember, bytes | None]]:
    """Yield the files of a shard in order, with the content of those that match `pattern`, and None for others.

    Only headers and matching files are read.

    Args:
        pattern: Regular expression for the names of files whose content is read.
        max_bytes: Maximum size of a matching file.

    Raises:
        DataError: The shard is not a plain tar file, is truncated or damaged, continues after its end-of-archive
            marker, or contains links, sparse files or a matching file that is too large.
    """
    with path.open("rb") as stream:
        reject_compressed(stream.read(10), path)
        stream.seek(0)
        size = os.fstat(stream.fileno()).st_size
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    if member.isdir():
                        continue
                    if not member.isreg() or member.issparse():
                        raise DataError(
                            f"{member.name} is a link, a sparse file or a device, not a plain file",
                            where=path,
                            fix="write the shard again with tar --dereference --hard-dereference, or webdataset",
                        )
                    content = None
                    if pattern.search(member.name):
                        if member.size > max_bytes:
                            raise DataError(
                                f"{member.name} is {member.size:,} bytes; the maximum is {max_bytes:,}",
                                where=path,
                                fix="shorten it",
                            )
                        reader = archive.extractfile(member)
                        content = reader.read() if reader is not None else b""
                    yield TarMember(member.name, member.offset_data, member.size), content
                end = archive.offset
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            if isinstance(error, DataError) or is_limit(error) or getattr(error, "errno", None) is not None:
                raise
            raise _damaged(path, str(error)) from error
        # tarfile treats a damaged header as the end of the file.
        stream.seek(end)
        if end + _BLOCK > size or any(stream.read(_BLOCK)):
            raise _damaged(path, f"no end-of-archive marker at byte {end:,} of {size:,}")
        while rest := stream.read(_READ):
            if rest.count(0) < len(rest):
                raise DataError(
                    f"not a single tar file: data follow the end-of-archive marker at byte {end:,} of {size:,}",
                    where=path,
                    fix="write one shard per file; shards that were joined with cat must be split again",
                )


def _damaged(path: Path, problem: str) -> DataError:
    check_pointer(path)
    return DataError(
        f"not a complete plain tar file: {problem}",
        where=path,
        fix="copy or download the shard again, or write it again",
    )


class TarReader:
    """Reads shard members by row number; each process opens the shards itself."""

    def __init__(
        self,
        shards: Sequence[Path],
        names: Sequence[str],
        shard_of: Int32[np.ndarray, " n"],
        offsets: Int64[np.ndarray, " n"],
        sizes: Int64[np.ndarray, " n"],
        checksums: UInt32[np.ndarray, " n"] | None = None,
    ) -> None:
        """Store the location of each row, without opening any shard.

        Args:
            names: Name of each row, for error messages.
            shard_of: Index of each row's shard.
            offsets: Offset of each row in its shard, in bytes.
            sizes: Size of each row in bytes; 0 if the row has no image.
            checksums: CRC-32 of each row, verified when it is read; None to skip verification.
        """
        self._shards = tuple(shards)
        self._names = names
        self._shard_of, self._offsets, self._sizes, self._checksums = shard_of, offsets, sizes, checksums
        self._forget()

    def _forget(self) -> None:
        self._handles: dict[int, int] = {}
        self._lock = threading.Lock()

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        handle = self._handles.get(shard)
        if handle is not None:
            return os.pread(handle, size, offset)
        handle = os.open(self._shards[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        with self._lock:
            kept = shard not in self._handles and len(self._handles) < _MAX_OPEN
            if kept:
                self._handles[shard] = handle
        try:
            return os.pread(handle, size, offset)
        finally:
            if not kept:
                os.close(handle)

    def content(self, row: int) -> bytes:
        """Read the bytes of a row; empty if the row has no image.

        Raises:
            ImageError: The shard has changed: it is shorter, or the checksum is wrong.
        """
        size = int(self._sizes[row])
        if not size:
            return b""
        data = self._pread(int(self._shard_of[row]), size, int(self._offsets[row]))
        if len(data) < size:
            raise ImageError("the shard is shorter than recorded in its index")
        if self._checksums is not None and zlib.crc32(data) != int(self._checksums[row]):
            raise ImageError("the checksum is wrong: the shard is damaged")
        return data

    def open(self, row: int) -> io.BytesIO:
        """Return the image for a row as a file.

        Raises:
            ImageError: The row has no image, or the shard has changed.
        """
        data = self.content(row)
        if not data:
            raise ImageError("the row has no image")
        return io.BytesIO(data)

    def read(self, row: int) -> Image.Image:
        """Decode the member for a row."""
        return decode(self.open(row))

    def where(self, row: int) -> str:
        """Return the shard and the name of a row, for error messages."""
        return f"{self._shards[int(self._shard_of[row])]}!{self._names[row]}"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without open files."""
        return {name: value for name, value in vars(self).items() if name not in ("_handles", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle without open files."""
        vars(self).update(state)
        self._forget()

    def __del__(self) -> None:
        """Close the shards."""
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)
