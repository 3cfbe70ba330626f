"""Why an arm helps or not: what text knows that vision does not, how good the pairs are, where the gain lies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int, Shaped

from clipit.artifacts import whole_file
from clipit.distributed import processes
from clipit.embedding import centred, unit
from clipit.errors import DataError
from clipit.evaluation.complementarity import Complementarity, complementarity
from clipit.evaluation.predictions import Predictions, read_predictions
from clipit.experiments.cells import Setting
from clipit.experiments.complementarity import image_probe_predictions, text_only_predictions
from clipit.experiments.materials import Materials
from clipit.experiments.references import keep, predictions_file
from clipit.pairing.agreement import agreement
from clipit.pairing.pairs import search
from clipit.reporting.comparison_tables import PERCENT, REFERENCE
from clipit.reporting.tables import interval, number

_QUARTERS = 4
_SAMPLE = 1000  # tiles and snippets in the picture of the embeddings
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One analysis of one data set and backbone, as a table or as points in a plane.

    Attributes:
        heading: What it is about.
        text: How to read it.
        header: Of the table.
        rows: Of the table.
        source: Files and columns that it was computed from.
        planes: Title -> name of the points -> coordinates, for a picture; empty for none.
        values: What the table's cells were rounded from: one row of plain numbers per cell or line, scores and shares
            in 0..1, with the files that they come from.
        ids: Title -> name of the points -> tile or snippet id of each point of `planes`.
        points: File beside the picture that holds its points; "" while they are in memory alone.
    """

    heading: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str
    planes: Mapping[str, Mapping[str, Float[np.ndarray, "_ 2"]]]
    values: tuple[Mapping[str, Any], ...] = ()
    ids: Mapping[str, Mapping[str, Shaped[np.ndarray, "_"]]] = field(default_factory=dict)
    points: str = ""


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
        "complementarity": _complementarity,
        "pairing": _pairing,
        "classes": _by_class,
        "embeddings": _embeddings,
    }
    found = []
    for name in setting.config.comparison.why:
        found += analyses[name](setting, materials, rows, folder)
    return found


def _file(rows: Sequence[Row], arm: str, seed: int) -> str:
    """The predictions of a run, as its row names them."""
    found = (row["predictions"] for row in rows if (row["arm"], row["seed"], row["part"]) == (arm, seed, "test"))
    return str(next(found))


def _of(rows: Sequence[Row], arm: str, seed: int) -> Predictions:
    return read_predictions(Path(_file(rows, arm, seed))).select("test")


def _title(setting: Setting, what: str) -> str:
    several = len(setting.config.comparison.backbones) > 1
    return f"{what} ({setting.data_set}, {setting.backbone})" if several else f"{what} ({setting.data_set})"


def _complementarity(setting: Setting, materials: Materials, rows: Sequence[Row], folder: Path) -> list[Finding]:
    config, c = setting.config, setting.config.comparison
    seed, base = c.seeds[0], c.baseline
    vision = _of(rows, base, seed)
    others: dict[str, tuple[Predictions, str]] = {}

    def kept(name: str, predictions: Predictions) -> tuple[Predictions, str]:
        """Predictions of a head that belongs to this analysis, and the file in which they now lie."""
        path = predictions_file(folder, name, seed, "test")
        keep(path, predictions)
        return predictions, str(path)

    try:
        if config.reports is not None:
            text_only = kept("text-only", text_only_predictions(config, materials, seed))
            others["text only: a head on the snippets that test tiles find"] = text_only
        others["the VLM's image probe"] = kept("image-probe", image_probe_predictions(config, materials, seed))
    except DataError as error:  # too few labels for a head: the other rows stand
        materials.say(f"note: {str(error).splitlines()[0]}; the text-only classifier and the image probe are left out")
    if len(c.seeds) > 1:
        others[f"{base}, seed {c.seeds[1]}"] = _of(rows, base, c.seeds[1]), _file(rows, base, c.seeds[1])
    others |= {
        f"{arm}, seed {seed}": (_of(rows, arm, seed), _file(rows, arm, seed)) for arm in setting.arms if arm != base
    }
    resamples = config.evaluation.bootstrap
    made = [(name, complementarity(vision, other, resamples, seed), file) for name, (other, file) in others.items()]
    return [
        Finding(
            _title(setting, "Who is right where vision is wrong"),
            f"R counts test tiles that another classifier gets right and {base} (seed {seed}) gets wrong (CLIP-IT, "
            "figure 3). Any two classifiers have R > 0: `expected` is R if both erred independently, and a second seed "
            "of the same arm shows what another start (and, with few labels, other labelled tiles) gives without text. "
            "The text-only head reads the snippets that the rules of `pairing` give to all tiles alike; rules that an "
            "arm has for itself do not count.",
            (
                "other classifier",
                "its accuracy %",
                "R (tiles)",
                "R %",
                "of vision's errors %",
                "expected %",
                "excess %",
            ),
            tuple((name, *_r_cells(found)) for name, found, _ in made),
            f"predictions.parquet of the runs; predictions/{folder.name}: text-only and image-probe, seed {seed}",
            {},
            tuple(
                {"classifier": name, "predictions": file, "vision": _file(rows, base, seed), **_r_values(found)}
                for name, found, file in made
            ),
        )
    ]


