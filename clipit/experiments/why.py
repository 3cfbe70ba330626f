"""Why an arm helps or not: what text knows that vision does not, how good the pairs are, where the gain lies."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Shaped

from clipit.artifacts import whole_file
from clipit.distributed import processes
from clipit.embedding import centred
from clipit.experiments.cells import Setting
from clipit.experiments.materials import Materials
from clipit.experiments.why_parts import Finding, Row, gain, hits, title
from clipit.experiments.why_right import right_where_vision_is_wrong
from clipit.experiments.why_space import joint_space
from clipit.pairing.agreement import agreement
from clipit.pairing.selection import find, judge, prepare
from clipit.reporting.comparison_tables import PERCENT
from clipit.reporting.tables import number
from clipit.training.arms import resolve_arm

_QUARTERS = 4
_NO_PAIR = -1  # in the place of a quarter's number
Analysis = Callable[[Setting, Materials, Sequence[Row], Path], list[Finding]]


def findings(setting: Setting, materials: Materials, rows: Sequence[Row], folder: Path) -> list[Finding]:
    """The analyses that the configuration asks for, on a setting's finished runs.

    Args:
        setting: Data set and backbone.
        materials: Of its configuration.
        rows: Of its runs.
        folder: Where the predictions and scores that only an analysis needs are kept.
    """
    analyses: dict[str, Analysis] = {
        "complementarity": right_where_vision_is_wrong,
        "pairing": _pairing,
        "classes": _by_class,
        "embeddings": joint_space,
    }
    found = []
    for name in setting.config.comparison.why:
        found += analyses[name](setting, materials, rows, folder)
    return found


def _pairing(setting: Setting, materials: Materials, rows: Sequence[Row], folder: Path) -> list[Finding]:
    """How good the pairs are, and whether tiles with near snippets gain more."""
    if setting.config.reports is None:
        return []
    return [_quality(setting, materials), _by_score(setting, materials, rows, folder)]


def _quality(setting: Setting, materials: Materials) -> Finding:
    """Hubness and agreement of the training tiles' pairs, judged afterwards by all labels that the data set has."""
    summary, train = materials.pairs.summary, materials.some_tiles.of_split("train")
    labels = dict(zip(train.ids.tolist(), train.truth.tolist(), strict=True))
    found = agreement(materials.pairs.table, labels, index=materials.index, class_vectors=materials.class_embeddings())

    def share(value: float | None) -> str:
        """In %."""
        return number(None if value is None else PERCENT * value, 1)

    return Finding(
        title(setting, "Quality of the pairs"),
        "Training tiles. Label figures use every label that the data set has, also those hidden from training: for "
        "looking, never for choosing. `neighbours`: tiles whose label is that of most others with the same snippet; "
        "`text`: tiles whose label is the class that the snippet is nearest to; `AUROC`: whether the score tells them.",
        ("snippets used", "top 1 % hold %", "skewness", "neighbours %", "chance %", "text %", "AUROC of the score"),
        (
            (
                f"{summary['snippets_used']} of {summary['snippets']}",
                share(summary.get("hub_share")),
                number(summary.get("skewness"), 1),
                share(found.get("neighbours")),
                share(found.get("chance")),
                share(found.get("zero_shot")),
                number(found.get("score_auroc"), 2),
            ),
        ),
        f"{materials.pairs.artifact.folder.name}: pairs.parquet, summary.json; and the tiles' labels",
        {},
        ({"pairs": str(materials.pairs.artifact.file("pairs.parquet")), **summary, **found},),
    )


