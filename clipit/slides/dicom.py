"""DICOM slides: a series of files, one per level; openslide opens the series from any of its files."""

from collections.abc import Hashable, Iterable
from pathlib import Path

SUFFIX = ".dcm"
_SERIES = b"\x20\x00\x0e\x00UI"  # tag and type of SeriesInstanceUID, explicit VR, little endian
_HEADER = 2**20  # bytes to search; the tag comes before the pixels


def series_of(path: Path) -> str:
    """Return the UID of a DICOM file's series; "" if the file cannot be read or names no series."""
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER)
    except OSError:
        return ""
    _, separator, rest = header.partition(_SERIES)
    if not separator or len(rest) < 2:
        return ""
    length = int.from_bytes(rest[:2], "little")
    return rest[2 : 2 + length].decode("ascii", errors="replace").strip(" \0")


def slide_key(path: Path) -> Hashable:
    """Return the identity of a slide: its file, or folder and series for a DICOM file."""
    resolved = path.resolve()
    series = series_of(path) if path.suffix.lower() == SUFFIX else ""
    return (resolved.parent, series) if series else resolved


def one_per_slide(files: Iterable[Path]) -> list[Path]:
    """Keep one file per DICOM series and folder, and all files of other formats, in their original order."""
    kept: dict[Hashable, Path] = {}
    for number, path in enumerate(files):
        key = slide_key(path) if path.suffix.lower() == SUFFIX else number  # other files are compared by the caller
        kept.setdefault(key, path)
    return list(kept.values())
