"""Coarse captions name nuclei and glands but no grade, and leave other captions and reports unchanged."""

import hashlib
import re

from clipit.synthetic import vocabulary as words
from clipit.synthetic.corpora import draw_reports
from clipit.synthetic.latents import CLASSES, HIGH, LOW, stream
from clipit.synthetic.tile_draws import tile_latents
from tools.embedded.captions import draw_captions

LATENTS = tile_latents(100, "vlm", 1000)
CAPTIONS = "c768d956b814731cc2b4e3e8da55aef0def6f7f6b8a779a4bcf4af68b082a606"
REPORTS = "22e77a3603db6cfd9ad2314cc9fe67ada4fa8763f69ecb79122cc88d8e5d63bf"
GRADE = re.compile(r"grade|differentiated|gland forming|solid carcinoma")


def sha256(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def test_captions_and_reports_match_recorded_hashes() -> None:
    """Hashes recorded before cases and coarse captions were added; they may change with the version of NumPy."""
    assert sha256(draw_captions(100, "vlm", LATENTS, 2)) == CAPTIONS
    assert sha256([vars(report) for report in draw_reports(stream(0, "world/reports"), 100)]) == REPORTS


def test_coarse_captions_name_no_grade() -> None:
    coarse = [text for captions in draw_captions(100, "vlm", LATENTS, 2, "coarse") for text in captions]
    graded = [text for captions in draw_captions(100, "vlm", LATENTS, 2) for text in captions]
    assert len(coarse) == len(graded)
    assert [text for text in coarse if GRADE.search(text)] == []
    assert sum(bool(GRADE.search(text)) for text in graded) > 250


def test_coarse_captions_describe_nuclei_and_glands() -> None:
    captions = draw_captions(100, "vlm", LATENTS, 2, "coarse")
    text = {k: " ".join(" ".join(captions[row]) for row in (LATENTS.tissue == k).nonzero()[0]) for k in (LOW, HIGH)}
    for attribute, value, grade, other in (("pleo", 2, HIGH, LOW), ("gland", 2, LOW, HIGH), ("pleo", 0, LOW, HIGH)):
        for phrase in words.SHARED_PHRASES[attribute][value]:
            assert phrase in text[grade]
            assert phrase not in text[other]


def test_coarse_names_merge_the_two_grades_only() -> None:
    low, high = CLASSES[LOW], CLASSES[HIGH]
    assert words.COARSE_NAMES[low] == words.COARSE_NAMES[high] == words.TUMOUR_NAMES
    changed = {name for name in CLASSES if words.COARSE_NAMES[name] != words.SHARED_NAMES[name]}
    assert changed == {low, high}
