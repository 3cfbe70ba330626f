"""Read tiles from class folders, or from a zip of them: `<split>/<class>/*` or `<class>/*`."""

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath

from clipit.config.run import TilesConfig
from clipit.errors import DataError, counted, shortlist
from clipit.images.decode import SUFFIXES, ImageError, is_image
from clipit.images.image_files import has_suffix, image_files, image_stamps, subfolders
from clipit.images.image_readers import FileReader, Reader, ZipReader, zip_stamps
from clipit.input_files.folder_files import hidden_note, is_hidden
from clipit.input_files.nearby_files import similar_names
from clipit.tiles.imagefolder import METADATA_FILES, check_metadata
from clipit.tiles.source import ALIASES, SourceTiles, spell_as_configured
from clipit.tiles.splits import split_map

_DOCUMENTS = frozenset(
    {".csv", ".htm", ".html", ".json", ".log", ".md", ".pdf", ".tsv", ".txt", ".xml", ".yaml", ".yml"}
)
"""Suffixes of documents; a folder that contains only documents is not a class."""
_MASK = re.compile(
    r"(?P<image>.+?)[ _.-]+(masks?|seg|segmentations?|anno|annotations?|labels?|gt|groundtruth)([ _-]?\d+)?",
    re.IGNORECASE | re.DOTALL,
)
"""Name of a mask next to its image, such as `a_mask.png` next to `a.png`."""
_TRAIN = re.compile(r"(?<![A-Za-z])(?i:train)|(?<=[a-z])Train")  # not "strain"
UNLABELLED = ("unlabelled", "unlabeled")
"""Names for the folder with unlabelled tiles, in any letter case."""


def read_folders(config: TilesConfig) -> SourceTiles:
    """Read tiles from class folders, or a zip of them; the id of a tile is its path inside `tiles.path`.

    The first-level folders are splits if one of them has the name of a split. Folders inside a class folder belong to
    that class. A folder `unlabelled` (or `unlabeled`, in any letter case) contains tiles without a label, unless
    tiles.classes or tiles.class_map names it.

    Raises:
        DataError: There are no images, images are outside class folders, split folders lack a mapping, a class folder
            is unknown, missing or unreadable, or a metadata file of a Hugging Face image folder contains the labels.
    """
    root = Path(config.path).expanduser()
    if root.suffix.lower() == ".zip" and root.is_file():
        return _read_zip(config, root)
    if not root.is_dir():
        advice = f"correct tiles.path; {similar_names(config.path)}"
        raise DataError("the tile folder does not exist", where=root, fix=advice)
    with_splits = _has_splits(config, subfolders(root))
    depth = 2 if with_splits else 1  # folders above a tile
    files = image_files(root, config.unreadable)
    images, others = files.images, files.others
    loose = any(file.count("/") < depth for file in images)
    described = check_metadata(config, root, others, lambda name, size: _read_start(root / name, size), loose=loose)
    ids = _sort_images(config, root, images, with_splits=with_splits)
    _check_unread_classes(config, root, ids, others, depth)
    notes = _empty_class_notes(root, ids, depth)
    others = [str(root / file) for file in others if file.count("/") >= depth or _may_contain_tiles(file)]
    stamps, reader = image_stamps(root, ids), FileReader(root, ids)
    return _source(
        config, root, ids, others, stamps, reader, (*files.notes, *described, *notes), with_splits=with_splits
    )


def _may_contain_tiles(file: str) -> bool:
    """Return whether a file next to class folders may contain tiles, such as a zip of a class; documents do not."""
    path = PurePosixPath(file)
    return bool(path.suffix) and path.suffix.lower() not in _DOCUMENTS and path.name not in METADATA_FILES


def _read_zip(config: TilesConfig, archive: Path) -> SourceTiles:
    """Read tiles from the class folders of a zip; a single top-level folder around them is ignored."""
    stamp_of = zip_stamps(archive)
    stored_as = {posixpath.normpath(name): name for name in stamp_of}  # some programs write ./train/...
    if len(stored_as) < len(stamp_of):
        repeated = sorted({*stamp_of} - {*stored_as.values()})
        raise DataError(
            f"two files in the zip have the same name: {shortlist(repeated)}",
            where=archive,
            fix="repack the zip without one of them",
        )
    visible = [name for name in stored_as if not is_hidden(name)]
    images = [name for name in visible if is_image(name)]
    tops = {name.split("/", 1)[0] for name in images} - {*(config.classes or ()), *config.class_map}
    in_one = len(tops) == 1 and all(name.startswith(f"{min(tops)}/") and name.count("/") > 1 for name in images)
    prefix = f"{min(tops)}/" if in_one and not _has_splits(config, tops) else ""
    member_of = {name.removeprefix(prefix): name for name in images}
    with_splits = _has_splits(config, {name.split("/", 1)[0] for name in member_of})
    depth = 2 if with_splits else 1
    loose = any(name.count("/") < depth for name in member_of)
    files = [name for name in visible if not is_image(name)]
    notes = check_metadata(
        config, archive, files, lambda name, size: _read_member(archive, stored_as[name], size), loose=loose
    )
    ids = _sort_images(config, archive, [*member_of], with_splits=with_splits)
    _check_unread_classes(config, archive, ids, [name.removeprefix(prefix) for name in files], depth)
    members = [stored_as[member_of[name]] for name in ids]
    others = [f"{archive}!{name}" for name in files]
    stamps, reader = [stamp_of[name] for name in members], ZipReader(archive, members)
    hidden = sorted(name for name in stored_as if has_suffix(PurePosixPath(name)) and is_hidden(name))
    notes = (*hidden_note(hidden, "image"), *notes)
    return _source(config, archive, ids, others, stamps, reader, notes, with_splits=with_splits)


