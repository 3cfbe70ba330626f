"""Vocabulary of captions and reports: two disjoint pools, and reports in the usual form."""

import re

from clipit.synthetic import vocabulary as words
from clipit.synthetic.corpora import draw_reports
from clipit.synthetic.language import ocr_noise
from clipit.synthetic.latents import CLASSES, draw_latents, stream
from clipit.synthetic.tile_draws import draw_tiles
from tools.embedded.captions import draw_captions
from tools.embedded.measure import named_class

HELD_OUT = [name for names in words.HELD_OUT_NAMES.values() for name in names] + [
    phrase for values in words.HELD_OUT_PHRASES.values() for phrases in values for phrase in phrases
]


def sentences(text: str) -> set[str]:
    return {part.strip() for part in re.split(r"(?<=\.)\s+|\n+", text) if part.strip()}


def test_captions_and_reports_share_no_sentence_and_no_tile() -> None:
    captions = {
        text
        for each in draw_captions(100, "vlm", draw_latents(stream(100, "vlm", "latents"), 3000), 2)
        for text in each
    }
    reports = draw_reports(stream(0, "world/reports"), 300)
    assert not {text.lower().strip(".") for text in captions} & {
        part.lower().strip(".") for report in reports for part in sentences(report.text)
    }
    vlm = {image.tobytes() for image in draw_tiles(100, "vlm", 128, (0, 1)).images}
    assert not vlm & {image.tobytes() for image in draw_tiles(0, "world/train", 128, (6, 7)).images}
    # Tiles also depend on the name of the draw, not only on the seed.
    assert not vlm & {image.tobytes() for image in draw_tiles(100, "world/train", 128, (0, 1)).images}


def test_held_out_words_occur_only_in_reports() -> None:
    captions = " | ".join(
        text
        for each in draw_captions(100, "vlm", draw_latents(stream(100, "vlm", "latents"), 3000), 2)
        for text in each
    )
    reports = " | ".join(report.text for report in draw_reports(stream(0, "world/reports"), 400, noise=0.0))
    assert [phrase for phrase in HELD_OUT if phrase in captions] == []
    assert [phrase for phrase in HELD_OUT if phrase not in reports] == []


def test_template_pools_are_disjoint() -> None:
    captions = {*words.CAPTION_NAMED, *words.CAPTION_FULL, *words.CAPTION_MORE, *words.CAPTION_BOILERPLATE}
    reports = {*words.REPORT_NAMED, *words.REPORT_FULL, *words.REPORT_MORE, *words.DIAGNOSES}
    reports |= {*words.REPORT_CLINICAL, *words.REPORT_GROSS, *words.REPORT_CLOSING}
    assert not {text.lower().strip(".") for text in captions} & {text.lower().strip(".") for text in reports}


def test_prompts_use_only_names_the_vlm_was_trained_on() -> None:
    assert set(words.PROMPT_NAMES) == set(CLASSES)
    for label, names in words.PROMPT_NAMES.items():
        assert set(names) <= set(words.SHARED_NAMES[label])


def test_filter_bags_contain_no_phrases_of_the_generator() -> None:
    phrases = [*words.CAPTION_BOILERPLATE, *words.REPORT_CLINICAL, *words.REPORT_GROSS, *words.REPORT_CLOSING]
    phrases += [name for names in (*words.SHARED_NAMES.values(), *words.HELD_OUT_NAMES.values()) for name in names]
    assert not {text.lower() for text in (*words.MORPHOLOGY_BAG, *words.BOILERPLATE_BAG)} & {
        text.lower() for text in phrases
    }


def test_reports_are_deterministic_and_complete() -> None:
    reports = draw_reports(stream(1, "reports"), 50)
    assert reports == draw_reports(stream(1, "reports"), 50)
    assert len({report.id for report in reports}) == 50
    assert 1 < len({report.group for report in reports}) < 50
    for report in draw_reports(stream(1, "reports"), 50, noise=0.0):
        assert re.findall(r"^([A-Z ]+):$", report.text, re.M) == [
            "CLINICAL HISTORY",
            "GROSS DESCRIPTION",
            "MICROSCOPIC DESCRIPTION",
            "FINAL DIAGNOSIS",
            "COMMENT",
        ]
        assert "{" not in report.text
        assert named_class(report.text.split("FINAL DIAGNOSIS:")[1]) >= 0


def test_ocr_noise_keeps_the_length() -> None:
    text = "well differentiated adenocarcinoma " * 50
    noisy = ocr_noise(stream(0, "noise"), text, 0.05)
    changed = sum(a != b for a, b in zip(text, noisy, strict=True))
    assert len(noisy) == len(text)
    assert 0.005 * len(text) < changed < 0.06 * len(text)


def test_a_garbled_name_is_still_recognised() -> None:
    assert CLASSES[named_class("Sections show po0rly diffcrentiated adenocarc1noma.")] == "tumour_high_grade"
    assert named_class("Controls stained appropriately.") == -1


def test_an_attribute_is_not_mistaken_for_the_class() -> None:
    assert CLASSES[named_class("Sections show fibrous stroma, a little extracellular mucin.")] == "stroma"
    assert CLASSES[named_class("The tissue consists of tumour necrosis.")] == "necrosis"