def _r_values(found: Complementarity) -> dict[str, Any]:
    """The counts and shares of a row, as numbers."""
    named = {name: getattr(found, name) for name in ("both", "only_vision", "only_other", "neither")}
    shares = {name: getattr(found, name) for name in ("share", "of_wrong", "expected", "excess")}
    bounds = {
        f"{name}_{end}": getattr(limits, end) for name, limits in found.intervals.items() for end in ("low", "high")
    }
    accuracy = (found.both + found.only_other) / found.tiles
    return {"tiles": found.tiles, "accuracy": accuracy, **named, **shares, **bounds}


def _r_cells(found: Complementarity) -> tuple[str, ...]:
    accuracy = (found.both + found.only_other) / found.tiles
    excess = found.intervals["excess"]
    low, high = (None if v is None else PERCENT * v for v in (excess.low, excess.high))
    bounds = interval(low, high, 1, signed=True)
    return (
        number(PERCENT * accuracy, 1),
        str(found.only_other),
        number(PERCENT * found.share, 1),
        number(None if found.of_wrong is None else PERCENT * found.of_wrong, 1),
        number(PERCENT * found.expected, 1),
        f"{number(PERCENT * found.excess, 1, signed=True)} {bounds}".rstrip(),
    )


def _hits(rows: Sequence[Row], arm: str, seed: int) -> tuple[Predictions, Float[np.ndarray, "n"]]:
    found = _of(rows, arm, seed).by_id()
    known = found.take(found.labels >= 0)
    return known, (known.probabilities.argmax(axis=1) == known.labels).astype(np.float64)


def _gain(setting: Setting, rows: Sequence[Row], arm: str) -> tuple[Predictions, Float[np.ndarray, "n"], Row]:
    """Hits of an arm minus hits of the baseline per labelled test tile, mean over seeds; and the files of both."""
    c = setting.config.comparison
    gains = []
    for seed in c.seeds:
        tiles, base = _hits(rows, c.baseline, seed)
        gains.append(_hits(rows, arm, seed)[1] - base)
    files = {
        "seeds": list(c.seeds),
        "predictions": [_file(rows, arm, seed) for seed in c.seeds],
        "baseline": [_file(rows, c.baseline, seed) for seed in c.seeds],
    }
    return tiles, np.mean(gains, axis=0), files


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
        _title(setting, "Quality of the pairs"),
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
    """Gain per quarter of the test tiles, by how near their nearest snippet is."""
    config, c = setting.config, setting.config.comparison
    tiles, _ = _hits(rows, c.baseline, c.seeds[0])
    store = materials.tile_store("test")
    vectors = centred(store.rows(store.positions(tiles.ids)), materials.tile_mean)
    block = config.pairing.block
    scores = np.concatenate(
        [search(materials.index, vectors[s : s + block], 1)[1][:, 0] for s in range(0, len(vectors), block)]
    )
    quarter = np.searchsorted(np.quantile(scores, np.linspace(0, 1, _QUARTERS + 1)[1:-1]), scores, side="right")
    file = folder / "nearest-snippet-test.parquet"
    _keep_table(file, {"tile_id": tiles.ids.tolist(), "score": scores, "quarter": quarter})
    filled = [q for q in range(_QUARTERS) if (quarter == q).any()]
    bounds = {q: (float(scores[quarter == q].min()), float(scores[quarter == q].max())) for q in filled}
    table, values = [], []
    for arm in setting.arms:
        if arm != c.baseline:
            _, gain, files = _gain(setting, rows, arm)
            table.append((arm, *(number(PERCENT * gain[quarter == q].mean(), 1, signed=True) for q in filled)))
            for q in filled:
                part = {"quarter": q, "low": bounds[q][0], "high": bounds[q][1], "tiles": int((quarter == q).sum())}
                values.append(
                    {"arm": arm, **part, "gain": float(gain[quarter == q].mean()), "scores": str(file), **files}
                )
    return Finding(
        _title(setting, "Gain by pairing score"),
        f"Accuracy against {c.baseline} in points, mean over seeds, in four equal parts of the test tiles by the "
        "cosine of their nearest snippet (searched for in memory; test tiles are never paired for training). "
        "If the retrieved text itself helped, tiles with near snippets should gain more than they do by the "
        "control that distils the VLM's image embedding. Exploratory: no intervals.",
        ("arm", *(f"{low:.2f} to {high:.2f}" for low, high in bounds.values())),
        tuple(table),
        f"predictions.parquet of the runs; predictions/{folder.name}/{file.name}",
        {},
        tuple(values),
    )


