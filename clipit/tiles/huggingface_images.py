"""Images of a Hugging Face data set: in its rows, in files of an image folder, or in zips of such files."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clipit.errors import DataError, counted, is_limit, repeats, shortlist
from clipit.images.decode import ImageError, decode, is_image
from clipit.images.image_files import has_suffix
from clipit.images.image_readers import ZipReader
from clipit.input_files.data_files import hub_id, is_saved_dataset
from clipit.input_files.folder_files import hidden_names, hidden_note, list_files
from clipit.tiles.imagefolder import METADATA_FILES
from clipit.tiles.source import ALIASES

_SPLIT_NAMES = frozenset({*ALIASES, "dev", "eval", "evaluation"})
"""Names of folders by which the datasets package recognises splits."""
_IN_ZIP = "zip://"
"""Start of the paths that the datasets package gives to images in zips: `zip://NAME::ZIP`."""


class DatasetReader:
    """Reader for the image column of a data set with several splits; rows are numbered across the splits."""

    def __init__(self, splits: dict[str, Any], column: str) -> None:
        """Index the rows of the splits: `datasets.Dataset` objects with undecoded images, keyed by split name."""
        self._splits = splits
        self._column = column
        self._rows = [(name, row) for name, rows_of_split in splits.items() for row in range(rows_of_split.num_rows)]
        self._zips, self._members = _zip_readers(splits, column)

    def read(self, row: int) -> Image.Image:
        """Decode the image for a row."""
        name, split_row = self._rows[row]
        try:
            value = self._splits[name][split_row][self._column] or {}
        except Exception as error:  # pyarrow raises many kinds of exceptions for damaged files
            if is_limit(error):
                raise
            raise ImageError(f"{type(error).__name__}: {error}") from error
        if value.get("bytes") is not None:
            return decode(io.BytesIO(value["bytes"]))
        if not value.get("path"):
            raise ImageError("the row has no image")
        if value["path"] in self._members:
            archive, member = self._members[value["path"]]
            return self._zips[archive].read(member)
        return decode(Path(value["path"]))

    def where(self, row: int) -> str:
        """Return the split and the row in it, for error messages."""
        name, split_row = self._rows[row]
        return f"split {name}, row {split_row}"


def _zip_readers(splits: Mapping[str, Any], column: str) -> tuple[dict[str, ZipReader], dict[str, tuple[str, int]]]:
    """Return a reader for each zip that contains images, and the zip and position of each of these images by path."""
    members: dict[str, list[str]] = {}
    positions: dict[str, tuple[str, int]] = {}
    for rows in splits.values():
        for path in image_paths(rows, column) if rows.info.builder_name == "imagefolder" else ():
            if path and path.startswith(_IN_ZIP):
                name, _, archive = path.removeprefix(_IN_ZIP).partition("::")
                names = members.setdefault(archive, [])
                positions[path] = archive, len(names)
                names.append(name.replace("\\", "/"))
    return {archive: ZipReader(Path(archive), names) for archive, names in members.items()}, positions


def is_image_folder(path: str, splits: Iterable[Any]) -> bool:
    """Return whether a data set is a folder of image files, in which case its rows contain paths, not images."""
    return not is_saved_dataset(Path(path).expanduser()) and all(
        rows.info.builder_name == "imagefolder" for rows in splits
    )


def check_image_paths(files: Mapping[str, Sequence[str | None]], path: str) -> None:
    """Check that no image of an image folder is listed more than once, or looked for next to the zip that contains it.

    Args:
        files: File of each row of each split; None for rows without a file.
        path: Path of the data set.

    Raises:
        DataError: An image is listed more than once, possibly with different labels; or the folder contains zips, and
            images that a metadata file outside the zips lists do not exist.
    """
    images = [
        (file, f"{split}/{row:06d}") for split, listed in files.items() for row, file in enumerate(listed) if file
    ]
    tables = () if hub_id(path) is not None else list_files(Path(path).expanduser(), _lists_images).files
    if repeated := repeats([file for file, _ in images], lambda row: images[row][1]):
        raise DataError(
            f"{counted(len(repeated), 'file occurs', 'files occur')} more than once: {shortlist(repeated, 3)}",
            where=path,
            fix="keep one row per file in the metadata file"
            if tables or hub_id(path) is not None
            else "the datasets package lists a file once for each word such as train or test in its name: rename the "
            "files, or, for class folders, set tiles.source: folders",
        )
    if not any(map(_is_zip, tables)):
        return
    absent = [file for file, _ in images if not file.startswith(_IN_ZIP) and not os.path.lexists(file)]
    if absent:
        raise DataError(
            f"{counted(len(absent), 'image does', 'images do')} not exist: {shortlist(absent, 3)}; the datasets "
            "package looks for images next to the metadata file that lists them, not in a zip",
            where=path,
            fix="unpack the zip next to the metadata file, and move the zip away; or move the file into the zip",
        )


def check_folder_labels(images: Mapping[str, Sequence[tuple[str | None, int | None]]], path: str) -> tuple[str, ...]:
    """Check labels that the datasets package took from the names of folders.

    It uses the innermost folders, and only in splits up to which there is more than one, at one depth.

    Args:
        images: File and class index of each row of each split; None if missing.
        path: Path of the data set.

    Returns:
        Notes on folders that are not used as labels.

    Raises:
        DataError: Labels are names of splits, because images are not in class folders.
    """
    notes: list[str] = []
    for split, rows in images.items():
        labelled = {Path(file).parent for file, label in rows if file and label is not None}
        if named := sorted({folder.name for folder in labelled if folder.name.casefold() in _SPLIT_NAMES}):
            raise DataError(
                f"the datasets package uses the names of splits as labels: {shortlist(named)}",
                where=f"{path}, split {split}",
                fix="move the images into class folders (<split>/<class>/); or list them with their labels in a table, "
                "and set tiles.source: table; or, if they have no labels, set tiles.labels.kind: none",
            )
        around = sorted({folder.parent.name for folder in labelled})
        if len(around) > 1:
            notes.append(
                f"split {split}: the labels are the names of the innermost folders "
                f"({shortlist(sorted({folder.name for folder in labelled}), 3)}), not of those around them "
                f"({shortlist(around, 3)}); if these are the classes, set tiles.source: folders"
            )
        lost = {Path(file).parent.name for file, label in rows if file and label is None}
        if lost := {name for name in lost if name.casefold() not in _SPLIT_NAMES}:
            notes.append(
                f"WARNING: split {split}: the images have no labels, because the datasets package does not use the "
                f"names of the folders ({shortlist(sorted(lost), 3)}); if these are classes, set tiles.source: folders"
            )
    return tuple(notes)


def _is_zip(file: Path) -> bool:
    return file.suffix.lower() == ".zip"


def _lists_images(file: Path) -> bool:
    """Return whether a file is a metadata file, or a zip, which may contain one."""
    return file.name in METADATA_FILES or _is_zip(file)


def unused_images(path: str, loaded: Any, column: str) -> tuple[str, ...]:
    """Return a note on the images of a local image folder that are not in any split of the data set.

    The datasets package drops images that the metadata file does not list, or that are outside the split folders.
    """
    splits = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    if hub_id(path) is not None or not is_image_folder(path, splits):
        return ()
    folder = Path(path).expanduser()
    used = {file for rows in splits for file in image_paths(rows, column)}
    listed = list_files(folder, is_image)
    hidden = hidden_note(hidden_names(listed, folder, has_suffix), "image")
    folders = {folder.absolute(), folder.resolve()}
    names = [file.relative_to(folder) for file in listed.files]
    unused = [name.as_posix() for name in names if not any(str(place / name) in used for place in folders)]
    if not unused:
        return hidden
    return (
        *hidden,
        f"{counted(len(unused), 'image')} in the folder {'is' if len(unused) == 1 else 'are'} not in the data set, "
        f"because its metadata file or its splits do not list {'it' if len(unused) == 1 else 'them'}: "
        f"{shortlist(unused)}",
    )


def image_paths(rows: Any, column: str) -> list[str | None]:
    """Return the file of each image of a split, without reading the images; None for images without a file."""
    import pyarrow.compute as pc

    paths: list[str | None] = pc.struct_field(rows.data.column(column), "path").to_pylist()
    return paths
