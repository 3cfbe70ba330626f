"""Readers: from a row of a source to its image. Picklable; files are opened in the process that reads."""

import io
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from clipit.errors import DataError, explain
from clipit.tiles.handles import LazyHandle
from clipit.tiles.images import decode


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
        DataError: It is not a zip, or cut off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename: f"{info.file_size}:{info.CRC:08x}" for info in archive.infolist() if not info.is_dir()
            }
    except zipfile.BadZipFile as error:
        raise DataError(explain(f"not a readable zip: {error}", where=path, fix="download or pack it again")) from error
