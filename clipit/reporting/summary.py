"""The summary of a run as Markdown: `summary.md`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipit.artifacts import whole_file
from clipit.reporting import tables


def run_summary(
    title: str,
    results: Mapping[str, Any],
    provenance: Mapping[str, object],
    *,
    note: str = "",
    sections: Mapping[str, str] | None = None,
    plots: Sequence[str] = (),
) -> str:
    """Markdown: note, scores, what is not defined and why, per-class tables, further sections, plots, provenance.

    Args:
        title: Heading.
        results: Results of `clipit.evaluation.evaluate.evaluate_predictions`.
        provenance: Provenance of the scores (command, commit, versions, preprocessing, prompts, seed, ...).
        note: A warning that belongs beside the scores; printed first.
        sections: Heading -> Markdown, such as the description of the snippets or the pairing summary.
        plots: Names of plot files beside the summary.
    """
    parts = [f"# {title}"]
    if note:
        parts.append("> **Note.** " + " ".join(note.split()))
    parts += ["## Scores", tables.metrics_table(results), describe_protocol(results)]
    missing = list_undefined(results)
    if missing:
        parts.append("Not defined:\n" + "\n".join(f"- {line}" for line in missing))
    for split, of_split in results["splits"].items():
        parts += [f"## Classes ({split})", tables.per_class_table(of_split["per_class"])]
        parts.append(tables.confusion_table(of_split["confusion"], results["classes"]))
    for heading, text in (sections or {}).items():
        parts += [f"## {heading}", text.strip()]
    if plots:
        parts += ["## Plots", "\n\n".join(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in plots)]
    parts += ["## Provenance", tables.key_value_table(provenance)]
    return "\n\n".join(parts) + "\n"


def write_summary(path: Path, text: str) -> None:
    """Write a summary, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def describe_protocol(results: Mapping[str, Any]) -> str:
    """How intervals are computed and how AUROC and ECE are defined, in a sentence each."""
    protocol = results["protocol"]
    drawn = "; ".join(f"{split}: {of_split['resampled']}" for split, of_split in results["splits"].items())
    intervals = (
        f"{protocol['interval']}, {protocol['resamples']} resamples, seed {protocol['seed']} (resampled: {drawn})"
        if protocol["resamples"]
        else "none"
    )
    return f"Intervals: {intervals}. AUROC: {protocol['auroc']}. ECE: {protocol['ece']}."


def list_undefined(results: Mapping[str, Any]) -> list[str]:
    """Undefined scores and intervals as `split, score: reason`, and the scores that cover only some of the classes."""
    lines = []
    for split, of_split in results["splits"].items():
        for kind, scores in (("", of_split), (" zero-shot", of_split.get("zero_shot", {}))):
            for name, score in scores.get("metrics", {}).items():
                if "over" in score:
                    lines.append(f"{split}{kind}, {tables.LABELS.get(name, name)}: {score['over']}")
                if score["value"] is None:
                    lines.append(f"{split}{kind}, {tables.LABELS.get(name, name)}: {score['reason']}")
                elif "reason" in score and results["protocol"]["resamples"]:
                    lines.append(f"{split}{kind}, interval of {tables.LABELS.get(name, name)}: {score['reason']}")
    return lines
