"""Zero-shot: texts of a prompt set as vectors, class embeddings as means over them, probabilities by cosine."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from clipit.errors import DataError, explain, shortlist
from clipit.evaluation.predictions import softmax
from clipit.prompts.prompt_set import PLACEHOLDER, PromptSet, check_classes
from clipit.types import TextEncoder


@dataclass(frozen=True)
class TextVectors:
    """Every text of a prompt set as a unit vector, with the class, name and template that it was made of.

    Attributes:
        vectors: Rows of length 1; centred where the texts were.
        class_of: Per text, the place of its class in `classes`.
        name_of: Per text, the place of its name among its class's names.
        template_of: Per text, the place of its template.
        classes: Class names, in the order that results have.
        texts: The texts themselves.
    """

    vectors: Float32[np.ndarray, "t D"]
    class_of: Int64[np.ndarray, " t"]
    name_of: Int64[np.ndarray, " t"]
    template_of: Int64[np.ndarray, " t"]
    classes: tuple[str, ...]
    texts: tuple[str, ...]


def embed_prompts(
    prompts: PromptSet,
    encode: TextEncoder,
    mean: Float[np.ndarray, " D"] | None = None,
    classes: Sequence[str] | None = None,
) -> TextVectors:
    """Every (class, name, template) text as a vector: unit length; with centring, minus `mean` and unit length again.

    Args:
        prompts: The prompt set.
        encode: The VLM's text encoder.
        mean: Mean of the text modality, as used for pairing; None without centring.
        classes: Order of the classes (the tiles'); the prompt set's own when not given.

    Raises:
        DataError: `classes` are not those of the prompts, or the encoder returns something that is not finite or of
            length 0.
    """
    if classes is not None:
        check_classes(prompts, classes)
    order = tuple(prompts.classes if classes is None else classes)
    places = [
        (c, n, t)
        for c, owner in enumerate(order)
        for n in range(len(prompts.classes[owner]))
        for t in range(len(prompts.templates))
    ]
    texts = [prompts.templates[t].replace(PLACEHOLDER, prompts.classes[order[c]][n]) for c, n, t in places]
    rows = unit_rows(encode(texts).astype(np.float64), texts)
    if mean is not None:
        rows = unit_rows(rows - mean, texts)
    columns = np.array(places, dtype=np.int64)
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
    """One unit vector per class: the mean-embedding ensemble over all (name, template) texts.

    Order of operations: each text to unit length; with centring, minus `mean` and to unit length again; mean over the
    class's texts; unit length. This is how CONCH and CLIP_benchmark ensemble prompts (which do not centre).

    Args:
        prompts: The prompt set.
        encode: The VLM's text encoder.
        mean: Mean of the text modality, as used for pairing; None without centring.
        classes: Order of the rows (the tiles' class order); the prompt set's own when not given.

    Raises:
        DataError: `classes` are not those of the prompts, the encoder returns something that is not finite or of length
            0, or a class's texts cancel out.
    """
    return class_means(embed_prompts(prompts, encode, mean, classes))


def class_means(texts: TextVectors) -> Float32[np.ndarray, "C D"]:
    """Per class the mean of its texts' vectors, to unit length.

    Raises:
        DataError: A class's texts cancel out.
    """
    rows = texts.vectors.astype(np.float64)
    means = np.stack([rows[texts.class_of == c].mean(axis=0) for c in range(len(texts.classes))])
    return unit_rows(means, texts.classes).astype(np.float32)


def zero_shot_probabilities(
    image_embeddings: Float[np.ndarray, "n D"], class_embeddings: Float[np.ndarray, "C D"], logit_scale: float
) -> Float32[np.ndarray, "n C"]:
    """Softmax over classes of `logit_scale` times the cosine between each image and each class.

    Args:
        image_embeddings: Joint space, any length (centred already, if the classes are).
        class_embeddings: Of `prompt_embeddings`.
        logit_scale: The VLM's own (100 for CLIP); it changes probabilities, never the winner.

    Raises:
        DataError: An embedding is not finite or of length 0.
    """
    images = unit_rows(image_embeddings.astype(np.float64), range(len(image_embeddings)))
    classes = unit_rows(class_embeddings.astype(np.float64), range(len(class_embeddings)))
    return softmax(logit_scale * images @ classes.T)


def unit_rows(rows: Float[np.ndarray, "n D"], names: Sequence[object]) -> Float[np.ndarray, "n D"]:
    """Rows to length 1.

    Args:
        rows: Vectors.
        names: What the rows are called in the error.

    Raises:
        DataError: A row is of length 0 or not finite.
    """
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = ~(lengths[:, 0] > 1e-9) | ~np.isfinite(lengths[:, 0])
    if bad.any():
        which = shortlist([names[i] for i in np.flatnonzero(bad).tolist()])
        raise DataError(
            explain(
                f"embeddings of length 0 or not finite: {which}",
                fix="check the VLM's precision (fp16 can overflow), and that the mean is not that of these very texts",
            )
        )
    unit: Float[np.ndarray, "n D"] = rows / lengths
    return unit
