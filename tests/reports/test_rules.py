"""Rule-based labels of reports: phrases, negation, uncertainty and rule set files."""

import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipit.errors import DataError
from clipit.reports.rule_set import packaged_rules
from clipit.reports.rules import RuleSet, label_report, load_rules

TUMOUR = RuleSet(
    "tumour",
    {"high": ("MSI-H", "microsatellite instability-high", "grade high"), "stable": ("MSS", "MSI", "microsatellite")},
    negated={"high": "stable"},
)


packaged = cache(load_rules)


def statuses(text: str, rules: RuleSet = TUMOUR) -> list[tuple[str, str]]:
    """Class and status of each mention."""
    return [(mention.class_name, mention.status) for mention in label_report(text, rules).mentions]


@pytest.mark.parametrize(
    "text",
    [
        "The tumour is MSI-H.",
        "the tumour is msi-h",
        "MSI H tumour",
        "MSI -  H tumour",
        "Tumour (MSI\u2013H), see comment.",
        "The carcinoma in the right colon shows a microsatellite\ninstability-high phenotype.",
        "Microsatellite\nInstability-High",
        "Microsatellite insta-\nbility-high",
    ],
)
def test_phrases_match_regardless_of_case_white_space_hyphens_and_line_breaks(text: str) -> None:
    assert label_report(text, TUMOUR).class_name == "high"


@pytest.mark.parametrize("text", ["XMSI-H", "MSI-High", "MSI. H", "MSI/H", "MSI, H"])
def test_only_whole_words_match_and_punctuation_separates_them(text: str) -> None:
    assert "high" not in dict(statuses(text))


def test_a_longer_phrase_hides_shorter_phrases_within_it() -> None:
    assert statuses("MSI-H") == [("high", "affirmed")]
    assert statuses("MSI") == [("stable", "affirmed")]
    assert statuses("microsatellite instability high; microsatellite") == [("high", "affirmed"), ("stable", "affirmed")]


def test_an_ignored_phrase_has_no_class_and_hides_shorter_phrases_within_it() -> None:
    rules = RuleSet("r", {"high": ("MSI",)}, ignored=("MSI testing",))
    assert label_report("MSI testing was performed.", rules).class_name == "none"
    assert label_report("MSI testing: MSI.", rules).class_name == "high"


@pytest.mark.parametrize(
    "text",
    [
        "No evidence of MSI-H.",
        "The tumour is not MSI-H.",
        "Negative for MSI-H",
        "Tumour without MSI-H.",
        "MSI-H is not identified.",
        "MSI-H: negative",
        "MSI-H: no",
        "MSI-H was ruled out.",
        "The tumour is non-MSI-H.",
        "No necrosis or MSI-H.",
        "No MSI-H identified, not seen in any block.",
    ],
)
def test_a_negation_before_or_after_a_mention_negates_it(text: str) -> None:
    label = label_report(text, TUMOUR)
    assert [mention.status for mention in label.mentions] == ["negated"]
    assert label.class_name == "stable"  # `negated` maps high to stable


FINDINGS = RuleSet(
    "r",
    {
        "finding": ("invasion", "metastasis", "metastases", "metastatic carcinoma", "adenocarcinoma", "MSI-H"),
        "pattern": ("Gleason 3", "grade 3"),
    },
)


@pytest.mark.parametrize(
    "text",
    [
        "Lymphovascular invasion - no",
        "- Perineural invasion - No.",
        "Invasion \u2013 no; margins free.",
        "Invasion - no, margins free.",
        "Invasion- no",
        "Metastasis: 0/12",
        "Lymph node metastases: 0 / 12.",
        "Metastasis = 0/12",
        "Metastasis: 0 out of 12 lymph nodes",
        "Metastasis in 0/12 lymph nodes.",
        "Metastatic carcinoma is present in 0 of 12 lymph nodes (0/12).",
        "Metastatic carcinoma involving zero of 12 lymph nodes.",
        "Adenocarcinoma in 0/12 cores.",
        "0/12 lymph nodes with metastasis.",
        "Lymph nodes (0/12 nodes with metastasis)",
        "0 of 12 regional lymph nodes are positive for metastatic carcinoma.",
        "0/3 sentinel lymph nodes show metastasis.",
        "Zero of 4 pericolic and mesenteric lymph nodes contain metastases.",
        "None of the 14 regional lymph nodes examined contains metastatic carcinoma.",
    ],
)
def test_a_negative_answer_after_a_dash_and_a_count_of_zero_negate(text: str) -> None:
    assert statuses(text, FINDINGS) == [("finding", "negated")]


