"""Time to read and split reports, which must be linear in their length."""

import csv
from collections.abc import Sequence

from benchmarks.harness import Figure, Options, alternate, ratios, seconds

_SENTENCES = (
    "Gross description: The bowel is 20 cm long and brown; it was opened along its whole length. "
    "Final Diagnosis: Moderately differentiated adenocarcinoma, approx. 3.5 cm. Tumor site: sigmoid colon. "
    "Lymph nodes: free of tumor (0/18). Comment: Seen with Dr. Smith; glands invade the muscularis, see slide No. 5. "
)
_HARD = {
    "an unbroken word": "iVBORw0KGgo/",
    "no sentence ends": "J. ",
    "headings on one line": "Diagnosis: glands. Comment: none. ",
    "items on one line": "A. - 1) ",
    "damaged words": "intesFnal tissue, intestinal Fssue: NVAS:i:ONt ltO ",
}
"""Texts that repeat something that is slow to split unless the search is bounded."""
_GROWTH = 4


def measure(options: Options) -> list[Figure]:
    """Measure seconds per megabyte of ordinary reports, and how the time grows where a text is four times as long.

    Every text is one report of a csv file that is read, cleaned, split and merged, with words as tokens. Linear time
    has a growth of 4, quadratic time one of 16.
    """
    length = options.size(40_000, 400)
    figures: list[Figure] = []
    for name, repeated in {"ordinary reports": _SENTENCES, **_HARD}.items():
        n_reports, size = (options.size(250, 2), len(_SENTENCES)) if name == "ordinary reports" else (1, length)
        small = [(repeated * size)[:size]] * n_reports
        large = small * _GROWTH if n_reports > 1 else [small[0] * _GROWTH]
        works = {
            key: (lambda k=key, t=texts: seconds(lambda: _split(options, k, t)))
            for key, texts in (("small", small), ("large", large))
        }
        samples = alternate(works, options)
        megabytes = len(large) * len(large[0]) / 1e6
        facts = {"reports": len(large), "characters": len(large[0])}
        if name == "ordinary reports":
            values = [taken / megabytes for taken in samples["large"]]
            figures.append(Figure("report_splitting", f"{name}: seconds per megabyte", values, "s", facts=facts))
        growth = ratios(samples, "large", "small")
        title = f"{name}: time of four times the text"
        figures.append(Figure("report_splitting", title, growth, goal=6.0, samples=samples, facts=facts))
    return figures


def _split(options: Options, name: str, texts: Sequence[str]) -> None:
    """Write the reports to a csv file on the first call; read and split them."""
    from clipit.config.run import ReportsConfig
    from clipit.reports.build import build_snippets
    from clipit.reports.readers import read_reports

    path = options.folder / f"{name}-{len(texts)}-{len(texts[0])}.csv"
    if not path.is_file():
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["text"], *([f"Report {i}. {text}"] for i, text in enumerate(texts))])
    config = ReportsConfig(path=str(path), min_words=1, morphology_prompts=None)
    build_snippets(read_reports(config), config, _count_words, 77)


def _count_words(texts: Sequence[str]) -> list[int]:
    return [2 + len(text.split()) for text in texts]
