"""Write the page and tables about several annotators: annotators.html, annotators.json and annotators.csv."""

from pathlib import Path
from typing import Any

import numpy as np

from clipit.annotators.agreement import alpha_interval, krippendorff_alpha, pair_agreement
from clipit.annotators.labelling import Annotations, Consensus
from clipit.annotators.votes import majority
from clipit.config.run import RunConfig
from clipit.errors import ConfigError
from clipit.evaluation.human_ceiling import human_ceiling
from clipit.evaluation.intervals import group_numbers
from clipit.output_files.artifacts import locked, write_json
from clipit.output_files.whole_files import write_rows, write_text
from clipit.reporting.annotators_page import DisputedTile, annotators_page
from clipit.reporting.thumbnails import picture_uri
from clipit.tiles.tileset import TileSet
from clipit.versions import git_commit, versions
from clipit.workspace.workspace import Workspace

_SIDE, _QUALITY = 150, 80  # pixels and JPEG quality of the tiles on the page


def write_annotators(config: RunConfig, *, shown: int = 24) -> Path:
    """Write a page about the annotators of a configuration's tiles: `<output>/annotators/<name>/annotators.html`.

    annotators.json contains all numbers of the page; annotators.csv contains the votes, the majority, the consensus
    and the posterior of each tile.

    Args:
        config: Run configuration with `tiles.annotations`.
        shown: Number of tiles with the least agreement on the page.

    Returns:
        Path of the page.

    Raises:
        ConfigError: No annotators are configured, or `shown` is negative.
        DataError: The tiles or the annotators' labels are invalid.
    """
    if config.tiles.annotations is None:
        raise ConfigError(
            "no labels from several annotators are configured",
            where="tiles.annotations",
            fix="set tiles.annotations.path to a table with the columns tile, annotator and label",
        )
    if shown < 0:
        raise ConfigError(f"cannot show {shown} tiles", where="--shown", fix="use 0 or more")
    tiles = Workspace(config).listed_tiles
    annotations = tiles.annotations
    if annotations is None:
        raise ConfigError(
            "the tiles have no annotator labels", where="tiles.annotations", fix="set tiles.annotations.path"
        )
    record = annotator_statistics(tiles, annotations, config.evaluation.bootstrap, config.seed)
    folder = config.output / "annotators" / config.name
    rows = _tile_rows(tiles, annotations)
    page = annotators_page(f"{config.name}: annotators", record, _disputed(tiles, annotations, shown))
    path = folder / "annotators.html"
    with locked(folder):  # another command may be writing the same files
        write_json(folder / "annotators.json", record | {"commit": git_commit(), "versions": versions()})
        write_rows(folder / "annotators.csv", list(rows[0]) if rows else ["tile"], rows)
        write_text(path, page)
    return path


def annotator_statistics(tiles: TileSet, annotations: Annotations, resamples: int, seed: int) -> dict[str, Any]:
    """Compute the contents of the page as JSON-serialisable values.

    Args:
        tiles: Tiles labelled by annotators.
        resamples: Number of bootstrap resamples for the interval of alpha.
    """
    votes = annotations.votes
    counts = votes.counts()
    group_of = dict(zip(tiles.ids.tolist(), tiles.patients.tolist(), strict=True))
    groups = np.asarray([group_of.get(name, "") for name in votes.items], dtype=object)
    paired = counts.sum(axis=1) >= 2
    interval = alpha_interval(counts[paired], group_numbers(groups[paired]).astype(np.int64), resamples, seed)
    low, high = interval or (None, None)
    pairs = pair_agreement(votes) if votes.named else None
    return {
        "classes": list(votes.classes),
        "facts": {
            "annotated tiles": f"{len(votes):,} of {len(tiles):,}",
            "annotators": len(votes.annotators) if votes.named else "not named",
            "labels": int(votes.times.sum()),
            "labels per annotated tile": round(float(votes.times.sum()) / max(len(votes), 1), 2),
            "training annotators": ", ".join(annotations.training.votes.annotators) if votes.named else "not named",
            "test labels": "consensus of the test annotators"
            if annotations.test_annotators
            else "taken from the source",
            "test annotators": _test_annotators(annotations),
            "test labels independent of training annotators": annotations.independent,
        },
        "agreement": {
            "alpha": krippendorff_alpha(counts),
            "low": low,
            "high": high,
            "tiles": int(paired.sum()),
            "units": "groups" if (groups[paired] != "").any() else "tiles",
        },
        "pairs": None
        if pairs is None
        else [
            {
                "annotator": name,
                "shared": pairs.shared[row].tolist(),
                "agreement": _nan_to_none(pairs.agreement[row]),
                "kappa": _nan_to_none(pairs.kappa[row]),
            }
            for row, name in enumerate(votes.annotators)
        ],
        "training": _estimates(annotations.training),
        "test": _estimates(annotations.test) if annotations.test_annotators else None,
        "human_ceiling": human_ceiling(tiles.of_split("test")),
        "notes": list(tiles.notes),
    }


