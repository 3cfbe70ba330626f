"""Images with ids, from image files, folders and zips."""

import math
import os
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

from PIL import Image

from clipit.errors import DataError, counted, counted_of, repeats, shortlist
from clipit.images.decode import SUFFIXES, Unreadable, attempt, is_image
from clipit.images.image_files import has_suffix, image_files, image_stamps
from clipit.images.image_readers import FileReader, Reader, ZipReader, file_stamp, zip_stamps
from clipit.input_files.folder_files import hidden_note, is_hidden
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.zip_files import check_uncompressed

ZIP = ".zip"
_SQUARE = 1.05  # maximum ratio of the edges of an image that counts as square


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order; they stay on disk until they are read.

    Attributes:
        ids: Unique names, such as paths relative to a folder.
        stamps: Stamp of each image: a string that changes if the file is replaced.
        notes: Notes on the images, such as the number of skipped files.
        mpp: Micrometres per pixel of each image, NaN where unknown; empty if no input states them.
    """

    ids: Sequence[str]
    stamps: Sequence[str]
    reader: Reader
    where: str
    notes: tuple[str, ...] = ()
    mpp: Sequence[float] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over ids and stamps."""
        digest = sha256()
        for column in (self.ids, self.stamps):
            digest.update("\n".join(column).encode())
            digest.update(b"\0")
        return digest.hexdigest()[:16]

    def read(self, row: int) -> Image.Image:
        """Read an image as RGB.

        Raises:
            DataError: The image cannot be opened or decoded.
        """
        image = self.try_read(row)
        if isinstance(image, Unreadable):
            raise DataError(
                f"the image {self.ids[row]} cannot be decoded: {image.reason}",
                where=self.reader.where(row),
                fix="replace the file, or remove it",
            )
        return image

    def try_read(self, row: int) -> Image.Image | Unreadable:
        """Read an image as RGB; return an `Unreadable` if it cannot be decoded or read permission is missing.

        Raises:
            DataError: The file cannot be opened for another reason, such as a disconnected disk.
        """
        where = self.reader.where(row)
        try:
            return attempt(lambda: self.reader.read(row), tile_id=self.ids[row], where=where)
        except DataError as error:
            if isinstance(error.__cause__, PermissionError):
                return Unreadable("no permission to read the file")
            raise


class JoinedReader:
    """Reads the rows of several readers, one after the other."""

    def __init__(self, readers: Sequence[Reader], counts: Sequence[int]) -> None:
        """Join readers, given their numbers of rows."""
        self._readers = list(readers)
        self._starts = [0, *accumulate(counts)][:-1]

    def _find(self, row: int) -> tuple[Reader, int]:
        index = bisect_right(self._starts, row) - 1
        return self._readers[index], row - self._starts[index]

    def read(self, row: int) -> Image.Image:
        """Decode the image for a row as RGB."""
        reader, local_row = self._find(row)
        return reader.read(local_row)

    def where(self, row: int) -> str:
        """Return the file for a row, for messages."""
        reader, local_row = self._find(row)
        return reader.where(local_row)


def open_images(path: Path) -> ImageSet:
    """List the images of a folder or zip, sorted by id, or open one image file.

    The id of an image is its path relative to the folder or in the zip; the id of a single file is its name. Hidden
    images, images in hidden folders and files that are not images are skipped with a note.

    Raises:
        DataError: The path does not exist, contains no images, or is a file of a different kind.
    """
    if path.is_dir():
        files = image_files(path, "quarantine")
        stamps, reader = image_stamps(path, files.images), FileReader(path, files.images)
        return _nonempty_set(path, files.images, stamps, reader, files.others, files.notes)
    if not path.exists():
        raise DataError("no such file or folder", where=path, fix=f"correct the path; {similar_names(str(path))}")
    if path.suffix.lower() == ZIP:
        stamp_of = zip_stamps(path)
        names = sorted(name for name in stamp_of if is_image(name) and not is_hidden(name))
        others = [name for name in stamp_of if not has_suffix(Path(name)) and not is_hidden(name)]
        hidden = sorted(name for name in stamp_of if has_suffix(Path(name)) and is_hidden(name))
        stamps = [stamp_of[name] for name in names]
        return _nonempty_set(path, names, stamps, ZipReader(path, names), others, hidden_note(hidden, "image"))
    check_uncompressed(path)
    if not has_suffix(path):  # a hidden file is read if it is named
        raise DataError(
            "neither an image file in a supported format nor a folder or zip of images",
            where=path,
            fix=f"use files with the suffixes {', '.join(sorted(SUFFIXES))}",
        )
    return ImageSet([path.name], [file_stamp(path)], FileReader(path.parent, [path.name]), str(path))


