"""Picklable readers that decode images from a folder or zip by row, and open files in the reading process."""

import io
import os
import stat
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import Image

from clipit.errors import DataError, counted, counted_of, is_limit, shortlist
from clipit.images.decode import ImageError, decode
from clipit.input_files.folder_files import BROKEN_LINK
from clipit.input_files.git_lfs import check_pointer
from clipit.input_files.nearby_files import SAVE_FIRST, special_kind
from clipit.input_files.zip_files import member_name, open_zip

T = TypeVar("T")


class LazyHandle(Generic[T]):
    """A handle opened on first use in each process; pickled and forked copies never share it.

    Args:
        opener: Picklable function without arguments (`functools.partial` of a class).
    """

    def __init__(self, opener: Callable[[], T]) -> None:
        """Store the opener; the handle is opened by `get`."""
        self._opener = opener
        self._reset()

    def _reset(self) -> None:
        self._handle: T | None = None
        self._pid = -1
        self._lock = threading.Lock()

    def get(self) -> T:
        """Return the open handle of this process."""
        if self._pid != os.getpid():
            # A lock that was held during the fork would stay held in the child forever.
            self._reset()
            self._pid = os.getpid()
        with self._lock:
            if self._handle is None:
                self._handle = self._opener()
            return self._handle

    def __getstate__(self) -> dict[str, Any]:
        """Pickle only the opener."""
        return {"opener": self._opener}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle as a closed handle."""
        self.__init__(state["opener"])  # type: ignore[misc]


_ENCRYPTED = 0x1 | 0x40
"""Flag bits of a zip member: encrypted, strongly encrypted."""
_PATCHED = 0x20
"""Flag bit of a zip member that is a patch for another file."""
_KNOWN_METHODS = frozenset(
    {
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
        zipfile.ZIP_BZIP2,
        zipfile.ZIP_LZMA,
        getattr(zipfile, "ZIP_ZSTANDARD", zipfile.ZIP_DEFLATED),  # from Python 3.14 on
    }
)
_METHOD_NAMES = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
"""Names of compression methods that zipfile does not support."""
_MAX_MEMBER = 2**30  # bytes; more than the largest image that Pillow opens, uncompressed


@runtime_checkable
class Reader(Protocol):
    """Reads images of a source by row; rows are numbered in the order of the source."""

    def read(self, row: int) -> Image.Image:
        """Decode the image for a row as RGB."""
        ...

    def where(self, row: int) -> str:
        """Return the file for a row, and the position within the file if there is one, for messages."""
        ...


class FileReader:
    """Reads one image file per row."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        """Read `files`, given as paths relative to `root`."""
        self._root = root
        self._files = tuple(files)

    def open(self, row: int) -> Path:
        """Return the file for a row."""
        return self._root / self._files[row]

    def read(self, row: int) -> Image.Image:
        """Decode the file for a row."""
        path = self.open(row)
        try:
            return decode(path)
        except OSError as error:
            if path.is_symlink() and error.errno in BROKEN_LINK:
                raise ImageError("a link to a file that does not exist") from None
            raise

    def where(self, row: int) -> str:
        """Return the path of the file, for messages."""
        return str(self._root / self._files[row])


_MEMBER = np.dtype(
    [("offset", "<i8"), ("packed", "<i8"), ("size", "<i8"), ("crc", "<u4"), ("method", "<u2"), ("flags", "<u2")]
)
"""Location, sizes, checksum and flags of a zip member, in 32 bytes; an entry of zipfile takes about 600."""
_ABSENT = -(2**62)  # offset of a member that the zip does not contain


class _OpenZip:
    """An open zip that only keeps the offsets of the requested members."""

    def __init__(self, path: Path, members: Sequence[str]) -> None:
        self._archive, self._members = zipfile.ZipFile(path), members
        infos = {member_name(info): info for info in self._archive.infolist()}
        absent = (_ABSENT, 0, 0, 0, 0, 0)  # members are missing if the zip was replaced after they were listed
        self._places = np.fromiter(
            (_member(infos[name]) if name in infos else absent for name in members), dtype=_MEMBER, count=len(members)
        )
        self._stored_names = {
            row: infos[name].orig_filename
            for row, name in enumerate(members)
            if name in infos and infos[name].orig_filename != name
        }
        self._archive.filelist.clear()
        self._archive.NameToInfo.clear()

    def info(self, row: int) -> zipfile.ZipInfo:
        """Return the entry of a member.

        Raises:
            ImageError: The zip was replaced and does not contain the member.
        """
        info = zipfile.ZipInfo(self._members[row])
        offset, info.compress_size, info.file_size, info.CRC, info.compress_type, info.flag_bits = self._places[
            row
        ].item()
        if offset == _ABSENT:
            raise ImageError("no longer in the zip")
        if offset < 0:  # zipfile corrects all offsets by the number of missing bytes
            raise ImageError("bytes are missing from the zip: copy it again")
        info.header_offset = offset
        info.orig_filename = self._stored_names.get(row, info.filename)
        return info

    def read(self, info: zipfile.ZipInfo, size: int | None = None) -> bytes:
        """Unpack a member and check its checksum."""
        with self._archive.open(info) as stream:
            return stream.read() if size is None else stream.read(size)


def _member(info: zipfile.ZipInfo) -> tuple[int, ...]:
    return info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type, info.flag_bits


class ZipReader:
    """Reads one member of a zip per row."""

    def __init__(self, path: Path, members: Sequence[str]) -> None:
        """Read `members` of the zip at `path`."""
        self._path = path
        self._members = tuple(members)
        self._zip = LazyHandle(partial(_OpenZip, path, self._members))

    def open(self, row: int, size: int | None = None) -> io.BytesIO:
        """Unpack the member for a row.

        Args:
            size: Maximum number of bytes; None for all, in which case the checksum is verified.

        Raises:
            ImageError: The member is damaged, its checksum is wrong, or it is larger than any image that Pillow opens.
        """
        archive = self._zip.get()
        try:
            info = archive.info(row)
            if size is None and info.file_size > _MAX_MEMBER:
                raise ImageError(
                    f"unpacked, it is {info.file_size / 2**30:.1f} GiB, larger than any image that Pillow opens"
                )
            data = archive.read(info, size)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # each compression method raises its own exceptions for corrupt data
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ImageError(f"{type(error).__name__}: {error}") from error
        return io.BytesIO(data)

    def read(self, row: int) -> Image.Image:
        """Decode the member for a row, after its checksum has been verified."""
        return decode(self.open(row))

    def where(self, row: int) -> str:
        """Return the zip and the member, for messages."""
        return f"{self._path}!{self._members[row]}"


def file_stamp(path: Path) -> str:
    """Return the size and modification time of a file, which change when its content is replaced.

    Raises:
        FileNotFoundError: The file does not exist.
        DataError: The path is a folder, or a pipe, a device or a socket; reading one of these could block forever.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise DataError("this is a folder, not a file", where=path, fix="correct the path, or remove the row")
    if kind := special_kind(status.st_mode):
        raise DataError(f"this is {kind}, not a file", where=path, fix=SAVE_FIRST)
    return f"{status.st_size}:{status.st_mtime_ns}"


