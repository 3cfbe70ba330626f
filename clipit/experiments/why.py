"""Why an arm helps or not: what text knows that vision does not, how good the pairs are, where the gain lies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from clipit.embedding import centred, unit
from clipit.errors import DataError
from clipit.evaluation.complementarity import Complementarity, complementarity
from clipit.evaluation.predictions import Predictions, read_predictions
from clipit.experiments.cells import Setting
from clipit.experiments.complementarity import image_probe_predictions, text_only_predictions
from clipit.experiments.materials import Materials
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
    """

    heading: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str
    planes: Mapping[str, Mapping[str, Float[np.ndarray, "n 2"]]]


def findings(setting: Setting, materials: Materials, rows: Sequence[Row]) -> list[Finding]:
    """The analyses that the configuration asks for, on a setting's finished runs."""
    analyses: dict[str, Callable[[Setting, Materials, Sequence[Row]], list[Finding]]] = {
        "complementarity": _complementarity,
        "pairing": _pairing,
        "classes": _by_class,
        "embeddings": _embeddings,
    }
    found = []
    for name in setting.config.comparison.why:
        found += analyses[name](setting, materials, rows)
    return found


def _of(rows: Sequence[Row], arm: str, seed: int) -> Predictions:
    path = next(row["predictions"] for row in rows if (row["arm"], row["seed"], row["part"]) == (arm, seed, "test"))
    return read_predictions(Path(path)).select("test")


def _title(setting: Setting, what: str) -> str:
    several = len(setting.config.comparison.backbones) > 1
    return f"{what} ({setting.data_set}, {setting.backbone})" if several else f"{what} ({setting.data_set})"


def _complementarity(setting: Setting, materials: Materials, rows: Sequence[Row]) -> list[Finding]:
    config, c = setting.config, setting.config.comparison
    seed, base = c.seeds[0], c.baseline
    vision = _of(rows, base, seed)
    others: dict[str, Predictions] = {}
    try:
        if config.reports is not None:
            text_only = text_only_predictions(config, materials, seed)
            others["text only: a head on the snippets that test tiles find"] = text_only
        others["the VLM's image probe"] = image_probe_predictions(config, materials, seed)
    except DataError as error:  # too few labels for a head: the other rows stand
        materials.say(f"note: {str(error).splitlines()[0]}; the text-only classifier and the image probe are left out")
    if len(c.seeds) > 1:
        others[f"{base}, seed {c.seeds[1]}"] = _of(rows, base, c.seeds[1])
    others |= {f"{arm}, seed {seed}": _of(rows, arm, seed) for arm in setting.arms if arm != base}
    resamples = config.evaluation.bootstrap
    made = [(name, complementarity(vision, other, resamples, seed)) for name, other in others.items()]
    return [
        Finding(
            _title(setting, "Who is right where vision is wrong"),
            f"R counts test tiles that another classifier gets right and {base} (seed {seed}) gets wrong (CLIP-IT, "
            "figure 3). Any two classifiers have R > 0: `expected` is R if both erred independently, and a second seed "
            "of the same arm shows what another start (and, with few labels, other labelled tiles) gives without text. "
            "The text-only head reads the plain nearest snippets, without the rules of `pairing`.",
            (
                "other classifier",
                "its accuracy %",
                "R (tiles)",
                "R %",
                "of vision's errors %",
                "expected %",
                "excess %",
            ),
            tuple((name, *_r_cells(found)) for name, found in made),
            "predictions.parquet of the runs; text-only and probe are fitted in memory, on training labels",
            {},
        )
    ]


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


def _gain(setting: Setting, rows: Sequence[Row], arm: str) -> tuple[Predictions, Float[np.ndarray, "n"]]:
    """Hits of an arm minus hits of the baseline per labelled test tile, mean over seeds."""
    c = setting.config.comparison
    gains = []
    for seed in c.seeds:
        tiles, base = _hits(rows, c.baseline, seed)
        gains.append(_hits(rows, arm, seed)[1] - base)
    return tiles, np.mean(gains, axis=0)


def _pairing(setting: Setting, materials: Materials, rows: Sequence[Row]) -> list[Finding]:
    """How good the pairs are, and whether tiles with near snippets gain more."""
    if setting.config.reports is None:
        return []
    return [_quality(setting, materials), *_by_score(setting, materials, rows)]


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
        "pairs.parquet, summary.json and the tiles' labels",
        {},
    )


