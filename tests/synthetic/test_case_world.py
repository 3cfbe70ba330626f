"""Case worlds: consistency of tiles and reports, configured shares, nested variants and unseen status terms."""

import csv
import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipit.errors import ConfigError
from clipit.models.loading import EMBEDDED
from clipit.prompts.prompt_set import load_prompts
from clipit.reports.rules import label_report, load_rules
from clipit.synthetic import status_words, vocabulary
from clipit.synthetic.case_latents import EXTERNAL, Case, CaseWorldConfig, draw_cases
from clipit.synthetic.case_reports import write_case_reports
from clipit.synthetic.case_world import add_variants, ensure_case_world, write_case_world
from clipit.synthetic.corpora import DIAGNOSES
from clipit.synthetic.latents import CLASSES, HIGH, LOW
from clipit.synthetic.tile_draws import draw_tiles
from tools.embedded.captions import STATUS_NAMED, draw_captions
from tools.embedded.measure import named_class

SMALL = CaseWorldConfig(seed=3, train=12, validation=4, test=6, shift=4, external=8, tiles_per_case=5)
LARGE = CaseWorldConfig(seed=11, train=400, validation=20, test=20, shift=20, external=40)
MEDIUM = LARGE.model_copy(update={"train": 120, "external": 20})
COMMON = {
    *("a", "absence", "an", "be", "by", "cannot", "could", "for", "in", "is", "identified", "loss"),
    *("lost", "negative", "no", "not", "of", "shows", "the", "there", "throughout", "to", "tumour", "with"),
}
"""Common words of the status sentences, which other sentences may contain."""

