"""Label the reports of a corpus with rules and a text classifier, and write a page for checking the labels.

The configuration needs no tiles. With tiles, reports of patients with validation or test tiles are excluded.
"""

from typing import Any

from clipit.config.command_line import read_reports_command
from clipit.errors import counted, user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        extra: dict[str, dict[str, Any]] = {
            "--per-answer": {
                "type": int,
                "default": 5,
                "help": "number of reports to check for each class assigned by the rules (default: 5)",
            },
            "--rules-only": {"action": "store_true", "help": "use only the rules, without a text classifier"},
        }
        config, tiles, options = read_reports_command(__doc__, extra=extra)
        from clipit.distributed import get_processes
        from clipit.reporting.report_labels_page import agreement_rows, count_rule_classes
        from clipit.reporting.tables import markdown_table
        from clipit.workspace.report_label_files import write_report_labels
        from clipit.workspace.report_labels import label_corpus, measure_labels

        labels = label_corpus(config, tiles=tiles, classifier=not options.rules_only)
        if get_processes().main:
            page = write_report_labels(config, labels, per_answer=options.per_answer)
            print(f"\n{counted(len(labels.reports), 'report')}")
            if labels.case_counts is not None:
                print(labels.case_counts.text())
            if labels.by_rules:
                counts = count_rule_classes(labels.by_rules, labels.classes)
                print(f"\n{markdown_table(('class assigned by the rules', 'reports'), list(counts.items()))}")
            for agreement in measure_labels(labels, config.seed):
                table = markdown_table(("score", "value [95% interval]"), agreement_rows(agreement))
                print(f"\n{agreement.title}\n\n{table}")
            print()
            for note in labels.notes:
                print(f"note: {note}")
            print(f"page: {page} (and .json, .csv)")