@pytest.mark.parametrize(
    "text",
    [
        "Lymphovascular invasion - yes",
        "Invasion - no. 3 block",
        "Invasion - no. of vessels: 4",
        "Invasion of block-no. 4",
        "Invasion - nodular",
        "Invasion, 0/12/2019",
        "Metastasis: 0/12/2019",
        "Metastasis in 0/12/19 biopsy.",
        "Metastasis: 10/12",
        "Metastasis in 10/12 lymph nodes.",
        "Metastasis in 2 of 12 lymph nodes, 0/3 sentinel.",
        "Metastasis: 0.5 cm",
        "Metastasis: 1.0/12 cm",
        "Metastasis: 0/0",
        "Metastasis in 0/12-15 nodes",
        "Invasion: 0/12%",
        "10/12 lymph nodes with metastasis.",
        "1.0/12 lymph nodes with metastasis.",
        "Adenocarcinoma with 0/12 lymph nodes positive.",
        "Adenocarcinoma (0/12 nodes positive).",
        "MSI-H tumour, pN0 (0/12).",
        "MSI-H tumour, lymph nodes: 0/12.",
        "0/12 lymph nodes, MSI-H.",
        "0/12 lymph nodes MSI-H.",
        "0/12 lymph nodes. Adenocarcinoma.",
        "pN0 (0/12 lymph nodes) adenocarcinoma.",
        "0/12 lymph nodes with tumour but MSI-H.",
        "HER2 0/3, MSI-H.",
        "Ki-67 in 0/12 fields, adenocarcinoma.",
    ],
)
def test_other_dashes_counts_ratios_and_dates_do_not_negate(text: str) -> None:
    assert statuses(text, FINDINGS) == [("finding", "affirmed")]


@pytest.mark.parametrize("text", ["Gleason 3 - no", "Grade 3 - no.", "Gleason 3 - no 4 or 5"])
def test_an_answer_after_a_number_and_a_dash_does_not_negate(text: str) -> None:
    assert statuses(text, FINDINGS) == [("pattern", "affirmed")]


@pytest.mark.parametrize(
    "text",
    [
        "Invasion: N",
        "Invasion: neg.",
        "Invasion: nil; margins free",
        "Invasion = no",
        "Invasion (Y/N): N",
        "Invasion: False",
        "Invasion (-)",
        "Invasion: (-)",
        "Invasion -, margins free",
        "Invasion: 0",
        "Invasion: neg., margins free",
        "Invasion neg. Margins free.",
        "Invasion is -ve",
        "Nil invasion.",
        "Invasion\tNo",
        "Invasion:\nNo",
        "There was no\nInvasion.",
        "The sections do not show\nInvasion.",
        "INVASION NOT\nIDENTIFIED.",
        "Invasion,No",
        "Invasion nil",
        "Invasion: -",
        "Invasion: \u2013\nMargins: +",
        "Invasion:\n-",
        "Invasion: -, margins: +",
        "This report is in a narrow column, and therefore\nall lines are short. The sections did not show\nINVASION.",
        "Invasion-free margins.",
        "Adenocarcinoma isn't seen.",
        "We don't see invasion.",
        "The tumour doesn't show invasion.",
        "Evidence of invasion is lacking.",
        "Invasion was sought but none was seen.",
        "Muscle is not involved by adenocarcinoma.",
        "Margins: uninvolved by adenocarcinoma",
        "Invasion can't be identified.",
        "Invasion cannot be seen.",
        "Invasion is no longer seen.",
        "NEG for adenocarcinoma.",
        "The sections fail to demonstrate invasion.",
    ],
)
def test_short_answers_and_contractions_negate(text: str) -> None:
    assert statuses(text, FINDINGS) == [("finding", "negated")]


