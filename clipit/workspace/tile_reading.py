"""Read the tiles of a configuration, and log an overview before any image is decoded."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.config.argument_types import type_name
from clipit.config.run import LabelsConfig, RunConfig, TilesConfig
from clipit.errors import ConfigError, DataError, counted, shortlist
from clipit.images.image_set import crop_warning
from clipit.models.input_size import input_pixels
from clipit.output_files.artifacts import fingerprint
from clipit.prompts.prompt_set import PromptSet
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.overview import tiles_overview
from clipit.tiles.tileset import TileSet
from clipit.tiles.view_warnings import mpp_warning, sample_sizes

if TYPE_CHECKING:
    from clipit.models.preprocess import Preprocess

logger = logging.getLogger(__name__)

_MANY_CLASSES = 20  # with fewer classes, few tiles per class are plausible

Cache = Callable[[str, Callable[[], Any]], Any]
"""Function that calls a given function once per key, and returns its cached value."""


def artefacts_of(config: RunConfig) -> Path:
    """Return the artefact folder of a configuration."""
    return config.output / "artefacts"


def with_kept_size(section: TilesConfig, config: RunConfig) -> TilesConfig:
    """Return the `tiles` section with the size of streamed tiles (`keep_pixels`) set.

    Args:
        section: Section `tiles`; returned unchanged if it is not streamed or has a size.

    Raises:
        ConfigError: The section has another type, or the input size of a model is known only after loading it.
    """
    if not isinstance(section, TilesConfig):
        raise ConfigError(
            f"a set of tiles must be a TilesConfig, not {type_name(section)}",
            where="section",
            fix="use TilesConfig.model_validate(...) with a dictionary of the keys of the section tiles",
        )
    if not section.streaming or section.keep_pixels is not None:
        return section
    sizes = _input_sizes(config)
    unknown = [name for name, pixels in sizes if pixels is None]
    if unknown:
        raise ConfigError(
            "streamed tiles are resized to the largest input size of the models, but the input size of "
            f"{shortlist(unknown)} is known only after loading",
            where="tiles.keep_pixels",
            fix="set it to the largest input size of your models, such as --tiles.keep_pixels=224",
        )
    return section.model_copy(update={"keep_pixels": max(pixels for _, pixels in sizes if pixels is not None)})


def _input_sizes(config: RunConfig) -> list[tuple[str, int | None]]:
    """Return the names and input sizes of the models; a VLM and a backbone of the same name may differ in size."""
    models = (config.vlm, config.second_vlm, config.backbone)
    return [(model.name, input_pixels(model)) for model in models if model is not None]


def cache_key(name: str, config: RunConfig, *sections: str) -> str:
    """Return the key of configuration sections in a shared cache.

    The size of streamed tiles may depend on the models (see `with_kept_size`), so the key depends on their input sizes.
    """
    values: list[object] = [config.model_dump(mode="json", include={section}) for section in sections]
    if "tiles" in sections and config.tiles.streaming and config.tiles.keep_pixels is None:
        values.append(_input_sizes(config))
    return name + fingerprint(values)


def read_configured(
    config: RunConfig, cached: Cache, prompts: Callable[[], PromptSet | None], *, root: Path, decode: bool
) -> TileSet:
    """Read all tiles of a configuration, with all labels, or without labels if `tiles.labels.kind` is `none`.

    Args:
        prompts: Function that reads the prompt set, which defines the classes of tiles without labels.
        decode: Whether to decode every image if `tiles.unreadable` is `quarantine`.
    """
    labels = LabelsConfig(kind="none" if config.tiles.labels.kind == "none" else "all")
    section = with_kept_size(config.tiles.model_copy(update={"labels": labels}), config)
    tiles = read_with_overview(section, cached, root=root, check=False, decode=decode, shown=config.tiles)
    if not tiles.classes and (prompt_set := prompts()) is not None:
        return replace(tiles, classes=tuple(prompt_set.classes))
    return tiles


def read_with_overview(
    section: TilesConfig,
    cached: Cache,
    *,
    root: Path,
    check: bool = True,
    decode: bool = True,
    shown: TilesConfig | None = None,
    shifted: str = "",
) -> TileSet:
    """Read tiles, and log their overview before any image is decoded; both are done once per section.

    Args:
        section: Section `tiles` to read.
        root: Artefact folder, for streamed tiles and shard indexes.
        check: Whether to reject groups that occur in two splits.
        decode: Whether to decode every image if `tiles.unreadable` is `quarantine`.
        shown: Section with the labels that the run may use, for the overview; `section` by default.
        shifted: Name of a shifted test set, which contributes only its test tiles; "" for the tiles of a run.
    """
    quarantine = section.unreadable == "quarantine"

    def read() -> TileSet:
        if quarantine and decode:
            read_with_overview(section, cached, root=root, check=check, decode=False, shown=shown, shifted=shifted)
            tiles = read_tiles(section, check=check, root=root)
            if tiles.quarantined:
                count, total = len(tiles.quarantined), len(tiles) + len(tiles.quarantined)
                logger.info(
                    f"note: dropped {count} of {counted(total, 'image')} (cannot be decoded): "
                    f"{shortlist(tiles.quarantined)}"
                )
            return tiles
        tiles = read_tiles(section, check=check, decode=False, root=root)
        title = f"shifted test set {shifted}" if shifted else "tiles"
        shown_tiles = tiles.of_split("test") if shifted else tiles
        text = tiles_overview(shown_tiles, shown or section, title, tests_only=bool(shifted))
        # Arms with other labels read the same source again, and their overview would be the same.
        cached(
            f"overview {title} {fingerprint(section.model_dump(mode='json', exclude={'labels'}))}",
            lambda: logger.info(text),
        )
        return tiles

    listed = "listed " if quarantine and not decode else ""
    tiles: TileSet = cached(f"{listed}tiles {fingerprint(section.model_dump(mode='json'))}", read)
    return tiles


def check_shifted(tests: TileSet, classes: Sequence[str], where: str) -> None:
    """Check that a shifted test set has test tiles and the classes of the configuration's tiles.

    Raises:
        DataError: The set has no test tiles, or different classes.
    """
    if not len(tests):
        raise DataError(
            "the shifted set has no test tiles", where=where, fix="map the name of its test split to `test` in `splits`"
        )
    if tests.classes != tuple(classes):
        raise DataError(
            f"the shifted set has the classes {', '.join(tests.classes)}; the tiles have {', '.join(classes)}",
            where=where,
            fix="map its labels with `class_map`, and list all classes of the tiles in `classes`",
        )


def note_many_classes(tiles: TileSet) -> TileSet:
    """Warn if there are many classes with fewer than two labelled tiles each, which suggests ids instead of labels."""
    labelled = int((tiles.truth >= 0).sum())
    if len(tiles.classes) < _MANY_CLASSES or not 0 < labelled < 2 * len(tiles.classes):
        return tiles
    note = (
        f"{len(tiles.classes)} classes for {counted(labelled, 'labelled tile')}: check that the labels are class "
        "names, not ids"
    )
    logger.warning(note)
    return replace(tiles, notes=(*tiles.notes, note))


def tile_sizes(tiles: TileSet, cached: Cache) -> list[tuple[int, int]]:
    """Return the width and height of a few tiles, in pixels."""
    sizes = cached(f"sizes {tiles.fingerprint}", lambda: sample_sizes(tiles.try_read, len(tiles)))
    return [*sizes.values()]


def cropped_sets(sets: Mapping[str, TileSet], cached: Cache, preprocess: "Preprocess") -> dict[str, str]:
    """Return a warning for each set whose tiles a model crops, by name of the set."""
    warnings = {name: crop_warning(tile_sizes(tiles, cached)) for name, tiles in sets.items() if preprocess.crops}
    return {name: warning for name, warning in warnings.items() if warning}


def tile_warnings(
    tiles: TileSet, cached: Cache, expected: float | None, model: str, preprocess: "Preprocess"
) -> list[str]:
    """Return warnings if a model crops the tiles, or if their resolution differs from that of its training tiles.

    Args:
        cached: Cache for the sizes of tiles.
        expected: Micrometres per pixel of the model's training tiles; None if unknown.
        model: Name of the model.
        preprocess: Preprocessing of the model.
    """
    sizes = tile_sizes(tiles, cached)
    warnings = [crop_warning(sizes)] if preprocess.crops else []
    if sizes:
        warnings.append(mpp_warning(tiles, expected, model, resize=preprocess.resize_to / min(sizes[0])))
    return [warning for warning in warnings if warning]
