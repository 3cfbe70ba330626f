"""Zero-shot classification: embed prompts, average them per class, and compute probabilities from cosine similarity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from clipit.errors import DataError, shortlist
from clipit.evaluation.predictions import softmax
from clipit.prompts.prompt_set import PLACEHOLDER, PromptSet, check_classes
from clipit.types import TextEncoder
from clipit.vectors import unit


@dataclass(frozen=True)
class TextVectors:
    """Unit-norm embeddings of all texts of a prompt set, with the class, name and template of each text.

    Attributes:
        vectors: Unit-norm embeddings, centred if centring was requested.
        class_of: Index in `classes` of each text's class.
        name_of: Index of each text's name among the names of its class.
        template_of: Index of each text's template.
        classes: Class names, in the order of the results.
        texts: Texts, one per row of `vectors`.
    """

    vectors: Float32[np.ndarray, "t D"]
    class_of: Int64[np.ndarray, " t"]
    name_of: Int64[np.ndarray, " t"]
    template_of: Int64[np.ndarray, " t"]
    classes: tuple[str, ...]
    texts: tuple[str, ...]


def embed_prompt_set(
    prompts: PromptSet,
    encode: TextEncoder,
    mean: Float[np.ndarray, " D"] | None = None,
    classes: Sequence[str] | None = None,
) -> TextVectors:
    """Embed every (class, name, template) text as a unit vector; if `mean` is given, subtract it and normalise again.

    Args:
        prompts: Prompt set.
        encode: Function that encodes texts with the VLM.
        mean: Mean of the text modality, as used for pairing; None disables centring.
        classes: Order of the classes (that of the tiles); None keeps the prompt set's order.

    Raises:
        DataError: A class has no prompts, or an embedding is zero or not finite.
    """
    if classes is not None:
        check_classes(prompts, classes)
    order = tuple(prompts.classes if classes is None else classes)
    indices = [
        (c, n, t)
        for c, name in enumerate(order)
        for n in range(len(prompts.classes[name]))
        for t in range(len(prompts.templates))
    ]
    texts = [prompts.templates[t].replace(PLACEHOLDER, prompts.classes[order[c]][n]) for c, n, t in indices]
    rows = unit_rows(encode(texts).astype(np.float64), texts)
    if mean is not None:
        rows = unit_rows(rows - mean, texts)
    columns = np.array(indices, dtype=np.int64)
    return TextVectors(
        vectors=rows.astype(np.float32),
        class_of=columns[:, 0],
        name_of=columns[:, 1],
        template_of=columns[:, 2],
        classes=order,
        texts=tuple(texts),
    )


def prompt_embeddings(
    prompts: PromptSet,
    encode: TextEncoder,
    mean: Float[np.ndarray, " D"] | None = None,
    classes: Sequence[str] | None = None,
) -> Float32[np.ndarray, "C D"]:
    """Compute one unit vector per class: the mean-embedding ensemble over all (name, template) texts.

    Text embeddings are L2-normalised, centred by subtracting `mean` if it is given, and normalised again; they are then
    averaged per class and normalised. CONCH and CLIP_benchmark ensemble prompts in this way (without centring). Takes
    the same arguments as `embed_prompt_set`.

    Raises:
        DataError: A class has no prompts, an embedding is zero or not finite, or the texts of a class
            cancel out.
    """
    return class_means(embed_prompt_set(prompts, encode, mean, classes))


def class_means(texts: TextVectors) -> Float32[np.ndarray, "C D"]:
    """Compute the normalised mean of each class's text vectors: the prompt ensemble of CONCH and CLIP_benchmark.

    Raises:
        DataError: The texts of a class cancel out.
    """
    rows = texts.vectors.astype(np.float64)
    means = np.stack([rows[texts.class_of == c].mean(axis=0) for c in range(len(texts.classes))])
    return unit_rows(means, texts.classes).astype(np.float32)


def zero_shot_probabilities(
    image_embeddings: Float[np.ndarray, "n D"], class_embeddings: Float[np.ndarray, "C D"], logit_scale: float
) -> Float32[np.ndarray, "n C"]:
    """Compute class probabilities: softmax of `logit_scale` times the cosine similarity of image and class embeddings.

    Args:
        image_embeddings: Image embeddings in the joint space, of any norm; centred if the class embeddings are.
        class_embeddings: Class embeddings from `prompt_embeddings`.
        logit_scale: Logit scale of the VLM (100 for CLIP); affects the probabilities, not the predicted class.

    Raises:
        DataError: An embedding is zero or not finite.
    """
    images = unit_rows(image_embeddings.astype(np.float64), range(len(image_embeddings)))
    classes = unit_rows(class_embeddings.astype(np.float64), range(len(class_embeddings)))
    return softmax(logit_scale * images @ classes.T)


def unit_rows(rows: Float[np.ndarray, "n D"], names: Sequence[object]) -> Float[np.ndarray, "n D"]:
    """Normalise rows like `unit`, but reject rows that are zero or not finite.

    Args:
        rows: Vectors, one per row.
        names: Name of each row, for the error message.

    Raises:
        DataError: A row is zero or not finite.
    """
    lengths = np.linalg.norm(rows, axis=1)
    invalid = ~(lengths > 1e-9) | ~np.isfinite(lengths)
    if invalid.any():
        names_of_invalid = shortlist([names[i] for i in np.flatnonzero(invalid).tolist()])
        raise DataError(
            f"embeddings that are zero or not finite: {names_of_invalid}",
            fix="check the VLM's precision (fp16 can overflow), and that the mean does not come from these texts alone",
        )
    return unit(rows)