def _by_score(setting: Setting, materials: Materials, rows: Sequence[Row]) -> list[Finding]:
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
    filled = [q for q in range(_QUARTERS) if (quarter == q).any()]
    header = ("arm", *(f"{scores[quarter == q].min():.2f} to {scores[quarter == q].max():.2f}" for q in filled))
    table = []
    for arm in setting.arms:
        if arm != c.baseline:
            _, gain = _gain(setting, rows, arm)
            table.append((arm, *(number(PERCENT * gain[quarter == q].mean(), 1, signed=True) for q in filled)))
    return [
        Finding(
            _title(setting, "Gain by pairing score"),
            f"Accuracy against {c.baseline} in points, mean over seeds, in four equal parts of the test tiles by the "
            "cosine of their nearest snippet (searched for in memory; test tiles are never paired for training). "
            "If the retrieved text itself helped, tiles with near snippets should gain more than they do by the "
            "control that distils the VLM's image embedding. Exploratory: no intervals.",
            header,
            tuple(table),
            "predictions.parquet of the runs; tile store and index",
            {},
        )
    ]


def _by_class(setting: Setting, materials: Materials, rows: Sequence[Row]) -> list[Finding]:
    """Difference in recall per class."""
    c, classes = setting.config.comparison, materials.some_tiles.classes
    counted = _hits(rows, c.baseline, c.seeds[0])[0].labels
    table = []
    for arm in setting.arms:
        if arm != c.baseline:
            tiles, gain = _gain(setting, rows, arm)
            of_class = [gain[tiles.labels == k] for k in range(len(classes))]
            table.append(
                (arm, *(number(PERCENT * g.mean(), 1, signed=True) if len(g) else "no tile" for g in of_class))
            )
    return [
        Finding(
            _title(setting, "Gain by class"),
            f"Recall against {c.baseline} in points, mean over seeds, test split. Exploratory: no intervals, and the "
            "largest of many differences is large by chance.",
            ("arm", *(f"{name} ({int((counted == k).sum())})" for k, name in enumerate(classes))),
            tuple(table),
            "predictions.parquet of the runs",
            {},
        )
    ]


def _embeddings(setting: Setting, materials: Materials, rows: Sequence[Row]) -> list[Finding]:
    """Images and texts in the joint space before and after centring, and what the first distilled student projects."""
    config = setting.config
    if config.reports is None:
        return []
    tile_store, text_store = materials.tile_store("train"), materials.index.store
    images, texts = (s.rows(_spread(len(s.ids))) for s in (tile_store, text_store))
    planes = {"as the VLM gives them": _plane({"tiles": images, "snippets": texts})}
    table = [("as the VLM gives them", *_gap(images, texts))]
    if materials.text_mean is not None:
        images, texts = centred(images, materials.tile_mean), centred(texts, materials.text_mean)
        planes["centred"] = _plane({"tiles": images, "snippets": texts})
        table.append(("each centred by its own mean", *_gap(images, texts)))
    projected = _projections(setting, materials, rows)
    if projected is not None:
        planes["projected by the student"] = _plane({"test tiles, by the student": projected[1], "snippets": texts})
        table.append((f"test tiles as {projected[0]} projects them", *_gap(projected[1], texts)))
    return [
        Finding(
            _title(setting, "Tiles and snippets in the joint space"),
            "Distance of the two modalities' means (the modality gap, arXiv 2203.02053) and mean cosine of a tile with "
            f"its nearest snippet, on up to {_SAMPLE} of each. The pictures show the two main directions (PCA).",
            ("space", "gap", "cosine with the nearest"),
            tuple(table),
            "tile store, text store and means; the student's projections of test tiles",
            planes,
        )
    ]


def _projections(
    setting: Setting, materials: Materials, rows: Sequence[Row]
) -> tuple[str, Float32[np.ndarray, "n dim"]] | None:
    """Unit projections of test tiles by the first arm whose classifier predicts the text space of this VLM."""
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
        return f"{row['arm']} (seed {row['seed']})", unit(found)
    return None


def _spread(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64)) if n else np.empty(0, dtype=np.int64)


def _gap(images: Float32[np.ndarray, "n dim"], texts: Float32[np.ndarray, "m dim"]) -> tuple[str, str]:
    gap = float(np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0)))
    return number(gap, 3), number(float((images @ texts.T).max(axis=1).mean()), 3)


def _plane(points: Mapping[str, Float32[np.ndarray, "_ dim"]]) -> dict[str, Float[np.ndarray, "_ 2"]]:
    """Coordinates along the two main directions of all points together (PCA)."""
    every = np.concatenate(list(points.values())).astype(np.float64)
    middle = every.mean(axis=0)
    _, _, directions = np.linalg.svd(every - middle, full_matrices=False)
    return {name: (values - middle) @ directions[:2].T for name, values in points.items()}
