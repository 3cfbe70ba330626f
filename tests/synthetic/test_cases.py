"""The case corpus: structure of reports, where the grade is stated, and the vocabulary of a second organ."""

import json
import re
from collections import Counter
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from clipit.config.run import ReportsConfig
from clipit.prompts.prompt_set import load_prompts
from clipit.reports.readers import read_reports
from clipit.synthetic import vocabulary as words
from clipit.synthetic.corpora import DIAGNOSES, GRADES, CaseReport, draw_case_reports, draw_other_organ
from clipit.synthetic.latents import HIGH, LOW, NECROSIS, draw_latents, stream
from clipit.synthetic.tile_world import CASES, GRADE_PROMPTS, WorldConfig, add_cases
from tools.embedded.measure import named_class

GRADE = re.compile(r"grade|differentiated|gland forming|solid carcinoma", re.IGNORECASE)
PLEO = tuple(words.SHARED_PHRASES["pleo"][k] + words.HELD_OUT_PHRASES["pleo"][k] for k in range(3))
SMALL = WorldConfig(seed=3, reports=50)
EMPTY_WORDS = {"a", "an", "in", "of", "the", "with", "no", "to"}


@pytest.fixture(scope="module")
def cases() -> list[CaseReport]:
    """Reports of many cases without OCR noise."""
    return list(draw_case_reports(stream(11, "cases"), 600, noise=0.0))


@pytest.fixture(scope="module")
def others() -> list[CaseReport]:
    """Reports of the second organ."""
    return list(draw_other_organ(stream(11, "other"), 80, noise=0.0))


def section(report: CaseReport, heading: str) -> str:
    return report.text.split(f"{heading}:\n")[1].split("\n\n")[0]


def content(texts: object) -> set[str]:
    return set(re.findall(r"[a-z]+", str(texts).lower())) - EMPTY_WORDS


def test_cases_are_reproducible_and_organs_share_no_patients() -> None:
    first, repeated = (list(draw_case_reports(stream(1, "cases"), 40)) for _ in range(2))
    assert first == repeated
    assert first != list(draw_case_reports(stream(2, "cases"), 40))
    all_reports = [*first, *draw_other_organ(stream(1, "cases"), 40)]
    assert len({report.id for report in all_reports}) == 80
    assert len({report.group for report in all_reports}) == 64
    assert {report.group[0] for report in all_reports} == {"C", "B"}


def test_the_grade_is_stated_only_in_the_label_and_the_diagnosis(cases: list[CaseReport]) -> None:
    named = {"low": LOW, "high": HIGH, "none": -1}
    for report in cases:
        assert named_class(section(report, "FINAL DIAGNOSIS")) == named[report.grade]
        assert bool(GRADE.search(section(report, "FINAL DIAGNOSIS"))) == (report.grade != "none")
        for heading in ("CLINICAL HISTORY", "GROSS DESCRIPTION", "MICROSCOPIC DESCRIPTION", "COMMENT"):
            assert not GRADE.search(section(report, heading)), report.text
    assert {report.grade for report in cases} == set(GRADES)
    assert all((report.grade == "none") == (DIAGNOSES[report.diagnosis].low is None) for report in cases)


def test_only_reports_of_tumours_mention_a_tumour(cases: list[CaseReport]) -> None:
    names = [*words.TUMOUR_NAMES, *words.HELD_OUT_TUMOUR_NAMES]
    for report in cases:
        text = section(report, "MICROSCOPIC DESCRIPTION").replace("tumour necrosis", "necrosis")
        text = text.replace("non neoplastic crypts", "crypts")
        if report.grade == "none":
            assert not any(name in text for name in names), text
    mentioned = [
        any(name in section(r, "MICROSCOPIC DESCRIPTION") for name in names) for r in cases if r.grade != "none"
    ]
    assert np.mean(mentioned) > 0.95  # a few reports refer to the tumour only indirectly


def test_diagnoses_have_the_configured_frequencies(cases: list[CaseReport]) -> None:
    count = Counter(report.diagnosis for report in cases)
    for name, diagnosis in DIAGNOSES.items():
        spread = (diagnosis.share * (1 - diagnosis.share) / len(cases)) ** 0.5
        assert abs(count[name] / len(cases) - diagnosis.share) < 4 * spread
        assert abs(sum(diagnosis.adjacent.values()) - 1) < 1e-9
    assert abs(sum(diagnosis.share for diagnosis in DIAGNOSES.values()) - 1) < 1e-9


def chance_of(tissue: int, name: str, draws: int) -> float:
    """Probability that a tissue is among some draws without replacement, by enumeration."""
    shares = DIAGNOSES[name].adjacent
    total = 0.0
    for draw in permutations(shares, draws):
        remaining, chance = 1.0, 1.0
        for item in draw:
            chance, remaining = chance * shares[item] / remaining, remaining - shares[item]
        total += chance * (tissue in draw)
    return total


