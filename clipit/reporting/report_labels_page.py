"""Page on report labels assigned by rules and by a text classifier, with a sample of reports to check."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipit.errors import counted
from clipit.evaluation.report_agreement import SCORES, Agreement
from clipit.reporting.html import PageSection, Part, Passage, Passages, Quote, Table, Text, facts_table, page
from clipit.reporting.tables import MAX_CLASSES, number, with_interval
from clipit.reports.assertion import Status
from clipit.reports.rules import BOTH, NONE, Mention, ReportLabel

_AROUND = 160  # characters shown on either side of a phrase
_MENTIONS = 8  # mentions shown per report
_BEGINNING = 800  # characters shown of a report without a mention
_STATUSES: tuple[Status, ...] = ("affirmed", "negated", "uncertain")


@dataclass(frozen=True)
class SampledReport:
    """A report of the sample to check.

    Attributes:
        label: Label assigned by the rules, with the mentions that it is based on.
        facts: Patient and other labels of the report, such as its given label, by name.
        text: Text in which the rules look for phrases.
    """

    report_id: str
    label: ReportLabel
    facts: Mapping[str, str]
    text: str


def report_labels_page(
    title: str,
    note: str,
    facts: Mapping[str, object],
    labels: Sequence[ReportLabel],
    classes: Sequence[str],
    agreements: Sequence[Agreement],
    sample: Sequence[SampledReport],
    problems: Sequence[str] = (),
) -> str:
    """Render the page as HTML.

    Args:
        note: Warning shown at the top of the page; "" for none.
        facts: Facts about the corpus, the rule set and the classifier.
        labels: Label that the rules assign to each report; empty without rules.
        classes: Classes of the rules.
        agreements: Agreement of each kind of label with a reference, one section each.
        sample: Reports to check, drawn at random.
        problems: Lines about skipped reports and labels.
    """
    sections = [PageSection("Corpus", [facts_table(facts)])]
    if labels:
        sections.append(PageSection("Labels assigned by the rules", _counts(labels, classes)))
    sections += [PageSection(agreement.title, _agreement(agreement)) for agreement in agreements]
    if sample:
        introduction = (
            "Reports drawn at random for each class assigned by the rules, with the matched phrases highlighted. In "
            "brackets: the class of the phrase and its status. Negated mentions count only where the rule set maps "
            "them to a class, and uncertain mentions never count."
        )
        sections.append(
            PageSection("Sample to check", [Text(introduction), Passages([_passage(report) for report in sample])])
        )
    if problems:
        sections.append(PageSection("Remarks", [Text("\n".join(problems), preformatted=True)], folded=True))
    return page(title, note, sections)


def count_rule_classes(labels: Sequence[ReportLabel], classes: Sequence[str]) -> dict[str, int]:
    """Count the reports by class, in the order of the rules.

    Reports without a class are counted separately if all their mentions are uncertain.
    """
    counts_of_class = Counter(label.class_name for label in labels)
    uncertain = sum(label.uncertain_only for label in labels)
    counts = {name: counts_of_class[name] for name in (*classes, BOTH)}
    return counts | {
        f"{NONE}, uncertain mentions only": uncertain,
        f"{NONE}, no mention that counts": counts_of_class[NONE] - uncertain,
    }


def _counts(labels: Sequence[ReportLabel], classes: Sequence[str]) -> list[Part]:
    rows = [
        [class_name, count, f"{100 * count / len(labels):.1f}%"]
        for class_name, count in count_rule_classes(labels, classes).items()
    ]
    mentions = [mention for label in labels for mention in label.mentions]
    by_class = Counter((mention.class_name, mention.status) for mention in mentions)
    by_section = Counter((mention.section, mention.status) for mention in mentions)
    return [
        Text("The rules assign `both` if mentions of several classes count, and `none` if no mention counts."),
        Table(
            ("class", "reports", "share"),
            rows,
            caption=f"Classes assigned to {counted(len(labels), 'report')} by the rules",
        ),
        Table(
            ("class of the phrase", *_STATUSES),
            [[name, *(by_class[name, status] for status in _STATUSES)] for name in classes],
            caption="Mentions by class and status",
        ),
        Table(
            ("section", *_STATUSES),
            [
                [name, *(by_section[name, status] for status in _STATUSES)]
                for name in sorted({mention.section for mention in mentions})
            ],
            caption="Mentions by section and status",
        ),
    ]


def agreement_rows(agreement: Agreement) -> list[list[str]]:
    """Tabulate the scores of an agreement with their intervals, and the accuracy of predicting the majority class."""
    rows = [
        [
            SCORES.get(name, name),
            with_interval(value, agreement.intervals[name].low, agreement.intervals[name].high),
        ]
        for name, value in agreement.scores.items()
    ]
    return [*rows, ["accuracy of always predicting the most frequent class", number(agreement.most_frequent)]]


def _agreement(agreement: Agreement) -> list[Part]:
    parts: list[Part] = [Text(agreement.note)] if agreement.note else []
    parts.append(
        Table(
            ("score", "value [95% interval]"),
            agreement_rows(agreement),
            caption=f"{counted(int(agreement.counts.sum()), 'labelled report')} from "
            f"{counted(agreement.groups, 'group')}; bootstrap intervals over groups",
        )
    )
    if len(agreement.predictions) > MAX_CLASSES:
        return parts
    counts = agreement.counts.tolist()
    shares = (agreement.counts / agreement.counts.sum(axis=1, keepdims=True).clip(min=1)).tolist()
    parts.append(
        Table(
            ("label \\ prediction", *agreement.predictions),
            [[name, *row] for name, row in zip(agreement.classes, counts, strict=True)],
            caption="Reports by label (rows) and prediction (columns)",
            shades=shares,
        )
    )
    return parts


def _passage(report: SampledReport) -> Passage:
    """Quote the mentions of a report or, if there are none, the beginning of the text that the rules read."""
    mentions = report.label.mentions
    class_name = (
        f"{report.label.class_name}, uncertain mentions only"
        if report.label.uncertain_only
        else report.label.class_name
    )
    facts = [f"rules: {class_name}", *(f"{name}: {value}" for name, value in report.facts.items())]
    quotes = [_quote(mention) for mention in mentions[:_MENTIONS]]
    if not mentions:
        text = " ".join(report.text.split())
        shown = text if len(text) <= _BEGINNING else f"{text[:_BEGINNING]} ..."
        reason = "no phrase found in the text that the rules read" if text else "no text in the sections that are read"
        quotes = [Quote(reason, [(shown, "")])]
    hidden = len(mentions) - _MENTIONS
    more = f"and {counted(hidden, 'more mention')}" if hidden > 0 else ""
    return Passage(report.report_id, "; ".join(facts), quotes, more)


def _quote(mention: Mention) -> Quote:
    """Quote the sentence around a mention, with the phrase marked."""
    before, after = mention.sentence[: mention.start], mention.sentence[mention.end :]
    before = before if len(before) <= _AROUND else f"... {before[-_AROUND:]}"
    after = after if len(after) <= _AROUND else f"{after[:_AROUND]} ..."
    mark = f"{mention.class_name}, {mention.status}"
    return Quote(f"section {mention.section}", [(before, ""), (mention.phrase, mark), (after, "")])
