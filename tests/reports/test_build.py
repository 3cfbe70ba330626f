"""Building snippet tables from reports: merging, sources, filters and the summary."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from clipit.config.run import ReportsConfig
from clipit.errors import ConfigError, DataError
from clipit.reports.build import Snippets, build_snippets, snippet_keys
from clipit.reports.readers import Report, Reports
from clipit.reports.snippet_summary import SnippetSummary

FREE = "Margins are free of tumor."
REPORTS = Reports(
    (
        Report("r1", f"Diagnosis: {FREE} Glands invade the muscularis.", "colon", "p1"),
        Report("r2", f"COMMENT: {FREE} Please call the doctor.", None, "p2"),
        Report(
            "r3",
            "GROSS DESCRIPTION: The bowel is 20 cm long and brown; it was opened along its whole length. IIII III I II",
        ),
    ),
    ("x: line 4: empty report",),
    "corpus.txt",
    1,
)


def count_toy_tokens(texts: Sequence[str]) -> list[int]:
    """One token per word, plus two special tokens."""
    return [2 + len(text.split()) for text in texts]


def build(similarity: Any = None, budget: int = 60, **keys: Any) -> Snippets:
    """Build snippets; text checks and the prompt filter are off unless `keys` enable them."""
    keys = {"text_checks": None, "morphology_prompts": None, **keys}
    return build_snippets(REPORTS, ReportsConfig(path="corpus.txt", **keys), count_toy_tokens, budget, similarity)


def texts(snippets: Snippets) -> set[str]:
    return set(snippets.snippets["text"].to_pylist())


def test_duplicates_are_merged_and_keep_every_source() -> None:
    built = build()
    rows = built.snippets.to_pylist()
    assert [row["snippet_id"] for row in rows] == sorted(
        hashlib.sha256(row["text"].encode()).hexdigest()[:16] for row in rows
    )
    assert all(row["n_tokens"] == count_toy_tokens([row["text"]])[0] for row in rows)
    free = next(row["snippet_id"] for row in rows if row["text"] == FREE)
    sources = [row for row in built.sources.to_pylist() if row["snippet_id"] == free]
    assert sources == [
        {"snippet_id": free, "report_id": "r1", "group": "p1", "organ": "colon", "section": "diagnosis", "position": 1},
        {"snippet_id": free, "report_id": "r2", "group": "p2", "organ": None, "section": "comment", "position": 1},
    ]
    assert set(built.sources["snippet_id"].to_pylist()) == set(built.snippets["snippet_id"].to_pylist())
    assert built.summary.duplicates == 1


def test_summary_counts_add_up_and_survive_serialisation() -> None:
    summary = build(budget=15).summary
    assert summary.pieces - summary.duplicates - sum(d.count for d in summary.dropped.values()) == summary.kept
    assert (summary.reports, summary.split_sentences) == (3, 1)
    assert sum(summary.tokens.values()) == summary.kept
    assert list(summary.tokens)[-1].endswith("-15")
    saved = json.loads(json.dumps(summary.as_dict()))
    assert saved["dropped"]["length (fewer than 3 readable words)"]["count"] == 4
    shown = summary.text(REPORTS)
    assert SnippetSummary.from_dict(saved).text(REPORTS) == shown
    assert "sections   reports (pieces): " in shown and "diagnosis 1 (3), comment 1 (3)" in shown
    older = SnippetSummary.from_dict({key: value for key, value in saved.items() if key != "section_reports"})
    assert "sections   (pieces) " in older.text(REPORTS) and "diagnosis 3, comment 3" in older.text(REPORTS)
    for part in ("3  with text, 1 empty", "by length", "'Diagnosis:'", "budget 15", "x: line 4: empty report"):
        assert part in shown


def test_length_counts_readable_words() -> None:
    assert not any("IIII" in text for text in texts(build()))
    assert texts(build(min_words=6)) == {"The bowel is 20 cm long and brown; it was opened along its whole length."}


def test_sections() -> None:
    assert texts(build(sections=("diagnosis",))) == {FREE, "Glands invade the muscularis."}
    assert texts(build(exclude_sections=("diagnosis", "gross"))) == {FREE, "Please call the doctor."}
    with pytest.raises(ConfigError, match=r"unknown section: diagnoses(.|\n)*microscopic"):
        build(sections=("diagnoses",))


def test_terms_are_whole_words_in_any_case() -> None:
    assert texts(build(include_terms=("GLANDS", "free  of tumor"))) == {FREE, "Glands invade the muscularis."}
    with pytest.raises(DataError, match=r"no snippets remain:\n(.|\n)*include_terms"):
        build(include_terms=("gland",))
    assert FREE not in texts(build(exclude_terms=("tumor",)))
    assert FREE in texts(build(exclude_terms=("tum",)))


def test_terms_are_compared_in_the_characters_of_cleaned_text() -> None:
    text = "Paget\u2019s disease of the breast.\nSeen by Dr Gru\u0308n in the clinic.\n\u8a3a\u65ad\u80c3\u764c CT123."
    reports = Reports((Report("r", text),), (), "corpus.txt")

    def kept(*terms: str) -> int:
        config = ReportsConfig(
            path="corpus.txt", text_checks=None, morphology_prompts=None, min_words=1, exclude_terms=terms
        )
        return build_snippets(reports, config, count_toy_tokens, 60).snippets.num_rows

    assert kept("none") == 3 == kept("CT12")
    assert kept("Paget\u2019s") == kept("Gr\u00fcn") == kept("\u80c3\u764c") == kept("CT123") == 2
    keys = [snippet_keys(ReportsConfig(path="c", exclude_terms=(term,))) for term in ("Gr\u00fcn", "a\u2019b")]
    assert ["characters" in each for each in keys] == [False, True]


def test_similarity_is_computed_last_and_only_for_the_remaining_snippets() -> None:
    compared: list[str] = []

    def similarity(batch: Sequence[str]) -> np.ndarray:
        compared.extend(batch)
        return np.array([0.5 if "Glands" in text else 0.1 for text in batch], dtype=np.float32)

    built = build(similarity, exclude_terms=("doctor",), morphology_margin=0.2)
    assert texts(built) == {"Glands invade the muscularis."}
    assert "Please call the doctor." not in compared
    assert next(d.count for name, d in built.summary.dropped.items() if name.startswith("similarity")) == 2
    with pytest.raises(ConfigError, match="similarity filter did not return one finite value"):
        build(lambda batch: np.zeros(1, dtype=np.float32))
    with pytest.raises(ConfigError, match="needs a VLM"):
        build(morphology_prompts="a", boilerplate_prompts="b")


def test_result_does_not_depend_on_the_order_of_reports() -> None:
    reversed_reports = Reports(REPORTS.reports[::-1], (), "corpus.txt")
    plain = ReportsConfig(path="corpus.txt", morphology_prompts=None, text_checks=None)
    other = build_snippets(reversed_reports, plain, count_toy_tokens, 60)
    assert other.snippets.equals(build().snippets)


def test_long_words_are_counted_and_listed() -> None:
    picture = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUg" * 4000
    reports = Reports((Report("r1", f"Glands invade the muscularis. {picture} Margins are free of tumor."),), (), "x")
    built = build_snippets(reports, ReportsConfig(path="x", morphology_prompts=None), count_toy_tokens, 60)
    assert texts(built) == {"Glands invade the muscularis.", FREE}
    assert built.summary.long_words == 1
    shown = built.summary.text(reports)
    assert "long words         1  dropped because they have more than 500 characters" in shown
    assert "report r1: 1 dropped (88,022 characters), e.g. data:image/png" in shown
    assert "long words" not in build().summary.text(REPORTS)


CHECKED = Reports(
    (
        Report("r1", "DIAGNOSIS: Adenocarcinoma. MICROSCOPIC DESCRIPTION: Atypical glands invade the fat."),
        Report("r2", "GROSS AND MICROSCOPIC DESCRIPTION:\nThe wall was cut into four thin pieces. NVAS:i:ONt ltO iIt:"),
        Report("r3", "HISTORY: Melanoma. COMMENT: Fssue of the intesFne was fixed; the intesFnal wall too."),
        *(Report(f"o{n}", "Tissue of the intestine: intestinal tissue, with intestine near tissue.") for n in range(3)),
    ),
    (),
    "corpus.txt",
)


def build_checked(similarity: Any = None, **keys: Any) -> Snippets:
    """Build snippets of reports that trigger every text check."""
    keys = {"morphology_prompts": None, **keys}
    return build_snippets(CHECKED, ReportsConfig(path="corpus.txt", **keys), count_toy_tokens, 60, similarity)


def test_text_checks_drop_headings_and_garbled_text_and_keep_short_diagnoses() -> None:
    built = build_checked()
    assert "DIAGNOSIS: Adenocarcinoma." in texts(built)
    dropped = {name.split()[0]: tally for name, tally in built.summary.dropped.items()}
    assert "GROSS AND MICROSCOPIC DESCRIPTION:" in dropped["headings"].examples
    assert any("NVAS" in text for text in dropped["unreadable"].examples)
    assert not any("Melanoma" in text for text in texts(built)), "short diagnoses in the clinical history are dropped"
    summary = built.summary
    assert summary.kept_short is not None and summary.kept_short.examples == ["DIAGNOSIS: Adenocarcinoma."]
    assert summary.pieces - summary.duplicates - sum(d.count for d in summary.dropped.values()) == summary.kept
    shown = summary.text(CHECKED)
    assert SnippetSummary.from_dict(json.loads(json.dumps(summary.as_dict()))).text(CHECKED) == shown
    for part in ("rescued            1", "by headings without text", "by unreadable text", "e.g. Fssue -> tissue (1)"):
        assert part in shown


def test_damaged_ligatures_are_repaired_before_duplicates_are_merged() -> None:
    assert "tissue of the intestine was fixed; the intestinal wall too." in texts(build_checked())
    repaired = build_checked().summary.repaired_words
    assert repaired == {"Fssue -> tissue": 1, "intesFnal -> intestinal": 1, "intesFne -> intestine": 1}


@pytest.mark.parametrize(
    ("check", "opposite", "present"),
    [
        ({"headings": False}, {}, "GROSS AND MICROSCOPIC DESCRIPTION:"),
        ({"readable": 0}, {}, "NVAS:i:ONt ltO iIt:"),
        ({"ligatures": False}, {}, "Fssue of the intesFne was fixed; the intesFnal wall too."),
        ({}, {"short_diagnoses": False}, "DIAGNOSIS: Adenocarcinoma."),
    ],
)
def test_each_text_check_can_be_disabled(check: dict[str, Any], opposite: dict[str, Any], present: str) -> None:
    assert present in texts(build_checked(text_checks=check))
    assert present not in texts(build_checked(text_checks=opposite))


def test_without_text_checks_snippets_match_earlier_versions() -> None:
    built = build_checked(text_checks=None)
    summary = {key: value for key, value in built.summary.as_dict().items() if key != "section_reports"}
    content = json.dumps([built.snippets.to_pylist(), built.sources.to_pylist(), summary])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "abc5521ccba0a5eb"
    assert snippet_keys(ReportsConfig(path="x", text_checks=None)) == {
        "text_column": "text", "id_column": None, "organ_column": None, "group_column": None, "organs": [],
        "min_words": 3, "sections": None, "exclude_sections": [], "include_terms": [], "exclude_terms": [],
        "morphology_margin": 0.0,
    }  # fmt: skip
    assert snippet_keys(ReportsConfig(path="x"))["text_checks"]["readable"] == 0.5


def test_microscopy_and_diagnoses_rank_before_gross_descriptions() -> None:
    def similarity(batch: Sequence[str]) -> np.ndarray:
        return np.array([0.01 * (-1) ** row for row in range(len(batch))])

    reports = Reports(
        (
            Report("r1", "MICROSCOPIC DESCRIPTION: Atypical glands invade the fat. Tumor cells form many nests."),
            Report("r2", "GROSS DESCRIPTION: The wall was cut into four pieces. The fat was not inked at all."),
            Report("r3", "DIAGNOSIS: Adenocarcinoma. GROSS DESCRIPTION: Adenoma."),
        ),
        (),
        "x",
    )
    config = ReportsConfig(path="x", text_checks={"section_weight": 2.0})
    built = build_snippets(reports, config, count_toy_tokens, 60, similarity)
    assert texts(built) == {
        "Atypical glands invade the fat.", "Tumor cells form many nests.", "DIAGNOSIS: Adenocarcinoma."
    }  # fmt: skip
    (name,) = [name for name in built.summary.dropped if name.startswith("similarity")]
    assert "to disable, set reports.morphology_prompts=null" in name and built.summary.dropped[name].count == 3
    for off in ({"morphology_prompts": None}, {"boilerplate_prompts": None}):
        everything = build_snippets(reports, ReportsConfig(path="x", **off), count_toy_tokens, 60)
        assert "The fat was not inked at all." in texts(everything)
    with pytest.raises(ConfigError, match=r"needs a VLM(.|\n)*reports.morphology_prompts to null"):
        build_snippets(reports, ReportsConfig(path="x"), count_toy_tokens, 60)
