"""Archives into folders: whole or not at all, and never outside the folder."""

import gzip
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from clipit.artifacts import whole_file
from clipit.errors import DataError, disk_errors, explain
from clipit.tiles.readers import zip_stamps


def unpack(archive: Path, makes: str) -> Path:
    """Unpack a zip or a gzipped file beside itself; gives the path of what it holds.

    Args:
        archive: `*.zip` with one folder at its top, or `*.gz` with one file.
        makes: Name of that folder or file.

    Raises:
        DataError: It is damaged, holds something else, or a name in it points out of the folder.
    """
    target = archive.parent / makes
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
    zip_stamps(archive)  # encrypted or unreadable members are an error before anything is written
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
            found = ", ".join(sorted(entry.name for entry in temporary.glob("*"))) or "nothing"
            raise DataError(
                explain(f"the zip holds {found}, not the folder {target.name}", where=archive, fix="unpack it by hand")
            )
        (temporary / target.name).rename(target)
        shutil.rmtree(temporary)


def _check_name(archive: Path, member: zipfile.ZipInfo) -> None:
    """Refuse names that lead elsewhere, and links."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    drive = bool(path.parts) and path.parts[0].endswith(":")
    link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or drive or link:
        raise DataError(
            explain(
                f"the zip wants to write outside its folder: {member.filename!r}",
                where=archive,
                fix="do not use this file; get it from the page of the data set",
            )
        )


def _damaged(archive: Path, error: Exception) -> DataError:
    return DataError(
        explain(f"the archive is damaged: {error}", where=archive, fix="delete it and start the same command again")
    )
