"""Real reports from $CLIPIT_TEST_DATA: no text is lost and no snippet exceeds the token budget."""

import difflib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from clipit.config.run import ReportsConfig
from clipit.reports.build import build_snippets
from clipit.reports.cleaning import clean_text
from clipit.reports.readers import read_reports
from clipit.reports.snippets import split_reports
from clipit.types import TokenCounter

DATA = Path(os.environ.get("CLIPIT_TEST_DATA", "absent")) / "reports"
COLON = DATA / "tcga_colon_reports_clipit.txt"
PROSTATE = DATA / "tcga_prad_reports_denoised.zip"
BUDGET = 77

pytestmark = pytest.mark.skipif(not COLON.is_file(), reason="set CLIPIT_TEST_DATA to the folder with real reports")


@pytest.fixture(scope="module")
def count_tokens() -> TokenCounter:
    """Count tokens with CLIP's tokenizer, including the start and end tokens, without truncation."""
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")

    @cache
    def length(text: str) -> int:
        return len(tokenizer.encode(text)) + 2

    def count(texts: Sequence[str]) -> list[int]:
        return [length(text) for text in texts]

    return count


def common_prefix_length(one: str, other: str) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)


def recovered_share(report: str, pieces: str) -> float:
    """Share of a report's letters and digits that occur in its pieces in the same order."""
    expected, actual = ("".join(filter(str.isalnum, text)) for text in (report, pieces))
    if expected == actual:
        return 1.0
    start = common_prefix_length(expected, actual)
    end = common_prefix_length(expected[start:][::-1], actual[start:][::-1])
    middle, other = expected[start : len(expected) - end], actual[start : len(actual) - end]
    blocks = difflib.SequenceMatcher(None, middle, other, autojunk=False).get_matching_blocks()
    return (start + end + sum(block.size for block in blocks)) / max(len(expected), 1)


@pytest.mark.parametrize(("path", "n_reports"), [(COLON, 376), (PROSTATE, 404)], ids=["colon", "prostate"])
def test_no_text_is_lost(path: Path, n_reports: int, count_tokens: TokenCounter) -> None:
    reports = read_reports(ReportsConfig(path=str(path)))
    assert len(reports.reports) == n_reports
    split = split_reports([clean_text(report.text) for report in reports.reports], count_tokens, BUDGET)
    shares = [
        recovered_share(r.text, " ".join(p.text for p in pieces))
        for r, pieces in zip(reports.reports, split, strict=True)
    ]
    assert min(shares) >= 0.995
    counts = count_tokens([piece.text for pieces in split for piece in pieces])
    assert max(counts) <= BUDGET
    assert counts == [piece.n_tokens for pieces in split for piece in pieces]


def test_snippets_of_the_colon_reports(count_tokens: TokenCounter) -> None:
    config = ReportsConfig(path=str(COLON), exclude_sections=("administrative",), morphology_prompts=None)
    built = build_snippets(read_reports(config), config, count_tokens, BUDGET)
    summary = built.summary
    assert summary.reports == 376
    assert len(built.snippets) > 5000
    assert max(built.snippets["n_tokens"].to_pylist()) <= BUDGET
    assert len(set(built.sources["report_id"].to_pylist())) > 370
    sections = summary.sections
    assert sum(sections[name] for name in ("diagnosis", "gross", "microscopic")) > 0.4 * summary.pieces
    assert sections["unknown"] < 0.1 * summary.pieces
