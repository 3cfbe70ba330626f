"""Load the configured tiles: read the source, map classes and splits, and hold out missing splits."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from clipit.annotators.label_table import AnnotationTable
from clipit.config.run import TilesConfig
from clipit.errors import ConfigError, DataError, counted, has_controls, shortlist
from clipit.input_files.data_files import NO_CLASSES, missing_markers
from clipit.tiles.annotations import AnnotatedTiles, join_annotators, read_annotators
from clipit.tiles.bach import read_bach
from clipit.tiles.dataset_reader import read_data_set
from clipit.tiles.datasets import DATASETS, DataSet
from clipit.tiles.folders import read_folders
from clipit.tiles.groups import add_groups, group_advice
from clipit.tiles.hold_out import hold_out_fold, hold_out_test, hold_out_validation
from clipit.tiles.huggingface import read_huggingface
from clipit.tiles.nct_crc import read_nct_crc
from clipit.tiles.pcam import read_pcam
from clipit.tiles.quarantine import check_images
from clipit.tiles.slide_source import read_slides
from clipit.tiles.source import (
    ALIASES,
    DROPPED,
    SourceTiles,
    check_class_names,
    check_group_names,
    map_labels,
    sorted_names,
    spell_as_configured,
)
from clipit.tiles.splits import check_groups, configured_splits, resolve_splits
from clipit.tiles.streaming import stream_tiles
from clipit.tiles.table import read_table
from clipit.tiles.tileset import TileSet
from clipit.tiles.webdataset import read_webdataset

SOURCES: dict[str, Callable[[TilesConfig], SourceTiles]] = {
    "folders": read_folders,
    "table": read_table,
    "pcam": read_pcam,
    "nct_crc": read_nct_crc,
    "bach": read_bach,
    "huggingface": read_huggingface,
    "webdataset": read_webdataset,
    "slides": read_slides,
}
"""Sources with their own reader; `read_data_set` reads the other data sets of `DATASETS`."""


def read_tiles(
    config: TilesConfig,
    *,
    check: bool = True,
    decode: bool = True,
    hold_out: bool = True,
    validation: bool = True,
    root: Path | None = None,
) -> TileSet:
    """Load tiles without hiding labels (`labels` equals `truth`): the same for every seed, unlike `hide_labels`.

    The steps are:

    - read the source, map and check classes, map splits, drop unmapped tiles, and check groups;
    - drop unreadable images, if configured;
    - hold out a missing test split or fold, as configured or with the fraction and seed of a published data set;
    - hold out a missing validation split with `split_seed`;
    - derive the labels from those of the annotators, if configured.

    Args:
        config: Section `tiles`.
        check: Whether groups in two splits raise an error; False if the caller handles leaks.
        decode: Whether to decode every image if tiles.unreadable is quarantine.
        hold_out: Whether to hold out a missing test or validation split; False for tiles that are only predicted.
        validation: Whether to hold out a missing validation split; False if only the test tiles are used.
        root: Artefact folder for streamed tiles and the index of shards; if given, call this in all processes.
            Without a folder, streaming is rejected, and shards are indexed on every call.

    Raises:
        DataError: The data set is missing, inconsistent or not as published.
        ConfigError: An option does not apply to the source.
    """
    _check_options(config)
    data_set = DATASETS.get(config.source)
    # With `class_map`, `tiles.classes` are the mapped names, which do not occur in the source.
    source_config = config.model_copy(update={"classes": None}) if config.class_map else config
    if config.streaming:
        source = stream_tiles(source_config, root)
    elif config.source == "webdataset":
        source = read_webdataset(source_config, root)
    elif config.source in SOURCES:
        source = SOURCES[config.source](source_config)
    else:
        source = read_data_set(source_config, DATASETS[config.source])
    table = read_annotators(config)
    tiles, annotated = join_annotators(resolve_source(source, config, table), table, config)
    if check:
        check_groups(tiles)
    if decode:
        tiles = check_images(tiles, config.unreadable)
    if not hold_out:
        return tiles if annotated is None else annotated.label(tiles, all_tests=not (tiles.splits == "test").any())
    tiles = _hold_out_tests(_with_strata(tiles, annotated, tests=True), config, data_set)
    if data_set is not None and not (tiles.splits == "test").any():
        note = f"no test split, so no test score; the expected layout of {data_set.title} is {data_set.layout}"
        tiles = replace(tiles, notes=(*tiles.notes, note))
    if (tiles.splits == "validation").any():
        _check_validation_options(tiles, config)
    elif validation and (tiles.splits == "train").any():
        blind = config.labels.kind == "none"
        tiles = _with_strata(tiles, annotated, tests=False)
        tiles = hold_out_validation(tiles, config.validation_fraction, config.split_seed, blind=blind)
    return tiles if annotated is None else annotated.label(tiles)


def _with_strata(tiles: TileSet, annotated: AnnotatedTiles | None, *, tests: bool) -> TileSet:
    return tiles if annotated is None else annotated.with_strata(tiles, tests=tests)


def _hold_out_tests(tiles: TileSet, config: TilesConfig, data_set: DataSet | None) -> TileSet:
    """Hold out the configured test split or fold, or else the default test split of a published data set.

    Raises:
        ConfigError: A test split or fold is configured, but the source has a test split.
    """
    key = "folds" if config.folds is not None else "test_fraction" if config.test_fraction is not None else ""
    tests = int((tiles.splits == "test").sum())
    if key and tests:
        raise ConfigError(
            f"the source already has a test split ({counted(tests, 'tile')}), so none can be held out",
            where=f"tiles.{key} ({tiles.where})",
            fix=f"remove tiles.{key}; or read all splits as train with tiles.splits: {{train: [train, test]}}, using "
            "the names in the source",
        )
    if config.folds is not None:
        return hold_out_fold(tiles, config.folds, config.fold, config.split_seed)
    if config.test_fraction is not None:
        return hold_out_test(tiles, config.test_fraction, config.split_seed)
    if data_set is not None and data_set.test_fraction is not None and not tests:
        return hold_out_test(tiles, data_set.test_fraction, data_set.test_seed)
    return tiles


def _check_validation_options(tiles: TileSet, config: TilesConfig) -> None:
    """Reject options for held-out splits that a source with a validation split would ignore."""
    ignored = []
    if config.validation_fraction != _default("validation_fraction"):
        ignored.append("validation_fraction")
    if config.split_seed and config.folds is None and config.test_fraction is None:
        ignored.append("split_seed")
    if ignored:
        held = counted(int((tiles.splits == "validation").sum()), "tile")
        raise ConfigError(
            f"the source already has a validation split ({held}), so none is held out",
            where=f"{' and '.join(f'tiles.{key}' for key in ignored)} ({tiles.where})",
            fix="remove the option; or read all splits as train with tiles.splits: {train: [train, validation]}, using "
            "the names in the source",
        )


def _default(option: str) -> object:
    return TilesConfig.model_fields[option].default


def resolve_source(source: SourceTiles, config: TilesConfig, annotators: AnnotationTable | None = None) -> TileSet:
    """Resolve labels, splits and mpp; drop tiles with labels outside `class_map` and, if configured, other splits.

    Args:
        config: Section `tiles`.
        annotators: Annotators' labels; their classes are added to those of the tiles.

    Raises:
        DataError: Labels, splits or groups are inconsistent, or no tiles remain.
        ConfigError: The configured classes are invalid.
    """
    source = replace(source, labels=spell_as_configured(source.labels, config))
    if source.classes is not None:
        source = replace(source, classes=tuple(spell_as_configured(source.classes, config)))
    if annotators is None or any(source.labels):
        source = map_labels(source, config.class_map)
    source = add_groups(source, config.group_pattern)
    classes = _resolve_classes(source, config, annotators)
    group_notes = check_group_names(source.groups, source.where)
    code_of = {name: code for code, name in enumerate(classes)} | {"": -1, DROPPED: -1}
    labels = np.asarray([code_of[name] for name in source.labels], dtype=np.int64)
    mpp = np.asarray(source.mpp, dtype=np.float64)
    if config.mpp is not None and config.source != "slides":  # for slides, tiles.mpp is the resolution of the slides
        mpp = np.where(np.isnan(mpp), config.mpp, mpp)
    splits = resolve_splits(source.source_splits, config.splits, source.split_names, source.where, config.other_parts)
    kept = np.asarray([bool(split) for split in splits]) & (np.asarray(source.labels, dtype=object) != DROPPED)
    if not kept.any():
        raise DataError(
            "no tiles remain after mapping splits and labels",
            where=source.where,
            fix="correct tiles.splits or tiles.class_map",
        )
    tiles = TileSet(
        # Objects, because fixed-width strings would give every row the size of the longest id.
        ids=np.asarray(source.ids, dtype=object),
        labels=labels,
        truth=labels.copy(),
        splits=np.asarray([split or "train" for split in splits], dtype="<U10"),  # tiles without a split are dropped
        groups=_deduplicated(source.groups),
        mpp=mpp,
        classes=classes,
        reader=source.reader,
        rows=np.arange(len(source.ids), dtype=np.int64),
        stamps=np.asarray([stamp.encode() for stamp in source.stamps], dtype=np.bytes_),
        notes=(
            *source.notes,
            *group_notes,
            *_dropped_split_notes(source, splits),
            *_alias_notes(source, splits, config),
        ),
        where=source.where,
        advice=group_advice(source),
        lone_slides=source.lone_slides,
    )
    return tiles if kept.all() else tiles.select(kept)


def _deduplicated(texts: Sequence[str]) -> Shaped[np.ndarray, " n"]:
    """Return texts as an object array in which identical texts are one object, to save memory.

    Texts are copied, because originals scattered among other objects would keep the memory around them in use.
    """
    copies = {text: text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass") for text in set(texts)}
    return np.asarray([copies[text] for text in texts], dtype=object)


def _dropped_split_notes(source: SourceTiles, splits: list[str]) -> tuple[str, ...]:
    others = Counter(
        source_split or "(none)" for source_split, split in zip(source.source_splits, splits, strict=True) if not split
    )
    if not others:
        return ()
    listed = shortlist([f"{source_split}: {count}" for source_split, count in sorted(others.items())])
    return (f"{counted(sum(others.values()), 'tile')} of other splits dropped ({listed})",)


def _alias_notes(source: SourceTiles, splits: list[str], config: TilesConfig) -> tuple[str, ...]:
    """Describe how split values such as Training or VAL, which are neither standard nor configured, were read."""
    if source.split_names is not ALIASES:
        return ()
    configured = {*configured_splits(config.splits)}
    read = Counter(
        (source_split, split)
        for source_split, split in zip(source.source_splits, splits, strict=True)
        if source_split and split and source_split != split and source_split not in configured
    )
    listed = [
        f"{source_split} ({counted(count, 'tile')}) as {split}" for (source_split, split), count in sorted(read.items())
    ]
    return (f"split names were interpreted: {', '.join(listed)}; set tiles.splits to change this",) if listed else ()


def _resolve_classes(source: SourceTiles, config: TilesConfig, annotators: AnnotationTable | None) -> tuple[str, ...]:
    present = set(source.labels) - {"", DROPPED}
    label_names = present | set(annotators.labels if annotators else ())
    origins = [source.where] if present or source.classes or annotators is None else []
    where = " and ".join([*origins, annotators.where] if annotators else origins)
    classes = config.classes or source.classes or sorted_names(label_names)
    if len(set(classes)) < len(classes) or "" in classes:
        raise ConfigError(
            "a class is repeated or has no name", where=f"tiles.classes = {classes}", fix="use unique, non-empty names"
        )
    if with_controls := [name for name in classes if has_controls(name)]:
        raise DataError(
            f"a class contains a control character: {shortlist([repr(name) for name in with_controls])}",
            where=source.where,
            fix="rename it in the source, or in tiles.class_map",
        )
    if config.classes is None:
        check_class_names(label_names | set(classes), where)
        if not config.class_map:
            _check_missing(source, missing_markers(present) | (NO_CLASSES & present))
    unknown = sorted(present - set(classes))
    if unknown:
        rows = [tile for tile, name in zip(source.ids, source.labels, strict=True) if name in unknown]
        raise DataError(
            f"unknown classes {shortlist(unknown)} in {counted(len(rows), 'tile')}: {shortlist(rows, 3)}",
            where=source.where,
            fix=f"the classes are {', '.join(classes)}; correct the labels or tiles.classes",
        )
    return classes


def _check_missing(source: SourceTiles, markers: Collection[str]) -> None:
    """Reject folders and class names such as nan and -1, which programs write for tiles without a label."""
    if markers:
        rows = [tile for tile, name in zip(source.ids, source.labels, strict=True) if name in markers]
        names = shortlist([repr(name) for name in sorted(markers)])
        raise DataError(
            f"{counted(len(rows), 'tile has', 'tiles have')} the label {names}, which marks a missing value in many "
            f"programs: {shortlist(rows, 3)}",
            where=source.where,
            fix="if these tiles have no label, rename their folder to `unlabelled`, or omit the label from "
            "tiles.class_map to drop them; if this is a class, name all classes in tiles.classes",
        )


def _check_options(config: TilesConfig) -> None:
    """Reject options that the source would ignore."""
    ignored = []
    if config.images is not None and config.source not in ("table", "slides"):
        ignored.append("tiles.images (table and slides only)")
    if config.columns and config.source not in ("table", "huggingface", "webdataset", "slides"):
        ignored.append("tiles.columns (table, huggingface, webdataset and slides only)")
    if config.streaming and config.source not in ("huggingface", "webdataset"):
        ignored.append("tiles.streaming (huggingface and webdataset only)")
    for option in ("keep_pixels", "keep_quality"):
        if getattr(config, option) != _default(option) and not config.streaming:
            ignored.append(f"tiles.{option} (only with tiles.streaming)")
    if config.labels.kind == "all" and config.labels.value != 1:
        ignored.append("tiles.labels.value (only with tiles.labels.kind=fraction or per_class)")
    if config.labels.kind == "all" and config.labels.seed is not None:
        ignored.append("tiles.labels.seed (only with tiles.labels.kind=fraction or per_class)")
    if "split" in config.columns and config.source == "huggingface":
        ignored.append(
            "tiles.columns.split (not huggingface, where tiles.splits names the splits of the data set; "
            "tiles.source=table reads this column from the metadata file of an image folder)"
        )
    if "mask" in config.columns and config.source in ("huggingface", "webdataset"):
        ignored.append("tiles.columns.mask (table and slides only)")
    if config.slides is not None and config.source != "slides":
        ignored.append("tiles.slides (slides only)")
    if config.photos != "resize" and config.source != "bach":
        ignored.append("tiles.photos (bach only)")
    data_set = DATASETS.get(config.source)
    if not config.check_counts and (data_set is None or config.source == "bach"):
        ignored.append("tiles.check_counts (published data sets only, except bach, whose split lists every micrograph)")
    if config.magnification is not None and (data_set is None or not data_set.counts_at):
        ignored.append("tiles.magnification (breakhis only)")
    if ignored:
        raise ConfigError(
            f"options that do not apply to tile source {config.source}: {', '.join(ignored)}",
            where="tiles",
            fix="remove them",
        )