def _read_start(file: Path, size: int | None) -> bytes:
    with file.open("rb") as stream:
        return stream.read(size)


def _read_member(archive: Path, name: str, size: int | None) -> bytes:
    try:
        return ZipReader(archive, [name]).open(0, size).getvalue()
    except ImageError as error:
        raise ValueError(str(error)) from error


def _has_splits(config: TilesConfig, names: Iterable[str]) -> bool:
    """Return whether one of the first-level folders has the name of a split."""
    mapping = split_map(config.splits, ALIASES)
    return any(name in mapping or name.lower() in mapping for name in names)


def _sort_images(config: TilesConfig, root: Path, images: Sequence[str], *, with_splits: bool) -> list[str]:
    """Check that all images are in class folders, and sort them by split, class and name."""
    depth = 2 if with_splits else 1
    _check_loose_images(root, [file for file in images if file.count("/") < depth], with_splits=with_splits)
    ids = sorted(images, key=lambda file: file.split("/", depth))
    if not with_splits:
        _check_split_folders(config, root, ids, split_map(config.splits, ALIASES))
    return ids


def _source(
    config: TilesConfig,
    root: Path,
    ids: Sequence[str],
    others: Sequence[str],
    stamps: Sequence[str],
    reader: Reader,
    notes: tuple[str, ...],
    *,
    with_splits: bool,
) -> SourceTiles:
    """Build the source, with labels and splits from the ids; `others` are non-image files in class folders."""
    if not ids:
        non_images = f"; found {shortlist(others)}" if others else ""
        raise DataError(
            f"no images in class folders{non_images}",
            where=root,
            fix="unpack archives, and put the images into <split>/<class>/ or <class>/ folders",
        )
    depth = 2 if with_splits else 1
    folders = spell_as_configured([file.split("/", depth)[depth - 1] for file in ids], config)
    classes = {*(config.classes or ()), *config.class_map}
    labels = ["" if name.casefold() in UNLABELLED and name not in classes else name for name in folders]
    _check_class_folders(config, root, set(labels) - {""})
    if others:
        notes = (
            f"{counted(len(others), 'file is not an image and was', 'files are not images and were')} dropped: "
            f"{shortlist(others)}",
            *notes,
        )
    stems = {file.rpartition(".")[0] for file in ids}
    masks = [file for file in ids if (match := _MASK.fullmatch(file.rpartition(".")[0])) and match["image"] in stems]
    if masks:
        count = counted(
            len(masks), "tile is named like a mask of another tile", "tiles are named like masks of other tiles"
        )
        notes = (
            f"WARNING: {count}: {shortlist(masks)}; move masks out of the class folders",
            *notes,
        )
    return SourceTiles(
        ids=ids,
        labels=labels,
        source_splits=[file.split("/", 1)[0] if with_splits else "" for file in ids],
        groups=[""] * len(ids),
        mpp=[float("nan")] * len(ids),
        stamps=stamps,
        reader=reader,
        where=str(root),
        notes=notes,
    )


def _check_loose_images(root: Path, loose: Sequence[str], *, with_splits: bool) -> None:
    if loose:
        raise DataError(
            f"{counted(len(loose), 'image is', 'images are')} outside class folders: {shortlist(loose, 3)}",
            where=root,
            fix="move them into folders named by their class (or `unlabelled`)"
            + (", one level below the split" if with_splits else ""),
        )