def join_images(sets: Sequence[ImageSet]) -> ImageSet:
    """Join several sets of images, in order.

    Raises:
        DataError: A file or an id occurs more than once.
    """
    _check_files_once(sets)
    ids = [name for images in sets for name in images.ids]
    if repeated := repeats(ids, _join_readers(sets).where):
        parent = Path(os.path.commonpath([Path(images.where).absolute() for images in sets]))
        parent = parent if parent.is_dir() else parent.parent
        unpacked = "unpack the zips and " if any(images.where.lower().endswith(ZIP) for images in sets) else ""
        raise DataError(
            f"{counted(len(repeated), 'image id occurs', 'image ids occur')} more than once: {shortlist(repeated, 3)}",
            where=shortlist([images.where for images in sets], 3),
            fix=f"pass each image once; to keep the ids of several folders apart, {unpacked}pass the folder that "
            f"contains them ({parent}), or a table with an `id` column",
        )
    if len(sets) == 1:
        return sets[0]
    stamps = [stamp for images in sets for stamp in images.stamps]
    notes = tuple(note for images in sets for note in images.notes)
    mpp = [number for images in sets for number in images.mpp or [math.nan] * len(images)]
    return ImageSet(ids, stamps, _join_readers(sets), shortlist([images.where for images in sets], 3), notes, mpp)


def _check_files_once(sets: Sequence[ImageSet]) -> None:
    """Reject files that belong to two sets, such as those of a folder and of its subfolder."""
    files = [
        (stamp, images.reader.open(row))
        for images in (sets if len(sets) > 1 else ())
        if isinstance(images.reader, FileReader)
        for row, stamp in enumerate(images.stamps)
    ]
    counts = Counter(stamp for stamp, _ in files)
    paths = [path for stamp, path in files if counts[stamp] > 1]  # the same file has the same stamp
    real = [os.path.realpath(path) for path in paths]
    repeated = sorted(name for name, count in Counter(real).items() if count > 1)
    if repeated:
        raise DataError(
            f"{counted(len(repeated), 'image file belongs', 'image files belong')} to more than one input: "
            f"{shortlist(repeated, 3)}",
            where=shortlist([images.where for images in sets], 3),
            fix="pass each image once: a folder includes its subfolders",
        )


def _join_readers(sets: Sequence[ImageSet]) -> JoinedReader:
    return JoinedReader([images.reader for images in sets], [len(images) for images in sets])


def _nonempty_set(
    path: Path,
    names: Sequence[str],
    stamps: Sequence[str],
    reader: Reader,
    others: Sequence[str],
    hidden: Sequence[str],
) -> ImageSet:
    """Create the image set of a folder or zip.

    Args:
        others: Names of files that are not images.
        hidden: Notes on hidden images.

    Raises:
        DataError: There are no images.
    """
    if not names:
        details = [*hidden, *([f"other files: {shortlist(others, 3)}"] if others else [])]
        raise DataError(
            "; ".join(["no images found", *details]),
            where=path,
            fix=f"use files with the suffixes {', '.join(sorted(SUFFIXES))}",
        )
    notes = [f"skipped {counted(len(others), 'file')} in {path} (not images): {shortlist(others, 3)}"] if others else []
    notes += [f"{path}: {note}" for note in hidden]
    decomposed = sum(not unicodedata.is_normalized("NFC", name) for name in names)
    if decomposed:
        notes.append(
            f"{counted(decomposed, 'image name', 'image names')} in {path} "
            f"{'is' if decomposed == 1 else 'are'} in decomposed Unicode (NFD), which macOS uses for accented letters; "
            "names in a table may look the same but not match: convert both to NFC, or pass the table as the input"
        )
    return ImageSet(names, stamps, reader, str(path), tuple(notes))


def crop_warning(sizes: Sequence[tuple[int, int]]) -> str | None:
    """Return a warning if some images are not square and a model therefore receives only their centre, else None."""
    oblong = [size for size in sizes if max(size) > _SQUARE * min(size)]
    if not oblong:
        return None
    width, height = max(oblong, key=lambda size: max(size) / min(size))
    return (
        f"{counted_of(len(oblong), len(sizes), 'sampled image is', 'sampled images are')} not square: images of "
        f"{width} x {height} px are cropped to the centre square, so that "
        f"{1 - min(width, height) / max(width, height):.0%} of their pixels are lost; cut them into square tiles "
        "first (for slides, with clipit slides tile)"
    )