@pytest.mark.parametrize(
    "text",
    [
        "Invasion: N1",
        "Invasion: N blocks examined",
        "Invasion (Y/N): Y",
        "Invasion free of inflammation.",
        "Adenocarcinoma, free margins.",
        "Adenocarcinoma with free margins.",
        "Invasion (-3 mm)",
        "Invasion: 0.5 mm",
        "Invasion (see comment)",
        "HER2 -ve adenocarcinoma",
        "Necrosis: no\nInvasion: yes",
        "Necrosis no\nInvasion yes",
        "Invasion:\nPresent",
        "Adenocarcinoma NO MX",
        "Nil necrosis, invasion present",
        "Invasion: -3 mm",
        "Invasion: - deep",
        "Invasion: +",
    ],
)
def test_longer_answers_do_not_negate(text: str) -> None:
    assert statuses(text, FINDINGS) == [("finding", "affirmed")]


@pytest.mark.parametrize(
    "text", ["?invasion", "Biopsy of colon ? invasive adenocarcinoma", "Lesion (? adenocarcinoma)"]
)
def test_a_question_mark_before_a_mention_makes_it_uncertain(text: str) -> None:
    assert statuses(text, FINDINGS) == [("finding", "uncertain")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[ ] invasion [x] adenocarcinoma", ["negated", "affirmed"]),
        ("[X] Invasion [ ] Adenocarcinoma", ["affirmed", "negated"]),
        ("( ) invasion (x) adenocarcinoma", ["negated", "affirmed"]),
        ("\u2610 invasion \u2611 adenocarcinoma", ["negated", "affirmed"]),
        ("Invasion [ ] Adenocarcinoma [x]", ["negated", "affirmed"]),
        ("[ ] Perineural invasion\n[x] Adenocarcinoma", ["negated", "affirmed"]),
        ("Invasion: [ ] yes [x] no", ["negated"]),
        ("Invasion: [x] yes [ ] no", ["affirmed"]),
        ("Invasion: yes [ ] no [x]", ["negated"]),
        ("Invasion: [ ] not identified [x] present", ["affirmed"]),
        ("Invasion: [x] not identified [ ] present", ["negated"]),
        ("Invasion [ ] present [x] absent", ["negated"]),
        ("Invasion: [ ] yes [ ] no", ["uncertain"]),
        ("Invasion\n[ ] Present\n[x] Not identified\nMetastasis:\n[x] Present\n[ ] Absent", ["negated", "affirmed"]),
        ("+ Invasion\n  ___ Absent\n  _X_ Present\n+ Metastasis\n  _X_ Absent\n  ___ Present", ["affirmed", "negated"]),
        ("Invasion [x] no [ ] yes", ["negated"]),
        ("Invasion [ ] no [x] yes", ["affirmed"]),
        ("Invasion [x] no [ ] yes  Metastasis [ ] no [x] yes", ["uncertain", "uncertain"]),  # two questions
        ("Invasion [ ]", ["negated"]),
        ("Submitted by Dr. [ ] as invasion.", ["affirmed"]),  # a redacted name
        ("Adenocarcinoma with invasion, reviewed with Dr. [ ].", ["affirmed", "affirmed"]),
        ("Invasion [1]", ["affirmed"]),
    ],
)
def test_check_boxes(text: str, expected: list[str]) -> None:
    assert statuses(text, FINDINGS) == [("finding", status) for status in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Regional lymph nodes: No lymph node metastasis", ["negated"]),
        ("B. Lymph node, right: no evidence of metastasis.", ["negated"]),
        ("Lymph nodes: no evidence of any kind of lymphatic metastasis", ["negated"]),
        ("Lymph nodes: suspicious for metastasis; adenocarcinoma", ["uncertain", "affirmed"]),
        ("Comment: no doubt about invasion", ["affirmed"]),
        ("Invasion is present; metastasis is not.", ["affirmed", "negated"]),
        ("Adenocarcinoma in the polyp but none in the nodes.", ["affirmed"]),
        ("Invasion: no, metastasis: yes", ["negated", "affirmed"]),
        ("Invasion: no metastasis: yes", ["negated", "affirmed"]),
        ("No granulomas, viral inclusions, parasites, fungi, invasion or metastasis.", ["negated", "negated"]),
        ("Negative for:\n- granulomas\n- foreign bodies\n- viral inclusions\n- fungi\n- invasion", ["negated"]),
        ("NEGATIVE FOR H. PYLORI AND METASTASIS.", ["negated"]),
        ("Negative for: granulomas, fungi, invasion Type: adenocarcinoma", ["negated", "affirmed"]),
        ("No necrosis in this part, the tumour is adenocarcinoma with invasion or metastasis.", ["affirmed"] * 3),
        ("The differential would include lymphoma, adenocarcinoma, melanoma and metastasis.", ["uncertain"] * 2),
        ("Differential diagnosis: 1) adenocarcinoma; 2) metastasis", ["uncertain", "uncertain"]),
    ],
)
def test_a_negation_after_a_label_and_a_list_after_a_trigger(text: str, expected: list[str]) -> None:
    assert [status for _, status in statuses(text, FINDINGS)] == expected


