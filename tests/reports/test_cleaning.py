"""Text cleaning removes noise and keeps all letters and digits."""

import textwrap
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from clipit.reports.cleaning import clean_text, compound_words, drop_long_words, trim
from clipit.reports.sentences import split_sentences

LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
# Noisy text has runs of characters because cleaning shortens runs of anything but letters and digits.
NOISE = list("aZeé0159 \t\n\r\f.,;:-_|=*()!ﬁ\u00ad\u200b\u2022\u2014ßµ")
NOISY = st.lists(st.builds(str.__mul__, st.sampled_from(NOISE), st.integers(1, 4)), max_size=40).map("".join)


def letters(text: str) -> str:
    """All letters and digits, with ligatures expanded."""
    text = "".join(LIGATURES.get(char, char) for char in text)
    return "".join(char for char in text if char.isalnum())


@given(st.one_of(st.text(max_size=80), NOISY))
@example("non -poly\u00adposis 2 .5 cm carci-\nnoma")
def test_no_letter_or_digit_is_lost(text: str) -> None:
    assume("\\" not in text)  # a backslash may start an escaped line break
    assert letters(clean_text(text)) == letters(text)


def test_escaped_line_breaks_are_decoded() -> None:
    text = r"Gross: Brown tissue.\nDiagnosis: Adenoma.\r\n- Polyp in \tC:\new"
    assert clean_text(text) == "Gross: Brown tissue.\nDiagnosis: Adenoma.\n- Polyp in C:\\new"


def test_line_breaks_escaped_by_excel_are_decoded() -> None:
    text = "Negative for_x000D_\nDysplasia_x000d_Diagnosis: Adenoma._x000A_- Polyp"
    assert clean_text(text) == "Negative for Dysplasia\nDiagnosis: Adenoma.\n- Polyp"


