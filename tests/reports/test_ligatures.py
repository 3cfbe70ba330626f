"""Repair of words with damaged ligatures, based on the vocabulary of the corpus."""

from collections import Counter

import pytest

from clipit.reports.cleaning import clean_text
from clipit.reports.ligatures import find_repairs, repair

WORDS = "tissue intestine intestinal differentiated submitted specific tired fiction friction fraction faction"
VOCABULARY = [WORDS] * 3


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("intesFnal Fssue", "intestinal tissue"),
        ("differen\u019fated", "differentiated"),
        ("di\ufb00eren\u019fated", "differentiated"),
        ("submiHed", "submitted"),
        ("speci\ufffdc", "specific"),
        ("IntesFne.", "Intestine."),
    ],
)
def test_unambiguous_words_are_repaired(damaged: str, whole: str) -> None:
    counts: Counter[str] = Counter()
    text = clean_text(damaged)
    assert repair(text, find_repairs([*VOCABULARY, text]), counts) == whole
    assert sum(counts.values()) == len(damaged.split())


@pytest.mark.parametrize(
    "text",
    [
        "pT3a pTis BRAF KRas eGFR mTOR HercepTest ProExC NFkB CDKN2A c-Met pMMR dMMR",
        "McDonald and DeFries saw Fred in the Fall; Fat is firm.",
        "TTF1 intesF2nal F4ssue INTESFNAL",
        "fFon",  # no replacement of F yields a word of the vocabulary
    ],
)
def test_genes_codes_names_and_uncertain_words_are_left_alone(text: str) -> None:
    damage = find_repairs([*VOCABULARY, "intesFnal", text])
    assert repair(text, damage, Counter()) == text


def test_ambiguous_words_are_not_repaired() -> None:
    ambiguous = ["affirm stiffing attest affest"] * 3
    assert find_repairs([*ambiguous, "aHest"]) == {}
    assert find_repairs([*ambiguous, "aHest", "stiHing"]) == {"stiHing": "stiffing"}


def test_without_a_vocabulary_nothing_is_repaired() -> None:
    assert find_repairs(["intesFnal Fssue", "intestinal tissue"]) == {}
    assert find_repairs(["Fssue", *VOCABULARY]) == {}, "F never occurs within a word, so it is not a damaged ligature"
    assert repair("intesFnal", {}, Counter()) == "intesFnal"