@pytest.mark.parametrize("text", ["Invasion:", "Invasion (LVI):", "Invasion: .", "Invasion:\nMetastases: none"])
def test_a_label_without_an_answer_is_uncertain(text: str) -> None:
    assert statuses(text, FINDINGS)[0] == ("finding", "uncertain")


def test_denials_apply_only_to_the_adjacent_mention() -> None:
    text = "Adenocarcinoma with vascular invasion - no; metastasis - yes"
    assert statuses(text, FINDINGS) == [("finding", status) for status in ("affirmed", "negated", "affirmed")]
    text = "Adenocarcinoma, metastasis in 0/12 lymph nodes, MSI-H"
    assert statuses(text, FINDINGS) == [("finding", status) for status in ("affirmed", "negated", "affirmed")]
    assert statuses("Possible metastasis in 0/12 lymph nodes", FINDINGS) == [("finding", "uncertain")]
    assert statuses("No metastasis in 0/12 lymph nodes", FINDINGS) == [("finding", "negated")]


@pytest.mark.parametrize(
    "text",
    [
        "No invasion of the margin, but MSI-H.",
        "Margins are not involved; MSI-H.",
        "No invasion was seen. MSI-H.",
        "MSI-H, margins negative.",
        "MSI-H. Not identified: invasion.",
        "Not only MSI-H.",
        "No invasion of any vessel was found in all of the many blocks of this MSI-H tumour.",
        "MSI-H tumour of the ascending part of the colon with all margins negative.",
    ],
)
def test_the_scope_of_a_negation_is_limited(text: str) -> None:
    assert statuses(text) == [("high", "affirmed")]


@pytest.mark.parametrize("text", ["The tumour is not negative for MSI-H.", "MSI-H is not absent.", "No lack of MSI-H."])
def test_a_double_negation_affirms(text: str) -> None:
    assert statuses(text) == [("high", "affirmed")]


def test_a_negation_on_both_sides_is_not_a_double_negation() -> None:
    assert statuses("No MSI-H was not identified.") == [("high", "negated")]


@pytest.mark.parametrize(
    "text",
    [
        "Possible MSI-H.",
        "MSI-H cannot be excluded.",
        "MSI-H is not excluded.",
        "Suspicious for MSI-H.",
        "MSI-H?",
        "MSI-H: not tested",
        "Probably not MSI-H.",
        "MSI-H: pending",
        "Rule out MSI-H.",
        "MSI-H: see comment",
        "MSI-H: insufficient",
        "MSI-H: NA",
        "MSI-H: not stated",
        "MSI-H: awaiting PCR",
        "MSI-H: difficult to assess",
        "MSI-H is less likely.",
        "Result: suspicious of MSI-H",
        "DD: MSI-H",
        "MSI-H could not be evaluated.",
        "MSI-H versus sporadic",
        "Not diagnostic of MSI-H.",
        "Indefinite for MSI-H.",
        "Presumed MSI-H.",
    ],
)
def test_an_uncertain_mention_has_no_class(text: str) -> None:
    label = label_report(text, TUMOUR)
    assert [mention.status for mention in label.mentions] == ["uncertain"]
    assert label.class_name == "none"
    assert label.uncertain_only


