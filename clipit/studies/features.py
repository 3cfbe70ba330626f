"""Features of frozen models for probes: of the VLM's image tower, of the backbone, and of a run's classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from jaxtyping import Float32

from clipit.artifacts import file_sha256, fingerprint, whole_file
from clipit.config.run import BackboneConfig, RunConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import ArtifactError, DataError, ModelError, explain
from clipit.evaluation.features import Features
from clipit.progress import progress
from clipit.runs.folder import read_training
from clipit.stores.embed import Store, embed_tiles
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.tileset import SPLITS, TileSet
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.backbones import Backbone

JOINT = "VLM, joint space"
SEEN, UNSEEN, UNKNOWN = "true", "false", "unknown"
"""Of the column features_saw_labels."""
_SHARD = 4096


@dataclass(frozen=True)
class Frozen:
    """The features of all tiles by one frozen model.

    Attributes:
        name: As tables call it.
        facts: Model, fingerprint, preprocessing, pixels, features_saw_labels: what must stand beside every score.
        vectors: Split -> one row per tile, in the order of the split's tiles.
    """

    name: str
    facts: dict[str, Any]
    vectors: dict[str, Float32[np.ndarray, "_ d"]]

    def features(self, tiles: TileSet, split: str) -> Features:
        """The features of a split with the labels and groups that `tiles` tells."""
        part = tiles.of_split(split)
        return Features(part.ids, self.vectors[split], part.labels, part.groups)


def vlm_features(config: RunConfig, workspace: Workspace) -> list[Frozen]:
    """The VLM's joint space, and its raw space (before the projection) where it gives one."""
    vlm, tiles = workspace.vlm, workspace.all_tiles
    facts = vlm_facts(workspace) | {"features_saw_labels": UNSEEN}
    joint = {split: _vectors(workspace.tile_store(split), tiles.of_split(split)) for split in SPLITS}
    found = [Frozen(JOINT, facts, joint)]
    if vlm.raw_dim is not None:
        size = config.vlm.batch_size
        raw = {}
        for split in SPLITS:
            part = tiles.of_split(split)
            raw[split] = _vectors(embed_tiles(workspace.root, vlm, part, batch_size=size, space="raw"), part)
        found.append(Frozen("VLM, raw space", facts, raw))
    return found


def backbone_features(config: RunConfig, workspace: Workspace) -> Frozen:
    """The configuration's backbone as it comes: no LoRA, no training."""
    from clipit.models.backbones import load_backbone

    backbone = load_backbone(config.backbone, get_processes().device)
    return _of_backbone("backbone, frozen", backbone, config, workspace, {"features_saw_labels": UNSEEN})


def classifier_features(config: RunConfig, workspace: Workspace, run: Path) -> Frozen:
    """The pooled features of a finished run's classifier: the backbone with the adapter merged, before any head.

    Raises:
        ModelError: There is no classifier, or its folder cannot be opened as a backbone.
        DataError: It knows other classes than the tiles have.
    """
    from clipit.models.backbones import load_backbone
    from clipit.models.bundle import read_spec

    folder = run / "classifier"
    spec = read_spec(folder)
    if spec.classes != workspace.all_tiles.classes:
        raise DataError(
            explain(
                f"the classifier knows {', '.join(spec.classes)}; "
                f"the tiles have {', '.join(workspace.all_tiles.classes)}",
                where=folder,
                fix="give the run of this configuration",
            )
        )
    keys = config.backbone.model_dump() | {"name": str(folder), "path": None, "pixels": None, "pretrained": True}
    keys["pooling"] = spec.pooling
    backbone = load_backbone(BackboneConfig(**keys), get_processes().device)
    if backbone.preprocess.hash != spec.preprocess.hash:
        raise ModelError(
            explain(
                "the classifier's folder describes another preprocessing than the classifier was trained with",
                where=folder,
                fix="export it again",
            )
        )
    facts = run_facts(run) | {"features_saw_labels": saw_labels(run)}
    return _of_backbone(f"classifier {run.name}", backbone, config, workspace, facts)


def vlm_facts(workspace: Workspace) -> dict[str, Any]:
    """What must stand beside a figure of the VLM."""
    vlm = workspace.vlm
    facts = {"model": vlm.name, "fingerprint": vlm.fingerprint, "vlm": vlm.name, "vlm_fingerprint": vlm.fingerprint}
    return facts | {"preprocess": vlm.preprocess.hash, "pixels": vlm.preprocess.size}


def run_facts(run: Path) -> dict[str, Any]:
    """What a finished run says of itself: arm, seed, and what it was made from."""
    config, training = _run_files(run)
    facts = {"run": config.get("name", run.name), "arm": config.get("arm") or "custom", "run_seed": config.get("seed")}
    wanted = ("backbone", "backbone_fingerprint", "vlm", "vlm_fingerprint", "index", "pairs")
    return facts | {key: training.get(key) for key in wanted}


def classifier_fingerprint(folder: Path) -> str:
    """What stands for all weights of a classifier's folder."""
    return fingerprint([file_sha256(path) for path in sorted(folder.glob("*.safetensors"))])