OTHER_SENTENCE = re.compile(
    "|".join(
        [f"^{template.split('{')[0]}" for template in vocabulary.REPORT_MORE]
        + [rf"\b{name}\b(?! necrosis)" for name in vocabulary.TUMOUR_NAMES + vocabulary.HELD_OUT_TUMOUR_NAMES]
    )
)
"""Matches sentences about attributes only or about a tumour."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    write_case_world(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {case.name: case for part in LARGE.splits for case in draw_cases(LARGE, part)}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    path = tmp_path_factory.mktemp("reports") / "reports.jsonl"
    write_case_reports(path, LARGE.model_copy(update={"noise": 0.0}))
    return lines(path)


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows(world: Path, name: str = "tiles") -> list[dict[str, str]]:
    with (world / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def section(report: dict[str, str], heading: str) -> str:
    return report["text"].split(f"{heading}:\n")[1].split("\n\n")[0]


def words_of(texts: object) -> set[str]:
    return set(re.findall(r"[a-z][a-z0-9]*", str(texts).lower()))


def test_a_world_is_reproducible_and_depends_on_the_seed(world: Path, tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    write_case_world(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(world)
    write_case_world(tmp_path / "other", SMALL.model_copy(update={"seed": 4}))
    changed = {name for name, digest in digests(tmp_path / "other").items() if digests(world)[name] != digest}
    assert changed == {name for name in digests(world) if not name.endswith(".yaml")}


def test_a_world_is_written_once_and_a_different_one_is_refused(world: Path, tmp_path: Path) -> None:
    folder = ensure_case_world(tmp_path / "world", SMALL)
    before = (folder / "world.json").stat().st_mtime_ns
    assert ensure_case_world(folder, SMALL) == folder
    assert (folder / "world.json").stat().st_mtime_ns == before
    assert (folder / "tiles.csv").read_bytes() == (world / "tiles.csv").read_bytes()
    with pytest.raises(Exception, match="differs from the one"):
        ensure_case_world(folder, SMALL.model_copy(update={"shows": 0.5}))


def test_tiles_have_the_status_and_grade_of_their_case(world: Path) -> None:
    cases_by_name = {case.name: case for part in SMALL.splits for case in draw_cases(SMALL, part)}
    table = rows(world) + rows(world, "tiles_shift")
    assert len(table) == (12 + 4 + 6 + 4) * SMALL.tiles_per_case
    for row in table:
        case = cases_by_name[row["group"]]
        if row["label"].startswith("tumour"):
            assert (row["status"], row["grade"]) == (case.status, case.grade)
            assert row["label"] == f"tumour_{case.grade}_grade"
        else:
            assert (row["status"], row["grade"], row["shows"]) == ("not_tumour", "not_tumour", "0")
            assert CLASSES.index(row["label"]) in DIAGNOSES[case.diagnosis].adjacent
        assert row["shows"] == "0" or row["status"] == "mutated"
    assert {row["centre"] for row in rows(world)} <= {"6", "7"}
    assert {row["centre"] for row in rows(world, "tiles_shift")} <= {"8", "9"}


def test_the_status_changes_only_the_tiles_that_show_it(world: Path, tmp_path: Path) -> None:
    write_case_world(tmp_path, SMALL.model_copy(update={"shows": 0.0}))
    assert {row["shows"] for row in rows(tmp_path)} == {"0"}
    assert [row["status"] for row in rows(tmp_path)] == [row["status"] for row in rows(world)]
    shown = {row["path"] for row in rows(world) if row["shows"] == "1"}
    with zipfile.ZipFile(world / "tiles.zip") as first, zipfile.ZipFile(tmp_path / "tiles.zip") as second:
        assert shown
        assert {path for path in first.namelist() if first.read(path) != second.read(path)} == shown


def test_shares_match_the_configuration(cases: dict[str, Case], reports: list[dict[str, str]]) -> None:
    train = [case for case in cases.values() if case.name.startswith("train")]
    tumours = [case for case in train if case.tumour]
    mutated = [case for case in tumours if case.status == "mutated"]
    assert len(tumours) / len(train) == pytest.approx(LARGE.with_tumour, abs=0.05)
    for grade in ("low", "high"):
        of_grade = [case.status == "mutated" for case in tumours if case.grade == grade]
        assert np.mean(of_grade) == pytest.approx(0.5, abs=0.1)
    tiles = [np.isin(case.latents.tissue, (LOW, HIGH)) for case in tumours]
    assert np.mean(tiles) == pytest.approx(LARGE.tumour_tiles, abs=0.03)
    shown = [np.asarray(case.latents.status)[np.isin(case.latents.tissue, (LOW, HIGH))] for case in mutated]
    assert np.mean(np.concatenate(shown)) == pytest.approx(LARGE.shows, abs=0.03)
    assert not any(np.asarray(case.latents.status).any() for case in train if case.status != "mutated")
    latest = {report["group"]: report["status"] for report in reports}
    stated = {case.name: latest[case.name] for case in tumours}
    silent = [name for name, status in stated.items() if not status]
    wrong = [name for name, status in stated.items() if status and status != cases[name].status]
    assert len(silent) == round(LARGE.silent * len(tumours))
    assert len(wrong) == round(LARGE.wrong * (len(tumours) - len(silent)))
    groups = [report["group"] for report in reports if report["group"].startswith("train")]
    assert len(groups) - len(set(groups)) == round(LARGE.earlier * len(tumours))


def test_every_report_agrees_with_its_case(cases: dict[str, Case], reports: list[dict[str, str]]) -> None:
    named = {"low": LOW, "high": HIGH, "none": -1}
    stated = {sentence: status for status, wordings in status_words.STATUS_SENTENCES.items() for sentence in wordings}
    for report in reports:
        case = cases[report["group"]]
        assert (report["diagnosis"], report["grade"], report["organ"]) == (case.diagnosis, case.grade, case.organ)
        diagnosis, comment = section(report, "FINAL DIAGNOSIS"), section(report, "COMMENT")
        assert named_class(diagnosis) == named[case.grade]
        statuses = [
            status for sentence, status in stated.items() if re.search(f"(?<!No ){sentence}", f"{diagnosis} {comment}")
        ]
        assert statuses == ([report["status"]] if report["status"] else []), report["text"]
        micro = section(report, "MICROSCOPIC DESCRIPTION")
        assert not re.search("qld3|quoldin", micro, re.IGNORECASE)
        sentences = [text for text in re.split(r"(?<=\.) ", micro) if not OTHER_SENTENCE.search(text)]
        tissues = {named_class(sentence) for sentence in sentences} - {-1, LOW, HIGH}
        assert tissues <= set(case.latents.tissue.tolist())
        if not case.tumour:
            assert not re.search("qld3|quoldin", report["text"], re.IGNORECASE)


def test_external_reports_come_last_and_an_earlier_biopsy_states_no_status(reports: list[dict[str, str]]) -> None:
    external = [report["group"].startswith(EXTERNAL) for report in reports]
    assert external == sorted(external)
    assert len({report["id"] for report in reports}) == len(reports)
    by_group: dict[str, list[dict[str, str]]] = {}
    for report in reports:
        by_group.setdefault(report["group"], []).append(report)
    pairs = [pair for pair in by_group.values() if len(pair) > 1]
    assert pairs
    for first, second in pairs:
        assert first["date"] < second["date"]
        assert first["status"] == ""
        assert ": " in section(first, "FINAL DIAGNOSIS")
        assert not re.search("resection|excision|polypectomy", section(first, "FINAL DIAGNOSIS"))


def test_variants_are_nested_and_keep_unaffected_reports_identical(tmp_path: Path) -> None:
    variants: dict[str, dict[str, Any]] = {
        "full": {},
        "half": {"reported": 0.5},
        "quarter": {"reported": 0.25},
        "wrong": {"wrong": 0.4},
        "silent": {"silent": 0.5, "wrong": 0.0},
    }
    written = {}
    for name, changes in variants.items():
        write_case_reports(tmp_path / name, MEDIUM.model_copy(update=changes))
        written[name] = {report["id"]: report for report in lines(tmp_path / name)}
    full = written["full"]
    assert set(written["quarter"]) < set(written["half"]) < set(full)
    assert all(full[key] == report for key, report in written["half"].items())
    train = {report["group"] for report in written["quarter"].values() if report["group"].startswith("train")}
    assert len(train) == MEDIUM.train // 4
    for name in ("wrong", "silent"):
        assert set(written[name]) == set(full)
        same = [key for key in full if full[key]["status"] == written[name][key]["status"]]
        assert 0.3 < len(same) / len(full) < 0.9
        assert all(full[key] == written[name][key] for key in same)
    changed_keys = [key for key, report in full.items() if report["status"] != written["wrong"][key]["status"]]
    assert all(written["wrong"][key]["status"] for key in changed_keys)


def test_a_variant_is_written_next_to_the_world_and_an_invalid_one_is_refused(world: Path, tmp_path: Path) -> None:
    (path,) = add_variants(tmp_path, SMALL, [["reported=0.5", "wrong=0.4"]])
    assert path.name == "reports_reported0.5_wrong0.4.jsonl"
    assert len({line["group"] for line in lines(path) if line["group"].startswith("train")}) == 6
    for invalid in ("shows=0.5", "reported=2", "reported", "wrong=many"):
        with pytest.raises(ConfigError, match="invalid variant"):
            add_variants(tmp_path, SMALL, [[invalid]])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_status_terms_occur_nowhere_else() -> None:
    stated = [*status_words.STATUS_SENTENCES.values(), *status_words.STATUS_CAPTIONS.values()]
    new = words_of([*stated, status_words.UNCERTAIN_SENTENCES]) - COMMON
    others = {name: value for name, value in vars(vocabulary).items() if name.isupper()}
    assert new & words_of(others) == set()
    vocabulary_of_the_vlm = json.loads((EMBEDDED / "vlm" / "tokenizer.json").read_text())["model"]["vocab"]
    assert {word for word in new if f"{word}</w>" in vocabulary_of_the_vlm} == set()
    assert {"qld3", "quoldin", "mutant", "retained"} <= new


def test_rules_find_most_stated_statuses(world: Path, reports: list[dict[str, str]]) -> None:
    rules = load_rules(world / "status_rules.yaml")
    predictions = [(label_report(report["text"], rules).class_name, report["status"]) for report in reports]
    stating = [(predicted, status) for predicted, status in predictions if status]
    right = np.mean([predicted == status for predicted, status in stating])
    assert 0.7 < right < 0.97  # the rules lack some wordings
    assert np.mean([predicted in ("none", status) for predicted, status in stating]) > 0.97
    assert np.mean([predicted == "none" for predicted, status in predictions if not status]) > 0.97


def test_prompt_sets_name_the_classes_of_the_table(world: Path) -> None:
    assert set(load_prompts(world / "status_prompts.yaml").classes) == {"mutated", "wild_type"}
    assert set(load_prompts(world / "tissue_prompts.yaml").classes) == set(CLASSES)
    assert set(load_prompts(world / "grade_prompts.yaml").classes) == {"low grade", "high grade"}


def test_captions_name_the_status_with_the_configured_probability() -> None:
    tiles = draw_tiles(100, "captions", 800, (0, 1), mutated=0.5)
    tumour = np.isin(tiles.latents.tissue, (LOW, HIGH))
    shown = np.asarray(tiles.latents.status)
    assert shown[tumour].mean() == pytest.approx(0.5, abs=0.1)
    assert not shown[~tumour].any()
    plain = draw_captions(100, "captions", tiles.latents, 2)
    for wording, chance in STATUS_NAMED.items():
        captions = draw_captions(100, "captions", tiles.latents, 2, wording)
        assert [captions[row] for row in np.flatnonzero(~tumour)] == [plain[row] for row in np.flatnonzero(~tumour)]
        named = []
        for row in np.flatnonzero(tumour).tolist():
            phrases = status_words.STATUS_CAPTIONS["mutated" if shown[row] else "wild_type"]
            for text, before in zip(captions[row], plain[row], strict=True):
                assert text == before or text in {f"{before}, {phrase}" for phrase in phrases}
                named.append(text != before)
        assert np.mean(named) == pytest.approx(chance, abs=0.08)


def test_only_tumour_tiles_change_when_mutated() -> None:
    plain, mutated = (draw_tiles(100, "draw", 64, (0, 1), mutated=share) for share in (0.0, 1.0))
    tumour = np.isin(plain.latents.tissue, (LOW, HIGH))
    changed = (plain.images != mutated.images).any(axis=(1, 2, 3))
    assert changed.tolist() == tumour.tolist()