def _test_annotators(annotations: Annotations) -> str:
    if not annotations.test_annotators:
        return "none"
    return ", ".join(annotations.test_annotators) if annotations.votes.named else "not named"


def _nan_to_none(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _estimates(consensus: Consensus) -> dict[str, Any] | None:
    """Describe a consensus; None without votes."""
    votes, estimates = consensus.votes, consensus.estimates
    if not len(votes):
        return None
    most_common = majority(votes.counts(), votes.items)
    facts: dict[str, Any] = {"tiles": len(votes), "reason": consensus.reason}
    if estimates is None:
        return facts
    agrees = votes.label == consensus.labels[votes.item]
    totals = np.bincount(votes.annotator, weights=votes.times, minlength=len(votes.annotators))
    agreeing = np.bincount(votes.annotator, weights=votes.times * agrees, minlength=len(votes.annotators))
    items = votes.items_per_annotator() if votes.named else np.full(1, len(votes))
    return facts | {
        "priors": estimates.priors.tolist(),
        "log_likelihood": estimates.log_likelihood,
        "iterations": len(estimates.objective),
        "converged": estimates.converged,
        "differs": int((most_common.labels != consensus.labels).sum()),
        "overruled": [votes.items[row] for row in consensus.overruled.tolist()],
        "tied": int(most_common.tied.sum()),
        "annotators": [
            {
                "annotator": name,
                "tiles": int(items[row]),
                "accuracy": float(estimates.accuracies[row]),
                "balanced_accuracy": float(np.diag(estimates.confusions[row]).mean()),
                "agreement": float(agreeing[row] / totals[row]),
                "confusion": estimates.confusions[row].tolist(),
            }
            for row, name in enumerate(votes.annotators)
        ],
    }


def _tile_rows(tiles: TileSet, annotations: Annotations) -> list[dict[str, Any]]:
    """Return one row per annotated tile: votes of its annotators, majority, consensus and posterior."""
    split_of = dict(zip(tiles.ids.tolist(), tiles.splits.tolist(), strict=True))
    rows = []
    for consensus in (annotations.training, annotations.test):
        votes = consensus.votes
        counts = votes.counts()
        most_common = majority(counts, votes.items)
        for row, name in enumerate(votes.items):
            record: dict[str, Any] = {"tile": name, "split": split_of.get(name, "")}
            record |= {f"votes_{label}": int(n) for label, n in zip(votes.classes, counts[row], strict=True)}
            record["majority"] = votes.classes[most_common.labels[row]]
            record["tied"] = int(most_common.tied[row])
            record["consensus"] = votes.classes[consensus.labels[row]]
            posterior = consensus.posteriors[row]
            record |= {f"p_{label}": round(float(p), 6) for label, p in zip(votes.classes, posterior, strict=True)}
            rows.append(record)
    return rows


def _disputed(tiles: TileSet, annotations: Annotations, shown: int) -> list[DisputedTile]:
    """Return the tiles with the least certain consensus, of those whose annotators disagree; ties are ordered by id."""
    row_of = {name: row for row, name in enumerate(tiles.ids.tolist())}
    candidates = []
    for consensus in (annotations.training, annotations.test):
        disagreeing = (consensus.votes.counts() > 0).sum(axis=1) > 1
        for row in np.flatnonzero(disagreeing).tolist():
            candidates.append((float(consensus.posteriors[row].max()), consensus.votes.items[row], consensus, row))
    candidates.sort(key=lambda candidate: candidate[:2])
    disputed = []
    for posterior, name, consensus, row in candidates[:shown]:
        if name not in row_of:
            continue
        disputed.append(
            DisputedTile(
                name,
                str(tiles.splits[row_of[name]]),
                picture_uri(tiles, row_of[name], side=_SIDE, quality=_QUALITY),
                _describe_votes(consensus, row),
                f"{consensus.votes.classes[consensus.labels[row]]} {posterior:.3f}",
            )
        )
    return disputed


def _describe_votes(consensus: Consensus, row: int) -> str:
    """List the annotators who chose each class for an item, or the number of votes for each class."""
    votes = consensus.votes
    if not votes.named:
        counts = zip(votes.classes, votes.counts()[row].tolist(), strict=True)
        return "; ".join(f"{label}: {count}" for label, count in counts if count)
    names_of: dict[str, list[str]] = {}
    for vote in np.flatnonzero(votes.item == row).tolist():
        names_of.setdefault(votes.classes[votes.label[vote]], []).append(votes.annotators[votes.annotator[vote]])
    return "; ".join(f"{label}: {', '.join(names)}" for label, names in sorted(names_of.items()))