def test_necrosis_accompanies_high_grade_at_the_configured_rate(cases: list[CaseReport]) -> None:
    names = words.SHARED_NAMES["necrosis"] + words.HELD_OUT_NAMES["necrosis"]
    lead = re.compile("|".join(rf"(?:show|reveals|of|is|contains|discloses|areas|up of|,) {n}" for n in names), re.I)
    observed = {}
    for name in ("low_grade_tumour", "high_grade_tumour"):
        texts = [section(report, "MICROSCOPIC DESCRIPTION") for report in cases if report.diagnosis == name]
        observed[name] = float(np.mean([bool(lead.search(text)) for text in texts]))
        # A report of three findings has one tissue besides the tumour, a report of four or five has two.
        expected = (chance_of(NECROSIS, name, 1) + 2 * chance_of(NECROSIS, name, 2)) / 3
        assert abs(observed[name] - expected) < 0.12, (name, expected)
    assert observed["high_grade_tumour"] > 0.35 > 0.15 > observed["low_grade_tumour"]


def test_nuclear_descriptions_match_tiles_of_the_same_grade(cases: list[CaseReport]) -> None:
    tiles = draw_latents(stream(5, "tiles"), 8000)
    for grade, tissue in (("low", LOW), ("high", HIGH)):
        text = " ".join(section(report, "MICROSCOPIC DESCRIPTION") for report in cases if report.grade == grade)
        observed = np.array([sum(text.count(phrase) for phrase in PLEO[value]) for value in range(3)])
        expected = np.bincount(tiles.pleo[tiles.tissue == tissue], minlength=3)
        assert observed.sum() > 200
        assert np.abs(observed / observed.sum() - expected / expected.sum()).max() < 0.1


def test_neutral_names_do_not_overlap_with_classes_prompts_or_bags() -> None:
    neutral = [*words.TUMOUR_NAMES, *words.HELD_OUT_TUMOUR_NAMES]
    assert [name for name in neutral if named_class(name) >= 0 or GRADE.search(name)] == []
    prompts = {
        template.format(name).lower()
        for names, template in product(words.PROMPT_NAMES.values(), words.PROMPT_TEMPLATES)
        for name in names
    }
    assert not {*neutral, *(f"{name}." for name in neutral)} & (
        prompts | {*words.MORPHOLOGY_BAG, *words.BOILERPLATE_BAG}
    )


def test_the_second_organ_has_a_separate_vocabulary(others: list[CaseReport]) -> None:
    diagnoses = [name for _, name, _ in words.OTHER_DIAGNOSES.values()]
    vocabulary = content([words.OTHER_TISSUES.values(), words.OTHER_PHRASES, diagnoses])
    tiles = content([words.SHARED_NAMES, words.HELD_OUT_NAMES, words.SHARED_PHRASES, words.HELD_OUT_PHRASES])
    tiles |= content([words.TUMOUR_NAMES, words.HELD_OUT_TUMOUR_NAMES, words.PROMPT_NAMES, words.PROMPT_TEMPLATES])
    assert vocabulary & tiles == set()
    for report in others:
        assert (report.organ, report.grade) == (words.OTHER_ORGAN, "")
        assert report.organ not in words.ORGANS
        assert named_class(section(report, "MICROSCOPIC DESCRIPTION")) == -1
        assert named_class(section(report, "FINAL DIAGNOSIS")) == -1
        assert "{" not in report.text


def test_the_written_file_is_read_with_organs_and_grades(tmp_path: Path) -> None:
    add_cases(tmp_path, SMALL)  # like a world written by an earlier version
    text = (tmp_path / CASES).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert set(rows[0]) == {"id", "text", "organ", "group", "diagnosis", "grade"}
    config = ReportsConfig(
        path=str(tmp_path / CASES), id_column="id", organ_column="organ", group_column="group", label_column="grade"
    )
    read = read_reports(config).reports
    assert len(read) == len(rows) == 50 + 20
    assert Counter(report.label for report in read if report.organ == "brain") == {None: 20}
    assert {report.label for report in read if report.organ in words.ORGANS} == set(GRADES)


def test_grade_prompts_contain_no_words_for_glands_or_nuclei(tmp_path: Path) -> None:
    add_cases(tmp_path, SMALL)
    prompts = load_prompts(str(tmp_path / GRADE_PROMPTS))
    phrases = [*words.SHARED_PHRASES["gland"], *words.SHARED_PHRASES["pleo"]]
    attribute_words = {word for options in phrases for phrase in options for word in phrase.split()}
    assert set(prompts.classes) == {"low grade", "high grade"}
    for label in prompts.classes:
        prompt_words = {word for name in prompts.classes[label] for word in name.split()}
        assert "grade" in prompt_words and not prompt_words & (attribute_words | {"differentiated", "gland", "solid"})


def test_existing_cases_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / CASES).write_text("somebody's own\n", encoding="utf-8")
    add_cases(tmp_path, SMALL)
    assert (tmp_path / CASES).read_text(encoding="utf-8") == "somebody's own\n"
