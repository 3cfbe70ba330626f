"""Embedding stores: contents, resuming after a kill, and fingerprints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from jaxtyping import Float
from tiny_models import write_store

from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, DataError, ModelError
from clipit.stores import embed as embedding
from clipit.stores.embed import Store, drop_words, embed_texts, embed_tiles
from clipit.vectors import centred, unit
from clipit.workspace.workspace import Workspace


class Killed(BaseException):
    """Simulated kill, which no code of the package catches."""


class FailingVLM:
    """A VLM that raises `Killed` after a number of batches."""

    def __init__(self, vlm: Any, calls: int) -> None:
        self._vlm, self._left = vlm, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vlm, name)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        self._count()
        return self._vlm.encode_texts(texts)

    def encode_images(self, pixels: torch.Tensor, **keys: Any) -> torch.Tensor:
        self._count()
        return self._vlm.encode_images(pixels, **keys)


@pytest.fixture
def workspace(configure: Callable[..., RunConfig]) -> Workspace:
    return Workspace(configure())


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "SHARD", 20)


def file_digests(store: Store) -> dict[str, str]:
    return store.artifact.manifest.files


def test_unit_and_centred() -> None:
    vectors = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    assert np.allclose(unit(vectors), [[0.6, 0.8], [0, 0]])
    assert centred(vectors, None) is vectors
    assert np.allclose(np.linalg.norm(centred(vectors, np.array([1, 1], dtype=np.float32)), axis=1), 1)


def test_text_store_contains_every_snippet_as_a_unit_vector(workspace: Workspace) -> None:
    store = workspace.text_store()
    table = pq.read_table(workspace.snippets.file("snippets.parquet"))
    assert store.ids.tolist() == table.column("snippet_id").to_pylist()
    vectors = store.rows(np.arange(len(store.ids)))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    texts = table.column("text").to_pylist()
    alone = unit(workspace.vlm.encode_texts([texts[5]]).numpy())[0]
    assert np.allclose(vectors[5], alone, atol=2e-3)
    assert np.allclose(store.mean(), vectors.mean(axis=0), atol=1e-6)


def test_positions_by_id_and_missing_ids(workspace: Workspace) -> None:
    store = workspace.text_store()
    ids = store.ids[[7, 3, 3]]
    assert store.positions(ids).tolist() == [7, 3, 3]
    with pytest.raises(ArtifactError, match=r"1 id is not in the store: nobody"):
        store.positions(np.array([store.ids[0], "nobody"]))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("calls", [0, 1, 3, 7])
def test_resumed_text_store_has_the_same_bytes(workspace: Workspace, tmp_path: Path, calls: int) -> None:
    complete = embed_texts(tmp_path / "a", workspace.vlm, workspace.snippets, batch_size=8)
    assert len([name for name in file_digests(complete) if name.startswith("emb-")]) > 10
    with pytest.raises(Killed):
        embed_texts(tmp_path / "b", FailingVLM(workspace.vlm, calls), workspace.snippets, batch_size=8)  # type: ignore[arg-type]
    done = len(list((tmp_path / "b").glob("*.partial/emb-*.npy")))
    assert done == calls // 3  # a shard of 20 rows takes three batches
    resumed = embed_texts(tmp_path / "b", workspace.vlm, workspace.snippets, batch_size=8)
    assert file_digests(resumed) == file_digests(complete)
    assert not list((tmp_path / "b").glob("*.partial"))


@pytest.mark.usefixtures("small_shards")
def test_tile_store_resumes_at_the_next_shard(workspace: Workspace, tmp_path: Path) -> None:
    tiles = workspace.all_tiles.of_split("train")
    complete = embed_tiles(tmp_path / "a", workspace.vlm, tiles, batch_size=8)
    with pytest.raises(Killed):
        embed_tiles(tmp_path / "b", FailingVLM(workspace.vlm, 7), tiles, batch_size=8)  # type: ignore[arg-type]
    first = next((tmp_path / "b").glob("*.partial/emb-00000.npy"))
    before = first.stat().st_mtime_ns
    resumed = embed_tiles(tmp_path / "b", workspace.vlm, tiles, batch_size=8)
    assert resumed.artifact.file("emb-00000.npy").stat().st_mtime_ns == before
    assert file_digests(resumed) == file_digests(complete)
    assert resumed.ids.tolist() == tiles.ids.tolist()
    assert np.array_equal(
        np.concatenate([block for _, block in resumed.blocks(7)]), resumed.rows(np.arange(len(tiles)))
    )


def test_an_existing_store_is_reused(workspace: Workspace, tmp_path: Path) -> None:
    embed_texts(tmp_path, workspace.vlm, workspace.snippets)
    embed_texts(tmp_path, FailingVLM(workspace.vlm, 0), workspace.snippets)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("text_store-*[0-9a-f]"))) == 1


def test_fingerprints_depend_on_the_precision(workspace: Workspace, tmp_path: Path) -> None:
    tiles = workspace.all_tiles.of_split("test")
    stores = [
        embed(tmp_path, replace(workspace.vlm, precision=precision), data)
        for precision in ("fp32", "bf16")
        for embed, data in ((embed_texts, workspace.snippets), (embed_tiles, tiles))
    ]
    assert len({store.fingerprint for store in stores}) == 4
    assert file_digests(stores[0])["emb-00000.npy"] != file_digests(stores[2])["emb-00000.npy"]
    assert stores[0].vlm == stores[2].vlm


def test_tile_stores_do_not_depend_on_labels(configure: Callable[..., RunConfig]) -> None:
    first = Workspace(configure(seed=1)).tile_store("train")
    other = Workspace(configure({"tiles.labels.kind": "all", "seed": 2})).tile_store("train")
    assert first.artifact.folder == other.artifact.folder


def test_non_finite_embeddings_are_an_error(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, texts: list[str]) -> Float[torch.Tensor, "n d"]:
        return torch.full((len(texts), self.joint_dim), torch.nan)

    monkeypatch.setattr(type(workspace.vlm), "encode_texts", broken)
    with pytest.raises(DataError, match="not finite"):
        embed_texts(tmp_path, workspace.vlm, workspace.snippets)
    assert not list(tmp_path.glob("text_store-*[0-9a-f]"))


def test_word_drop_is_a_function_of_seed_and_id() -> None:
    text = "one two three four five six seven eight nine ten"
    dropped = drop_words(text, 0.3, 0, "id")
    assert dropped == drop_words(text, 0.3, 0, "id")
    assert drop_words(text, 0.3, 1, "id") != dropped or drop_words(text, 0.3, 2, "id") != dropped
    assert set(dropped.split()) < set(text.split())
    assert drop_words(text, 1.0, 0, "id") == "one"
    assert drop_words(text, 0.0, 0, "id") == text
    kept = [len(drop_words(text, 0.3, 0, str(key)).split()) for key in range(500)]
    assert 6.7 < np.mean(kept) < 7.3


def test_word_drop_keeps_the_ids(workspace: Workspace) -> None:
    dropped, plain = workspace.text_store(0.3, 0), workspace.text_store()
    assert dropped.ids.tolist() == plain.ids.tolist()
    assert dropped.fingerprint != plain.fingerprint
    rows = np.arange(len(plain.ids))
    assert not np.allclose(dropped.rows(rows), plain.rows(rows), atol=1e-2)


def test_an_empty_store(tmp_path: Path) -> None:
    store = write_store(tmp_path, [], np.zeros((0, 4)))
    assert len(store.ids) == 0
    with pytest.raises(ArtifactError, match="not in the store"):
        store.positions(np.array(["a"]))
    assert [path.name for path in store.artifact.folder.iterdir()] == ["manifest.json"]


def test_raw_tiles_are_not_normalised_and_have_their_own_store(workspace: Workspace, tmp_path: Path) -> None:
    tiles = workspace.all_tiles.of_split("test")
    joint = embed_tiles(tmp_path, workspace.vlm, tiles)
    raw = embed_tiles(tmp_path, workspace.vlm, tiles, space="raw")
    assert joint.artifact.folder != raw.artifact.folder and joint.vlm == raw.vlm
    assert (joint.space, raw.space, joint.dim, raw.dim) == ("joint", "raw", 24, 32)
    rows = np.arange(len(tiles))
    assert np.allclose(np.linalg.norm(joint.rows(rows), axis=1), 1, atol=2e-3)
    pixels = torch.from_numpy(np.stack([workspace.vlm.preprocess.pixels(tiles.read(row)) for row in rows]))
    expected = workspace.vlm.encode_images(pixels, space="raw").numpy()
    assert np.allclose(raw.rows(rows), expected, rtol=2e-3, atol=2e-3)
    assert np.linalg.norm(expected, axis=1).min() > 1.5


def test_raw_vectors_beyond_half_precision_are_an_error(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def huge(self: Any, pixels: torch.Tensor, *, space: str) -> Float[torch.Tensor, "n d"]:
        return torch.full((len(pixels), self.dim(space)), 1e6)

    monkeypatch.setattr(type(workspace.vlm), "encode_images", huge)
    tiles = workspace.all_tiles.of_split("test")
    with pytest.raises(DataError, match="not finite"):
        embed_tiles(tmp_path, workspace.vlm, tiles, space="raw")
    assert embed_tiles(tmp_path, workspace.vlm, tiles).dim == 24


def test_a_vlm_without_raw_space_is_an_error(workspace: Workspace, tmp_path: Path) -> None:
    vlm = replace(workspace.vlm, raw_dim=None)
    with pytest.raises(ModelError, match="before its projection"):
        embed_tiles(tmp_path, vlm, workspace.all_tiles.of_split("test"), space="raw")
    assert not list(tmp_path.iterdir())


def test_one_long_id_does_not_widen_the_array_of_ids(tmp_path: Path) -> None:
    ids = ["b", "x" * 10**6, *(f"a{row}" for row in range(20))]
    store = write_store(tmp_path, ids, np.eye(len(ids)))
    assert store.ids.tolist() == ids and store.positions(ids[::-1]).tolist() == list(range(len(ids)))[::-1]
    reopened = Store(store.artifact)
    for names in (store.ids, reopened.ids_at(np.arange(len(ids)))):
        assert names.itemsize <= 8 and names.tolist() == ids
