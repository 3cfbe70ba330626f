"""Summary of a run as Markdown (`summary.md`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """Compose the summary: note, scores, undefined scores, per-class tables, further sections, plots and provenance.

    Args:
        results: Results of `clipit.evaluation.run_scores.evaluate_predictions`.
        provenance: Provenance of the scores (command, commit, versions, preprocessing, prompts, seed, ...).
        note: Warning about the scores, printed first.
        sections: Preformatted text by heading, such as the pairing summary.
        plots: File names of plots next to the summary.
    """
    parts = [f"# {tables.markdown_line(title)}"]
    if note:
        parts.append(f"> **Note.** {tables.markdown_line(note)}")
    parts += ["## Scores", tables.metrics_table(results), tables.markdown_line(describe_protocol(results))]
    missing = list_undefined(results)
    if missing:
        lines = "\n".join(f"- {tables.markdown_line(line)}" for line in missing)
        parts.append(f"Undefined, or averaged over only some classes:\n{lines}")
    for split, split_results in results["splits"].items():
        parts += [f"## Classes ({split})", tables.per_class_table(split_results["per_class"])]
        if len(results["classes"]) <= tables.MAX_CLASSES:
            parts.append(tables.confusion_table(split_results["confusion"], results["classes"]))
    for heading, text in (sections or {}).items():
        parts += [f"## {heading}", tables.fenced(text.strip("\n"))]
    if plots:
        parts += ["## Plots", "\n\n".join(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in plots)]
    parts += ["## Provenance", tables.key_value_table(provenance)]
    return "\n\n".join(parts) + "\n"


def describe_protocol(results: Mapping[str, Any]) -> str:
    """Describe how intervals are computed and how AUROC and ECE are defined, in one sentence each."""
    protocol = results["protocol"]
    units = "; ".join(f"{split}: {split_results['resampled']}" for split, split_results in results["splits"].items())
    intervals = (
        f"{protocol['interval']}, {protocol['resamples']} resamples, seed {protocol['seed']} (resampled: {units})"
        if protocol["resamples"]
        else "none"
    )
    shifted = f" {tables.ECE_INTERVAL}" if protocol["resamples"] else ""
    return f"Intervals: {intervals}. AUROC: {protocol['auroc']}. ECE: {protocol['ece']}.{shifted}"


def list_undefined(results: Mapping[str, Any]) -> list[str]:
    """List undefined scores and intervals, and averages over only some classes, grouped by reason.

    If all intervals are undefined for the same reason, they are not listed by name.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for split, split_results in results["splits"].items():
        for suffix, scores in (("", split_results), (" zero-shot", split_results.get("zero_shot", {}))):
            metrics, where = scores.get("metrics", {}), f"{split}{suffix}"
            reasons = {None if score["value"] is None else score.get("reason") for score in metrics.values()}
            same_reason = len(metrics) > 1 and len(reasons) == 1
            for metric, score in metrics.items():
                name = tables.LABELS.get(metric, metric)
                if "over" in score:
                    names.setdefault((where, f"computed {score['over']}"), []).append(name)
                if score["value"] is None:
                    names.setdefault((where, score["reason"]), []).append(name)
                elif "reason" in score and results["protocol"]["resamples"]:
                    interval = "all intervals" if same_reason else f"interval of {name}"
                    names.setdefault((where, score["reason"]), []).append(interval)
    return [f"{where}, {', '.join(dict.fromkeys(listed))}: {reason}" for (where, reason), listed in names.items()]
