"""Case reports of a synthetic world: each describes the tissues of its case, and most state the molecular status."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipit.config.section import Section
from clipit.synthetic import vocabulary as words
from clipit.synthetic.case_latents import Case, CaseWorldConfig, draw_cases
from clipit.synthetic.corpora import diagnosis_line, diagnosis_name, microscopic_sentence
from clipit.synthetic.language import boilerplate, choose, lay_out, ocr_noise
from clipit.synthetic.latents import HIGH, LOW, stream
from clipit.synthetic.status_words import (
    HISTORY_SENTENCES,
    MUTATED,
    STATUS_SENTENCES,
    UNCERTAIN_SENTENCES,
    WILD_TYPE,
)
from clipit.synthetic.world_files import write_reports

_HISTORY = 0.1
"""Probability that the clinical history of a case with a tumour mentions the gene."""


@dataclass(frozen=True)
class OwnReport:
    """One report of a case."""

    id: str
    text: str
    organ: str
    group: str
    """Name of the patient, as in the table of tiles."""
    date: str
    """Date of the report, such as 2019-07-31."""
    diagnosis: str
    grade: str
    """`low`, `high`, or `none` without a tumour."""
    status: str
    """Status that the report states, right or wrong; empty if it states none."""


@dataclass(frozen=True)
class ReportOptions:
    """Settings of a world's reports, as described in `CaseWorldConfig`."""

    seed: int
    reported: float
    earlier: float
    silent: float
    wrong: float
    noise: float

    @classmethod
    def of(cls, config: Section) -> "ReportOptions":
        """Read the settings from the keys of the same names in a world's configuration."""
        return cls(**config.model_dump(include={field.name for field in fields(cls)}))


def write_case_reports(path: Path, config: CaseWorldConfig) -> dict[str, dict[str, int]]:
    """Write the reports of all cases of a world as JSON lines; reports of cases without tiles come last.

    Configurations with the same seed that differ in `reported`, `silent` or `wrong` give variants of the same reports:
    cases with a report at one fraction also have a report at any larger fraction, and texts differ only if the status
    that they state differs.

    Returns:
        Counts by split (and `external`): `cases`, `with_tumour`, `with_report`, `reports`, and reports that state a
        status (`stating`) or a wrong one (`wrong`).

    Raises:
        ArtifactError: The file cannot be written.
    """
    cases = {split: draw_cases(config, split) for split in config.splits}
    return write_own_reports(path, ReportOptions.of(config), cases)


def write_own_reports(
    path: Path, config: ReportOptions, splits: Mapping[str, Sequence[Case]]
) -> dict[str, dict[str, int]]:
    """Write the reports of the given cases, in the format of `write_case_reports`.

    Args:
        config: Seed of the world and settings of its reports.
        splits: Cases of each split.
    """
    counts: dict[str, dict[str, int]] = {}
    reports: list[OwnReport] = []
    for split, cases in splits.items():
        own_reports = list(_draw_reports(config, cases))
        truth = {case.name: case.status for case in cases}
        stating = [report for report in own_reports if report.status]
        counts[split] = {
            "cases": len(cases),
            "with_tumour": sum(case.tumour for case in cases),
            "with_report": len({report.group for report in own_reports}),
            "reports": len(own_reports),
            "stating": len(stating),
            "wrong": sum(report.status != truth[report.group] for report in stating),
        }
        reports += own_reports
    write_reports(path, reports)
    return counts


def _draw_reports(config: ReportOptions, cases: Sequence[Case]) -> Iterator[OwnReport]:
    """Draw the reports of one split; the fractions of the configuration are met up to rounding."""
    tumours = [case.name for case in cases if case.tumour]
    reported = _choose_share(config, [case.name for case in cases], config.reported, "reported")
    earlier = _choose_share(config, tumours, config.earlier, "earlier")
    silent = _choose_share(config, tumours, config.silent, "silent")
    wrong = _choose_share(config, [name for name in tumours if name not in silent], config.wrong, "wrong")
    other = {MUTATED: WILD_TYPE, WILD_TYPE: MUTATED}
    for case in cases:
        if case.name not in reported:
            continue
        if case.name in earlier:
            yield _draw_report(config, case, "biopsy", "")
        stated = "" if not case.tumour or case.name in silent else case.status
        yield _draw_report(config, case, "report", other[stated] if case.name in wrong else stated)


