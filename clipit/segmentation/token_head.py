"""Linear head on frozen patch tokens, trained on the class proportions of each cell; tokens are streamed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from clipit.config.mask_training import TokenHeadConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, ModelError
from clipit.segmentation.soft_dice import soft_dice
from clipit.segmentation.token_store import TokenStore
from clipit.stores.moments import mean_and_deviation

Targets = Mapping[str, Float32[np.ndarray, "rows columns c"]]
"""Proportion of each class in the cells of an image, by image id; ignored pixels belong to no class."""

_IMAGES = 16  # maximum number of images per training step
_STATISTICS_TOKENS = 4096  # tokens per image used for the mean and standard deviation


@dataclass(frozen=True)
class TokenHead:
    """A trained linear head: probabilities = softmax(tokens @ weight.T + bias).

    Attributes:
        weight: Weights for raw tokens (standardisation is folded in), one row per class.
    """

    weight: Float32[np.ndarray, "c d"]
    bias: Float32[np.ndarray, " c"]

    def probabilities(self, tokens: Float[np.ndarray, "rows columns d"]) -> Float32[np.ndarray, "rows columns c"]:
        """Return the class probabilities of tokens."""
        from scipy.special import softmax

        logits = tokens.astype(np.float32) @ self.weight.T + self.bias
        return np.asarray(softmax(logits, axis=-1))


def train_token_head(
    store: TokenStore, sources: Sequence[Targets], options: TokenHeadConfig, seed: int, classes: int
) -> TokenHead:
    """Train a head with AdamW for a fixed number of steps; nothing is chosen on validation masks.

    Every source contributes the same number of tokens to each step, so that a large number of pseudo-labels does not
    outweigh a small number of masks. The tokens of a step depend only on (seed, step).

    Args:
        sources: Targets by image, one mapping for the masks and optionally one for pseudo-labels.

    Raises:
        DataError: A source is empty, or all of its pixels are ignored.
        ModelError: The loss is not finite.
    """
    sources = [{name: shares for name, shares in targets.items() if shares.any()} for targets in sources]
    if not all(sources):
        raise DataError("no pixels to train on: every pixel is ignored", fix="increase segmentation.training.masks")
    device = get_processes().device
    names = dict.fromkeys(name for targets in sources for name in targets)
    stored = (store.tokens(name).reshape(-1, store.dim) for name in names)
    mean, scale = (torch.from_numpy(each).to(device) for each in mean_and_deviation(stored, _STATISTICS_TOKENS))
    head = nn.Linear(store.dim, classes, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, foreach=False
    )
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        generator = np.random.default_rng([seed, step])
        batches = [_sample_cells(store, each, options.tokens_per_step // len(sources), generator) for each in sources]
        tokens, shares = (torch.from_numpy(np.concatenate(parts)).to(device) for parts in zip(*batches, strict=True))
        loss = head_step(head, optimizer, (tokens - mean) / scale, shares)
    if not math.isfinite(float(loss)):
        raise ModelError("the loss of the head is not finite", fix="lower segmentation.training.head.learning_rate")
    with torch.no_grad():
        weight = head.weight / scale
        bias = head.bias - weight @ mean
    return TokenHead(weight.cpu().numpy(), bias.cpu().numpy())


def head_step(
    head: nn.Module, optimizer: torch.optim.Optimizer, tokens: Float[Tensor, "n d"], shares: Float[Tensor, "n c"]
) -> Float[Tensor, ""]:
    """Take one step, and return the loss: the mean of the cross-entropy per labelled pixel and 1 - `soft_dice`."""
    optimizer.zero_grad(set_to_none=True)
    logs = head(tokens).log_softmax(dim=1)
    entropy = -(shares * logs).sum() / shares.sum().clamp(min=1e-6)
    loss = (entropy + 1 - soft_dice(logs.exp(), shares)) / 2
    loss.backward()
    optimizer.step()
    result: Tensor = loss.detach()
    return result


def _sample_cells(
    store: TokenStore, targets: Targets, count: int, generator: np.random.Generator
) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n c"]]:
    """Draw a few images, and the same number of labelled cells from each."""
    names = list(targets)
    chosen = generator.permutation(len(names))[:_IMAGES].tolist()
    tokens, shares = [], []
    for row in chosen:
        target = targets[names[row]]
        labelled = np.flatnonzero(target.any(axis=-1))
        picked = labelled[generator.integers(0, len(labelled), max(1, count // len(chosen)))]
        down, right = np.unravel_index(np.sort(picked), target.shape[:2])
        tokens.append(store.tokens(names[row])[down, right].astype(np.float32))
        shares.append(target[down, right])
    return np.concatenate(tokens), np.concatenate(shares)