@pytest.mark.parametrize(
    "text",
    [
        "Not ruled out: MSI-H.",
        "Not tested: MSI-H",
        "Not ruled out:\n- MSI-H\n- invasion",
        "Suspicious for:\n1. invasion\n2. MSI-H",
        "Suspicion of MSI-H:\nCannot be excluded.",
        "Not excluded are MSI-H and a defect of repair.",
        "Can't exclude MSI-H.",
        "We cannot confidently exclude MSI-H.",
        "This finding doesn\u2019t rule out MSI-H.",
        "It is impossible to exclude MSI-H.",
        "The biopsy is too small to exclude MSI-H.",
        "MSI-H cannot be completely ruled out.",
        "MSI-H could not be definitively excluded.",
        "MSI-H has not been ruled out.",
        "MSI-H, which cannot be excluded.",
        "MSI-H can neither be confirmed nor excluded.",
        "MSI-H should be excluded.",
        "MSI-H is difficult to exclude.",
        "MSI-H is unlikely.",
    ],
)
def test_findings_that_are_not_ruled_out_are_uncertain(text: str) -> None:
    assert statuses(text) == [("high", "uncertain")]


@pytest.mark.parametrize(
    "text", ["Not identified: MSI-H.", "Ruled out: MSI-H.", "This rules out MSI-H.", "2. Absent: MSI-H"]
)
def test_findings_that_are_ruled_out_are_negated(text: str) -> None:
    assert statuses(text) == [("high", "negated")]


@pytest.mark.parametrize(
    "text",
    [
        "MSI-H, metastasis cannot be excluded.",
        "Metastasis not excluded; MSI-H.",
        "Metastasis cannot be excluded: MSI-H tumour.",
        "MSI-H tumour, margins not involved: two fragments.",
    ],
)
def test_findings_that_are_not_ruled_out_do_not_affect_other_mentions(text: str) -> None:
    assert statuses(text) == [("high", "affirmed")]


def test_a_trigger_within_a_phrase_has_no_effect() -> None:
    rules = RuleSet("r", {"intact": ("no loss of MLH1",), "residual": ("residual tumour",)})
    assert statuses("No loss of MLH1.", rules) == [("intact", "affirmed")]
    assert statuses("There is no evidence of residual tumour.", rules) == [("residual", "negated")]


def test_triggers_of_a_rule_set_extend_the_packaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "name: mine\nclasses: {high: [MSI-H]}\nnegation: {before: [kein]}\nuncertainty: {after: [fraglich]}\n",
        encoding="utf-8",
    )
    rules = load_rules(path)
    assert statuses("Kein MSI-H.", rules) == statuses("No MSI-H.", rules) == [("high", "negated")]
    assert statuses("MSI-H fraglich.", rules) == [("high", "uncertain")]


def test_several_classes_give_both_and_no_class_gives_none() -> None:
    assert label_report("First tumour MSS. Second tumour MSI-H.", TUMOUR).class_name == "both"
    unmentioned = label_report("Adenocarcinoma of the colon.", TUMOUR)
    assert (unmentioned.class_name, unmentioned.mentions, unmentioned.uncertain_only) == ("none", (), False)
    assert label_report("", TUMOUR).class_name == "none"
    assert not label_report("MSS. Possible MSI-H.", TUMOUR).uncertain_only


def test_a_negated_mention_has_no_class_unless_the_rule_set_maps_it() -> None:
    assert label_report("Not MSS.", TUMOUR).class_name == "none"
    assert label_report("Not MSS, not MSI-H.", TUMOUR).class_name == "stable"


def test_only_the_configured_sections_are_read() -> None:
    text = "CLINICAL HISTORY:\nKnown tumour, MSI-H.\nFINAL DIAGNOSIS:\nAdenocarcinoma of the colon, MSS.\n"
    assert label_report(text, TUMOUR).class_name == "both"
    rules = RuleSet("r", TUMOUR.classes, sections=("diagnosis",))
    label = label_report(text, rules)
    assert label.class_name == "stable"
    (mention,) = label.mentions
    assert (mention.section, mention.phrase) == ("diagnosis", "MSS")
    assert mention.sentence == "Adenocarcinoma of the colon, MSS."


