"""Synthetic slides: pyramidal TIFFs, with masks of the tissue and the artefacts at every pixel."""

import hashlib
import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pydantic import Field, model_validator

from clipit.config.run import Section
from clipit.config.section import Share
from clipit.errors import DataError, disk_errors
from clipit.output_files.artifacts import whole_file, write_json
from clipit.output_files.whole_files import write_rows
from clipit.progress import progress
from clipit.synthetic import vocabulary as words
from clipit.synthetic.latents import ADIPOSE, CLASSES, HIGH, LOW, LYMPHOID, MUCIN, NECROSIS, NORMAL, STROMA, stream
from clipit.synthetic.slide_layout import ARTEFACTS, GLASS, draw_artefacts, draw_layout
from clipit.synthetic.slide_render import INKS, add_fold, draw_stains, draw_status, scan_slide
from clipit.synthetic.tile_draws import MPP, check_centres
from clipit.synthetic.world_files import ensure_written, patient_name, prompt_set, write_yaml

SLIDES = "slides.csv"
STATUS_MASK = "status_mask"
"""Table column with the path of the mask of the mutant morphology; only in worlds with reports."""
_TILE = 256
_OTHER_TISSUES = {
    NORMAL: (STROMA, ADIPOSE, LYMPHOID, MUCIN),
    LOW: (STROMA, ADIPOSE, LYMPHOID, MUCIN, NORMAL),
    HIGH: (STROMA, ADIPOSE, LYMPHOID, NECROSIS, NORMAL),
}
SLIDE_LABELS = tuple(CLASSES[k] for k in _OTHER_TISSUES)
"""Slide labels: the tumour grade, or `normal_mucosa` without a tumour."""