def zip_stamps(path: Path) -> dict[str, str]:
    """Return the size and CRC-32 of each file in a zip, from its central directory; paths have forward slashes.

    Raises:
        DataError: The zip is invalid or truncated, or contains two files with the same name, paths with `..`, encrypted
            files, or files compressed with a method that Python does not support.
    """
    try:
        with open_zip(path) as archive:
            members = [info for info in archive.infolist() if not member_name(info).endswith("/")]
    except PermissionError:
        raise
    except Exception as error:  # zipfile raises many kinds of exceptions for damaged central directories
        if is_limit(error):
            raise
        check_pointer(path)
        raise DataError(f"not a readable zip: {error}", where=path, fix="download or repack it") from error
    _check_members(path, members)
    outside = [member_name(info) for info in members if ".." in member_name(info).split("/")]
    if outside:
        raise DataError(
            f"the zip contains {counted(len(outside), 'path')} outside its folder: {shortlist(outside)}",
            where=path,
            fix="repack it from a folder",
        )
    repeated = [name for name, count in Counter(map(member_name, members)).items() if count > 1]
    if repeated:
        raise DataError(
            f"{counted(len(repeated), 'name occurs', 'names occur')} more than once in the zip: {shortlist(repeated)}",
            where=path,
            fix="repack it from a folder; which of these files is read depends on the program",
        )
    return {member_name(info): f"{info.file_size}:{info.CRC:08x}" for info in members}


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Reject members that cannot be unpacked, before a run starts to read them."""
    encrypted = [info for info in members if info.flag_bits & _ENCRYPTED]
    if encrypted:
        raise DataError(
            f"{counted_of(len(encrypted), len(members), 'file in the zip is', 'files in the zip are')} encrypted",
            where=f"{path}!{encrypted[0].filename}",
            fix="unpack it with its password and repack it without one, or use the unpacked folder",
        )
    unsupported = [info for info in members if info.flag_bits & _PATCHED or info.compress_type not in _KNOWN_METHODS]
    if unsupported:
        raise DataError(
            f"{counted_of(len(unsupported), len(members), 'file in the zip has', 'files in the zip have')} a "
            "compression method unknown to Python: " + shortlist(sorted({_method_name(info) for info in unsupported})),
            where=f"{path}!{unsupported[0].filename}",
            fix="repack it with the standard method (Deflate), or use the unpacked folder",
        )


def _method_name(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _PATCHED:
        return "patched data"
    name = _METHOD_NAMES.get(info.compress_type)
    return f"method {info.compress_type}" + (f" ({name})" if name else "")
