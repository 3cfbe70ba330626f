"""Detection of bare headings and of text garbled by OCR."""

import os
import random
import re
import time
from pathlib import Path

import pytest

from clipit.reports.garbage import Vocabulary, is_bare_heading, learn_vocabulary, names_diagnosis, readability


@pytest.mark.parametrize(
    "text",
    [
        "MICROSCOPIC DESCRIPTION:", "Gross Description", "GROSS AND MICROSCOPIC DESCRIPTION:", "Tumor site:",
        "FINAL DIAGNOSIS: Comment:", "B. LEFT PELVIC LYMPH NODES:", "Clinical history: Gross description:",
        "Lymphovascular invasion:", "3) Regional lymph nodes:",
    ],
)  # fmt: skip
def test_bare_headings(text: str) -> None:
    assert is_bare_heading(text)


@pytest.mark.parametrize(
    "text",
    [
        "Adenocarcinoma", "DIAGNOSIS: Adenocarcinoma",
        "Tumor necrosis: present", "Microscopic examination shows glands.",
        "Carcinoma in situ:", "The following structures are seen in the submitted tissue:", "Gleason 3 + 4 = 7",
    ],
)  # fmt: skip
def test_other_text_is_not_a_bare_heading(text: str) -> None:
    assert not is_bare_heading(text)


@pytest.mark.parametrize(
    "text",
    [
        "NVAS:i:ONt ltO", "jr. lJd t~hW kQ", "IIIlII lIIl IIIIIII llII IlI", "a8Kq3Zx 9dfJ2kLm4 tR7v1",
        "cQl0n;fr;~gme nt iF",
        "Crrnr wlt tnhQ rrstvd zxk",
    ],
)  # fmt: skip
def test_garbled_text_is_unreadable(text: str) -> None:
    assert readability(text) < 0.5


@pytest.mark.parametrize(
    "text",
    [
        "Moderately differentiated adenocarcinoma", "DukesB; Astler-CollerB2; pT3; pNO.",
        "pT3a pN1b M0, stage IIIB", "CD117, CK7 and CK20 are positive; p53 wt",
        "MLH1, MSH2, PMS2: intact", "BRAF V600E mutation is not detected", "ER 90%, PR 10%, HER2 2+", "pT2cNOMX",
        "3.5 x 2 x 1 cm", "IDH1 R132H", "A1-A4: tumor; B1: margin", "Größe 3 cm, mäßig differenziert",
        "腺癌、中分化型",
        "乳腺浸润性导管癌HER2阳性、Ki-67约30%、未见脉管内癌栓、肿瘤大小约为二点五厘米乘以二厘米乘以一点五厘米",
        "Guz o średnicy około 3 cm, rak gruczołowy średnio zróżnicowany", "Опухоль яичника, SMA (+)",
        "Ung thư biểu mô tuyến biệt hóa vừa",
        "TTF-1 and Ki-67 (30%)", "colonTumor size: 3 cm", "RIGHT PROXlMAL MARGIN", "EGFR, KRAS, NRAS",
    ],
)  # fmt: skip
def test_codes_genes_stages_and_other_languages_are_readable(text: str) -> None:
    assert readability(text) > 0.7


def test_words_of_the_vocabulary_are_readable() -> None:
    texts = ["qRtpcr xcel"] * 5
    assert readability(texts[0]) < 0.5 < readability(texts[0], learn_vocabulary(texts))
    assert readability("") == readability("--- ...") == 1.0


def pieces(report: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"[.;:\n]+", report) if 20 <= len(part) <= 400]


def interleave(text: str, draw: random.Random) -> str:
    """Interleave the letters of neighbouring words, as text extraction does with overlapping lines."""
    words, mixed = text.split(), []
    for first, second in zip(words[::2], words[1::2], strict=False):
        order = [0] * len(first) + [1] * len(second)
        draw.shuffle(order)
        letters = [iter(first), iter(second)]
        merged = "".join(next(letters[which]) for which in order)
        mixed += [merged[: len(first)], merged[len(first) :]]
    return " ".join(mixed)


def test_interleaved_words_of_real_reports_are_unreadable_and_other_text_stays_readable() -> None:
    source = Path(os.environ.get("CLIPIT_TEST_DATA", "absent")) / "reports/tcga_colon_reports_clipit.txt"
    if not source.is_file():
        pytest.skip("CLIPIT_TEST_DATA is not set: no real reports to test with")
    reports = source.read_text(encoding="utf-8", errors="replace").splitlines()
    texts = list(dict.fromkeys(part for report in reports for part in pieces(report)))
    vocabulary = learn_vocabulary(texts)
    plain = Vocabulary(vocabulary.words)  # without letter sequences
    assert readability("ISlo oglcai plltlem", vocabulary) == 0 < 0.5 < readability("ISlo oglcai plltlem", plain)
    clean = [text for text in texts if readability(text, plain) > 0.9 and len(text.split()) > 3]
    draw = random.Random(0)
    garbled = [interleave(text, draw) for text in draw.sample(clean, 400)]
    shares = [sum(readability(text, known) < 0.5 for text in garbled) / 400 for known in (plain, vocabulary)]
    assert shares[0] < 0.1 and shares[1] > 0.5
    rejected = [text for text in texts if readability(text, vocabulary) < 0.5 <= readability(text, plain)]
    assert len(rejected) <= 12, "out of 8,633 pieces; one of them, a form heading, is not garbled"
    for text in ("Guz o średnicy około 3 cm, rak gruczołowy", "Größe 3 cm, mäßig differenziert", "pT3a pN1b M0"):
        assert readability(text, vocabulary) > 0.7


def test_small_corpora_yield_no_trigrams() -> None:
    assert not learn_vocabulary(["adenocarcinoma of the colon"] * 5).trigrams


def test_names_diagnosis() -> None:
    for text in ("Adenocarcinoma", "Tubular adenomas.", "No metastasis", "Chronic colitis", "Benign."):
        assert names_diagnosis(text)
    for text in ("Desmoplastic stroma", "Final diagnosis", "Carcinoma:", "Prognosis", "The wall of the bowel"):
        assert not names_diagnosis(text)


@pytest.mark.parametrize("unit", ["NVAS:i:ONt ltO ", "A. ", "x:", "MICROSCOPIC DESCRIPTION: ", "l1"])
def test_time_is_linear_in_the_text_length(unit: str) -> None:
    start = time.process_time()
    text = unit * (400_000 // len(unit))
    readability(text)
    is_bare_heading(text)
    names_diagnosis(text)
    assert time.process_time() - start < 10, "quadratic time would take minutes"
