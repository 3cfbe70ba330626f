"""Adapt the text side before distillation, with a small adapter on cached embeddings or LoRA on the text tower.

CLIP-IT (arXiv 2504.16181) trains a head on the paired text and applies LoRA to both towers. Here, the text side is
first fitted to predict the labels of the labelled tiles from their paired snippets; then all targets are recomputed and
frozen. Training steps cost no more than with unadapted text, and text embeddings cannot drift towards the student.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clipit.config.run import LoraConfig
from clipit.errors import DataError, ModelError
from clipit.stores.embed import Store
from clipit.training.terms.target_vectors import PairedSnippets, SnippetVectors
from clipit.vectors import centred, unit

if TYPE_CHECKING:
    from clipit.models.vlm import VLM

_ADAPTER_STEPS, _ADAPTER_RATE = 300, 1e-3
_LORA_STEPS, _LORA_RATE, _LORA_BATCH = 200, 5e-4, 32
_HIDDEN = 4  # the adapter's hidden layer is narrower than the joint space by this factor
_MIN_HIDDEN = 16  # minimum width of the adapter's hidden layer
_SCALE = 10.0  # factor of the logits; without it, unit vectors would give nearly uniform probabilities


@dataclass(frozen=True)
class AdaptedText:
    """Adapted snippet vectors, and the cost of the adaptation in seconds, parameters and texts."""

    vectors: SnippetVectors
    cost: dict[str, float]


def labelled_snippets(
    paired: PairedSnippets, labels: Int[np.ndarray, "n"]
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """Return the text-store positions of the labelled tiles' snippets, and these tiles' labels.

    Raises:
        DataError: The labelled tiles with snippets have fewer than two classes.
    """
    rows, ranks = np.nonzero((paired.positions >= 0) & (labels >= 0)[:, None])
    positions, targets = paired.positions[rows, ranks], labels[rows]
    if len(np.unique(targets)) < 2:
        raise DataError(
            "the labelled tiles with snippets have fewer than two classes, so the text side cannot be fitted to them",
            where="distillation.text",
            fix="keep more labels (tiles.labels), or set distillation.text=frozen",
        )
    return positions, targets


def fit_adapter(
    vectors_of: SnippetVectors, positions: Int[np.ndarray, "m"], labels: Int[np.ndarray, "m"], dim: int, seed: int
) -> AdaptedText:
    """Fit a residual bottleneck t' = t + W2 relu(W1 t) with a linear head to the labels, as CLIP-Adapter does.

    Source: Gao et al., arXiv 2110.04544. W2 is initialised to zero, so that the adapter starts as the identity.

    Args:
        vectors_of: Function from positions in the text store to unit-norm snippet vectors.
        positions: Positions of the labelled tiles' snippets.
        labels: Class index of the tile to which each position belongs.
        dim: Dimension of the joint space.
        seed: Seed for the initial weights.
    """
    start_time = time.perf_counter()
    torch.manual_seed(seed)
    adapter = _Adapter(dim)
    head = nn.Linear(dim, int(labels.max()) + 1)
    texts, targets = torch.from_numpy(vectors_of(positions)), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW([*adapter.parameters(), *head.parameters()], lr=_ADAPTER_RATE, weight_decay=1e-2)
    for _ in range(_ADAPTER_STEPS):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(head(adapter(texts)) * _SCALE, targets))
        optimizer.step()
    adapter.requires_grad_(False)

    def vectors(positions: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape dim"]:
        adapted: Float32[np.ndarray, "*shape dim"] = adapter(torch.from_numpy(vectors_of(positions))).numpy()
        return adapted

    return AdaptedText(vectors, {"text_adapter_seconds": round(time.perf_counter() - start_time, 2)})


class _Adapter(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(_MIN_HIDDEN, dim // _HIDDEN)
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, texts: Tensor) -> Tensor:
        return F.normalize(texts + self.up(F.relu(self.down(texts))), dim=-1)


def fit_text_lora(
    vlm: "VLM",
    texts: Mapping[str, str],
    store: Store,
    mean: Float32[np.ndarray, "dim"] | None,
    paired: PairedSnippets,
    labels: Int[np.ndarray, "n"],
    lora: LoraConfig,
    seed: int,
) -> AdaptedText:
    """Fit LoRA on the text tower to predict labels from paired snippets, and embed all paired snippets again.

    Args:
        vlm: VLM whose text tower is adapted; the tower is restored afterwards.
        texts: Text of each snippet by id.
        store: Text store that the positions of `paired` refer to.
        mean: Mean text embedding, subtracted as for pairing.
        paired: Snippets of each training tile.
        labels: Class indices of the training tiles; -1 if unknown.
        lora: Rank, alpha and dropout; all linear layers of the text tower are adapted.
        seed: Seed for the initial weights and the batches.
    """
    start_time = time.perf_counter()
    positions, targets = labelled_snippets(paired, labels)
    used = np.unique(paired.positions[paired.positions >= 0])
    torch.manual_seed(seed)
    adapted = _with_lora(vlm, lora)
    head = nn.Linear(vlm.joint_dim, int(targets.max()) + 1).to(vlm.device)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW([*weights, *head.parameters()], lr=_LORA_RATE, weight_decay=1e-2)
    order = np.random.default_rng([seed, 0x10A])
    shift = None if mean is None else torch.from_numpy(mean).to(vlm.device)
    try:
        for _ in range(_LORA_STEPS):
            rows = order.integers(0, len(positions), size=min(_LORA_BATCH, len(positions)))
            batch = [texts[str(store.ids[position])] for position in positions[rows]]
            optimizer.zero_grad(set_to_none=True)
            logits = head(_encoded(vlm, batch, shift)) * _SCALE
            torch.autograd.backward(F.cross_entropy(logits, torch.from_numpy(targets[rows]).to(vlm.device)))
            optimizer.step()
        embedded = _embed_all(vlm, [texts[str(store.ids[row])] for row in used.tolist()], mean)
    finally:
        adapted.unload()
        vlm.towers.module.requires_grad_(False)

    def vectors(positions: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape dim"]:
        return np.asarray(embedded[np.searchsorted(used, positions).clip(max=len(used) - 1)], dtype=np.float32)

    forward = _LORA_STEPS * min(_LORA_BATCH, len(positions))
    return AdaptedText(
        vectors,
        {
            "text_lora_seconds": round(time.perf_counter() - start_time, 2),
            "text_lora_parameters": float(sum(weight.numel() for weight in weights)),
            "texts_forward_backward": float(forward),
            "texts_embedded_again": float(len(used)),
        },
    )


def text_layers(module: nn.Module) -> list[str]:
    """List the full names of the text tower's linear layers that can be adapted.

    Layers inside torch's fused attention are excluded, since it reads their weights without calling them.

    Raises:
        ModelError: The text tower has no such layers.
    """
    fused = [name for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)]
    layers = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
        and not name.startswith("vis")
        and not any(name.startswith(f"{attention}.") for attention in fused)
    ]
    if not layers:
        raise ModelError(
            "no linear layer of the text tower can be adapted", where="vlm", fix="set distillation.text=adapter"
        )
    return layers


def _with_lora(vlm: "VLM", lora: LoraConfig) -> Any:
    import peft

    return peft.get_peft_model(
        vlm.towers.module,
        peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=text_layers(vlm.towers.module),
        ),
    )


def _encoded(vlm: "VLM", batch: Sequence[str], shift: Tensor | None) -> Tensor:
    tokens = {key: value.to(vlm.device) for key, value in vlm.towers.tokenise(batch).items()}
    embedded = F.normalize(vlm.towers.text(tokens).float(), dim=1)
    return embedded if shift is None else F.normalize(embedded - shift, dim=1)


def _embed_all(vlm: "VLM", texts: Sequence[str], mean: Float32[np.ndarray, "dim"] | None) -> np.ndarray:
    batches = [vlm.encode_texts(texts[start : start + 64]).cpu().numpy() for start in range(0, len(texts), 64)]
    return centred(unit(np.concatenate(batches)), mean)