def _check_split_folders(config: TilesConfig, root: Path, ids: Sequence[str], mapping: Mapping[str, str]) -> None:
    """Reject first-level folders that contain no images, and that are named like splits or share most subfolders."""
    if config.classes or config.class_map or not ids:
        return
    common = posixpath.commonpath([posixpath.dirname(file) for file in ids])
    if "/" in common and all(file.count("/") > common.count("/") + 1 for file in ids):
        below = {file.removeprefix(f"{common}/").split("/", 1)[0] for file in ids}
        raise _splits_not_classes(root, [common], below, _open_instead(root, common))
    inside: dict[str, set[str]] = {}
    for file in ids:
        first, second, *rest = file.split("/", 2)
        if not rest:  # an image directly in a first-level folder, which is therefore a class
            return
        inside.setdefault(first, set()).add(second)
    folded = {first: {name.casefold() for name in names} for first, names in inside.items()}
    counts = Counter(name for names in folded.values() for name in names)
    shared = {name for name, count in counts.items() if count > 1 or len(inside) == 1}
    candidates = [names for names in folded.values() if len(names & shared) > 1]
    # Splits share most of their classes, whereas classes share few patients in <class>/<patient>/.
    alike = any(2 * len(a & b) >= max(len(a | b), 3) for a, b in combinations(candidates, 2))
    names = sorted(inside)
    train = next(filter(_TRAIN.search, names), "")
    if not (alike or train) and (len(inside) > 1 or len(shared) < 2):
        return
    fix = f"map them in tiles.splits, e.g. tiles.splits: {{train: {train or names[0]}}}"
    if len(names) == 1:
        fix = _open_instead(root, names[0])
    elif shared & {name.casefold() for name in mapping}:
        fix = "put the class folders inside split folders: <split>/<class>/"
    subfolder_names = {name for each in inside.values() for name in each if not shared or name.casefold() in shared}
    raise _splits_not_classes(root, names, subfolder_names, fix)


def _open_instead(root: Path, folder: str) -> str:
    """Return what to do if the class folders are inside a folder."""
    if root.is_dir():
        return f"set tiles.path to {root / folder}"
    return f"repack the zip with the content of {folder} at its top"


def _splits_not_classes(root: Path, names: Sequence[str], inside: Collection[str], fix: str) -> DataError:
    return DataError(
        f"the folders {shortlist(names)} contain no images, only the subfolders {shortlist(sorted(inside))}; "
        "they look like splits rather than classes",
        where=root,
        fix=f"{fix}; if they are classes, name them in tiles.classes",
    )


def _class_folder(file: str, depth: int) -> str:
    """Return the class folder of a file, including its split: the first `depth` folders of the path."""
    return "/".join(file.split("/", depth)[:depth])


def _check_unread_classes(
    config: TilesConfig, root: Path, ids: Collection[str], others: Collection[str], depth: int
) -> None:
    """Check that no class, or its part in a split, is dropped because its files cannot be read.

    Raises:
        DataError: A class folder contains files but no readable image.
    """
    present = {_class_folder(file, depth) for file in ids}
    suffixes: dict[str, Counter[str]] = {}
    for file in others:
        name, suffix = _class_folder(file, depth), PurePosixPath(file).suffix
        if file.count("/") >= depth and suffix.lower() not in _DOCUMENTS:
            suffixes.setdefault(name, Counter())[suffix or "without suffix"] += 1
    configured = set(config.classes or ())
    unread = sorted(
        name for name in suffixes if name not in present and (not configured or name.split("/")[-1] in configured)
    )
    if unread:
        suffix_counts = [
            f"{name} ({', '.join(f'{n} {suffix}' for suffix, n in suffixes[name].most_common(3))})" for name in unread
        ]
        raise DataError(
            f"class folders without an image that clipit can read: {shortlist(suffix_counts)}",
            where=root,
            fix=f"convert the files to one of {', '.join(sorted(SUFFIXES))}; if a folder is not a class, move it, or "
            "name the classes in tiles.classes",
        )


def _empty_class_notes(root: Path, ids: Collection[str], depth: int) -> tuple[str, ...]:
    """Return a note on class folders without images; () if there are none."""
    present = {file.split("/", depth)[depth - 1] for file in ids}
    bases = [root] if depth == 1 else [root / part for part in subfolders(root)]
    empty = [base / name for base in bases for name in subfolders(base) if name not in present]
    return (f"class folders without images: {shortlist(sorted({path.name for path in empty}))}",) if empty else ()


def _check_class_folders(config: TilesConfig, root: Path, present: set[str]) -> None:
    if config.classes is None:
        return
    problems: Sequence[tuple[str, list[str]]] = (
        ("unknown class folders", sorted(present - set(config.classes))),
        ("no images for the classes", [name for name in config.classes if name not in present]),
    )
    messages = [f"{problem}: {shortlist(names)}" for problem, names in problems if names]
    if messages:
        raise DataError(
            "; ".join(messages),
            where=root,
            fix=f"tiles.classes is {', '.join(config.classes)}: correct it, or rename or remove the folders",
        )
