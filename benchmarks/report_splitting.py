"""Time to read and split reports, which should grow linearly with the length and the number of reports."""

import csv
from collections.abc import Sequence

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds

_SENTENCES = (
    "Gross description: The bowel is {number} cm long and brown; it was opened along its whole length. "
    "Final Diagnosis: Moderately differentiated adenocarcinoma, approx. {number}.5 cm. Tumor site: sigmoid colon. "
    "Lymph nodes: free of tumor (0/{number}). Comment: Seen with Dr. Smith; glands invade the muscularis, see slide "
    "No. {number}. "
)
_HARD = {
    "an unbroken word": "iVBORw0KGgo/",
    "no sentence ends": "J. ",
    "headings on one line": "Diagnosis: glands. Comment: none. ",
    "items on one line": "A. - 1) ",
    "page breaks": "Page 1 of 2 Patient: ROE MRN 4 glands\n\fPatient: ROE\nof the colon\nPage 2 of 2\n",
    "damaged words": "intesFnal tissue, intestinal Fssue: NVAS:i:ONt ltO ",
}
"""Repeated patterns that are slow to split unless the search is bounded."""
_GROWTH = 4  # ratio of the larger to the smaller input
_LENGTHS = (250, 1000, 4000, 16_000)  # characters per report
_NAME = "report_splitting"


def measure(options: Options) -> list[Measurement]:
    """Measure ordinary reports at several lengths and numbers, and texts that are hard to split at two lengths.

    Reports are read from a csv file, cleaned and split, and equal snippets merged; tokens are words. In linear time,
    the time per character is the same at every length, and a text four times as long takes four times as long; in
    quadratic time, it takes sixteen times as long.
    """
    return [*_by_length(options), *_by_number(options), *_hard_texts(options)]


def _by_length(options: Options) -> list[Measurement]:
    """Measure reports of several lengths, with the same total number of characters for each length."""
    total = options.size(1_600_000, 32_000)
    corpora = {length: _ordinary(total // length, length) for length in _LENGTHS}
    workloads = {
        str(length): (lambda k=length, t=texts: seconds(lambda: _split(options, f"length-{k}", t)))
        for length, texts in corpora.items()
    }
    samples = alternate(workloads, options)
    measurements: list[Measurement] = []
    for length, texts in corpora.items():
        times, facts = samples[str(length)], {"reports": len(texts), "characters": length}
        title = f"ordinary reports of {length:,} characters"
        per_character = [1e6 * value / total for value in times]
        per_report = [1e3 * value / len(texts) for value in times]
        hours = [100_000 * value / len(texts) / 3600 for value in times]
        measurements += [
            Measurement(_NAME, f"{title}: time per character", per_character, "us", facts=facts),
            Measurement(_NAME, f"{title}: time per report", per_report, "ms", facts=facts),
            Measurement(_NAME, f"{title}: time of 100,000 reports, extrapolated", hours, "h", facts=facts),
        ]
    longest, shortest = str(max(_LENGTHS)), str(min(_LENGTHS))
    title = f"ordinary reports: time per character, {max(_LENGTHS):,} over {min(_LENGTHS):,} characters"
    return [*measurements, Measurement(_NAME, title, ratios(samples, longest, shortest), goal=1.5, samples=samples)]


def _by_number(options: Options) -> list[Measurement]:
    """Measure how the time grows with the number of reports."""
    few = options.size(1000, 10)
    many = _ordinary(_GROWTH * few, 500)
    workloads = {
        key: (lambda k=key, t=texts: seconds(lambda: _split(options, k, t)))
        for key, texts in (("few", many[:few]), ("many", many))
    }
    samples = alternate(workloads, options)
    facts = {"reports": _GROWTH * few, "characters": 500}
    growth = ratios(samples, "many", "few")
    return [Measurement(_NAME, "four times the reports: time", growth, goal=5.0, samples=samples, facts=facts)]


def _hard_texts(options: Options) -> list[Measurement]:
    """Measure how the time grows if a text is four times as long."""
    size = options.size(40_000, 400)
    measurements: list[Measurement] = []
    for name, repeated in _HARD.items():
        small = (repeated * size)[:size]
        workloads = {
            key: (lambda k=f"{name}-{key}", t=text: seconds(lambda: _split(options, k, [t])))
            for key, text in (("small", small), ("large", small * _GROWTH))
        }
        samples = alternate(workloads, options)
        facts = {"characters": _GROWTH * size}
        growth = ratios(samples, "large", "small")
        measurements.append(
            Measurement(_NAME, f"{name}: time of four times the text", growth, goal=6.0, samples=samples, facts=facts)
        )
    return measurements


def _ordinary(n: int, length: int) -> list[str]:
    """Return n reports of `length` characters that differ only in the numbers."""
    texts = []
    for number in range(n):
        parts = (_SENTENCES.format(number=number + part) for part in range(length // len(_SENTENCES) + 2))
        texts.append("".join(parts)[:length])
    return texts


def _split(options: Options, name: str, texts: Sequence[str]) -> None:
    """Read and split reports from a csv file, which the first call writes."""
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
