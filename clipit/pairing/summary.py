"""What a pairing looks like: scores, how unevenly snippets are used, examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from clipit.errors import printable

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def summarise(
    pairs: pa.Table,
    n_snippets: int,
    *,
    n_tiles: int | None = None,
    dropped: Mapping[str, int] | None = None,
    agreement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Figures of a pairing, computed on the first snippet of each tile.

    Args:
        pairs: tile_id, rank, snippet_id, score.
        n_snippets: Snippets that could have been chosen.
        n_tiles: Tiles that could have had one; those of the table by default.
        dropped: How many candidate pairs were dropped, by reason.
        agreement: Figures of `clipit.pairing.agreement.agreement`, to be shown beside the others.

    Returns:
        Score quantiles; distinct snippets used; the share of tiles that the most used 1 % of all snippets hold
        (hubness); skewness of how often each snippet is among a tile's snippets; tiles without a pair; the ten most
        used snippets; ten examples spread over the scores.
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
    """Skewness of the k-occurrences: in how many bags each snippet is, those in none included.

    Formula: E[(N - mean)^3] / sd^3 (Radovanovic et al. 2010, JMLR 11, section 2.2). 0: evenly used; large: hubs.
    None when all snippets are used equally often.
    """
    mean = uses.sum() / n_snippets
    unused = n_snippets - len(uses)
    second = (((uses - mean) ** 2).sum() + unused * mean**2) / n_snippets
    third = (((uses - mean) ** 3).sum() - unused * mean**3) / n_snippets
    return float(third / second**1.5) if second > 1e-12 else None


def summary_text(summary: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The figures as lines for a person.

    Args:
        summary: From `summarise`.
        texts: Snippet id -> text.
    """
    if not summary["tiles"]:
        return "no tile was paired"
    scores = summary["score_quantiles"]
    without = summary.get("tiles_without_pair", 0)
    dropped = ", ".join(f"{name} {count}" for name, count in summary.get("dropped", {}).items())
    skew = summary.get("skewness")
    lines = [
        f"{summary['tiles']} tiles paired with {summary['snippets_used']} of {summary['snippets']} snippets",
        f"scores (cosine): 5 % {scores['0.05']:.3f}, median {scores['0.5']:.3f}, 95 % {scores['0.95']:.3f}",
        f"hubness: the {summary['hub_snippets']} most used snippets (1 %) hold {summary['hub_share']:.1%} of the tiles"
        + ("" if skew is None else f"; skewness {skew:.2f}"),
    ]
    if without:
        lines.append(f"{without} tiles ({summary['share_without_pair']:.1%}) have no pair")
    if dropped:
        lines.append(f"dropped candidates: {dropped}")
    lines += _agreement_lines(summary.get("agreement"))
    lines.append("most used:")
    lines += [
        f"  {row['tiles']:6d} tiles  {printable(texts[row['snippet_id']][:90])}" for row in summary["most_used"][:5]
    ]
    lines.append("examples, from the best score to the worst:")
    lines += [
        f"  {row['score']:.3f}  {printable(row['tile_id'])}  {printable(texts[row['snippet_id']][:90])}"
        for row in summary["examples"][:5]
    ]
    return "\n".join(lines)


def _agreement_lines(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    words = {
        "neighbours": "tiles that share a snippet share the label",
        "zero_shot": "the snippet's text is nearest to the label's prompts",
        "score_auroc": "the score tells these from the others (AUROC)",
    }
    lines = [
        f"  {text}: "
        + (f"undefined ({found['undefined'].get(key, '')})" if found[key] is None else f"{found[key]:.3f}")
        for key, text in words.items()
    ]
    chance = "" if found["chance"] is None else f", most frequent label {found['chance']:.3f}"
    return [f"agreement with labels ({found['labelled']} labelled tiles{chance}):", *lines]
