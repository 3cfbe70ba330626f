"""Read tiles of whole-slide images, from a folder of slides or a table (slide, path, label, split, group, mpp)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clipit.config.data import SlidesConfig, TilesConfig
from clipit.errors import DataError, counted, counted_of, printable, repeats, shortlist
from clipit.images.decode import is_image
from clipit.images.image_set import ImageSet
from clipit.input_files.folder_files import hidden_names, hidden_note, list_files, reject_unlisted
from clipit.input_files.mangled_names import check_rounded
from clipit.input_files.nearby_files import similar_names
from clipit.slides.dicom import one_per_slide, slide_key
from clipit.slides.opening import SLIDE_SUFFIXES, import_openslide, is_slide, is_slide_file, slide_name, slide_names
from clipit.slides.option_names import KEYS, OptionNames
from clipit.slides.prepare import FailedSlide, PreparedSlide, SlidePath, prepare_slides
from clipit.slides.reading import SlideReader
from clipit.slides.resolution import check_mpp
from clipit.tiles.cells import parse_mpp, resolve_missing
from clipit.tiles.groups import column_advice
from clipit.tiles.source import SourceTiles
from clipit.tiles.table import TABLES, group_columns, image_root, open_table, read_columns

_COARSE = 1.02
"""Tiles are reported as enlarged if the slide's µm per pixel exceeds theirs by more than this factor."""


@dataclass(frozen=True)
class SlideList:
    """Slides in a folder or table; one entry per slide in each sequence.

    Attributes:
        slides: Names, files and stated micrometres per pixel.
        labels: Class names; "" for unlabelled slides.
        source_splits: Splits as the source names them; "" if there are none.
        groups: Patients; "" where unknown.
    """

    slides: Sequence[SlidePath]
    labels: Sequence[str]
    source_splits: Sequence[str]
    groups: Sequence[str]
    where: str
    notes: tuple[str, ...] = ()


def read_slides(config: TilesConfig) -> SourceTiles:
    """Read the tissue tiles of all slides; each tile has the label, split and group of its slide.

    Raises:
        DataError: The list of slides is invalid; or a slide cannot be used and `tiles.unreadable` is `error`.
    """
    import_openslide()
    section = config.slides or SlidesConfig()
    listed = list_slides(config)
    results = prepare_slides(listed.slides, section)
    failed = [result for result in results if isinstance(result, FailedSlide)]
    if failed and (config.unreadable == "error" or len(failed) == len(results)):
        raise _failure(failed, len(results), listed.where)
    prepared = [(row, result) for row, result in enumerate(results) if isinstance(result, PreparedSlide)]
    images = slide_tiles([slide for _, slide in prepared])
    sizes = [slide.tiles for _, slide in prepared]

    # A slide whose patient is unknown forms its own group, so that its tiles stay in one split.
    groups = [group or slide.name for group, slide in zip(listed.groups, listed.slides, strict=True)]

    def per_tile(values: Sequence[str]) -> list[str]:
        return [values[row] for (row, _), size in zip(prepared, sizes, strict=True) for _ in range(size)]

    notes = [*listed.notes, *failure_notes(failed, len(results)), *resolution_notes([s for _, s in prepared], section)]
    return SourceTiles(
        ids=images.ids,
        labels=per_tile(listed.labels),
        source_splits=per_tile(listed.source_splits),
        groups=per_tile(groups),
        mpp=[section.mpp] * len(images),
        stamps=images.stamps,
        reader=images.reader,
        where=listed.where,
        notes=tuple(notes),
        lone_slides=frozenset(s.name for group, s in zip(listed.groups, listed.slides, strict=True) if not group),
    )


def slide_tiles(slides: Sequence[PreparedSlide]) -> ImageSet:
    """Return the tiles of prepared slides as images with ids, ordered by slide."""
    grids = [slide.grid for slide in slides]
    slide_of = np.repeat(np.arange(len(slides), dtype=np.int32), [len(grid) for grid in grids])
    x, y = (np.concatenate([getattr(grid, axis) for grid in grids]) for axis in ("x", "y"))
    reader = SlideReader([slide.placed for slide in slides], slide_of, x, y)
    return ImageSet(
        ids=[name for grid in grids for name in grid.ids],
        stamps=[slide.stamp for slide in slides for _ in range(slide.tiles)],
        reader=reader,
        where=shortlist([str(slide.path) for slide in slides], 3),
    )


