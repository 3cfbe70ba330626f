"""Tiles and snippets in the joint space, before and after: the modality gap, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Int

from clipit.comparison.analyses.result import AnalysisResult, title
from clipit.comparison.plan import Plan
from clipit.distributed import get_processes
from clipit.evaluation.score_row import ScoreRow
from clipit.reporting.tables import number
from clipit.stores.embed import centred, unit
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.tiles.tileset import TileSet

_SAMPLE = 1000  # tiles and snippets in the picture of the embeddings
_TILES = "test tiles"


def joint_space(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> list[AnalysisResult]:
    """The same test tiles, and snippets, as the VLM gives them, centred, and as the first distilled student projects.

    Args:
        plan: Data set and backbone.
        workspace: Of its configuration; without reports there is nothing to look at.
        rows: Of its runs.
        folder: Not needed: the points are kept beside the page.
    """
    if plan.config.reports is None:
        return []
    tests = workspace.all_tiles.of_split("test")
    some = tests.select(_spread(len(tests)))
    tile_store, text_store = workspace.tile_store("test"), workspace.index.store
    shown = _spread(len(text_store.ids))
    images, texts = tile_store.rows(tile_store.positions(some.ids)), text_store.rows(shown)
    names = {_TILES: some.ids, "snippets": text_store.ids[shown]}
    spaces = [("as the VLM gives them", "as the VLM gives them", {_TILES: images, "snippets": texts}, names)]
    stores = {"tiles": tile_store, "snippets": text_store}
    if workspace.text_mean is not None:
        images, texts = centred(images, workspace.tile_mean), centred(texts, workspace.text_mean)
        told = "centred by the means of all training tiles and of all snippets"
        spaces.append((told, "centred", {_TILES: images, "snippets": texts}, names))
        stores["training tiles (their mean)"] = workspace.tile_store("train")
    sources = [f"{name}: {store.artifact.folder.name}" for name, store in stores.items()]
    facts = {name: store.fingerprint for name, store in stores.items()}
    projected = _projections(plan, workspace, rows, some)
    if projected is not None:
        row, vectors = projected
        kind, run = "test tiles, by the student", row.run_folder()
        own = {kind: some.ids, "snippets": names["snippets"]}
        space = f"as {row.arm} (seed {row.seed}) projects them"
        spaces.append((space, "projected by the student", {kind: vectors, "snippets": texts}, own))
        sources.append(f"projections: classifier of {run.parent.name}/{run.name}")
    gaps = [(space, *_gap(*points.values())) for space, _, points, _ in spaces]
    return [
        AnalysisResult(
            title(plan, "Tiles and snippets in the joint space"),
            "Distance of the two modalities' means (the modality gap, arXiv 2203.02053) and mean cosine of a tile with "
            f"its nearest snippet, on up to {_SAMPLE} of each: the same {len(some)} test tiles and {len(shown)} "
            "snippets in all rows. The pictures show the two main directions (PCA).",
            ("test tiles and snippets", "gap", "cosine with the nearest"),
            tuple((space, number(gap, 3), number(nearest, 3)) for space, gap, nearest in gaps),
            "; ".join(sources),
            {panel: _plane(points) for _, panel, points, _ in spaces},
            tuple(
                {"space": space, "gap": gap, "nearest": nearest, "fingerprints": facts} for space, gap, nearest in gaps
            ),
            {panel: ids for _, panel, _, ids in spaces},
        )
    ]


def _projections(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], some: "TileSet"
) -> tuple[ScoreRow, Float32[np.ndarray, "n dim"]] | None:
    """The first row whose classifier predicts this VLM's texts, and its unit projections of these tiles."""
    from clipit.models.inference import load_classifier

    for row in rows:
        if row.run is None or row.part != "test":
            continue
        trust = plan.config.backbone.trust_remote_code
        classifier = load_classifier(row.run / "classifier", get_processes().device, trust_remote_code=trust)
        vlm = classifier.spec.vlm
        if vlm is None or vlm["fingerprint"] != workspace.vlm.fingerprint:
            continue
        return row, unit(classifier.project([some.read(i) for i in range(len(some))]))
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