def test_mentions_of_regular_expressions_have_a_position_in_their_sentence() -> None:
    rules = RuleSet("r", {"7": (r"/\b3 ?\+ ?4\b/",)})
    label = label_report("Biopsy before. GLEASON SCORE 3 + 4 = 7, no invasion.", rules)
    (mention,) = label.mentions
    assert (mention.phrase, mention.status) == ("3 + 4", "affirmed")
    assert mention.sentence[mention.start :].startswith("3 + 4 = 7, no")


def test_the_sentence_of_a_phrase_across_a_line_break_contains_both_lines() -> None:
    rules = RuleSet("r", {"4+3": (r"/primary grade: 4\s+secondary grade: 3/",)})
    (mention,) = label_report("PRIMARY GRADE: 4\nSECONDARY GRADE: 3\n", rules).mentions
    assert mention.sentence == "PRIMARY GRADE: 4 SECONDARY GRADE: 3"


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("/stage [ab]/", "The lesion is stage\nB at least."),
        ("/stage[ -][ab]/", "The lesion is stage\nB at least."),
        ("/stage\\ [ab]/", "The lesion is stage\nB at least."),
        ("/stage [^ ]?[ab]\\b/", "The lesion is stage\nB at least."),
        ("/ stage b /", "The lesion is of\nSTAGE B\nAt least."),
    ],
)
def test_a_blank_in_a_regular_expression_matches_a_line_break(phrase: str, text: str) -> None:
    rules = RuleSet("r", {"yes": (phrase,)})
    assert label_report(text, rules).class_name == label_report(text.replace("\n", " "), rules).class_name == "yes"


def test_regular_expressions_limited_to_a_line_do_not_cross_line_breaks() -> None:
    rules = RuleSet("r", {"yes": (r"/(?m)^stage[^\n]*b$/", "/grade.?b/", r"/(?x) size \s b /")})
    assert statuses("Stage of the lesion: B\nGrade B\nSize B.", rules) == [("yes", "affirmed")] * 3
    assert statuses("Stage of the lesion\nB\nGrade\nB", rules) == []


def test_a_report_of_400_kilobytes_with_thousands_of_phrases_takes_linear_time() -> None:
    phrases = tuple(f"marker {number} is lost" for number in range(3000))
    rules = RuleSet("r", {"high": ("MSI-H", *phrases), "stable": ("MSS",)})
    sentence = "The tumour with marker 7 shows no MSI-H component in any block of this case and was sampled, "
    seconds = []
    for repeats in (440, 4_400):  # 40 and 400 kB in a single sentence
        begin = time.perf_counter()
        label = label_report(sentence * repeats, rules)
        seconds.append(time.perf_counter() - begin)
        assert len(label.mentions) == repeats
        assert {mention.status for mention in label.mentions} == {"negated"}
    assert seconds[1] < 40 * seconds[0] + 5  # quadratic time would be a hundred times as long
    assert seconds[1] < 120


def test_composed_and_decomposed_accents_are_equivalent() -> None:
    rules = RuleSet("r", {"size": ("Gr\u00f6\u00dfe",)})
    assert label_report("GRO\u0308\u00dfE 3 cm", rules).class_name == "size"
    decomposed = RuleSet("r", {"size": ("Gro\u0308\u00dfe",)})
    assert label_report("Gr\u00f6\u00dfe 3 cm", decomposed).class_name == "size"


@pytest.mark.parametrize("phrase", ["Paget\u2019s\u2014type", "/paget\u2019s[ \u2014]type/", "Paget's type"])
def test_phrases_may_contain_typographic_quotes_and_dashes(phrase: str) -> None:
    rules = RuleSet("r", {"yes": (phrase,)})
    for text in ("A lesion of Paget\u2019s\u2014type.", "A lesion of Paget's-type."):
        assert label_report(text, rules).class_name == "yes"
    assert label_report("Pagetsztype.", rules).class_name == "none"


def test_a_dash_in_a_regular_expression_is_no_range() -> None:
    rules = RuleSet("r", {"stage": ("/pT[1\u20133]x/", "/pN1\\\u2013x/")})
    assert [label_report(text, rules).class_name for text in ("pT\u2013x", "pT2x")] == ["stage", "none"]
    assert label_report("pN1-x", rules).class_name == "stage"