def is_slide_input(path: Path) -> bool:
    """Return whether a path is a slide or a folder of slides, rather than an image or a folder of images.

    A TIFF is a slide if openslide finds several levels in it. A folder counts as a folder of slides if it
    contains slides and no other images.
    """
    if path.is_dir():
        files = list_files(path, lambda file: not file.name.startswith(".")).files
        return any(map(is_slide, files)) and all(is_slide_file(file) for file in files if is_image(file))
    return path.is_file() and is_slide_file(path)


def tiles_of_slide(path: Path, config: SlidesConfig, mpp: float | None = None, options: OptionNames = KEYS) -> ImageSet:
    """Return the tissue tiles of a slide, or of all slides in a folder.

    Args:
        path: Slide, or folder of slides.
        config: Resolution and size of tiles.
        mpp: Micrometres per pixel of the finest level, for slides without this metadata.
        options: Names of options in error messages.

    Raises:
        ConfigError: `mpp` is not between 0.05 and 20.
        DataError: No slide can be used, or the package for reading slides is missing.
    """
    import_openslide()
    check_mpp(mpp)
    listed = (
        slides_in_folder(path, mpp).slides
        if path.is_dir()
        else [SlidePath(slide_names([path])[0], path, default_mpp=mpp)]
    )
    results = prepare_slides(listed, config, options)
    failed = [result for result in results if isinstance(result, FailedSlide)]
    if len(failed) == len(results):
        lines, fixes = list_failures(failed)
        raise DataError(f"no slide can be used:{lines}", where=path, fix=fixes)
    prepared = [result for result in results if isinstance(result, PreparedSlide)]
    notes = (*failure_notes(failed, len(results)), *resolution_notes(prepared, config))
    return replace(slide_tiles(prepared), notes=notes)


def failure_notes(failed: Sequence[FailedSlide], total: int) -> list[str]:
    """Describe dropped slides in a note; return an empty list if there are none."""
    if not failed:
        return []
    lines = [f"{slide.name}: {slide.explain()}" for slide in failed]
    listed = "; ".join(printable(line) for line in lines[:10]) + (f"; and {len(lines) - 10} more" if lines[10:] else "")
    return [f"dropped {len(failed)} of {counted(total, 'slide')} (cannot be used): {listed}"]


def resolution_notes(slides: Sequence[PreparedSlide], config: SlidesConfig) -> list[str]:
    """Describe slides that have unread content or a doubtful resolution, or are coarser than their tiles."""
    notes = []
    # artefacts from earlier versions lack `remark` and `doubt`
    unread = [f"{slide.name}: {slide.facts['remark']}" for slide in slides if slide.facts.get("remark")]
    if unread:
        notes.append(
            f"{counted_of(len(unread), len(slides), 'slide has', 'slides have')} content that is not read: "
            f"{shortlist(unread, 3)}"
        )
    doubtful = [f"{slide.name}: {slide.facts['doubt']}" for slide in slides if slide.facts.get("doubt")]
    if doubtful:
        notes.append(
            f"WARNING: the micrometres per pixel of {len(doubtful)} of {counted(len(slides), 'slide')} may be wrong, "
            f"so their tiles may show much more or less tissue than intended: {shortlist(doubtful, 3)}"
        )
    coarse = [f"{slide.name}: {slide.facts['mpp']:g}" for slide in slides if slide.facts["mpp"] > _COARSE * config.mpp]
    if coarse:
        notes.append(
            f"{counted_of(len(coarse), len(slides), 'slide is', 'slides are')} coarser than {config.mpp:g} µm per "
            f"pixel, so tiles are enlarged: {shortlist(coarse, 3)}"
        )
    return notes


def list_failures(failed: Sequence[FailedSlide]) -> tuple[str, str]:
    """Return the first ten slides with their reasons, one per line, and the first three fixes."""
    fixes = dict.fromkeys(slide.fix for slide in failed if slide.fix)
    return "".join(f"\n    {slide.path}: {slide.reason}" for slide in failed[:10]), "; ".join([*fixes][:3])


def _failure(failed: Sequence[FailedSlide], total: int, where: str) -> DataError:
    lines, fixes = list_failures(failed)
    more = f"\n    ... and {len(failed) - 10} more" if len(failed) > 10 else ""
    return DataError(
        f"{len(failed)} of {counted(total, 'slide')} cannot be used:{lines}{more}",
        where=where,
        fix=f"{fixes}; or set tiles.unreadable: quarantine to drop and list such slides",
    )


