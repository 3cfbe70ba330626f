"""Tiles and snippets in the joint space, before and after training: the modality gap, and a PCA plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from clipit.comparison.analyses.result import AnalysisResult, heading
from clipit.comparison.plan import Plan
from clipit.errors import counted
from clipit.evaluation.score_row import ScoreRow
from clipit.reporting.tables import number
from clipit.runs.predict_tiles import open_classifier
from clipit.tiles.tileset import TileSet
from clipit.vectors import centred, unit
from clipit.workspace.workspace import Workspace

_SAMPLE = 1000  # maximum number of tiles, and of snippets, in the analysis


@dataclass(frozen=True)
class _Space:
    """Embeddings and ids of tiles and snippets in one representation, by modality."""

    name: str
    panel: str
    vectors: dict[str, Float32[np.ndarray, "_ dim"]]
    ids: dict[str, Shaped[np.ndarray, "_"]]

    def gap(self) -> tuple[float, float]:
        """Compute the distance between the two means, and the mean cosine between a tile and its nearest snippet."""
        images, texts = self.vectors.values()
        gap = float(np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0)))
        return gap, float((images @ texts.T).max(axis=1).mean())


def analyse_joint_space(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path
) -> list[AnalysisResult]:
    """Compare test tiles and snippets as embedded by the VLM, after centring, and as projected by a student.

    The student comes from the first run whose classifier predicts the VLM's text embeddings. Without reports, the list
    is empty.
    """
    if plan.config.reports is None:
        return []
    tests = workspace.all_tiles.of_split("test")
    tiles = tests.select(_sample(len(tests)))
    tile_store, text_store = workspace.tile_store("test"), workspace.index.store
    sampled = _sample(len(text_store.ids))
    images, texts = tile_store.rows(tile_store.positions(tiles.ids)), text_store.rows(sampled)
    ids = {"test tiles": tiles.ids, "snippets": text_store.ids[sampled]}
    original = "as embedded by the VLM"
    spaces = [_Space(original, original, {"test tiles": images, "snippets": texts}, ids)]
    stores = {"tiles": tile_store, "snippets": text_store}
    if workspace.text_mean is not None:
        images, texts = centred(images, workspace.tile_mean), centred(texts, workspace.text_mean)
        name = "centred with the means of all training tiles and of all snippets"
        spaces.append(_Space(name, "centred", {"test tiles": images, "snippets": texts}, ids))
        stores["training tiles (their mean)"] = workspace.tile_store("train")
    sources = [f"{name}: {store.artifact.folder.name}" for name, store in stores.items()]
    student = _project_with_text_student(plan, workspace, rows, tiles)
    if student is not None:
        row, projections = student
        projected = {"test tiles, by the student": projections, "snippets": texts}
        projected_ids = {"test tiles, by the student": tiles.ids, "snippets": ids["snippets"]}
        name = f"as projected by {row.arm} (seed {row.seed})"
        spaces.append(_Space(name, "projected by the student", projected, projected_ids))
        run = row.run_folder()
        sources.append(f"projections: classifier of {run.parent.name}/{run.name}")
    gaps = [(space.name, *space.gap()) for space in spaces]
    fingerprints = {name: store.fingerprint for name, store in stores.items()}
    return [
        AnalysisResult(
            heading=heading(plan, "Tiles and snippets in the joint space"),
            text="Distance between the means of the two modalities (the modality gap, arXiv 2203.02053), and mean "
            f"cosine between a tile and its nearest snippet. Up to {_SAMPLE} of each are sampled; all rows use the "
            f"same {counted(len(tiles), 'test tile')} and {counted(len(sampled), 'snippet')}. The plots show the first "
            "two principal components.",
            header=("test tiles and snippets", "gap", "cosine with nearest snippet"),
            rows=tuple((name, number(gap, 3), number(nearest, 3)) for name, gap, nearest in gaps),
            source="; ".join(sources),
            planes={space.panel: _principal_plane(space.vectors) for space in spaces},
            values=tuple(
                {"space": name, "gap": gap, "nearest": nearest, "fingerprints": fingerprints}
                for name, gap, nearest in gaps
            ),
            ids={space.panel: space.ids for space in spaces},
        )
    ]


def _project_with_text_student(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], tiles: TileSet
) -> tuple[ScoreRow, Float32[np.ndarray, "n dim"]] | None:
    """Return the first run whose classifier predicts this VLM's text embeddings, and its projections of the tiles."""
    for row in rows:
        if row.run is None or row.test_set != "test":
            continue
        classifier = open_classifier(plan.config, row.run)
        vlm = classifier.spec.vlm
        if vlm is not None and vlm["fingerprint"] == workspace.vlm.fingerprint:
            return row, unit(classifier.project([tiles.read(i) for i in range(len(tiles))]))
    return None


def _sample(n: int) -> Int[np.ndarray, "_"]:
    """Return at most `_SAMPLE` evenly spaced positions below n."""
    return np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64)) if n else np.empty(0, dtype=np.int64)


def _principal_plane(vectors: Mapping[str, Float32[np.ndarray, "_ dim"]]) -> dict[str, Float[np.ndarray, "_ 2"]]:
    """Compute coordinates along the first two principal components of all points together."""
    points = np.concatenate(list(vectors.values())).astype(np.float64)
    mean = points.mean(axis=0)
    _, _, directions = np.linalg.svd(points - mean, full_matrices=False)
    return {name: (values - mean) @ directions[:2].T for name, values in vectors.items()}