def test_phrases_in_scripts_without_spaces_match_within_a_sentence() -> None:
    rules = RuleSet("r", {"cancer": ("\u9bae\u764c", "CT"), "node": ("\u30ea\u30f3\u30d1",)})
    assert statuses("\u80c3\u9bae\u764c\u3067\u3059\u3002", rules) == [("cancer", "affirmed")]
    assert statuses("\u80c3CT\u50cf\u3002", rules) == [("cancer", "affirmed")]
    assert statuses("ACTH \u764c", rules) == []


def test_the_fingerprint_changes_only_if_phrases_match_differently_than_in_earlier_versions() -> None:
    assert RuleSet("r", {"a": ("Gr\u00f6\u00dfe",)}).hash == "65c944b2ef65ad1e"
    assert RuleSet("r", {"a": ("x\u2013y",)}).hash != RuleSet("r", {"a": ("x-y",)}).hash
    assert RuleSet("r", {"a": (r"/x\sy/",)}).hash == "3cea377061ba0ad2"
    assert RuleSet("r", {"a": ("/x y/",)}).hash != "1536bb5726da16a9"


def test_the_sentence_of_many_mentions_is_stored_once() -> None:
    mentions = label_report("MSI-H and " * 200, TUMOUR).mentions
    assert len({id(mention.sentence) for mention in mentions}) == 1


def valid_rules() -> dict[str, Any]:
    return {"name": "mine", "classes": {"high": ["MSI-H"], "stable": ["MSS"]}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"class": {}}, "class: unknown key"),
        ({"name": None}, "name: is missing"),
        ({"classes": {}}, "classes: is missing or empty"),
        ({"classes": {"high": []}}, "classes.high: must be a list with at least one phrase"),
        ({"classes": {"high": "MSI"}}, "classes.high: must be a list"),
        ({"classes": {"high": [" "]}}, "classes.high[0]: is empty"),
        ({"classes": {"high": ["--"]}}, "classes.high[0]: is empty"),
        ({"classes": {"high": ["HER2-"]}}, "a hyphen at its start or end"),
        ({"classes": {"high": [3]}}, "3 is not a string"),
        ({"classes": {"high": ["/a(/"]}}, "'/a(/' is not a valid regular expression"),
        ({"classes": {"high": ["/a*/"]}}, "matches the empty string"),
        ({"classes": {"both": ["a"]}}, "'both' is not a class name"),
        ({"classes": {1: ["a"]}}, "1 is not a class name"),
        ({"classes": {"a\nb": ["a"]}}, "'a\\nb' is not a class name"),
        ({"classes": {"a": ["MSI-H"], "b": ["msi h"]}}, "classes.a ('MSI-H') and classes.b ('msi h')"),
        ({"classes": {"a": ["/x/"], "b": ["/x/"]}}, "the same phrase is given twice"),
        ({"ignored": ["MSS"]}, "classes.stable ('MSS') and ignored ('MSS')"),
        ({"sections": ["Diagnosis"]}, "unknown section 'Diagnosis'"),
        ({"sections": "diagnosis"}, "sections: must be a list"),
        ({"negated": {"low": "high"}}, "negated: 'low' is not a class"),
        ({"negated": {"high": "high"}}, "negated.high: must be a different class"),
        ({"negated": ["high"]}, "negated: must be a mapping"),
        ({"negation": {"befor": ["no"]}}, "negation: must be a mapping with the keys before and after"),
        ({"uncertainty": {"before": ["/x/"]}}, "triggers cannot be regular expressions"),
    ],
)
def test_errors_of_invalid_rule_sets_name_the_key(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(valid_rules() | changes), encoding="utf-8")
    with pytest.raises(DataError) as error:
        load_rules(path)
    assert expected in str(error.value)
    assert str(path) in str(error.value)


def test_all_problems_of_a_rule_set_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("nam: x\nclasses:\n  a: [b]\n  a: ['/(/']\nsections: [x]\n", encoding="utf-8")
    with pytest.raises(DataError, match="5 problems in a rule set"):
        load_rules(path)