def list_slides(config: TilesConfig) -> SlideList:
    """List the slides of a folder or a table.

    Raises:
        DataError: There are no slides, a name occurs twice, or a file in the table does not exist.
    """
    path = Path(config.path).expanduser()
    if path.is_dir():
        if config.labels.kind != "none":
            raise DataError(
                "a folder of slides has no labels",
                where=path,
                fix=f"use a table ({', '.join(TABLES)}) with the columns slide, label, split and group, or set "
                "tiles.labels.kind: none",
            )
        return slides_in_folder(path, config.mpp)
    if path.suffix.lower() in TABLES:
        return _slides_of_table(path, config)
    if is_slide(path) and path.is_file():
        slide = SlidePath(slide_names([path])[0], path, default_mpp=config.mpp)
        return SlideList([slide], [""], [""], [""], str(path))
    if not path.exists():
        advice = f"correct tiles.path; {similar_names(config.path)}"
        raise DataError("the folder or table of slides does not exist", where=path, fix=advice)
    raise DataError(
        "neither a folder nor a table of slides",
        where=path,
        fix="set tiles.path to a table with a `slide` column, or to a folder of slides "
        f"({', '.join(sorted(SLIDE_SUFFIXES))})",
    )


def slides_in_folder(folder: Path, mpp: float | None = None) -> SlideList:
    """List the slides under a folder, sorted by path; the files of a DICOM series are one slide.

    See `clipit.slides.opening.slide_names` for their names.

    Args:
        folder: Folder; hidden files are skipped, other files are counted.
        mpp: Micrometres per pixel for slides without this metadata.

    Raises:
        DataError: There are no slides, two slides have the same name, a link to a slide is broken, or a name is not
            UTF-8.
    """
    listing = list_files(folder, lambda file: not file.name.startswith("."))
    lost = [file for file in listing.dangling if is_slide(file) or not file.suffix]  # without a suffix, maybe a folder
    reject_unlisted([*lost, *filter(is_slide, listing.undecodable)], folder)
    present = listing.files
    listed = sorted(file for file in present if is_slide(file))
    files = one_per_slide(listed)
    if not files:
        raise DataError(
            f"no slides in this folder ({counted(len(present), 'other file')})",
            where=folder,
            fix=f"use files with the suffixes {', '.join(sorted(SLIDE_SUFFIXES))}",
        )
    slides = [SlidePath(name, file, default_mpp=mpp) for name, file in zip(slide_names(files), files, strict=True)]
    check_slide_names([slide.name for slide in slides], files, folder)
    # The data of an MRXS slide are in a folder next to it.
    others = [file for file in present if not is_slide(file) and not file.parent.with_suffix(".mrxs").is_file()]
    notes = []
    if others:
        notes.append(f"{counted(len(others), 'file')} skipped (not slides): {shortlist([f.name for f in others], 3)}")
    notes += hidden_note(hidden_names(listing, folder, lambda file: file.suffix.lower() in SLIDE_SUFFIXES), "slide")
    if len(files) < len(listed):
        notes.append(f"additional levels or images of DICOM slides: {counted(len(listed) - len(files), 'file')}")
    empty = [""] * len(slides)
    return SlideList(slides, empty, empty, empty, str(folder), tuple(notes))


def _slides_of_table(path: Path, config: TilesConfig) -> SlideList:
    """Read a table of slides; the column `path`, or else `slide`, names the file, with or without its suffix."""
    table = open_table(path)
    name_column = config.columns.get("id", "slide")
    file_column = config.columns.get("path", "path")
    has_names = file_column in table.names and name_column in table.names
    columns = {**config.columns, "path": file_column if file_column in table.names else name_column}
    columns.pop("id", None)
    if columns["path"] not in table.names:
        raise DataError(
            f"no column {name_column!r} or {file_column!r} that names the slide files; the table has: "
            f"{', '.join(table.names) or 'none'}",
            where=path,
            fix=table.hint((name_column,))
            or f"name the column {name_column}, or map it in a configuration (tiles.columns.path)",
        )
    if has_names:
        columns["id"] = name_column
    fields = ("path", "label", "split", "group", "mpp", *(["id"] if has_names else []))
    section = config.model_copy(update={"columns": columns})
    cells = read_columns(path, section, table, fields)
    root = image_root(config.images, path, cells["path"])
    files = _find_files(cells["path"], root, path)
    names = cells["id"] if has_names else slide_names(files)
    if has_names:
        check_rounded(names, name_column, table.row_name, path)
    count = len(files)
    labels, label_notes = resolve_missing(cells.get("label", [""] * count), "label", config, path, table.row_name)
    groups, group_notes = resolve_missing(cells.get("group", [""] * count), "group", config, path, table.row_name)
    source_splits = cells.get("split", [""] * count)
    _check_rows(names, files, source_splits, path)
    stated = parse_mpp(cells.get("mpp", [""] * count), path, table.row_name)
    slides = [
        SlidePath(name, file, None if np.isnan(mpp) else mpp, config.mpp)
        for name, file, mpp in zip(names, files, stated, strict=True)
    ]
    used = {name_column, file_column, *(columns.get(name, name) for name in ("label", "split", "group", "mpp")), "mask"}
    unused = [name for name in table.names if name not in used]
    notes = [f"unused columns: {shortlist(unused)}"] if unused else []
    fix = "rename it to group, or name it in a configuration (tiles.columns.group)"
    advice = column_advice(groups, names, group_columns(path, table, section), fix)
    notes += [f"WARNING: {advice}"] if advice else []
    return SlideList(slides, labels, source_splits, groups, str(path), (*label_notes, *group_notes, *notes))