def _keep_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a table that every process has, once."""
    if processes().main:
        with whole_file(path) as temporary:
            pq.write_table(pa.table(dict(columns)), temporary)


def _by_class(setting: Setting, materials: Materials, rows: Sequence[Row], folder: Path) -> list[Finding]:
    """Difference in recall per class."""
    c, classes = setting.config.comparison, materials.some_tiles.classes
    counted = _hits(rows, c.baseline, c.seeds[0])[0].labels
    counts = [int((counted == k).sum()) for k in range(len(classes))]
    table, values = [], []
    for arm in setting.arms:
        if arm != c.baseline:
            tiles, gain, files = _gain(setting, rows, arm)
            of_class = [float(gain[tiles.labels == k].mean()) if counts[k] else None for k in range(len(classes))]
            table.append((arm, *("no tile" if g is None else number(PERCENT * g, 1, signed=True) for g in of_class)))
            values += [
                {"arm": arm, "class": name, "tiles": counts[k], "gain": of_class[k], **files}
                for k, name in enumerate(classes)
            ]
    return [
        Finding(
            _title(setting, "Gain by class"),
            f"Recall against {c.baseline} in points, mean over seeds, test split. Exploratory: no intervals, and the "
            "largest of many differences is large by chance.",
            ("arm", *(f"{name} ({count})" for name, count in zip(classes, counts, strict=True))),
            tuple(table),
            "predictions.parquet of the runs",
            {},
            tuple(values),
        )
    ]


def _embeddings(setting: Setting, materials: Materials, rows: Sequence[Row], folder: Path) -> list[Finding]:
    """Images and texts in the joint space before and after centring, and what the first distilled student projects."""
    config = setting.config
    if config.reports is None:
        return []
    tile_store, text_store = materials.tile_store("train"), materials.index.store
    shown = {"tiles": _spread(len(tile_store.ids)), "snippets": _spread(len(text_store.ids))}
    images, texts = tile_store.rows(shown["tiles"]), text_store.rows(shown["snippets"])
    names = {"tiles": tile_store.ids[shown["tiles"]], "snippets": text_store.ids[shown["snippets"]]}
    spaces = [("as the VLM gives them", "as the VLM gives them", {"tiles": images, "snippets": texts}, names)]
    if materials.text_mean is not None:
        images, texts = centred(images, materials.tile_mean), centred(texts, materials.text_mean)
        spaces.append(("each centred by its own mean", "centred", {"tiles": images, "snippets": texts}, names))
    projected = _projections(setting, materials, rows)
    if projected is not None:
        told, ids, vectors = projected
        kind = "test tiles, by the student"
        own = {kind: ids, "snippets": names["snippets"]}
        title = "projected by the student"
        spaces.append((f"test tiles as {told} projects them", title, {kind: vectors, "snippets": texts}, own))
    gaps = [(space, *_gap(*points.values())) for space, _, points, _ in spaces]
    return [
        Finding(
            _title(setting, "Tiles and snippets in the joint space"),
            "Distance of the two modalities' means (the modality gap, arXiv 2203.02053) and mean cosine of a tile with "
            f"its nearest snippet, on up to {_SAMPLE} of each. The pictures show the two main directions (PCA).",
            ("space", "gap", "cosine with the nearest"),
            tuple((space, number(gap, 3), number(nearest, 3)) for space, gap, nearest in gaps),
            "tile store, text store and means; the student's projections of test tiles",
            {title: _plane(points) for _, title, points, _ in spaces},
            tuple({"space": space, "gap": gap, "nearest": nearest} for space, gap, nearest in gaps),
            {title: ids for _, title, _, ids in spaces},
        )
    ]


def _projections(
    setting: Setting, materials: Materials, rows: Sequence[Row]
) -> tuple[str, Shaped[np.ndarray, " n"], Float32[np.ndarray, "n dim"]] | None:
    """Which arm, ids and unit projections of test tiles by the first one whose classifier predicts this VLM's texts."""
    from clipit.distributed import processes
    from clipit.models.inference import load_classifier

    for row in rows:
        if row["arm"].startswith(REFERENCE) or row["part"] != "test":
            continue
        trust = setting.config.backbone.trust_remote_code
        classifier = load_classifier(Path(row["run"]) / "classifier", processes().device, trust_remote_code=trust)
        vlm = classifier.spec.vlm
        if vlm is None or vlm["fingerprint"] != materials.vlm.fingerprint:
            continue
        tests = materials.some_tiles.of_split("test")
        some = tests.select(_spread(len(tests)))
        found = classifier.project([some.read(i) for i in range(len(some))])
        return f"{row['arm']} (seed {row['seed']})", some.ids, unit(found)
    return None


def _spread(n: int) -> Int[np.ndarray, "_"]:
    return np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64)) if n else np.empty(0, dtype=np.int64)


def _gap(images: Float32[np.ndarray, "n dim"], texts: Float32[np.ndarray, "m dim"]) -> tuple[float, float]:
    gap = float(np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0)))
    return gap, float((images @ texts.T).max(axis=1).mean())


def _plane(points: Mapping[str, Float32[np.ndarray, "_ dim"]]) -> dict[str, Float[np.ndarray, "_ 2"]]:
    """Coordinates along the two main directions of all points together (PCA)."""
    every = np.concatenate(list(points.values())).astype(np.float64)
    middle = every.mean(axis=0)
    _, _, directions = np.linalg.svd(every - middle, full_matrices=False)
    return {name: (values - middle) @ directions[:2].T for name, values in points.items()}
