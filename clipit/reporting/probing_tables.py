"""The page of a probing: what frozen features hold, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipit.config import Config
from clipit.reporting.tables import LABELS, interval, key_value_table, markdown_table, mean_sd, number

Row = Mapping[str, Any]
_RETRIEVAL = ("recall", "precision", "vote")


def probing_text(config: Config, rows: Sequence[Row], provenance: Mapping[str, Any], plot: str | None) -> str:
    """Tables of probes, few-shot episodes, label efficiency and retrieval, and how they were made.

    Args:
        config: Its `probing` section.
        rows: Of `experiments.probing`.
        provenance: Facts beside them.
        plot: File name of the label-efficiency plot, beside the page.
    """
    p = config.probing
    scored = [row for row in rows if row["metric"] in LABELS and row["what"] != "few_shot" and "share" not in row]
    parts = [
        f"# {config.name}: probes of frozen features",
        "All figures are of the test split. Strengths and steps are chosen on validation tiles, nothing on test tiles. "
        "In brackets: 95 % percentile bootstrap over test tiles, by group where known.",
        "## Probes",
        f"Labels as a run of seed {config.seed} sees them (`tiles.labels`). k-NN: cosine, k = {p.neighbours}, one vote "
        "each, equal votes to the first class; with fewer labels than k all of them vote, which tells nothing. "
        "SimpleShot: centred by the training tiles, L2, nearest class mean.",
        _probe_table(scored),
        *(
            [
                "**The finished run's features were trained with its labels**: its few-shot and small-share rows below "
                "have seen more labels than they name, and are no measure of label efficiency."
            ]
            if provenance.get("run")
            else []
        ),
        f"## Few shots ({LABELS[p.metric]})",
        f"SimpleShot, {p.episodes} episodes, tiles drawn from all labelled training tiles. In brackets: 95 % "
        "t-interval of the mean over episodes; after it the middle 95 % of single episodes.",
        _few_shot_table([row for row in rows if row["what"] == "few_shot"]),
    ]
    curves = [row for row in rows if "share" in row]
    if curves:
        parts += [
            f"## Label efficiency ({LABELS[p.metric]})",
            f"Shares of all training labels, drawn per class by seed ({', '.join(map(str, p.seeds))}); a larger share "
            "holds the smaller ones; validation labels are no more than training labels. Mean ± standard deviation "
            "over seeds; n/a: a class would have no label.",
            _curve_table(curves),
        ]
        parts += [f"![label efficiency]({plot})"] if plot else []
    parts += [
        "## Retrieval",
        "precision@k: share of the k nearest that are of the query's class; vote@k: share of queries whose class has "
        "the most votes among the k nearest; recall@k: share of the true partners found. In brackets: fold over "
        "random. "
        + ("Tiles of the query's own group (where known) do not count. " if p.exclude_groups else "")
        + "Image to image, test: leave-one-out within the test split; where groups are unknown, tiles of the query's "
        "own slide count, and these figures are too good.",
        _retrieval_table([row for row in rows if row["metric"] in _RETRIEVAL]),
        "## How it was measured",
        key_value_table(_facts(provenance)),
    ]
    reasons = sorted({f"{row['subject']}, {row['what']}: {row['reason']}" for row in rows if row.get("reason")})
    if reasons:
        parts += ["## Not defined", "\n".join(f"- {reason}" for reason in reasons)]
    return "\n\n".join(parts) + "\n"


def _probe_table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row["metric"] for row in rows))
    lines = []
    for key in dict.fromkeys((row["subject"], row["what"]) for row in rows):
        of_key = {row["metric"]: row for row in rows if (row["subject"], row["what"]) == key}
        first = next(iter(of_key.values()))
        seen = "" if first.get("labels") is None else f"{first['labels']} + {first['validation_labels']}"
        cells = [f"{number(r['value'])} {interval(r['low'], r['high'])}".rstrip() for r in of_key.values()]
        lines.append([key[0], key[1].replace("_", "-"), seen, *cells])
    header = ["features", "classifier", "labels + validation", *(LABELS[name] for name in names)]
    return markdown_table(header, lines, left=2)


def _few_shot_table(rows: Sequence[Row]) -> str:
    shots = list(dict.fromkeys(row["k"] for row in rows))
    lines = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        of_subject = {row["k"]: row for row in rows if row["subject"] == subject}
        lines.append([subject, *(_few_shot_cell(of_subject[k]) for k in shots)])
    return markdown_table(["features", *(f"{k} per class" for k in shots)], lines)


def _few_shot_cell(row: Row) -> str:
    if row["value"] is None:
        return number(None)
    low, high = row["spread"]
    return f"{number(row['value'])} {interval(row['low'], row['high'])}; {number(low)} to {number(high)}"


def _curve_table(rows: Sequence[Row]) -> str:
    shares = sorted({row["share"] for row in rows})
    lines = []
    for subject, what in dict.fromkeys((row["subject"], row["what"]) for row in rows):
        line = [subject, what.removeprefix("curve ").replace("_", "-")]
        for share in shares:
            here = [row for row in rows if (row["subject"], row["what"], row["share"]) == (subject, what, share)]
            line.append(mean_sd([row["value"] for row in here]))
        lines.append(line)
    return markdown_table(["features", "classifier", *(f"{100 * share:g} %" for share in shares)], lines, left=2)


def _retrieval_table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys((row["metric"], row["k"]) for row in rows))
    lines = []
    for subject, what in dict.fromkeys((row["subject"], row["what"]) for row in rows):
        here = {(r["metric"], r["k"]): r for r in rows if (r["subject"], r["what"]) == (subject, what)}
        first = next(iter(here.values()))
        cells = [_retrieval_cell(here.get(column)) for column in columns]
        lines.append([subject, what, first["n"], first["gallery"], *cells])
    header = ["features", "looked for", "queries", "gallery", *(f"{name}@{k}" for name, k in columns)]
    return markdown_table(header, lines, left=2)


def _retrieval_cell(row: Row | None) -> str:
    if row is None:
        return ""
    return number(row["value"]) + (f" ({row['fold']:.1f}x)" if row["fold"] is not None else "")


def _facts(provenance: Mapping[str, Any]) -> dict[str, object]:
    facts: dict[str, object] = {
        name: f"{made['model']}, fingerprint {made['fingerprint']}, {made['pixels']} pixels, "
        f"preprocessing {made['preprocess']}"
        for name, made in provenance["subjects"].items()
    }
    prompts = provenance["prompts"]
    return facts | {
        "prompts": f"{prompts['name']} ({prompts['hash']})" if prompts else "none",
        "classes": ", ".join(provenance["classes"]),
        "tiles": provenance["tiles"],
        "run": provenance["run"] or "none",
        "command": provenance["command"],
        "commit": provenance["commit"],
    }