def test_the_error_for_an_unknown_rule_set_lists_the_packaged_ones() -> None:
    with pytest.raises(DataError, match="gleason, msi"):
        load_rules("grading")


@pytest.mark.parametrize("name", packaged_rules())
def test_packaged_rule_sets_are_valid_and_have_a_fingerprint(name: str) -> None:
    rules = load_rules(name)
    assert rules.name == name
    assert len(rules.classes) > 1
    assert rules.hash == load_rules(name).hash != TUMOUR.hash


@pytest.mark.parametrize(
    ("text", "class_name"),
    [
        ("MSI-High.", "MSI-H"),
        ("Microsatellite instability: MSS", "MSS"),
        ("Microsatellite instability (MSI): not detected", "MSS"),
        ("Microsatellite instability: high", "MSI-H"),
        ("No evidence of microsatellite instability.", "MSS"),
        ("Loss of nuclear expression of MLH1 and PMS2.", "MSI-H"),
        ("Loss of MLH1 and PMS2. No loss of MSH2 or MSH6.", "MSI-H"),
        ("MLH1 and PMS2 are lost; MSH2 and MSH6 retained.", "MSI-H"),
        ("No loss of MLH1, PMS2, MSH2 or MSH6.", "MSS"),
        ("MLH1, PMS2, MSH2 and MSH6 are intact.", "MSS"),
        ("Mismatch repair proteins: intact nuclear expression.", "MSS"),
        ("Mismatch repair deficient (dMMR).", "MSI-H"),
        ("MSI testing: pending.", "none"),
        ("MSH2 is retained.", "none"),
        ("Negative for microsatellite instability.", "MSS"),
        ("The tumour shows microsatellite instability.", "MSI-H"),
        ("The tumour does not show microsatellite instability.", "MSS"),
        ("Microsatellite instability was not identified.", "MSS"),
        ("Microsatellite instability is present.", "MSI-H"),
        ("Block for MSI.", "none"),
        ("No MSI testing was done.", "none"),
        ("MSI-high carcinomas often show mucin.", "none"),
        ("A few carcinomas with defective MMR genes and high MSI may stain.", "none"),
        ("MSI-high carcinoma.", "MSI-H"),
        ("Intact mismatch repair without evidence of microsatellite instability.", "MSS"),
        ("Microsatellite instability testing will be reported separately.", "none"),
        ("MMR proteins:\nINTACT.", "MSS"),
        ("The tumour cells show loss of nuclear\nexpression of PMS2.", "MSI-H"),
    ],
)
def test_microsatellite_status(text: str, class_name: str) -> None:
    assert label_report(text, packaged("msi")).class_name == class_name


@pytest.mark.parametrize(
    ("text", "class_name"),
    [
        ("Prostatic adenocarcinoma, Gleason score 3+4=7.", "grade group 2"),
        ("GLEASON SCORE 7 (4 + 3)", "grade group 3"),
        ("Gleason's score 3+3 = 6/10", "grade group 1"),
        ("PRIMARY GLEASON GRADE: 3\nSECONDARY GLEASON GRADE: 5\n", "grade group 4"),
        ("a. Primary pattern: 4/5.\nb. Secondary pattern: 5/5.\n", "grade group 5"),
        ("Total Gleason Score: 9", "grade group 5"),
        ("Gleason score 7.", "none"),
        ("Size 13+4 cm.", "none"),
        ("Gleason score 4+3=7. The biopsy showed Gleason score 3+3=6.", "grade group 3"),
        ("Gleason score 4+3=7 on the left. Gleason score 3+3=6 on the right.", "both"),
        ("ISUP grade 4", "grade group 4"),
        ("ISUP grade: 4", "grade group 4"),
        ("Grade group (ISUP): 3 (of 5)", "grade group 3"),
        ("Grade Group = 2", "grade group 2"),
        ("Grade group: 12", "none"),
        ("ISUP grade: 4 + 3", "grade group 3"),
        ("Gleason score 4 +\n5 = 9", "grade group 5"),
    ],
)
def test_gleason_grade_groups(text: str, class_name: str) -> None:
    assert label_report(text, packaged("gleason")).class_name == class_name
