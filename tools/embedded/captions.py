"""Captions of synthetic tiles, on which the bundled VLM is trained."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from clipit.synthetic import vocabulary as words
from clipit.synthetic.language import choose, describe, fill_numbers, ocr_noise
from clipit.synthetic.latents import CLASSES, HIGH, LOW, Latents, stream
from clipit.synthetic.status_words import MUTATED, STATUS_CAPTIONS, WILD_TYPE

Wording = Literal["graded", "coarse", "status", "rare_status"]
WORDINGS: dict[Wording, dict[str, tuple[str, ...]]] = {
    "graded": words.SHARED_NAMES,
    "coarse": words.COARSE_NAMES,
    "status": words.SHARED_NAMES,
    "rare_status": words.SHARED_NAMES,
}
"""Class names in captions, by wording; `coarse` has the same names for tumours of both grades."""
STATUS_NAMED: dict[Wording, float] = {"status": 0.5, "rare_status": 0.05}
"""Probability that the caption of a tumour tile names its molecular status, by wording; 0 for the others."""


def draw_captions(
    seed: int, name: str, latents: Latents, per_tile: int, wording: Wording = "graded"
) -> list[tuple[str, ...]]:
    """Draw `per_tile` captions per tile from the random stream for this seed and name.

    `wording` selects the class names, and how often a caption of a tumour tile names its status (`STATUS_NAMED`).
    """
    rng, status_rng = stream(seed, name, "captions"), stream(seed, name, "status captions")
    names, chance = WORDINGS[wording], STATUS_NAMED.get(wording, 0.0)
    captions = [[_caption(rng, latents, row, names) for _ in range(per_tile)] for row in range(len(latents))]
    if chance and latents.status is not None:
        for row in np.flatnonzero((latents.tissue == LOW) | (latents.tissue == HIGH)).tolist():
            phrases = STATUS_CAPTIONS[MUTATED if latents.status[row] else WILD_TYPE]
            captions[row] = [
                f"{text}, {choose(status_rng, phrases)}" if status_rng.random() < chance else text
                for text in captions[row]
            ]
    return [tuple(texts) for texts in captions]


def _caption(rng: np.random.Generator, latents: Latents, row: int, names: Mapping[str, tuple[str, ...]]) -> str:
    """Draw a caption of a tile from the VLM's vocabulary, with class names from `names`.

    15% of the captions are only boilerplate. The others name the class with probability 0.85 and each attribute with
    probability 0.5, and end with boilerplate with probability 0.15. 1% of the characters that OCR
    often confuses are misread.
    """
    filler = fill_numbers(rng, choose(rng, words.CAPTION_BOILERPLATE))
    if rng.random() < 0.15:
        return ocr_noise(rng, filler, 0.01)
    name = choose(rng, names[CLASSES[latents.tissue[row]]]) if rng.random() < 0.85 else ""
    more = describe(rng, latents, row, [words.SHARED_PHRASES], 0.5)
    if not name and not more:
        return ocr_noise(rng, filler, 0.01)
    templates = words.CAPTION_MORE if not name else words.CAPTION_FULL if more else words.CAPTION_NAMED
    text = choose(rng, templates).format(name=name, more=more)
    if rng.random() < 0.15:
        text = f"{text}. {filler}"
    return ocr_noise(rng, text, 0.01)
