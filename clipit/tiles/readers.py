"""Readers: from a row of a source to its image. Picklable; files are opened in the process that reads."""

import io
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from clipit.errors import DataError, explain, shortlist
from clipit.tiles.handles import LazyHandle
from clipit.tiles.images import decode

_LOCKED = 0x1 | 0x40
"""Bits of a zip member's flags: encrypted, strongly encrypted."""
_PATCH = 0x20
"""Bit of a zip member's flags: a patch of another file."""
_METHODS = frozenset(
    {
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
        zipfile.ZIP_BZIP2,
        zipfile.ZIP_LZMA,
        getattr(zipfile, "ZIP_ZSTANDARD", zipfile.ZIP_DEFLATED),  # from Python 3.14 on
    }
)
_NAMES = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
"""What other programs call the methods that zipfile cannot undo."""


@runtime_checkable
class Reader(Protocol):
    """What a `TileSet` needs of its source; rows are those of the source as it was read."""

    def read(self, row: int) -> Image.Image:
        """The image of a row, RGB."""
        ...

    def where(self, row: int) -> str:
        """File (and place in it) of a row, for messages."""
        ...


class FileReader:
    """One image file per row."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        """Take the folder and the paths relative to it."""
        self._root = root
        self._files = tuple(files)

    def read(self, row: int) -> Image.Image:
        """Decode the file of a row."""
        return decode(self._root / self._files[row])

    def where(self, row: int) -> str:
        """Path of the file."""
        return str(self._root / self._files[row])


class ZipReader:
    """One member of a zip per row."""

    def __init__(self, path: Path, members: Sequence[str]) -> None:
        """Take the zip and the names of its members."""
        self._path = path
        self._members = tuple(members)
        self._zip = LazyHandle(partial(zipfile.ZipFile, path))

    def read(self, row: int) -> Image.Image:
        """Decode the member of a row; a member whose checksum is wrong is an error."""
        return decode(io.BytesIO(self._zip.get().read(self._members[row])))

    def where(self, row: int) -> str:
        """Path of the zip and name of the member."""
        return f"{self._path}!{self._members[row]}"


def file_stamp(path: Path) -> str:
    """Size and time of change of a file: cheap, and different once its content was replaced.

    Raises:
        FileNotFoundError: There is no such file.
    """
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def zip_stamps(path: Path) -> dict[str, str]:
    """Size and CRC-32 of each file in a zip, from its directory.

    Raises:
        DataError: It is not a zip, or cut off; or files in it are encrypted, or compressed in a way that Python cannot
            undo.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError) as error:  # the latter: of a later version of the format
        raise DataError(explain(f"not a readable zip: {error}", where=path, fix="download or pack it again")) from error
    _check_members(path, members)
    return {info.filename: f"{info.file_size}:{info.CRC:08x}" for info in members}


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Find members that could never be read while that is one message, not a traceback in the middle of a run."""
    locked = [info for info in members if info.flag_bits & _LOCKED]
    if locked:
        raise DataError(
            explain(
                f"{len(locked)} of {len(members)} files in the zip are encrypted",
                where=f"{path}!{locked[0].filename}",
                fix="unpack it with its password and pack it again without one, or give the unpacked folder",
            )
        )
    strange = [info for info in members if info.flag_bits & _PATCH or info.compress_type not in _METHODS]
    if strange:
        raise DataError(
            explain(
                f"{len(strange)} of {len(members)} files in the zip are compressed in a way that Python cannot undo: "
                + shortlist(sorted({_method(info) for info in strange})),
                where=f"{path}!{strange[0].filename}",
                fix="pack it again with the ordinary method (Deflate), or give the unpacked folder",
            )
        )


def _method(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _PATCH:
        return "patched data"
    name = _NAMES.get(info.compress_type)
    return f"method {info.compress_type}" + (f" ({name})" if name else "")
