"""Statistics of a pairing: scores, hubness, agreement with labels, and examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Int

from clipit.errors import counted, printable
from clipit.pairing.recall import recall_lines
from clipit.stores.index import Index

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def summarise(
    pairs: pa.Table,
    n_snippets: int,
    *,
    n_tiles: int | None = None,
    dropped: Mapping[str, int] | None = None,
    agreement: Mapping[str, Any] | None = None,
    recall: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compute statistics of a pairing; all but the skewness count only the first snippet of each tile.

    Args:
        pairs: Table with the columns tile_id, rank, snippet_id and score.
        n_tiles: Number of tiles that were searched; by default the number in the table.
        dropped: Number of dropped candidate pairs by reason.
        agreement: Statistics from `agreement`; None to omit them.
        recall: Entries for an approximate index, from `fit_search`; None for a Flat index.

    Returns:
        Score quantiles; number of distinct snippets used; fraction of tiles paired with the most used 1% of all
        snippets (hubness); skewness of the k-occurrences of snippets; number of tiles without a pair; the ten most used
        snippets; ten examples from the highest to the lowest score.
    """
    first = np.asarray(pairs.column("rank")) == 0
    tiles = np.asarray(pairs.column("tile_id"))[first]
    snippets = np.asarray(pairs.column("snippet_id"))[first].astype(np.str_)
    scores = np.asarray(pairs.column("score"))[first]
    all_tiles = len(tiles) if n_tiles is None else n_tiles
    counts_of = {
        "tiles": len(tiles),
        "tiles_without_pair": all_tiles - len(tiles),
        "share_without_pair": (all_tiles - len(tiles)) / all_tiles if all_tiles else None,
        "dropped": dict(dropped or {}),
        "snippets": n_snippets,
        **({"recall": dict(recall)} if recall else {}),
    }
    if not len(tiles):
        return {**counts_of, "snippets_used": 0}
    names, counts = np.unique(snippets, return_counts=True)
    order = np.lexsort((names, -counts))
    top = max(1, n_snippets // 100)
    by_score = np.argsort(-scores, kind="stable")
    examples = by_score[np.linspace(0, len(by_score) - 1, min(10, len(by_score))).astype(int)]
    uses = np.unique(np.asarray(pairs.column("snippet_id")).astype(np.str_), return_counts=True)[1]
    return {
        **counts_of,
        "snippets_used": len(names),
        "hub_share": float(counts[order[:top]].sum() / len(tiles)),
        "hub_snippets": top,
        "skewness": skewness(uses, n_snippets),
        "score_mean": float(scores.mean(dtype=np.float64)),
        "score_quantiles": {str(q): float(np.quantile(scores, q)) for q in _QUANTILES},
        "most_used": [{"snippet_id": str(names[i]), "tiles": int(counts[i])} for i in order[:10]],
        "examples": [
            {"tile_id": str(tiles[i]), "snippet_id": str(snippets[i]), "score": float(scores[i])} for i in examples
        ],
        **({"agreement": dict(agreement)} if agreement else {}),
    }


def skewness(uses: Int[np.ndarray, "used"], n_snippets: int) -> float | None:
    """Compute the skewness of the k-occurrences: the number of tiles paired with each snippet, 0 for unused snippets.

    The formula is E[(N - mean)^3] / sd^3 (Radovanovic et al. 2010, JMLR 11, section 2.2). Even use gives 0; hubs
    give a large value. None if all snippets are used equally often.
    """
    mean = uses.sum() / n_snippets
    unused = n_snippets - len(uses)
    second = (((uses - mean) ** 2).sum() + unused * mean**2) / n_snippets
    third = (((uses - mean) ** 3).sum() - unused * mean**3) / n_snippets
    return float(third / second**1.5) if second > 1e-12 else None


def summary_text(summary: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Format the statistics as text.

    Args:
        summary: Statistics from `summarise`.
        texts: Text of each snippet, by id.
    """
    if not summary["tiles"]:
        return "no tile was paired"
    scores = summary["score_quantiles"]
    without = summary.get("tiles_without_pair", 0)
    dropped = ", ".join(f"{name} {count}" for name, count in summary.get("dropped", {}).items())
    skew = summary.get("skewness")
    top = summary["hub_snippets"]
    hubs = "the most used snippet" if top == 1 else f"one of the {top:,} most used snippets (1%)"
    lines = [
        f"{counted(summary['tiles'], 'tile')} paired; {summary['snippets_used']} of "
        f"{counted(summary['snippets'], 'snippet')} used as first snippet",
        f"scores of the first snippets (cosine): 5th percentile {scores['0.05']:.3f}, median {scores['0.5']:.3f}, "
        f"95th percentile {scores['0.95']:.3f}",
        f"hubness: {summary['hub_share']:.1%} of the tiles have {hubs} as their first snippet"
        + ("" if skew is None else f"; skewness {skew:.2f} (all pairs)"),
    ]
    if without:
        lines.append(f"{counted(without, 'tile')} without a pair ({summary['share_without_pair']:.1%})")
    if dropped:
        lines.append(f"dropped candidates: {dropped}")
    lines += recall_lines(summary["recall"]) if "recall" in summary else []
    lines += _agreement_lines(summary.get("agreement"))
    lines.append("most used as first snippet:")
    lines += [
        f"  {row['tiles']:6d} {'tile ' if row['tiles'] == 1 else 'tiles'}  {printable(texts[row['snippet_id']][:90])}"
        for row in summary["most_used"][:5]
    ]
    lines.append("examples, from the best score to the worst:")
    lines += [
        f"  {row['score']:.3f}  {printable(row['tile_id'])}  {printable(texts[row['snippet_id']][:90])}"
        for row in summary["examples"][:5]
    ]
    return "\n".join(lines)


def _agreement_lines(statistics: Mapping[str, Any] | None) -> list[str]:
    if not statistics:
        return []
    descriptions = {
        "neighbours": "tiles that share a snippet share the label",
        "zero_shot": "the snippet's text is nearest to the label's prompts",
        "score_auroc": "the score separates these tiles from the others (AUROC)",
    }
    known = "" if statistics["neighbours"] is None else "neighbours"
    lines = [
        f"  {text}: "
        + (
            f"undefined ({statistics['undefined'].get(key, '')})"
            if statistics[key] is None
            else f"{statistics[key]:.3f}"
        )
        + (f" ({counted(statistics['neighbours_tiles'], 'tile')})" if key == known else "")
        for key, text in descriptions.items()
    ]
    chance = "" if statistics["chance"] is None else f", most frequent label {statistics['chance']:.3f}"
    return [f"agreement with labels ({counted(statistics['labelled'], 'labelled tile')}{chance}):", *lines]


def agreement(
    pairs: pa.Table,
    labels: Mapping[str, int],
    *,
    index: Index | None = None,
    class_vectors: Float32[np.ndarray, "classes dim"] | None = None,
) -> dict[str, Any]:
    """Measure how well the first snippet of each labelled tile agrees with its label; never used for selection.

    Args:
        pairs: Table with the columns tile_id, rank, snippet_id and score.
        labels: Tile id -> class index, negative for unlabelled tiles; only labels that training may use.
        index: Index of the snippets, for `class_vectors`.
        class_vectors: Unit-norm class prompt embeddings, centred like the snippets.

    Returns:
        `labelled`: number of labelled tiles. `neighbours`: fraction of tiles whose label is the majority label of the
        *other* labelled tiles with the same snippet (ties count as fractions). `neighbours_tiles`: number of tiles that
        share their snippet. `chance`: accuracy of always predicting the most frequent label. With class prompts,
        `zero_shot`: fraction of tiles whose label is the class nearest to the snippet's text, and `score_auroc`: AUROC
        of the score as a predictor of these tiles. Undefined statistics are None; `undefined` contains the reasons.
    """
    from sklearn.metrics import roc_auc_score

    first = pairs.filter(pa.array(np.asarray(pairs.column("rank")) == 0))
    label = np.asarray([labels.get(tile, -1) for tile in first.column("tile_id").to_pylist()], dtype=np.int64)
    known = label >= 0
    statistics: dict[str, Any] = {"labelled": int(known.sum()), "undefined": {}}
    names = ("neighbours", "zero_shot", "score_auroc")
    if not known.any():
        return statistics | dict.fromkeys((*names, "chance")) | {"undefined": dict.fromkeys(names, "no label is known")}
    snippets = np.asarray(first.column("snippet_id").to_pylist(), dtype=np.str_)[known]
    scores, label = np.asarray(first.column("score"), dtype=np.float64)[known], label[known]
    credit = majority_credit(np.unique(snippets, return_inverse=True)[1], label)
    has_others = np.isfinite(credit)
    statistics |= {
        "neighbours": float(credit[has_others].mean()) if has_others.any() else None,
        "neighbours_tiles": int(has_others.sum()),
        "chance": float(np.bincount(label).max() / len(label)),
        "zero_shot": None,
        "score_auroc": None,
    }
    if not has_others.any():
        statistics["undefined"]["neighbours"] = "no two labelled tiles have the same snippet"
    if index is None or class_vectors is None:
        statistics["undefined"] |= dict.fromkeys(names[1:], "no class prompts given")
        return statistics
    distinct, inverse = np.unique(snippets, return_inverse=True)
    vectors = index.vectors(np.searchsorted(index.ids, distinct))
    correct = (vectors @ class_vectors.T).argmax(axis=1)[inverse] == label
    statistics["zero_shot"] = float(correct.mean())
    if correct.any() and not correct.all():
        statistics["score_auroc"] = float(roc_auc_score(correct, scores))
    else:
        statistics["undefined"]["score_auroc"] = "the zero-shot class is correct for all tiles or for none"
    return statistics


def majority_credit(groups: Int[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Credit each tile with 1 if its label is the most frequent label of the other tiles in its group.

    If m labels tie, the credit is 1/m; for a tile alone in its group, NaN.

    Args:
        groups: Group number of each tile, from 0.
        labels: Class index of each tile, from 0.
    """
    counts = np.zeros((int(groups.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (groups, labels), 1)
    others = counts[groups]
    rows = np.arange(len(groups))
    others[rows, labels] -= 1
    highest = others.max(axis=1)
    tied = (others == highest[:, None]).sum(axis=1)
    return np.where(highest > 0, (others[rows, labels] == highest) / tied, np.nan)