@given(NOISY)
def test_output_is_tidy(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned
    assert "\n\n" not in cleaned
    assert not set(cleaned) & set("\t\r\f\u00ad\u200b_|")


@pytest.mark.parametrize(
    ("noisy", "clean"),
    [
        ("moderately differen-\ntiated carcinoma", "moderately differentiated carcinoma"),
        ("differen\u00adtiated", "differentiated"),
        (
            "well-\ndifferentiated, non-\r\nsmall cell, her-\nnegative",
            "well-differentiated, non-small cell, her-negative",
        ),
        ("ER-\npositive, HER2-\nnegative, CK7-\nCK20+", "ER-positive, HER2-negative, CK7-\nCK20+"),
        ("adeno-\ncarcinoma, a carcinoma", "adenocarcinoma, a carcinoma"),
        ("red-\ntan, red and tan", "red-tan, red and tan"),
        ("sub-\nmucosa near the submucosa", "submucosa near the submucosa"),
        ("end-\nstage, end-stage, endstage", "end-stage, end-stage, endstage"),
        ("tumor -free margins, non -polyposis", "tumor-free margins, non-polyposis"),
        ("pre- and postoperative", "pre- and postoperative"),
        ("2 .5 cm mucosa , tubular ,nodular .", "2.5 cm mucosa, tubular, nodular."),
        ("Margins ________ free ....... 3 cm", "Margins free 3 cm"),
        ("HER2 +++", "HER2 +++"),
        ("ER --- PR +++ HER2 --- S100: ---", "ER --- PR +++ HER2 --- S100: ---"),
        ("CK +++ Desmin --- Vimentin +++", "CK +++ Desmin --- Vimentin +++"),
        ("Colon --- polyp\n--- Diagnosis ---", "Colon polyp\nDiagnosis"),
        ("CD20 ------ CK20 -negative", "CD20 CK20 -negative"),
        ("EWSR1::FLI1 and:: : HER2, hi::story", "EWSR1::FLI1 and: HER2, hi:story"),
        ("in\ufb01ltrating \u2014 \u201cglands\u201d", 'infiltrating - "glands"'),
        ("the tumor\n\ninvades fat.\nMargins:\nfree", "the tumor invades fat.\nMargins:\nfree"),
        ("Tumour 5\u00b72 cm; pT2\u00b7N0 \u00b7 Margins free", "Tumour 5.2 cm; pT2 N0\n- Margins free"),
        ("ER\n+\nPR\n-\nInvasion:\n-\nMargins\n-", "ER +\nPR -\nInvasion: -\nMargins\n-"),
        ("Invasion:\nYes\nMargins:\nClear", "Invasion: Yes\nMargins:\nClear"),
        ("Diagnosis:\nPresent\nNo\nYes", "Diagnosis:\nPresent\nNo\nYes"),
        ("Invasion\n __ No\n _X_ Yes\nSize ____ cm", "Invasion [ ] No [X] Yes\nSize cm"),
        ("Invasion: ___ No _X_ Yes ____\nSize ____", "Invasion: [ ] No [X] Yes\nSize"),
        ("Signed by ____ in Room 4", "Signed by in Room 4"),
        ("Gleason score 3 +\n4 = 7", "Gleason score 3 + 4 = 7"),
        ("without\nH. pylori", "without H. pylori"),
        ("less than 0.1\nCM of the apex", "less than 0.1 CM of the apex"),
        ("Tumor site: colon\nTumor size: 3 cm", "Tumor site: colon\nTumor size: 3 cm"),
        ("\x0c\x00Page\x07 1", "Page 1"),
        ("", ""),
    ],
)
def test_clean_text(noisy: str, clean: str) -> None:
    assert clean_text(noisy) == clean


def test_hyphens_of_broken_words_follow_other_reports() -> None:
    reports = ["cyst-\nadenoma, non-\r\nneoplastic, T-cell", "A Cystadenoma.", "nonneoplastic", "an adenoma"]
    assert clean_text(reports[0], compound_words(reports)) == "cystadenoma, nonneoplastic, T-cell"
    assert clean_text(reports[0], compound_words([reports[0], reports[3]])) == "cyst-adenoma, non-neoplastic, T-cell"


@pytest.mark.parametrize(
    ("report", "clean"),
    [
        ("NEGATIVE FOR:\n- dysplasia\n- malignancy.\nGross: 1 cm", "NEGATIVE FOR: dysplasia, malignancy.\nGross: 1 cm"),
        ("No evidence of:\n1. Dysplasia;\n2) Mucin\nSkin", "No evidence of: (1) Dysplasia, (2) Mucin\nSkin"),
        ("There is no:\nDysplasia or atrophy", "There is no: Dysplasia or atrophy"),
        ("Accession No:\nColon with adenoma", "Accession No:\nColon with adenoma"),
        ("Lymph node metastasis\nAbsent", "Lymph node metastasis: Absent"),
        ("Perineural invasion:\nNot identified", "Perineural invasion: Not identified"),
        ("FINAL DIAGNOSIS\nNegative", "FINAL DIAGNOSIS\nNegative"),
        ("Margins are free.\nNot identified", "Margins are free.\nNot identified"),
        ("CK20 negative\np53 wild type", "CK20 negative\np53 wild type"),
    ],
)
def test_negations_stay_with_what_they_negate(report: str, clean: str) -> None:
    assert clean_text(report) == clean


def test_html_is_removed_and_comparisons_are_kept() -> None:
    report = '<p class="a"><b>Diagnosis:</b><br/>ER &gt;95%, PR &lt;1% &amp; Ki-67 12&nbsp;%</p><td>A</td><td>B</td>'
    assert clean_text(report) == "Diagnosis:\nER >95%, PR <1% & Ki-67 12 %\nA B"
    assert clean_text("p <0.05, n > 3 and <5/10 HPF; <<inaudible>>") == "p <0.05, n > 3 and <5/10 HPF; <<inaudible>>"


def test_long_words_are_dropped() -> None:
    picture, damage, url = "iVBORw0KGgo/" * 100, "a" * 501, "http://" + "b" * 400
    text, words = drop_long_words(f"Figure {picture} shows glands.\n{damage}\nSee {url}.")
    assert text == f"Figure shows glands.\nSee {url}."
    assert words == [picture, damage]
    assert drop_long_words("a" * 500) == ("a" * 500, [])


@pytest.mark.parametrize("text", ["腺癌浸潤" * 300, "มะเร็งต่อม" * 100, "腺癌" * 300 + "HER2"])
def test_scripts_without_spaces_are_kept(text: str) -> None:
    assert drop_long_words(text) == (text, [])


def test_drawn_lines_and_table_cells_are_not_long_words() -> None:
    text = clean_text("Diagnosis:" + "-" * 600 + "colon" + "|cell" * 200)
    assert drop_long_words(text)[1] == []


def test_drawn_lines_with_blanks_take_linear_time() -> None:
    start = time.process_time()
    assert clean_text("Margins " + "==== " * 40_000 + "free.") == "Margins free."
    assert time.process_time() - start < 10, "quadratic time would take minutes"


def test_a_decimal_point_without_a_zero_is_kept() -> None:
    assert trim(".5 cm polyp") == ".5 cm polyp"
    assert trim("- . Polyp -") == "Polyp"
    assert trim("- CK7 +++, CK20 ---,") == "CK7 +++, CK20 ---"
    assert trim("Invasion: -") == "Invasion: -"
    assert clean_text("Polyp of 2 cm. .7 cm margin") == "Polyp of 2 cm. .7 cm margin"
    assert split_sentences("GROSS: .5 cm polyp with a stalk.")[-1][1] == ".5 cm polyp with a stalk."


@pytest.mark.parametrize("width", [35, 45, 55, 65, 80])
def test_wrapped_lines_are_joined_before_capitals_and_numbers(width: int) -> None:
    text = (
        "Sections of the colon show an adenocarcinoma of moderate differentiation. PCR on block A3 did not show "
        "MSI-H in the tumour, and HER2 was not amplified in Block A4. The cells express PD-L1 in 40 percent, "
        "Ki-67 in 30 percent and CK20; the mitotic count is 10-12 per ten fields."
    )
    assert clean_text(textwrap.fill(text, width)) == text


def test_lines_of_a_form_are_not_joined() -> None:
    form = "Specimen: colon, right hemicolectomy\nTumour of 3 cm\nMSI-H\nInvasion into subserosa and\nthe fat\n2 nodes"
    assert clean_text(form) == form.replace("and\nthe", "and the")
