"""Label report text with rules: phrases per class, with negation and uncertainty taken into account.

A rule set lists phrases per class. Each occurrence of a phrase in a report is a mention; its sentence determines
whether it is affirmed, negated or uncertain (`assertion.py`). If all mentions that count are of one class, the report
has that class; otherwise its class is "both" or "none".
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from clipit.reports.assertion import Status
from clipit.reports.cleaning import clean_text, drop_long_words
from clipit.reports.page_breaks import drop_page_lines
from clipit.reports.phrases import Match
from clipit.reports.rule_set import BOTH, IGNORED, NONE, RuleSet, load_rules
from clipit.reports.sentences import split_sentences

__all__ = ["BOTH", "NONE", "Mention", "ReportLabel", "RuleSet", "label_report", "load_rules", "read_text"]


@dataclass(frozen=True)
class Mention:
    """Occurrence of a phrase of a class in a report.

    Attributes:
        class_name: Class of the phrase, before negation is taken into account.
        sentence: Sentence that contains the phrase; several sentences if the phrase spans them.
        start: Index of the first character of the phrase in the sentence.
        end: Index after its last character.
        status: "affirmed", "negated" or "uncertain".
    """

    class_name: str
    section: str
    sentence: str
    start: int
    end: int
    status: Status

    @property
    def phrase(self) -> str:
        """The matched text."""
        return self.sentence[self.start : self.end]


@dataclass(frozen=True)
class ReportLabel:
    """Class that the rules assign to a report, and the mentions in the report.

    Attributes:
        class_name: A class, "both" or "none".
        mentions: All mentions in the sections of the rule set, in reading order.
    """

    class_name: str
    mentions: tuple[Mention, ...]

    @property
    def uncertain_only(self) -> bool:
        """Whether no mention counts for a class, but at least one is uncertain."""
        return self.class_name == NONE and any(mention.status == "uncertain" for mention in self.mentions)


def label_report(text: str, rules: RuleSet) -> ReportLabel:
    """Label one report with rules.

    Page numbers, headers and footers are dropped (`drop_page_lines`); the text is cleaned and split into sections and
    sentences as for snippets. A phrase may span two sentences that are not separated by a full stop, as at a line break
    from OCR. The time is linear in the length of the text.

    Args:
        text: Text of the report as read.
    """
    mentions = _find_mentions(_clean_sentences(text), rules)
    counted = {
        mention.class_name if mention.status == "affirmed" else rules.negated.get(mention.class_name)
        for mention in mentions
        if mention.status != "uncertain"
    } - {None}
    class_name = str(next(iter(counted))) if len(counted) == 1 else BOTH if counted else NONE
    return ReportLabel(class_name, tuple(mentions))


def read_text(text: str, rules: RuleSet) -> str:
    """Return the part of a report in which `label_report` looks for phrases: the sections of the rule set, cleaned."""
    return " ".join(
        sentence for section, sentence in _clean_sentences(text) if not rules.sections or section in rules.sections
    )


def _clean_sentences(text: str) -> list[tuple[str, str]]:
    """Clean a report and split it into sentences, each with its section."""
    text, _ = drop_page_lines(unicodedata.normalize("NFC", text))
    cleaned, _ = drop_long_words(clean_text(text))
    return split_sentences(cleaned)


def _find_mentions(sentences: Sequence[tuple[str, str]], rules: RuleSet) -> list[Mention]:
    """Find the mentions of a report in the sections of the rule set, in reading order."""
    text = "\n".join(sentence for _, sentence in sentences)
    starts = [0, *accumulate(len(sentence) + 1 for _, sentence in sentences)]
    contexts: dict[tuple[int, int], list[Match]] = {}  # first and last sentence of a match -> matches
    for match, first, last in _with_sentences(rules.finder.find(text), starts):
        sections = {section for section, _ in sentences[first : last + 1]}
        if len(sections) == 1 and (not rules.sections or sections <= {*rules.sections}):
            contexts.setdefault((first, last), []).append(match)
    mentions: list[Mention] = []
    for (first, last), matches in sorted(contexts.items()):
        begin = starts[first]
        context = text[begin : starts[last + 1] - 1].replace("\n", " ")
        spans = [(match.start - begin, match.end - begin) for match in matches]
        for match, span, status in zip(matches, spans, rules.assertions.statuses(context, spans), strict=True):
            if match.name != IGNORED:
                mentions.append(Mention(match.name, sentences[first][0], context, *span, status))
    return mentions


def _with_sentences(matches: Sequence[Match], starts: Sequence[int]) -> list[tuple[Match, int, int]]:
    """Add to each match, in reading order, the indices of its first and last sentence."""
    located = []
    first = 0
    for match in matches:
        while starts[first + 1] <= match.start:
            first += 1
        last = first
        while starts[last + 1] < match.end:
            last += 1
        located.append((match, first, last))
    return located
