"""The chapters of a probing: what frozen features hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clipit.config.studies import ProbingConfig
from clipit.reporting.html import Table, Text, facts_table
from clipit.reporting.tables import LABELS, mean_sd, number, with_interval
from clipit.studies.report import Chapter, Plot, undefined_chapter

Row = Mapping[str, Any]
FILE = "probing.parquet"
_RETRIEVAL = ("precision", "vote", "recall")
_SCORES = 3
_SAW = (
    "Saw labels: whether a training of this project showed the features labels of these tiles. Where it says true, a "
    "row has seen more labels than it names, and is no measure of label efficiency. False for models as they come; "
    "what a published model's makers trained it on is not known here."
)


def probing_chapters(
    p: ProbingConfig, seed: int, rows: Sequence[Row], provenance: Mapping[str, Any], plot: str | None
) -> list[Chapter]:
    """Probes, few-shot episodes, label efficiency and retrieval, and how they were made.

    Args:
        p: Section of the study.
        seed: Seed of the episodes.
        rows: Of probing.parquet.
        provenance: Facts beside them.
        plot: File name of the label-efficiency plot.
    """
    curves = [row for row in rows if row.get("share") is not None]
    few = [row for row in rows if row["what"] == "few_shot"]
    found = [name for name in _RETRIEVAL if any(row["metric"] == name for row in rows)]
    scored = [r for r in rows if r["metric"] in LABELS and r["what"] != "few_shot" and r.get("share") is None]
    chapters = [
        Chapter(
            "Probes",
            [
                Text(
                    "All figures are of the test split. Strengths and steps are chosen on validation tiles, nothing "
                    "on test tiles. In brackets: 95 % percentile bootstrap over test tiles, by group where known."
                ),
                Text(
                    f"Labels as a run of seed {seed} sees them (tiles.labels). k-NN: cosine, k = "
                    f"{p.neighbours}, one vote each, equal votes to the first class; with fewer labels than k all of "
                    "them vote, which tells nothing. SimpleShot: centred by the training tiles, L2, nearest class mean."
                ),
                *_probe_tables(scored),
            ],
        ),
        Chapter(
            f"Few shots ({LABELS[p.metric]})",
            [
                Text(
                    f"SimpleShot, {p.episodes} episodes, tiles drawn from all labelled training tiles. The mean's "
                    "interval leaves out the chance of the test tiles, which are the same in all episodes."
                ),
                Text(_SAW),
                _few_shot_table(few, "Mean over episodes, in brackets its 95 % t-interval", _few_shot_mean),
                _few_shot_table(
                    few, "Middle 95 % of single episodes: what one draw of labels may give", _few_shot_draw
                ),
            ],
        ),
    ]
    if curves:
        source = f"{FILE}: columns share and value, what = curve ..."
        picture = Plot(plot, "Label efficiency; bands: lowest to highest seed", source) if plot else None
        chapters.append(
            Chapter(
                f"Label efficiency ({LABELS[p.metric]})",
                [
                    Text(
                        f"Shares of all training labels, drawn per class by seed ({', '.join(map(str, p.seeds))}); a "
                        "larger share holds the smaller ones; validation labels are no more than training labels. "
                        "Mean ± standard deviation over seeds; n/a: a class would have no label."
                    ),
                    _curve_table(curves),
                    *([picture] if picture else []),
                ],
            )
        )
    chapters += [
        Chapter(
            "Retrieval",
            [
                Text(
                    "precision@k: share of the k nearest that are of the query's class; vote@k: share of queries "
                    "whose class has the most votes among the k nearest; recall@k: share of the true partners found. "
                    "In brackets: fold over random. "
                    + ("Tiles of the query's own group (where known) do not count. " if p.exclude_groups else "")
                    + "Image to image, test: leave-one-out within the test split; where groups are unknown, tiles of "
                    "the query's own slide count, and these figures are too good."
                ),
                *(_retrieval_table([row for row in rows if row["metric"] == name], name) for name in found),
            ],
        ),
        Chapter("How it was measured", [facts_table(_facts(provenance), "probing.json")]),
    ]
    reasons = [(f"{row['subject']}, {row['what']}", row["reason"]) for row in rows if row.get("reason")]
    return chapters + undefined_chapter(reasons, f"{FILE}: column reason")


def _probe_tables(rows: Sequence[Row]) -> list[Table]:
    """A table for every three scores: with their intervals more would not fit on a page."""
    names = list(dict.fromkeys(row["metric"] for row in rows))
    return [_probe_table(rows, names[i : i + _SCORES]) for i in range(0, len(names), _SCORES)]


def _probe_table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    lines = []
    for key in dict.fromkeys((row["subject"], row["what"]) for row in rows):
        of_key = {row["metric"]: row for row in rows if (row["subject"], row["what"]) == key}
        first = next(iter(of_key.values()))
        seen = "" if first.get("labels") is None else f"{first['labels']} + {first['validation_labels']}"
        cells = [with_interval(of_key[name]["value"], of_key[name]["low"], of_key[name]["high"]) for name in names]
        lines.append([key[0], key[1].replace("_", "-"), seen, *cells])
    header = ["features", "classifier", "labels + validation", *(LABELS[name] for name in names)]
    return Table(header, lines, source=f"{FILE}: columns value, low, high by subject, what, metric", left=2)


def _few_shot_table(rows: Sequence[Row], caption: str, shown: Callable[[Row], str]) -> Table:
    shots = list(dict.fromkeys(row["k"] for row in rows))
    lines = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        of_subject = {row["k"]: row for row in rows if row["subject"] == subject}
        saw = next(iter(of_subject.values()))["features_saw_labels"]
        lines.append([subject, saw, *(shown(of_subject[k]) for k in shots)])
    source = f"{FILE}: columns value, low, high, spread, features_saw_labels, what = few_shot"
    header = ["features", "saw labels", *(f"{k} per class" for k in shots)]
    return Table(header, lines, caption=caption, source=source, left=2)


def _few_shot_mean(row: Row) -> str:
    return with_interval(row["value"], row["low"], row["high"])


def _few_shot_draw(row: Row) -> str:
    return number(None) if row["value"] is None else f"{number(row['spread'][0])} to {number(row['spread'][1])}"


def _curve_table(rows: Sequence[Row]) -> Table:
    shares = sorted({row["share"] for row in rows})
    lines = []
    for subject, what in dict.fromkeys((row["subject"], row["what"]) for row in rows):
        of_key = [row for row in rows if (row["subject"], row["what"]) == (subject, what)]
        line = [subject, what.removeprefix("curve ").replace("_", "-"), of_key[0]["features_saw_labels"]]
        for share in shares:
            line.append(mean_sd([row["value"] for row in of_key if row["share"] == share]))
        lines.append(line)
    header = ["features", "classifier", "saw labels", *(f"{100 * share:g} %" for share in shares)]
    return Table(header, lines, source=f"{FILE}: columns value, features_saw_labels, what = curve ...", left=3)


def _retrieval_table(rows: Sequence[Row], name: str) -> Table:
    columns = list(dict.fromkeys(row["k"] for row in rows))
    lines = []
    for subject, what in dict.fromkeys((row["subject"], row["what"]) for row in rows):
        by_k = {r["k"]: r for r in rows if (r["subject"], r["what"]) == (subject, what)}
        first = next(iter(by_k.values()))
        cells = [_retrieval_cell(by_k.get(column)) for column in columns]
        lines.append([subject, what, first["n"], first["gallery"], *cells])
    header = ["features", "looked for", "queries", "gallery", *(f"{name}@{k}" for k in columns)]
    return Table(header, lines, source=f"{FILE}: columns value, fold, k, metric = {name}", left=2)


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