def _find_files(cells: Sequence[str], root: Path, table: Path) -> list[Path]:
    """Find the file of each row: the path in the cell, or the only slide in the folder with this name.

    Raises:
        DataError: Files are missing, or several slides have the same name.
    """
    by_name: dict[str, list[Path]] | None = None
    files, missing = [], []
    for cell in cells:
        file = root / cell.replace("\\", "/")
        if cell and file.is_dir():  # folder of a DICOM slide
            inside = one_per_slide(sorted(other for other in file.iterdir() if is_slide(other)))
            file = inside[0] if len(inside) == 1 else file
        if not file.is_file():
            if by_name is None:
                by_name = {}
                for other in sorted(root.iterdir()) if root.is_dir() else ():
                    if is_slide(other):
                        by_name.setdefault(slide_name(other), []).append(other)
            matches = by_name.get(cell, [])
            if len(matches) != 1:
                missing.append(f"{cell or '(empty)'}{' (several files)' if matches else ''}")
                continue
            file = matches[0]
        files.append(file)
    if missing:
        raise DataError(
            f"{counted_of(len(missing), len(cells), 'slide does', 'slides do')} not exist in {root}: "
            f"{shortlist(missing)}",
            where=table,
            fix="correct the `slide` (or `path`) column, or set tiles.images (clipit slides: --images) to their folder",
        )
    return files


def _check_rows(names: Sequence[str], files: Sequence[Path], source_splits: Sequence[str], path: Path) -> None:
    """Reject slides that are listed more than once, for example in two splits."""
    by_slide: dict[Hashable, list[int]] = {}
    for row, file in enumerate(files):
        by_slide.setdefault(slide_key(file), []).append(row)
    twice = [rows for rows in by_slide.values() if len(rows) > 1]
    if twice:
        listed = []
        for rows in twice:
            splits = sorted({source_splits[row] for row in rows})
            listed.append(
                f"{files[rows[0]].name} in rows {', '.join(str(row + 1) for row in rows)}"
                + (f" (splits {', '.join(splits)})" if len(splits) > 1 else "")
            )
        raise DataError(
            f"{counted(len(twice), 'slide is', 'slides are')} listed more than once: {shortlist(listed)}",
            where=path,
            fix="keep one row per slide; a slide belongs to one split",
        )
    check_slide_names(names, files, path)


def check_slide_names(names: Sequence[str], files: Sequence[Path], where: object) -> None:
    """Reject repeated names, which would give tiles the same ids, and names that cannot be used as folder names.

    Args:
        files: File of each slide.
        where: Folder or table, for the error message.

    Raises:
        DataError: A name is repeated or cannot be used.
    """
    unusable = [name for name in names if "/" in name or "\\" in name or name.startswith(".") or not name.strip()]
    if unusable:
        raise DataError(
            f"{counted(len(unusable), 'slide name cannot be a folder name', 'slide names cannot be folder names')}: "
            f"{shortlist([repr(n) for n in unusable])}",
            where=where,
            fix="use names that contain neither / nor \\ and do not start with a dot",
        )
    if repeated := repeats(names, files.__getitem__):
        raise DataError(
            f"{counted(len(repeated), 'slide name occurs', 'slide names occur')} more than once: "
            f"{shortlist(repeated, 3)}",
            where=where,
            fix="rename the files, or add a `slide` column with unique names to the table",
        )
