"""Text drawn from latents: descriptions of tiles, sentences of reports, and OCR noise."""

from collections.abc import Mapping, Sequence

import numpy as np

from clipit.synthetic import vocabulary as words
from clipit.synthetic.latents import ATTRIBUTES, CLASSES, Latents

_CONFUSED = str.maketrans({"l": "1", "o": "0", "i": "l", "e": "c", "s": "5", "g": "q", "b": "h", "u": "v"})


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Draw one of the options."""
    return options[int(rng.integers(len(options)))]


def fill_numbers(rng: np.random.Generator, sentence: str) -> str:
    """Fill in the numbers and names of a boilerplate sentence."""
    return sentence.format(
        n=rng.integers(3, 80),
        a=f"{rng.uniform(0.4, 9):.1f}",
        b=rng.integers(1, 9),
        doctor=choose(rng, words.DOCTORS),
        site="{site}",
    )


def ocr_noise(rng: np.random.Generator, text: str, rate: float) -> str:
    """Replace each character that OCR often confuses with probability `rate`."""
    misread = rng.random(len(text)) < rate
    return "".join(c.translate(_CONFUSED) if wrong else c for c, wrong in zip(text, misread, strict=True))


def describe(
    rng: np.random.Generator,
    latents: Latents,
    row: int,
    phrases: Sequence[Mapping[str, tuple[tuple[str, ...], ...]]],
    chance: float | Mapping[str, float],
    max_phrases: int = 2,
) -> str:
    """Draw up to `max_phrases` attribute phrases of a tile, joined by "and".

    `chance` is the probability that an attribute is mentioned, as one number or by attribute.
    """
    chances = dict.fromkeys(ATTRIBUTES, chance) if isinstance(chance, float) else chance
    mentioned = []
    for attribute in ATTRIBUTES:
        if rng.random() >= chances[attribute] or not _applies(attribute, int(latents.tissue[row])):
            continue
        value = int(getattr(latents, attribute)[row])
        options = [phrase for pool in phrases for phrase in pool[attribute][min(value, len(pool[attribute]) - 1)]]
        if options:
            mentioned.append(choose(rng, options))
    order = rng.permutation(len(mentioned))[:max_phrases]
    return " and ".join(mentioned[i] for i in order)


def _applies(attribute: str, tissue: int) -> bool:
    """Return whether an attribute applies to a tissue.

    Nuclear pleomorphism applies only to tumours, glands to tumours and normal mucosa; mucin, necrosis and inflammation
    do not apply to the tissues that consist of them.
    """
    name = CLASSES[tissue]
    if attribute in ("pleo", "gland"):
        return name in ("tumour_low_grade", "tumour_high_grade") or (attribute == "gland" and name == "normal_mucosa")
    return not (
        (attribute == "mucin" and name == "mucin")
        or (attribute == "nec" and name == "necrosis")
        or (attribute == "infl" and name == "lymphoid")
    )


def sentence(rng: np.random.Generator, latents: Latents, row: int) -> str:
    """Draw a report sentence about a tissue, with names from both pools."""
    tissue = CLASSES[latents.tissue[row]]
    return draw_sentence(rng, words.SHARED_NAMES[tissue] + words.HELD_OUT_NAMES[tissue], latents, row, 0.4)


def draw_sentence(
    rng: np.random.Generator, names: Sequence[str], latents: Latents, row: int, chance: float | Mapping[str, float]
) -> str:
    """Draw a report sentence about a tissue, with one of `names`; `chance` as in `describe`."""
    name = choose(rng, names)
    more = describe(rng, latents, row, [words.SHARED_PHRASES, words.HELD_OUT_PHRASES], chance)
    if more and rng.random() < 0.12:
        return choose(rng, words.REPORT_MORE).format(more=more)
    return choose(rng, words.REPORT_FULL if more else words.REPORT_NAMED).format(name=name, more=more)


def boilerplate(rng: np.random.Generator, pool: Sequence[str], count: int, site: str) -> str:
    """Draw `count` distinct boilerplate sentences from a pool."""
    chosen = rng.permutation(len(pool))[:count]
    return " ".join(fill_numbers(rng, pool[i]).replace("{site}", site) for i in chosen)


def lay_out(*, clinical: str, gross: str, microscopic: str, diagnosis: str, comment: str) -> str:
    """Format a report with five sections under their headings."""
    sections = (
        ("CLINICAL HISTORY", clinical),
        ("GROSS DESCRIPTION", gross),
        ("MICROSCOPIC DESCRIPTION", microscopic),
        ("FINAL DIAGNOSIS", diagnosis),
        ("COMMENT", comment),
    )
    return "\n\n".join(f"{heading}:\n{body}" for heading, body in sections)
