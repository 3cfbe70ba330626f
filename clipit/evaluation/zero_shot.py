"""Zero-shot: class embeddings as means over prompts, and class probabilities by cosine."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from clipit.errors import DataError, explain, shortlist
from clipit.evaluation.predictions import softmax
from clipit.prompts.prompt_set import PromptSet, check_classes
from clipit.types import TextEncoder


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
    if classes is not None:
        check_classes(prompts, classes)
    names = tuple(prompts.classes if classes is None else classes)
    texts = [prompts.texts(name) for name in names]
    flat = [text for group in texts for text in group]
    rows = _unit(encode(flat).astype(np.float64), flat)
    if mean is not None:
        rows = _unit(rows - mean, flat)
    ends = np.cumsum([len(group) for group in texts])
    means = np.stack([part.mean(axis=0) for part in np.split(rows, ends[:-1])])
    return _unit(means, names).astype(np.float32)


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
    images = _unit(image_embeddings.astype(np.float64), range(len(image_embeddings)))
    classes = _unit(class_embeddings.astype(np.float64), range(len(class_embeddings)))
    return softmax(logit_scale * images @ classes.T)


def _unit(rows: Float[np.ndarray, "n D"], names: Sequence[object]) -> Float[np.ndarray, "n D"]:
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
