"""Splitting of reports into sections, sentences and pieces within the token budget."""

import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipit.errors import ConfigError
from clipit.reports.cleaning import clean_text
from clipit.reports.snippets import Piece, split_reports
from clipit.types import TokenCounter


def count_toy_tokens(texts: Sequence[str]) -> list[int]:
    """One token per four characters of a word, rounded up, plus two special tokens."""
    return [2 + sum(-(-len(word) // 4) for word in text.split()) for text in texts]


def split_report(report: str, count_tokens: TokenCounter, budget: int) -> list[Piece]:
    return split_reports([clean_text(report)], count_tokens, budget)[0]


def texts_of(report: str) -> list[str]:
    return [piece.text for piece in split_report(report, count_toy_tokens, 60)]


WORDS = st.lists(
    st.one_of(
        st.sampled_from(["Diagnosis:", "FINAL DIAGNOSIS", "COMMENT", "GROSS", "DESCRIPTION:", "Tumor site:", "pT3 N0"]),
        st.sampled_from(
            ["colon tumor,", "margins;", "free.", "and", "with", "3 cm.", "Dr.", "A.", "2.", "-", "\n", "("]
        ),
        st.sampled_from(["supercalifragilistic", "(see note)", "carci-\nnoma", "...", "__", "IIII", "é", "\u00ad"]),
    ),
    max_size=60,
).map(" ".join)
NOISY = st.lists(
    st.builds(str.__mul__, st.sampled_from(list("aZe0159 \n.,;:-()!")), st.integers(1, 4)), max_size=40
).map("".join)


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


@settings(deadline=None)
@given(st.one_of(WORDS, NOISY), st.integers(3, 20))
def test_no_text_is_lost_and_no_piece_exceeds_the_budget(text: str, budget: int) -> None:
    pieces = split_report(text, count_toy_tokens, budget)
    assert letters("".join(piece.text for piece in pieces)) == letters(text)
    assert all(piece.n_tokens == count_toy_tokens([piece.text])[0] <= budget for piece in pieces)
    assert [piece.position for piece in pieces] == list(range(len(pieces)))
    assert all(letters(piece.text) for piece in pieces)


@pytest.mark.parametrize(
    "sentences",
    [
        ["The tumor measures approx. 3.5 cm.", "Margins are free."],
        ["It was seen by Dr. Smith at 5 p.m. today.", "No other lesion, e.g. Crohn disease, is found."],
        ["The stage is pT3. N0. M0.", "Eighteen nodes are free (0/18)."],
        ["Nodes are free of tumor.", "18 lymph nodes were found."],
        ["1. Colon with adenoma.", "2. Appendix without tumor."],
        ["A. Colon with adenoma.", "B. Appendix without tumor."],
        ["The stage is Dukes B.", "The margins are free."],
        ["Sections are in block A.", "The tumor is firm."],
        ["A piece of 3. 2 cm is received.", "The serosa is smooth."],
        ["See slide No. 5 of the series.", "Lymph nodes are large (see comment)."],
        ["The nodes (nos. 1-4) are free.", 'It is labeled "J. Doe, colon" and large.'],
        ["Insges. 23 Lymphknoten, z.B. max. 1,2 cm.", "Überall fehlt Tumor bzw. Nekrose."],
        ["Tamaño máx. 0,8 cm.", "¿Hay carcinoma?", "Úlcera de la mucosa."],
        ["La tumeur mesure 2 cm.", "« Limites saines »."],
        ["אין עדות לגידול.", "הגבולות נקיים."],
    ],
)
def test_sentences(sentences: list[str]) -> None:
    assert texts_of(" ".join(sentences)) == sentences


def test_sentences_of_scripts_without_spaces() -> None:
    sentences = ["中分化腺癌大小3.5 x 2.1cm。", "淋巴结0/12未见转移。", "CK7阴性"]
    assert texts_of("".join(sentences)) == sentences
    halves = [piece.text for piece in split_report("未见脉管侵犯12.5cm大小及转移", count_toy_tokens, 5)]
    assert "".join(halves) == "未见脉管侵犯12.5cm大小及转移"
    assert halves == ["未见脉管侵犯", "12.5cm大小及转移"]


def test_a_field_label_is_not_split_at_a_shorter_label() -> None:
    form = "Number of Lymph Nodes Involved: 0 Number of Lymph Nodes Examined: 21"
    assert texts_of(form) == ["Number of Lymph Nodes Involved: 0", "Number of Lymph Nodes Examined: 21"]


def test_numbered_addenda_and_conclusions_are_sections() -> None:
    report = "Diagnosis: Colonic adenoma.\nADDENDUM #1 (03/05/2020): BRAF is not mutated.\nConclusion: It is benign."
    sections = {piece.text: piece.section for piece in split_report(report, count_toy_tokens, 60)}
    assert sections["BRAF is not mutated."] == "addendum"
    assert sections["It is benign."] == "diagnosis"


def test_each_part_of_a_long_negated_list_repeats_the_negation() -> None:
    text = "There is no evidence of invasion, necrosis, dysplasia, budding, metastasis, mucin, ulcers or granulomas."
    first, second = [piece.text for piece in split_report(text, count_toy_tokens, 24)]
    assert first == "There is no evidence of invasion, necrosis, dysplasia"
    assert second == "no evidence of budding, metastasis, mucin, ulcers or granulomas."
    other = "There is no evidence of invasion, but the stroma is fibrotic, the mucosa is ulcerated, the serosa is dull."
    assert not any("no evidence" in piece.text for piece in split_report(other, count_toy_tokens, 20)[1:])


def test_long_sentences_are_not_split_within_a_measurement() -> None:
    text = "tumour growing along serosa measures 3.5 x 2.1 x 1.0 cm deep under mucosa near resection margin"
    pieces = [piece.text for piece in split_report(text, count_toy_tokens, 16)]
    assert any("3.5 x 2.1 x 1.0 cm" in piece for piece in pieces)


def test_sentences_and_form_fields_without_a_space_are_separated() -> None:
    assert texts_of("It is 3 cm in dimension.The margin is free.") == [
        "It is 3 cm in dimension.",
        "The margin is free.",
    ]
    form = "Specimen size: Not specifiedTumor site: Sigmoid colonTumor size: 8.5 x 4.5 cmMargins: Not specified"
    assert texts_of(form) == [
        "Specimen size: Not specified",
        "Tumor site: Sigmoid colon",
        "Tumor size: 8.5 x 4.5 cm",
        "Margins: Not specified",
    ]


def test_sections_of_a_one_line_report() -> None:
    report = (
        "Surgical specimen of colon. CLINICAL HISTORY: Anaemia for two years. GROSS DESCRIPTION The bowel is long. "
        "Microscopic description: Glands invade the muscularis. Final Diagnosis Adenocarcinoma of the colon. "
        "Tumor stage: pT3 pN0 G2. Comment: No further tumor was found (see microscopic description)."
    )
    sections = {piece.text: piece.section for piece in split_report(report, count_toy_tokens, 60)}
    assert sections == {
        "Surgical specimen of colon.": "unknown",
        "CLINICAL HISTORY:": "clinical",
        "Anaemia for two years.": "clinical",
        "GROSS DESCRIPTION": "gross",
        "The bowel is long.": "gross",
        "Microscopic description:": "microscopic",
        "Glands invade the muscularis.": "microscopic",
        "Final Diagnosis": "diagnosis",
        "Adenocarcinoma of the colon.": "diagnosis",
        "Tumor stage:": "stage",
        "pT3 pN0 G2.": "stage",
        "Comment:": "comment",
        "No further tumor was found (see microscopic description).": "comment",
    }


def test_sections_of_a_multi_line_report() -> None:
    report = (
        "FINAL DIAGNOSIS\nA. Colon, resection:\n- Adenocarcinoma, low grade.\n\n"
        "Gross\nThe bowel is\n\nopened.\nNote:\nNone"
    )
    pieces = [(piece.section, piece.text) for piece in split_report(report, count_toy_tokens, 60)]
    assert pieces == [
        ("diagnosis", "FINAL DIAGNOSIS"),
        ("diagnosis", "A. Colon, resection:"),
        ("diagnosis", "Adenocarcinoma, low grade."),
        ("gross", "Gross"),
        ("gross", "The bowel is opened."),
        ("comment", "Note: None"),
    ]


def test_a_stage_section_ends_after_the_stage() -> None:
    report = "Diagnosis: Carcinoma of the colon. Tumor stage: pT3 pN0. The margins are free of tumor."
    assert [p.section for p in split_report(report, count_toy_tokens, 60)][-1] == "diagnosis"


def test_a_gross_description_is_recognised_without_its_heading() -> None:
    report = "COMMENT: The stain is negative here. 1. The specimen is received fresh in one part. It is brown and soft."
    assert [p.section for p in split_report(report, count_toy_tokens, 60)] == ["comment", "comment", "gross", "gross"]


def test_long_sentences_are_split_at_clauses_then_words_then_letters() -> None:
    clauses = "the first clause is rather long here; the second clause, which has commas, is rather long, too"
    pieces = split_report(clauses, count_toy_tokens, 24)
    assert [piece.text for piece in pieces] == [
        "the first clause is rather long here",
        "the second clause, which has commas, is rather long, too",
    ]
    assert [piece.first_part for piece in pieces] == [True, False]
    assert texts_of("word " * 5) == ["word word word word word"]
    assert [p.text for p in split_report("alpha beta", count_toy_tokens, 4)] == ["alpha", "beta"]
    assert [p.text for p in split_report("abcdefghijkl", count_toy_tokens, 4)] == ["abcdef", "ghijkl"]


def test_a_budget_below_one_character_is_an_error() -> None:
    with pytest.raises(ConfigError, match="one character does not fit"):
        split_report("carcinoma", count_toy_tokens, 2)


def test_tokens_of_many_reports_are_counted_in_few_calls() -> None:
    calls = []

    def count(texts: Sequence[str]) -> list[int]:
        calls.append(len(texts))
        return count_toy_tokens(texts)

    reports = [f"Tumor number {i} is seen. Margins are free of tumor." for i in range(50)]
    split = split_reports([clean_text(report) for report in reports], count, 60)
    assert split == [split_report(report, count_toy_tokens, 60) for report in reports]
    assert calls == [51]  # the second sentence, identical in all reports, is counted once


@pytest.mark.parametrize(
    "repeated",
    [
        "J. ",  # never ends a sentence
        "A. - 1) ",  # list markers without items
        "Diagnosis: glands. Comment: none. ",
        "Deep ",  # the beginning of a field label
        "LEFT LYMPH NODES: ",
        "癌。",  # no space
        "e.g. ",
        "abcd-\n",
        "- . - ! ",
    ],
)
def test_time_is_linear_in_the_length_of_a_line(repeated: str) -> None:
    assert_linear(repeated, lambda text: split_report(text, count_toy_tokens, 77))


@pytest.mark.parametrize("repeated", ["_", "& "])
def test_time_is_linear_in_the_length_of_a_ruled_line(repeated: str) -> None:
    assert_linear(repeated, lambda text: split_report(clean_text(f"{text} seen"), count_toy_tokens, 77))


def assert_linear(repeated: str, split: Callable[[str], object]) -> None:
    def seconds(length: int) -> float:
        text = (repeated * length)[:length]
        start = time.process_time()
        split(text)
        return time.process_time() - start

    small = min(seconds(4_000) for _ in range(3))
    assert any(seconds(40_000) < 30 * small + 0.1 for _ in range(3))  # quadratic time: 100 times as long
