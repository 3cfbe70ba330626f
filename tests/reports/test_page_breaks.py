"""Page numbers, headers and footers at the page breaks of reports."""

import time

import pytest

from clipit.config.run import ReportsConfig
from clipit.reports.build import build_snippets, snippet_keys
from clipit.reports.cleaning import clean_text
from clipit.reports.page_breaks import drop_page_lines
from clipit.reports.readers import Report, Reports
from clipit.reports.sentences import split_sentences

HEADER = "Patient: ROE, Richard\nMRN 0045678"
PAGES = ("Glands infiltrate the muscularis and", "invade the serosa; the mesenteric margin is", "free of tumor.")
WHOLE = "Glands infiltrate the muscularis and invade the serosa; the mesenteric margin is free of tumor."


def sentences(text: str) -> list[str]:
    return [sentence for _, sentence in split_sentences(clean_text(drop_page_lines(text)[0]))]


def paged_report(header: str, number: str, separator: str = "\n") -> str:
    parts = [[number.format(i), *header.split("\n"), page] for i, page in enumerate(PAGES, 1)]
    return separator.join(line for part in parts for line in part if line)


@pytest.mark.parametrize(
    "number", ["Page {} of 3", "Page: {}/3", "SEITE {} VON 3", "Página {} de 3", "\f", "- page {} -"]
)
def test_header_within_a_sentence(number: str) -> None:
    text = paged_report(HEADER, number)
    assert text.count("ROE") == 3
    assert sentences(text)[-1] == WHOLE
    assert sum("ROE" in sentence for sentence in sentences(text)) == 1  # the header of the first page stays


def test_footer_above_the_page_number() -> None:
    text = "\n".join(f"{page}\n\nAccession S24-7\n\nPage {i} of 3\n" for i, page in enumerate(PAGES, 1))
    assert sentences(text) == [WHOLE]
    assert drop_page_lines(text)[1].count("Accession S24-7") == 3


def test_report_without_line_breaks() -> None:
    text = paged_report(HEADER, "Page {} of 3", " ")
    kept, dropped = drop_page_lines(text)
    assert kept.split() == [*HEADER.split(), *WHOLE.split()]
    assert dropped == ["Page 1 of 3", *(f"Page {i} of 3 {' '.join(HEADER.split())}" for i in (2, 3))]


def test_page_number_in_a_header_line() -> None:
    text = "\n".join(f"Patient: ROE      Page {i} of 3\n{page}" for i, page in enumerate(PAGES, 1))
    assert sentences(text) == [WHOLE]


@pytest.mark.parametrize(
    "line", ["Not identified", "Tubular adenoma", "Lymph nodes are free of tumor.", "Gross description: Colon"]
)
def test_repeated_findings_and_headings_are_kept(line: str) -> None:
    text = f"Venous invasion:\nPage 1 of 3\n{line}\nPerineural invasion:\nPage 2 of 3\n{line}\nDone."
    assert drop_page_lines(text)[1] == ["Page 1 of 3", "Page 2 of 3"]
    assert drop_page_lines(text)[0].count(line) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Margins as shown on page 2 of 3 are free.",
        "Pages were missing. The page is blank.",
        "One block.\nOne block.\nPaget disease 2 of 3 ducts.",
    ],
)
def test_text_without_page_breaks_is_unchanged(text: str) -> None:
    assert drop_page_lines(text) == (text, [])


def test_lines_at_a_single_page_break_are_kept() -> None:
    text = "Part A shows glands.\nPage 2 of 4\nPart B: stroma\nwithout atypia."
    assert drop_page_lines(text)[1] == ["Page 2 of 4"]


def test_summary_lists_page_lines_and_the_check_can_be_disabled() -> None:
    reports = Reports(
        (Report("r1", paged_report(HEADER, "Page {} of 3")), Report("r2", "Mucosa with glands.")), (), "x", 0
    )
    config = ReportsConfig(path="x", morphology_prompts=None)
    built = build_snippets(reports, config, lambda texts: [len(text.split()) for text in texts], 60)
    summary = built.summary
    assert WHOLE in built.snippets["text"].to_pylist()
    assert summary.page_lines is not None and summary.page_lines.count == 7 and summary.page_line_reports == 1
    shown = summary.text(reports)
    assert "page lines         7  page numbers, headers and footers dropped in 1 report" in shown
    assert "e.g. 'Page 1 of 3'" in shown
    assert type(summary).from_dict(summary.as_dict()) == summary
    assert config.text_checks is not None
    off = config.model_copy(update={"text_checks": config.text_checks.model_copy(update={"page_lines": False})})
    built = build_snippets(reports, off, lambda texts: [len(text.split()) for text in texts], 60)
    assert WHOLE not in built.snippets["text"].to_pylist() and built.summary.page_lines is None
    assert "page_lines" not in snippet_keys(config)["text_checks"]
    assert snippet_keys(off)["text_checks"]["page_lines"] is False


def test_time_is_linear() -> None:
    texts = "Page 1 of 2 Patient: ROE MRN 4 glands " * 400, "a\f" * 8_000, "Page 1 of 2\n" * 4_000, "Page " * 8_000
    start = time.process_time()
    for text in texts:
        drop_page_lines(text)
    assert time.process_time() - start < 5
