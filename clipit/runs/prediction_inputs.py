"""Inputs of `clipit predict`: files, folders, zips, tables and slides, and classes for zero-shot prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from clipit.config.data import SlidesConfig
from clipit.config.load import check_utf8
from clipit.errors import ConfigError, DataError, ModelError, counted, has_controls, shortlist
from clipit.images.image_set import ImageSet, join_images, open_images
from clipit.input_files.zip_files import check_uncompressed
from clipit.prompts.files import packaged, unknown_prompts
from clipit.prompts.prompt_set import PromptSet, load_prompts
from clipit.slides.opening import is_pyramid
from clipit.slides.option_names import PREDICT_OPTIONS
from clipit.tiles.slide_source import is_slide_input, tiles_of_slide
from clipit.tiles.table import TABLES, WORKBOOKS, table_images
from clipit.tiles.webdataset import shard_images

if TYPE_CHECKING:
    from clipit.models.inference import Classifier


@dataclass(frozen=True)
class ZeroShotClasses:
    """Classes for zero-shot prediction.

    Attributes:
        source: Name of the prompt set, or `--classes`.
        classes: Class names, in the order of the embeddings.
        embeddings: Unit vector of each class, in the space of the projected images.
        logit_scale: Factor that turns cosine similarities into logits.
    """

    source: str
    classes: tuple[str, ...]
    embeddings: Float32[np.ndarray, "K D"]
    logit_scale: float


def open_inputs(
    inputs: Sequence[Path],
    images: Path | None = None,
    path_column: str | None = None,
    id_column: str | None = None,
    slides: SlidesConfig | None = None,
    slide_mpp: float | None = None,
) -> ImageSet:
    """List the images of all inputs, in order.

    Args:
        inputs: Image files, folders, zips, webdataset shards (.tar), tables with a path column, and slides, which are
            cut into tissue tiles.
        images: Folder or zip to which the paths in tables are relative; None for the folder of each table.
        path_column: Path column of tables; None for `path`.
        id_column: Id column of tables; None for the column `id` if it exists, or else the paths.
        slides: Tiling of slides; needed if an input is a slide (see `is_slide_input`).
        slide_mpp: Micrometres per pixel of the finest level, for slides whose files do not state it.

    Raises:
        ConfigError: An option for tables is given, but no input is a table.
        DataError: An input is missing or unsuitable, or an id occurs more than once.
    """
    if not inputs:
        raise DataError("no inputs", where="inputs", fix="pass an image, a folder, a zip, a table or a slide")
    for path in inputs:
        check_uncompressed(path)
    tables = {path for path in inputs if path.suffix.lower() in (*TABLES, *WORKBOOKS) and not path.is_dir()}
    table_options = {"--images": images, "--path-column": path_column, "--id-column": id_column}
    options = [option for option, value in table_options.items() if value]
    if options and not tables:
        raise ConfigError(
            f"options for tables are given ({', '.join(options)}), but no input is a table",
            where=shortlist(inputs, 3),
            fix=f"remove these options, or pass a table ({', '.join(TABLES)})",
        )
    sets = []
    for path in inputs:
        if path in tables:
            sets.append(_reject_slides(path, table_images(path, images, path_column, id_column)))
        elif path.suffix.lower() == ".tar" and path.is_file():
            sets.append(shard_images(path))
        elif slides is not None and is_slide_input(path):
            sets.append(tiles_of_slide(path, slides, slide_mpp, PREDICT_OPTIONS))
        else:
            sets.append(_reject_slides(path, open_images(path)))
    return join_images(sets)


def _reject_slides(path: Path, listed: ImageSet) -> ImageSet:
    """Check that a table or folder contains no slides, since a slide would be classified as a single small image."""
    slides = [name for row, name in enumerate(listed.ids) if is_pyramid(Path(listed.reader.where(row)))]
    if slides:
        raise DataError(
            f"found whole slides among {counted(len(listed), 'image')}: {shortlist(slides, 3)}",
            where=path,
            fix="pass slides, or a folder that contains only slides, as separate inputs; or score them with clipit "
            "slides score",
        )
    return listed


def check_vlm_use(vlm: object, prompts: object) -> None:
    """Check that a VLM is given only together with prompts or classes, because it encodes nothing else.

    Raises:
        ConfigError: There is a VLM, but no prompts.
    """
    if vlm is not None and prompts is None:
        raise ConfigError(
            "a VLM is given, but neither prompts nor classes, so the classifier would not use it",
            where="--vlm",
            fix="add --prompts or --classes, or remove --vlm",
        )


def read_prompts(prompts: str | None, classes: str | Sequence[str] | None) -> PromptSet | None:
    """Read the classes for zero-shot prediction, before a model is loaded.

    Args:
        prompts: Prompt file, packaged prompt set, or name of a set that the classifier contains; None if not given.
        classes: Class names, as a list or separated by semicolons, each used as its own prompt; None if not given.

    Returns:
        The prompt set; None if neither argument is given, or if `prompts` can only name a set in the classifier.

    Raises:
        DataError: The prompt set is invalid.
        ConfigError: There are fewer than two classes, or a class is repeated, contains a control character or is not
            valid UTF-8.
    """
    if classes is None:
        known = prompts is not None and (Path(prompts).exists() or prompts in packaged("sets"))
        return load_prompts(prompts) if prompts is not None and known else None
    listed = classes.split(";") if isinstance(classes, str) else classes
    names = [name.strip() for name in listed if name.strip()]
    check_utf8(names, "--classes")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            "--classes needs two or more different classes, separated by semicolons; it lists "
            f"{'; '.join(names) or 'none'}",
            where=f"--classes {classes!r}",
            fix='separate classes with semicolons: --classes "adenocarcinoma; normal mucosa"',
        )
    if has_controls("".join(names)):
        raise ConfigError(
            f"a class contains a control character: {shortlist([name for name in names if has_controls(name)])}",
            where="--classes",
            fix="remove control characters, such as line breaks and tabs, from the class names",
        )
    return PromptSet("--classes", "1", ("{}",), {name: (name,) for name in names})


def embed_classes(classifier: "Classifier", prompts: PromptSet | str) -> ZeroShotClasses:
    """Embed the classes of a prompt set for a classifier.

    Args:
        classifier: Classifier that was trained with text.
        prompts: Prompt set, or the name of a set that the classifier contains.

    Raises:
        ModelError: The classifier was trained without text, or the VLM that embeds new texts cannot be loaded.
        DataError: The prompt set is neither a file, nor packaged, nor contained in the classifier.
    """
    spec = classifier.spec
    if not spec.projector_layers or spec.vlm is None:
        raise ModelError(
            "this classifier was trained without text and does not support zero-shot classification",
            where="--prompts and --classes",
            fix="remove the option, or use a classifier trained with student.projector_layers=1 or 2",
        )
    if isinstance(prompts, PromptSet):
        classes = tuple(prompts.classes)
        return ZeroShotClasses(
            prompts.name, classes, class_embeddings(classifier, prompts, classes), float(spec.vlm["logit_scale"])
        )
    if prompts not in spec.prompts:
        stored = ", ".join(spec.prompts) or "none"
        raise unknown_prompts(prompts, "sets", "--prompts", further=f"; the classifier itself contains: {stored}")
    embeddings = classifier.prompt_embeddings(prompts)
    return ZeroShotClasses(prompts, tuple(spec.prompts[prompts]), embeddings, float(spec.vlm["logit_scale"]))


def class_embeddings(
    classifier: "Classifier", prompts: PromptSet, classes: Sequence[str]
) -> Float32[np.ndarray, "K D"]:
    """Embed classes, in the given order, with a prompt set; no VLM is loaded if the classifier contains the set."""
    hashes = classifier.spec.provenance.get("prompt_hashes", {})
    if prompts.name in classifier.spec.prompts and hashes.get(prompts.name) == prompts.hash:
        stored = classifier.spec.prompts[prompts.name]
        return classifier.prompt_embeddings(prompts.name)[[stored.index(name) for name in classes]]
    return classifier.prompt_embeddings({name: prompts.texts(name) for name in classes})