def run_prompts(run: Path) -> dict[str, Any]:
    """The prompt set that a finished run's own answers in words are of."""
    training = _run_files(run)[1]
    return {"prompts": training.get("prompts"), "prompts_hash": training.get("prompts_hash")}


def saw_labels(run: Path) -> str:
    """Whether labels had a part in the features of a run's classifier: `true`, `false` or `unknown`.

    They had where the backbone was tuned and the run saw a label, be it only to choose its step on validation tiles.
    Unknown: the run's folder does not tell.
    """
    config, training = _run_files(run)
    tuning = (config.get("backbone") or {}).get("tuning")
    counts = [training.get(key) for key in ("training_labels", "validation_labels")]
    if tuning == "frozen" or counts == [0, 0]:
        return UNSEEN
    return UNKNOWN if tuning is None or None in counts else SEEN


def _run_files(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.yaml and training.json hold; empty where there is no such file."""
    config_file, training_file = run / "config.yaml", run / "training.json"
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        config = str(error)
    if not isinstance(config, dict):
        fix = "write it again: start scripts/train.py with the run's configuration"
        raise ArtifactError(explain("the run's configuration is damaged", where=config_file, fix=fix))
    return config, read_training(run) if training_file.is_file() else {}


def _of_backbone(
    name: str, backbone: "Backbone", config: RunConfig, workspace: Workspace, beside: dict[str, Any]
) -> Frozen:
    import torch

    device = get_processes().device

    def forward(pixels: np.ndarray) -> Float32[np.ndarray, "b d"]:
        """Features of one batch of pixels."""
        with torch.inference_mode():
            found = backbone.module(backbone.preprocess.normalise(torch.from_numpy(pixels).to(device)))
        return np.asarray(found.float().cpu().numpy())

    backbone.module.eval()
    vectors = {}
    for split in SPLITS:
        source = workspace.pixels(split, backbone.preprocess)
        inputs = {"tiles": source.tiles.fingerprint, "model": backbone.fingerprint, "pooling": backbone.pooling}
        vectors[split] = cached_features(
            workspace.root, inputs, source, backbone.dim, forward, config.evaluation.batch_size
        )
    facts = {
        "model": backbone.name,
        "fingerprint": backbone.fingerprint,
        "preprocess": backbone.preprocess.hash,
        "pixels": backbone.preprocess.size,
    }
    return Frozen(name, beside | facts, vectors)


def cached_features(
    root: Path,
    inputs: dict[str, Any],
    source: PixelSource,
    dim: int,
    forward: Callable[[np.ndarray], Float32[np.ndarray, "b d"]],
    batch_size: int,
) -> Float32[np.ndarray, "n d"]:
    """Features of all tiles of a source, in its order; kept as the artefact `features` (float32 shards, ids beside).

    Args:
        root: Output root.
        inputs: All that they depend on; they must name the tiles and the model.
        source: Tiles as the model wants them.
        dim: Length of a vector.
        forward: Pixels [b, 3, h, w] to features.
        batch_size: Tiles per forward pass; a batch never crosses a shard, so that one process and several write the
            same.
    """
    ids = source.tiles.ids

    def make(folder: Path) -> dict[str, Any]:
        """Compute the shards that are not there yet; the processes share them."""
        processes = get_processes()
        with progress("features of tiles", len(ids), shown=processes.main) as advance:
            for start in processes.share(range(0, len(ids), _SHARD)):
                stop = min(start + _SHARD, len(ids))
                file = folder / f"features-{start // _SHARD:05d}.npy"
                names = folder / f"ids-{start // _SHARD:05d}.parquet"
                if not (file.is_file() and names.is_file()):
                    batches = [np.arange(a, min(a + batch_size, stop)) for a in range(start, stop, batch_size)]
                    found = np.concatenate([forward(pixels) for _, pixels in source.ahead(batches)])
                    with whole_file(file) as temporary, temporary.open("wb") as stream:
                        np.save(stream, found.astype(np.float32))
                    with whole_file(names) as temporary:
                        pq.write_table(pa.table({"id": [str(name) for name in ids[start:stop]]}), temporary)
                advance((stop - start) * processes.count)
        return {"rows": len(ids), "dim": dim}

    artifact = build_once(root, "features", inputs, make)
    files = sorted(name for name in artifact.manifest.files if name.startswith("features-"))
    if not files:
        return np.empty((0, dim), dtype=np.float32)
    vectors = np.concatenate([np.load(artifact.file(name)) for name in files])
    tables = [name.replace("features-", "ids-").replace(".npy", ".parquet") for name in files]
    stored = [pq.read_table(artifact.file(name)) for name in tables]
    row_of = {name: row for row, name in enumerate(pa.concat_tables(stored).column("id").to_pylist())}
    return np.asarray(vectors[[row_of[str(name)] for name in ids]], dtype=np.float32)


def _vectors(store: Store, tiles: TileSet) -> Float32[np.ndarray, "n d"]:
    return store.rows(store.positions(tiles.ids))