class SlideWorldConfig(Section):
    """Number, size and centres of synthetic slides; their seed is independent of run seeds."""

    seed: int = Field(0, ge=0)
    train: int = Field(6, ge=0)
    """Number of training slides."""
    validation: int = Field(6, ge=0)
    test: int = Field(6, ge=0)
    slides_per_patient: int = Field(1, ge=1)
    """Number of slides per patient; they have the same label and centre."""
    size: int = Field(1536, ge=256, le=8192, multiple_of=64)
    """Edge length of a slide in pixels (1 micrometre each); writing needs about 20 bytes of memory per pixel."""
    centres: tuple[int, ...] = Field((6, 7), min_length=1)
    second_stain: Share = 0.5
    """Probability that the second of two pieces of tissue has the stain of another centre."""
    artefacts: bool = True
    """Whether each slide has a pen mark, a fold and an out-of-focus patch."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "SlideWorldConfig":
        check_centres(self.centres, ())
        if not self.train + self.validation + self.test:
            raise ValueError("train, validation and test are all 0: nothing to write")
        return self


ConfigT = TypeVar("ConfigT", bound=SlideWorldConfig)


@dataclass(frozen=True)
class DrawnSlide:
    """A slide with the true tissue and artefact at every pixel.

    Attributes:
        labels: 0 for glass, k + 1 for class k of `CLASSES`, even under artefacts.
        artefacts: Values of `ARTEFACTS`, 0 elsewhere.
        centres: Centre that determines the stain of each tissue piece.
        ink: Pen colour; empty without artefacts.
        status: Tumour pixels with the mutant morphology.
    """

    image: UInt8[np.ndarray, "size size 3"]
    labels: UInt8[np.ndarray, "size size"]
    artefacts: UInt8[np.ndarray, "size size"]
    centres: tuple[int, ...]
    ink: str
    status: Bool[np.ndarray, "size size"]


def draw_slide(config: SlideWorldConfig, name: str, main: int, centre: int, shows: float = 0.0) -> DrawnSlide:
    """Draw a slide from the random streams for the configuration's seed and this name.

    Args:
        main: Class of the slide's label: a tumour grade, or normal mucosa.
        centre: Centre that determines the scanner and the stain of the first piece.
        shows: Fraction of the tumour with the mutant morphology, arranged in foci.
    """
    draw = stream(config.seed, "slides", name, "slide")
    centres = [centre] * int(draw.integers(1, 3))
    others = [number for number in config.centres if number != centre]
    if draw.random() < config.second_stain and len(centres) == 2 and others:
        centres[1] = int(draw.choice(others))
    ink = str(draw.choice(list(INKS)))
    layout = draw_layout(
        stream(config.seed, "slides", name, "layout"), config.size, len(centres), main, _OTHER_TISSUES[main]
    )
    status = draw_status(stream(config.seed, "slides", name, "status"), layout.labels, shows)
    stains = draw_stains(stream(config.seed, "slides", name, "tissue"), layout.labels, status)
    artefacts = None
    if config.artefacts:
        artefacts = draw_artefacts(stream(config.seed, "slides", name, "artefacts"), layout)
        add_fold(stains, artefacts)
    image = scan_slide(stream(config.seed, "slides", name, "scan"), *stains, layout, centres, artefacts, ink)
    mask = np.zeros_like(layout.labels) if artefacts is None else artefacts.mask
    return DrawnSlide(image, layout.labels, mask, tuple(centres), ink if config.artefacts else "", status)


@dataclass(frozen=True)
class ListedSlide:
    """A slide to be drawn: its row in the slide table, the class of its label, and its centre."""

    row: dict[str, object]
    main: int
    centre: int
    shows: float = 0.0
    """Fraction of the tumour with the mutant morphology."""

    @property
    def name(self) -> str:
        """Name of the slide."""
        return str(self.row["slide"])


def write_slides(folder: Path, config: SlideWorldConfig) -> dict[str, Any]:
    """Write synthetic slides to a folder; the same configuration gives the same bytes.

    The files of each slide are `slides/<slide>.tif` (tiled, pyramidal, lossless), `masks/<slide>.png` (0 for glass,
    k + 1 for class k), `masks/<slide>_artefacts.png` (1 pen, 2 fold, 3 blur) and `masks/<slide>.json` (sizes and
    areas). The files of the world are `slides.csv`, `prompts.yaml` (all tissues), `slide_prompts.yaml` (slide
    labels), and last `world.json`. Paths in the table are relative to the folder.

    Returns:
        The content of `world.json`: configuration, classes, slides per split and label, SHA-256 of all pixels.

    Raises:
        DataError: tifffile is not installed; nothing is written.
        ArtifactError: The folder cannot be written.
    """
    facts = write_slide_files(folder, config, list_world_slides(config))
    write_json(folder / "world.json", facts)
    return facts


def write_slide_files(folder: Path, config: SlideWorldConfig, slides: Iterable[ListedSlide]) -> dict[str, Any]:
    """Write slides, their masks, their table and the prompt sets; return the content of `world.json`.

    Raises:
        DataError: tifffile is not installed; nothing is written.
        ArtifactError: The folder cannot be written.
    """
    _require_tifffile()
    digest = hashlib.sha256()
    rows: list[dict[str, object]] = []
    counts = {split: dict.fromkeys(SLIDE_LABELS, 0) for split in ("train", "validation", "test")}
    total = config.train + config.validation + config.test
    with progress("synthetic slides", total) as advance:
        for listed in slides:
            row = listed.row
            slide = draw_slide(config, listed.name, listed.main, listed.centre, listed.shows)
            levels = _write_slide(folder, listed, slide)
            write_json(folder / "masks" / f"{listed.name}.json", {**row, "seed": config.seed, **_facts(slide, levels)})
            digest.update(slide.image.tobytes())
            counts[str(row["split"])][str(row["label"])] += 1
            rows.append(row)
            advance()
    write_rows(folder / SLIDES, list(rows[0]), rows)
    for file, labels in (("prompts", CLASSES), ("slide_prompts", SLIDE_LABELS)):
        names = {label: words.PROMPT_NAMES[label] for label in labels}
        write_yaml(folder / f"{file}.yaml", prompt_set(f"synthetic-{len(labels)}", names))
    return {
        "config": config.model_dump(mode="json"),
        "classes": list(CLASSES),
        "counts": counts,
        "pixels_sha256": digest.hexdigest(),
    }


def ensure_slides(folder: Path, config: ConfigT, write_world: Callable[[Path, ConfigT], object] = write_slides) -> Path:
    """Write synthetic slides to a folder, atomically, unless it already contains them.

    Args:
        write_world: Function that writes all files of the world, `world.json` last.

    Raises:
        DataError: tifffile is not installed.
        ArtifactError: The folder contains other files or a different world; nothing in it is changed.
    """

    def write(partial: Path) -> None:
        with disk_errors(partial):
            if partial.exists():  # left by a killed process, perhaps with more slides
                shutil.rmtree(partial)
        write_world(partial, config)

    return ensure_written(folder, config, write)


def _require_tifffile() -> None:
    if importlib.util.find_spec("tifffile") is None:
        raise DataError("cannot write slides without the package tifffile", fix="pip install tifffile")


def list_world_slides(config: SlideWorldConfig, mains: Sequence[int] = tuple(_OTHER_TISSUES)) -> Iterator[ListedSlide]:
    """List the slides of a world; the labels of consecutive patients cycle through the classes `mains`."""
    for split, count in (("train", config.train), ("validation", config.validation), ("test", config.test)):
        for number in range(count):
            patient = number // config.slides_per_patient
            main = mains[patient % len(mains)]
            group = patient_name(split, patient)
            name = f"{split}-S{number:03d}"
            row: dict[str, object] = {
                "slide": name,
                "path": f"slides/{name}.tif",
                "label": CLASSES[main],
                "split": split,
                "group": group,
                "mpp": MPP,
                "mask": f"masks/{name}.png",
            }
            centre = int(stream(config.seed, "slides", group).choice(np.asarray(config.centres)))
            yield ListedSlide(row, main, centre)


def _facts(slide: DrawnSlide, levels: int) -> dict[str, Any]:
    """Return the sizes, the values of both masks, and areas in pixels."""
    areas = {name: int((slide.labels == k + 1).sum()) for k, name in enumerate(CLASSES)}
    return {
        "size": len(slide.image),
        "levels": levels,
        "centres": list(slide.centres),
        "values": {"glass": GLASS, **{name: k + 1 for k, name in enumerate(CLASSES)}},
        "pixels": {"glass": int((slide.labels == GLASS).sum()), **areas},
        "artefact_values": ARTEFACTS,
        "artefact_pixels": {name: int((slide.artefacts == value).sum()) for name, value in ARTEFACTS.items()},
        "ink": slide.ink,
    }


def _write_slide(folder: Path, listed: ListedSlide, slide: DrawnSlide) -> int:
    """Write the TIFF and masks of a slide, and a status mask if its row names one; return the number of levels."""
    name = listed.name
    with whole_file(folder / "slides" / f"{name}.tif") as path:
        levels = write_pyramid(path, slide.image, MPP)
    masks = {f"masks/{name}.png": slide.labels, f"masks/{name}_artefacts.png": slide.artefacts}
    if STATUS_MASK in listed.row:
        masks[str(listed.row[STATUS_MASK])] = slide.status.astype(np.uint8)
    for file, mask in masks.items():
        with whole_file(folder / file) as path:
            Image.fromarray(mask).save(path, format="PNG")
    return levels


def write_pyramid(path: Path, image: UInt8[np.ndarray, "h w 3"], mpp: float) -> int:
    """Write a tiled TIFF whose levels are halved until one tile covers the image; return the number of levels.

    The levels are reduced images in the main sequence, as openslide expects for a generic TIFF, with lossless
    compression.

    Args:
        image: Pixels of the finest level.
        mpp: Micrometres per pixel of the finest level.
    """
    import tifffile

    level = 0
    with tifffile.TiffWriter(path) as file:
        while True:
            per_centimetre = 1e4 / (mpp * 2**level)
            file.write(
                image,
                photometric="rgb",
                tile=(_TILE, _TILE),
                compression="zlib",
                predictor=True,
                subfiletype=1 if level else 0,
                resolution=(per_centimetre, per_centimetre),
                resolutionunit="CENTIMETER",
                metadata=None,
                software=False,
            )
            level += 1
            if max(image.shape[:2]) <= _TILE:
                return level
            image = _halve(image)


def _halve(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Average squares of 2 x 2 pixels; an odd last row or column is dropped."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    total = np.full((height // 2, width // 2, 3), 2, dtype=np.uint16)
    for row in range(2):
        for column in range(2):
            total += image[row:height:2, column:width:2]
    return np.asarray(total // 4, dtype=np.uint8)