def _by_score(setting: Setting, materials: Materials, rows: Sequence[Row], folder: Path) -> Finding:
    """Gain per quarter of the test tiles, by how near their first snippet is."""
    c = setting.config.comparison
    tiles, _ = hits(rows, c.baseline, c.seeds[0])
    scores = first_cosines(materials, tiles.ids)
    paired = np.isfinite(scores)
    quarter = np.full(len(scores), _NO_PAIR, dtype=np.int64)
    if paired.any():
        edges = np.quantile(scores[paired], np.linspace(0, 1, _QUARTERS + 1)[1:-1])
        quarter[paired] = np.searchsorted(edges, scores[paired], side="right")
    file = folder / "nearest-snippet-test.parquet"
    columns = {"tile_id": tiles.ids.tolist(), "score": pa.array(scores, from_pandas=True), "quarter": quarter}
    _keep_table(file, columns)
    bounds = {
        q: (float(scores[quarter == q].min()), float(scores[quarter == q].max()))
        for q in range(_QUARTERS)
        if (quarter == q).any()
    }
    shown = [*bounds, *([] if paired.all() else [_NO_PAIR])]
    table, values = [], []
    for arm in setting.arms:
        if arm != c.baseline:
            _, gains, files = gain(setting, rows, arm)
            table.append((arm, *(number(PERCENT * gains[quarter == q].mean(), 1, signed=True) for q in shown)))
            for q in shown:
                low, high = bounds.get(q, (None, None))
                part = {"quarter": q, "low": low, "high": high, "tiles": int((quarter == q).sum())}
                mean = float(gains[quarter == q].mean())
                values.append({"arm": arm, **part, "gain": mean, "scores": str(file), **files})
    header = [f"{low:.2f} to {high:.2f}" for low, high in bounds.values()]
    if not paired.all():
        header.append(f"no pair ({int((~paired).sum())} tiles)")
    return Finding(
        title(setting, "Gain by pairing score"),
        f"Accuracy against {c.baseline} in points, mean over seeds, in four equal parts of the test tiles by the "
        "cosine of the first snippet that the rules of `pairing` give them, as they give training tiles theirs "
        "(searched for in memory; test tiles are never paired for training). "
        "If the retrieved text itself helped, tiles with near snippets should gain more than they do by the "
        f"control that distils the VLM's image embedding. {_own_rules(setting)}Exploratory: no intervals.",
        ("arm", *header),
        tuple(table),
        f"predictions.parquet of the runs; predictions/{folder.name}/{file.name}",
        {},
        tuple(values),
    )


def _own_rules(setting: Setting) -> str:
    """A sentence where arms pair by other keys than those that the quarters are made by."""
    config, seed = setting.config, setting.config.comparison.seeds[0]
    own = [arm for arm in setting.arms if resolve_arm(setting.run(arm, seed)).pairing != config.pairing]
    if not own:
        return ""
    return (
        f"Also for arms with `pairing` keys of their own ({', '.join(own)}) the parts are those of the configuration's "
        "pairing, not of theirs. "
    )


def first_cosines(materials: Materials, ids: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Cosine of each test tile with the first snippet that the rules of `pairing` give it; NaN where they give none.

    What the rules need to know of all tiles they know of the training tiles alone. Call it in all processes.

    Args:
        materials: Their configuration has the rules.
        ids: Of the test tiles.
    """
    rules, store = materials.config.pairing, materials.tile_store("test")
    sources, groups = materials.pairing_facts()
    train, main = materials.tile_store("train"), processes().main
    chosen = prepare(materials.index, train, rules, block=rules.block, sources=sources, groups=groups, shown=main)
    parts = [np.empty(0)]
    for start in range(0, len(ids), rules.block):
        own = ids[start : start + rules.block]
        queries = centred(store.rows(store.positions(own)), materials.tile_mean)
        # No report is left out as a test tile's own group's: exclude_same_group is for training tiles.
        found = find(chosen, queries, np.full(len(own), -1, dtype=np.int64), rules.k)
        kept = judge(found, rules, chosen.mutual) == 0
        first = found.cosines[np.arange(len(own)), kept.argmax(axis=1)].astype(np.float64)
        parts.append(np.where(kept.any(axis=1), first, np.nan))
    return np.concatenate(parts)


def _keep_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a table that every process has, once."""
    if processes().main:
        with whole_file(path) as temporary:
            pq.write_table(pa.table(dict(columns)), temporary)


def _by_class(setting: Setting, materials: Materials, rows: Sequence[Row], folder: Path) -> list[Finding]:
    """Difference in recall per class."""
    c, classes = setting.config.comparison, materials.some_tiles.classes
    counted = hits(rows, c.baseline, c.seeds[0])[0].labels
    counts = [int((counted == k).sum()) for k in range(len(classes))]
    table, values = [], []
    for arm in setting.arms:
        if arm != c.baseline:
            tiles, gains, files = gain(setting, rows, arm)
            of_class = [float(gains[tiles.labels == k].mean()) if counts[k] else None for k in range(len(classes))]
            table.append((arm, *("no tile" if g is None else number(PERCENT * g, 1, signed=True) for g in of_class)))
            values += [
                {"arm": arm, "class": name, "tiles": counts[k], "gain": of_class[k], **files}
                for k, name in enumerate(classes)
            ]
    return [
        Finding(
            title(setting, "Gain by class"),
            f"Recall against {c.baseline} in points, mean over seeds, test split. Exploratory: no intervals, and the "
            "largest of many differences is large by chance.",
            ("arm", *(f"{name} ({count})" for name, count in zip(classes, counts, strict=True))),
            tuple(table),
            "predictions.parquet of the runs",
            {},
            tuple(values),
        )
    ]
