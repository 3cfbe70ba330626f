"""A corpus of synthetic pathology reports, never paired with any tile."""

from dataclasses import dataclass

import numpy as np

from clipit.synthetic import vocabulary as words
from clipit.synthetic.language import boilerplate, choose, describe, lay_out, ocr_noise, sentence
from clipit.synthetic.latents import CLASSES, Latents, draw_latents


@dataclass(frozen=True)
class SyntheticReport:
    """One report; `group` is the synthetic patient, who has no tile."""

    id: str
    text: str
    organ: str
    group: str
    diagnosis: str
    """Class of the tissue that the diagnosis names: the report's own label."""


def draw_reports(rng: np.random.Generator, count: int, noise: float = 0.01) -> list[SyntheticReport]:
    """Draw reports of three to five tissues each; `noise` is the share of misread characters."""
    reports = []
    for number in range(count):
        latents = draw_latents(rng, 8).select(slice(0, int(rng.integers(3, 6))))
        organ = choose(rng, words.ORGANS)
        text = ocr_noise(rng, _report(rng, latents, organ), noise)
        # A patient may have two reports.
        patient, diagnosis = f"R{number * 4 // 5:05d}", CLASSES[latents.tissue[0]]
        reports.append(SyntheticReport(f"synthetic-report-{number:05d}", text, organ, patient, diagnosis))
    return reports


def _report(rng: np.random.Generator, latents: Latents, organ: str) -> str:
    tissues = [sentence(rng, latents, row) for row in range(len(latents))]
    first = CLASSES[latents.tissue[0]]
    more = describe(rng, latents, 0, [words.SHARED_PHRASES, words.HELD_OUT_PHRASES], 0.7, most=1)
    diagnosis = choose(rng, words.DIAGNOSES if more else words.DIAGNOSES[:2]).format(
        site=organ.capitalize(),
        procedure=choose(rng, words.PROCEDURES),
        name=choose(rng, words.SHARED_NAMES[first] + words.HELD_OUT_NAMES[first]),
        more=more,
    )
    return lay_out(
        clinical=boilerplate(rng, words.REPORT_CLINICAL, 1, organ),
        gross=boilerplate(rng, words.REPORT_GROSS, int(rng.integers(1, 3)), organ),
        microscopic=" ".join(tissues),
        diagnosis=diagnosis,
        comment=boilerplate(rng, words.REPORT_CLOSING, int(rng.integers(1, 3)), organ),
    )