def _choose_share(config: ReportOptions, names: Sequence[str], share: float, purpose: str) -> set[str]:
    """Choose a fraction of the cases; the cases of a smaller fraction are a subset of those of a larger one."""
    keys = {name: stream(config.seed, "cases/chosen", purpose, name).random() for name in names}
    return set(sorted(names, key=keys.__getitem__)[: round(share * len(names))])


def _draw_report(config: ReportOptions, case: Case, kind: str, stated: str) -> OwnReport:
    """Draw a report, on an earlier biopsy if `kind` is `biopsy`; `stated` changes only the sentence on the status."""
    rng = stream(config.seed, "cases/reports", case.name, kind)
    is_biopsy = kind == "biopsy"
    rows = _findings(rng, case, 2 if is_biopsy else int(rng.integers(3, 6)))
    micro = " ".join(microscopic_sentence(rng, case.latents, row) for row in rows.tolist())
    procedures = words.PROCEDURES[:1] if is_biopsy else words.PROCEDURES[1:]
    line = diagnosis_line(rng, procedures, case.organ, diagnosis_name(rng, case.diagnosis, case.grade))
    clinical = boilerplate(rng, words.REPORT_CLINICAL, 1, case.organ)
    gross = boilerplate(rng, words.REPORT_GROSS, int(rng.integers(1, 3)), case.organ)
    comment = boilerplate(rng, words.REPORT_CLOSING, int(rng.integers(1, 3)), case.organ)
    if case.tumour:
        history = choose(rng, HISTORY_SENTENCES)
        if rng.random() < _HISTORY:
            clinical = f"{clinical} {history}"
        sentence = _status_sentence(rng, stated, silent=is_biopsy)
        if rng.random() < 0.5:
            line = f"{line} {sentence}".strip()
        else:
            comment = f"{sentence} {comment}".strip()
    text = lay_out(clinical=clinical, gross=gross, microscopic=micro, diagnosis=line, comment=comment)
    date_rng = stream(config.seed, "cases/dates", case.name)  # so that dates depend only on the case
    day = date(2015, 1, 1) + timedelta(days=int(date_rng.integers(100, 3000)))
    if is_biopsy:
        day -= timedelta(days=int(date_rng.integers(10, 90)))
    text = ocr_noise(rng, text, config.noise)
    identifier = f"{case.name}-{kind}"
    return OwnReport(identifier, text, case.organ, case.name, str(day), case.diagnosis, case.grade, stated)


def _status_sentence(rng: np.random.Generator, stated: str, silent: bool) -> str:
    """Draw a sentence on the status (uncertain or "" if none is stated); `stated` does not change later draws."""
    sentences = {status: choose(rng, options) for status, options in STATUS_SENTENCES.items()}
    uncertain = choose(rng, UNCERTAIN_SENTENCES)
    mentioned = rng.random() < 0.5
    if stated:
        return sentences[stated]
    return uncertain if mentioned and not silent else ""


def _findings(rng: np.random.Generator, case: Case, count: int) -> Int64[np.ndarray, " k"]:
    """Choose tiles to describe: half of them (rounded up) show the tumour, if any, the others distinct tissues."""
    tissue = case.latents.tissue
    tumour = np.flatnonzero((tissue == LOW) | (tissue == HIGH))
    others = rng.permutation(np.setdiff1d(np.arange(len(tissue)), tumour))
    tumour_tiles = rng.permutation(tumour)[: (count + 1) // 2]
    _, first = np.unique(tissue[others], return_index=True)
    distinct = rng.permutation(others[first])[: count - len(tumour_tiles)]
    return rng.permutation(np.concatenate([tumour_tiles, distinct])).astype(np.int64)
