"""Fingerprint (stamp) of a slide's content; DICOM, MRXS and VMS slides consist of several files."""

from hashlib import sha256
from pathlib import Path

from clipit.images.image_readers import file_stamp
from clipit.slides.dicom import SUFFIX as DICOM
from clipit.slides.dicom import series_of


def slide_files(path: Path) -> list[Path]:
    """List all files of a slide, sorted: the given file and, in some formats, others.

    The others are the files of the same series in the folder (DICOM), the files in the folder of the same name (MRXS),
    or the files that the given file lists (VMS, VMU).

    Args:
        path: File with which the slide is opened.
    """
    suffix = path.suffix.lower()
    others: list[Path] = []
    if suffix == DICOM:
        series = series_of(path)
        same_kind = [file for file in path.parent.iterdir() if file.suffix.lower() == DICOM and file.is_file()]
        others = [file for file in same_kind if series and series_of(file) == series]
    elif suffix == ".mrxs":
        data = path.with_suffix("")
        others = [file for file in data.iterdir() if file.is_file()] if data.is_dir() else []
    elif suffix in (".vms", ".vmu"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        named = [
            path.parent / value.strip() for _, separator, value in (line.partition("=") for line in lines) if separator
        ]
        others = [file for file in named if file.name and file.parent == path.parent and file.is_file()]
    return sorted({path, *others})


def slide_stamp(path: Path) -> str:
    """Return a fingerprint of the slide's content, which changes when any of its files is replaced, added or removed.

    For a slide with a single file, this is the stamp of that file.

    Raises:
        OSError: A file cannot be read.
    """
    files = slide_files(path)
    if files == [path]:
        return file_stamp(path)
    listed = "\n".join(f"{file.relative_to(path.parent).as_posix()} {file_stamp(file)}" for file in files)
    return f"{len(files)} files:{sha256(listed.encode(errors='surrogateescape')).hexdigest()[:16]}"
