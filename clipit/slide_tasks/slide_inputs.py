"""Slide inputs of a command: files, folders, or one table with labels and splits."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipit.config.data import LabelsConfig, TilesConfig
from clipit.errors import ConfigError, DataError, counted, shortlist
from clipit.input_files.nearby_files import similar_names
from clipit.slides.dicom import one_per_slide
from clipit.slides.opening import SLIDE_SUFFIXES, import_openslide, slide_names
from clipit.slides.prepare import SlidePath
from clipit.slides.resolution import check_mpp
from clipit.tiles.slide_source import SlideList, check_slide_names, list_slides, slides_in_folder
from clipit.tiles.source import ALIASES, check_group_names
from clipit.tiles.table import TABLES, WORKBOOKS

_OTHER_TABLES = (*WORKBOOKS, ".txt", ".json", ".jsonl")


def list_inputs(paths: Sequence[Path], mpp: float | None = None, slides: Path | None = None) -> SlideList:
    """List the slides in files and folders, or in one table.

    Split names in a table are normalised: `val` becomes `validation`, and `training` becomes `train`.

    Args:
        paths: Slides and folders of slides; or one table (see `clipit.tiles.slide_source`).
        mpp: Micrometres per pixel of the finest level, for slides without a recorded resolution.
        slides: Folder that the files in a table are relative to; None for the folder of the table.

    Raises:
        ConfigError: `mpp` is not a positive number, or `slides` is given without a table.
        DataError: A path does not exist or contains no slides, two slides have the same name, patients differ
            only in spelling, or a package that reads slides is missing.
    """
    import_openslide()
    check_mpp(mpp)
    tables = [path for path in paths if path.suffix.lower() in TABLES and path.is_file()]
    if slides is not None and not tables:
        raise ConfigError(
            "--images is given, but no input is a table",
            where=shortlist(paths, 3),
            fix=f"remove the option, or pass a table ({', '.join(TABLES)})",
        )
    if tables and len(paths) > 1:
        raise DataError(
            f"a slide table cannot be combined with {counted(len(paths) - 1, 'other input')}",
            where=shortlist(paths, 3),
            fix="pass one table, or slides and folders of slides",
        )
    if tables:
        labels = LabelsConfig(kind="none")  # the label column is optional
        images = None if slides is None else str(slides)
        section = TilesConfig(source="slides", path=str(tables[0]), images=images, mpp=mpp, labels=labels)
        table = list_slides(section)
        notes = check_group_names([group for group in table.groups if group], str(tables[0]))
        splits = [ALIASES.get(split.lower(), split) for split in table.source_splits]
        return replace(table, source_splits=splits, notes=(*table.notes, *notes))
    listed: list[SlidePath] = []
    remarks: list[str] = []
    for path in one_per_slide(paths):
        if path.is_dir():
            folder = slides_in_folder(path, mpp)
            listed += folder.slides
            remarks += folder.notes
        elif path.suffix.lower() in _OTHER_TABLES:
            raise DataError(
                f"slide tables in {path.suffix} format are not supported",
                where=path,
                fix=f"save it as {' or '.join(TABLES)}",
            )
        elif path.is_file():
            listed.append(SlidePath(slide_names([path])[0], path, default_mpp=mpp))
        else:
            raise DataError(
                "no such slide, folder or table",
                where=path,
                fix=f"{similar_names(str(path))}; pass slides ({', '.join(sorted(SLIDE_SUFFIXES))}), folders of "
                f"slides, or one table ({', '.join(TABLES)}) with a slide column",
            )
    where = shortlist(paths, 3)
    check_slide_names([slide.name for slide in listed], [slide.path for slide in listed], where)
    empty = [""] * len(listed)
    return SlideList(listed, empty, empty, empty, where, tuple(remarks))
