"""Two synthetic corpora of reports: reports on mixed tissues, and case reports with a graded diagnosis."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from clipit.synthetic import vocabulary as words
from clipit.synthetic.language import boilerplate, choose, describe, draw_sentence, lay_out, ocr_noise, sentence
from clipit.synthetic.latents import (
    ADIPOSE,
    CLASSES,
    HIGH,
    LOW,
    LYMPHOID,
    MUCIN,
    NECROSIS,
    NORMAL,
    STROMA,
    Latents,
    attributes,
    draw_latents,
)


@dataclass(frozen=True)
class SyntheticReport:
    """One report; `group` is the synthetic patient, who has no tiles."""

    id: str
    text: str
    organ: str
    group: str
    diagnosis: str
    """Class of the tissue named in the diagnosis, which is the label of the report."""


def draw_reports(rng: np.random.Generator, count: int, noise: float = 0.01) -> list[SyntheticReport]:
    """Draw reports on three to five tissues each; `noise` is the fraction of misread characters."""
    reports = []
    for number in range(count):
        latents = draw_latents(rng, 8).select(slice(0, int(rng.integers(3, 6))))
        organ = choose(rng, words.ORGANS)
        text = ocr_noise(rng, _mixed_report(rng, latents, organ), noise)
        # Some patients have two reports.
        patient, diagnosis = f"R{number * 4 // 5:05d}", CLASSES[latents.tissue[0]]
        reports.append(SyntheticReport(f"synthetic-report-{number:05d}", text, organ, patient, diagnosis))
    return reports


def _mixed_report(rng: np.random.Generator, latents: Latents, organ: str) -> str:
    tissues = [sentence(rng, latents, row) for row in range(len(latents))]
    first = CLASSES[latents.tissue[0]]
    more = describe(rng, latents, 0, [words.SHARED_PHRASES, words.HELD_OUT_PHRASES], 0.7, max_phrases=1)
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


GRADES = ("low", "high", "none")
"""Labels of a case report: grade of the tumour, or `none` without a tumour."""
_MENTIONED = {"infl": 0.3, "mucin": 0.4, "pleo": 0.8, "gland": 0.8, "nec": 0.5, "dens": 0.2}
"""Probability that an attribute of a tumour is mentioned; it is 0.4 for all attributes of other tissues."""


@dataclass(frozen=True)
class CaseReport:
    """One case report; `group` is the synthetic patient, who has no tiles."""

    id: str
    text: str
    organ: str
    group: str
    diagnosis: str
    """Key of `DIAGNOSES`, or of `OTHER_DIAGNOSES` for the other organ."""
    grade: str
    """One of `GRADES`; empty for the other organ."""


@dataclass(frozen=True)
class Diagnosis:
    """Frequency of a diagnosis, and the tissues that occur with it."""

    share: float
    low: float | None
    """Probability that the tumour is low-grade; None without a tumour."""
    adjacent: Mapping[int, float]
    """Probabilities of the tissues next to the tumour; without a tumour, of all tissues."""


DIAGNOSES: Mapping[str, Diagnosis] = {
    "low_grade_tumour": Diagnosis(
        0.3, 1.0, {NORMAL: 0.35, STROMA: 0.25, MUCIN: 0.15, LYMPHOID: 0.15, ADIPOSE: 0.07, NECROSIS: 0.03}
    ),
    "high_grade_tumour": Diagnosis(
        0.3, 0.0, {NECROSIS: 0.35, STROMA: 0.3, ADIPOSE: 0.15, LYMPHOID: 0.1, NORMAL: 0.07, MUCIN: 0.03}
    ),
    "mucinous_tumour": Diagnosis(0.12, 0.6, {MUCIN: 0.5, STROMA: 0.2, NORMAL: 0.15, LYMPHOID: 0.1, ADIPOSE: 0.05}),
    "inflammatory_lesion": Diagnosis(
        0.14, None, {LYMPHOID: 0.45, NORMAL: 0.25, STROMA: 0.15, MUCIN: 0.1, ADIPOSE: 0.05}
    ),
    "no_tumour": Diagnosis(0.14, None, {NORMAL: 0.4, ADIPOSE: 0.2, STROMA: 0.2, LYMPHOID: 0.15, MUCIN: 0.05}),
}


def draw_case_reports(rng: np.random.Generator, count: int, noise: float = 0.01) -> Iterator[CaseReport]:
    """Draw case reports on the organs that tiles show; `noise` is the fraction of misread characters.

    Each report has a diagnosis, a grade, and three to five findings. If there is a tumour, half of the findings
    (rounded up) are areas of it; the others are distinct tissues, drawn with the probabilities of the diagnosis. Each
    tumour area has its own attributes, drawn as for a tile of this grade; mucinous tumours always have abundant mucin.
    """
    names, shares = list(DIAGNOSES), [diagnosis.share for diagnosis in DIAGNOSES.values()]
    for number in range(count):
        name = names[int(rng.choice(len(names), p=shares))]
        grade, latents = _findings(rng, name)
        organ = choose(rng, words.ORGANS)
        micro = " ".join(microscopic_sentence(rng, latents, row) for row in range(len(latents)))
        line = diagnosis_line(rng, words.PROCEDURES, organ, diagnosis_name(rng, name, grade))
        text = _case_report(rng, organ, micro, line, words.REPORT_CLINICAL, words.REPORT_GROSS)
        # Some patients have two reports, as in the other corpus.
        patient = f"C{number * 4 // 5:05d}"
        yield CaseReport(f"synthetic-case-{number:05d}", ocr_noise(rng, text, noise), organ, patient, name, grade)


def draw_other_organ(rng: np.random.Generator, count: int, noise: float = 0.01) -> Iterator[CaseReport]:
    """Draw reports on an organ that no tile shows, with a separate vocabulary."""
    organ = words.OTHER_ORGAN
    for number in range(count):
        name = choose(rng, list(words.OTHER_DIAGNOSES))
        main, diagnosis, adjacent = words.OTHER_DIAGNOSES[name]
        tissues = [main] * int(rng.integers(1, 3)) + list(adjacent)
        micro = " ".join(_other_sentence(rng, tissues[row]) for row in rng.permutation(len(tissues)))
        line = diagnosis_line(rng, words.OTHER_PROCEDURES, organ, diagnosis)
        text = _case_report(rng, organ, micro, line, words.OTHER_CLINICAL, words.OTHER_GROSS)
        patient = f"B{number * 4 // 5:05d}"
        yield CaseReport(f"synthetic-{organ}-{number:05d}", ocr_noise(rng, text, noise), organ, patient, name, "")


def _findings(rng: np.random.Generator, name: str) -> tuple[str, Latents]:
    """Draw the grade of a case and the latents of its findings, in the order of the report."""
    diagnosis = DIAGNOSES[name]
    count = int(rng.integers(3, 6))
    grade, areas, tumour = "none", 0, LOW
    if diagnosis.low is not None:
        grade = "low" if rng.random() < diagnosis.low else "high"
        areas, tumour = (count + 1) // 2, LOW if grade == "low" else HIGH
    others = rng.choice(list(diagnosis.adjacent), count - areas, replace=False, p=list(diagnosis.adjacent.values()))
    tissue = rng.permutation(np.concatenate([np.full(areas, tumour), others]).astype(np.int64))
    latents = Latents(
        tissue=tissue,
        second=np.full(count, -1, dtype=np.int64),
        share=np.zeros(count),
        **attributes(rng, tissue),
    )
    if name == "mucinous_tumour":
        latents = replace(latents, mucin=np.where(tissue == tumour, 2, latents.mucin))
    return grade, latents


def microscopic_sentence(rng: np.random.Generator, latents: Latents, row: int) -> str:
    """Draw a sentence about a finding; the names of tumours do not reveal the grade."""
    if CLASSES[latents.tissue[row]] not in ("tumour_low_grade", "tumour_high_grade"):
        return sentence(rng, latents, row)
    return draw_sentence(rng, words.TUMOUR_NAMES + words.HELD_OUT_TUMOUR_NAMES, latents, row, _MENTIONED)


def _other_sentence(rng: np.random.Generator, tissue: str) -> str:
    name = choose(rng, words.OTHER_TISSUES[tissue])
    more = choose(rng, words.OTHER_PHRASES) if rng.random() < 0.6 else ""
    return choose(rng, words.REPORT_FULL if more else words.REPORT_NAMED).format(name=name, more=more)


def diagnosis_name(rng: np.random.Generator, name: str, grade: str) -> str:
    """Draw the name for the diagnosis line, with the grade if there is a tumour."""
    if grade == "none":
        return choose(rng, words.INFLAMMATORY_NAMES if name == "inflammatory_lesion" else words.NO_TUMOUR_NAMES)
    graded = choose(rng, words.GRADED_NAMES[grade])
    return words.MUCINOUS_TYPE.format(name=graded) if name == "mucinous_tumour" else graded


def diagnosis_line(rng: np.random.Generator, procedures: tuple[str, ...], organ: str, name: str) -> str:
    """Draw the final-diagnosis line, with a name from `diagnosis_name`."""
    return choose(rng, words.DIAGNOSES[:2]).format(
        site=organ.capitalize(), procedure=choose(rng, procedures), name=name
    )


def _case_report(
    rng: np.random.Generator, organ: str, micro: str, line: str, clinical: tuple[str, ...], gross: tuple[str, ...]
) -> str:
    return lay_out(
        clinical=boilerplate(rng, clinical, 1, organ),
        gross=boilerplate(rng, gross, int(rng.integers(1, 3)), organ),
        microscopic=micro,
        diagnosis=line,
        comment=boilerplate(rng, words.REPORT_CLOSING, int(rng.integers(1, 3)), organ),
    )
