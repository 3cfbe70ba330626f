"""Cases in a case world: diagnosis, grade, molecular status, centre, and the latents of the tiles."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field, model_validator

from clipit.config.section import Section, Share
from clipit.synthetic import vocabulary as words
from clipit.synthetic.corpora import DIAGNOSES
from clipit.synthetic.language import choose
from clipit.synthetic.latents import HIGH, LOW, Latents, mixed_latents, stream
from clipit.synthetic.status_words import MUTATED, NOT_TUMOUR, WILD_TYPE
from clipit.synthetic.tile_draws import check_centres
from clipit.synthetic.world_files import patient_name

EXTERNAL = "external"
"""Name of the group of cases that have reports but no tiles."""


class CaseWorldConfig(Section):
    """Sizes and probabilities for a world whose tiles and reports come from the same cases."""

    seed: int = Field(0, ge=0)
    train: int = Field(200, ge=2)
    """Number of training cases."""
    validation: int = Field(40, ge=2)
    test: int = Field(150, ge=2)
    shift: int = Field(150, ge=2)
    """Number of test cases from centres without training cases."""
    external: int = Field(300, ge=0)
    """Number of additional patients, who have reports but no tiles."""
    tiles_per_case: int = Field(10, ge=1)
    centres: tuple[int, ...] = (6, 7)
    """Centres of the train, validation and test splits."""
    shift_centres: tuple[int, ...] = (8, 9)
    with_tumour: Share = 0.9
    """Probability that a case has a tumour."""
    tumour_tiles: Share = 0.6
    """Probability that a tile of a case with a tumour shows the tumour; at least one tile does."""
    mutated_low_grade: Share = 0.5
    """Probability that a low-grade tumour is mutated."""
    mutated_high_grade: Share = 0.5
    shows: Share = 0.8
    """Probability that a tumour tile of a mutated case has the mutant morphology."""
    reported: Share = 1.0
    """Fraction of the cases that have a report."""
    earlier: Share = 0.1
    """Fraction of the tumour cases with a second report, on an earlier biopsy, which does not state the status."""
    silent: Share = 0.1
    """Fraction of the tumour cases whose report does not state the status; half of these mention it as uncertain."""
    wrong: Share = 0.05
    """Fraction of the other tumour cases whose report states the wrong status."""
    noise: Share = 0.01
    """Fraction of a report's characters that are misread."""

    @model_validator(mode="after")
    def _check_centres(self) -> "CaseWorldConfig":
        check_centres(self.centres, self.shift_centres)
        return self

    @property
    def splits(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Number of cases and indices of their centres, per split; `shift` is the external test set."""
        return {
            "train": (self.train, self.centres),
            "validation": (self.validation, self.centres),
            "test": (self.test, self.centres),
            "shift": (self.shift, self.shift_centres),
            EXTERNAL: (self.external, self.centres),
        }


@dataclass(frozen=True)
class Case:
    """A patient with one lesion, and the latents of the tiles."""

    name: str
    """Name of the patient: `group` of tiles and reports."""
    diagnosis: str
    """Key of `DIAGNOSES`."""
    grade: str
    """`low`, `high`, or `none` without a tumour."""
    status: str
    """`mutated`, `wild_type`, or `not_tumour`."""
    organ: str
    centre: int
    latents: Latents

    @property
    def tumour(self) -> bool:
        """Whether the case has a tumour."""
        return self.grade != "none"


def draw_cases(config: CaseWorldConfig, split: str) -> list[Case]:
    """Draw the cases of a split, or the external cases.

    Each case has its own random stream, so that a case does not depend on the number of cases.
    """
    count, centres = config.splits[split]
    return [_draw_case(config, patient_name(split, number), centres) for number in range(count)]


def _draw_case(config: CaseWorldConfig, name: str, centres: Sequence[int]) -> Case:
    rng = stream(config.seed, "cases", name)
    tumour = rng.random() < config.with_tumour
    names = [key for key, value in DIAGNOSES.items() if (value.low is not None) == tumour]
    shares = np.array([DIAGNOSES[key].share for key in names])
    diagnosis = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    grade, status = "none", NOT_TUMOUR
    low = DIAGNOSES[diagnosis].low
    if low is not None:
        grade = "low" if rng.random() < low else "high"
        mutated = config.mutated_low_grade if grade == "low" else config.mutated_high_grade
        status = MUTATED if rng.random() < mutated else WILD_TYPE
    centre, organ = int(rng.choice(list(centres))), choose(rng, words.ORGANS)
    return Case(name, diagnosis, grade, status, organ, centre, _draw_latents(rng, config, diagnosis, grade, status))


def _draw_latents(
    rng: np.random.Generator, config: CaseWorldConfig, diagnosis: str, grade: str, status: str
) -> Latents:
    """Draw latents for tiles of the tumour, if there is one, and of the tissues next to it.

    As in `draw_latents`, 60% of the draws have a second tissue on up to 45% of the area: stroma (70%), or a tissue
    next to the tumour.
    """
    count = config.tiles_per_case
    adjacent = list(DIAGNOSES[diagnosis].adjacent)
    shares = list(DIAGNOSES[diagnosis].adjacent.values())
    n_tumour = 0 if grade == "none" else max(1, int(rng.binomial(count, config.tumour_tiles)))
    tumour = np.full(n_tumour, LOW if grade == "low" else HIGH)
    others = rng.choice(adjacent, count - n_tumour, p=shares)
    tissue = rng.permutation(np.concatenate([tumour, others])).astype(np.int64)
    latents = mixed_latents(rng, tissue, lambda: rng.choice(adjacent, count, p=shares))
    is_tumour = (tissue == LOW) | (tissue == HIGH)
    shown = is_tumour & (rng.random(count) < config.shows) & (status == MUTATED)
    if diagnosis == "mucinous_tumour":
        latents = replace(latents, mucin=np.where(is_tumour, 2, latents.mucin))
    return replace(latents, status=shown.astype(np.int64))
