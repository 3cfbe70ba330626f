"""Make parts of a VLM's towers trainable: LoRA updates, the projections into the joint space, or all weights."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipit.config.run import LoraConfig
from clipit.errors import ModelError, counted_of, shortlist
from clipit.models.lora import add_lora, merge_lora, target_modules
from clipit.models.towers import Tokens, Towers

Tower = Literal["image", "text"]
Tuning = Literal["lora", "full", "projection"]

_TRIAL_TEXTS = ("Moderately differentiated adenocarcinoma.", "Mucin")
_TOLERANCE = 1e-4
"""Largest relative difference allowed between embeddings computed with and without gradients."""
_PROJECTIONS = re.compile(
    r"visual\.proj|visual\.head\.(proj|mlp)\b.*|visual\.trunk\.head\..*"  # open_clip: ViT, timm, EVA and MobileCLIP
    r"|visual\.attnpool\.c_proj\..*"  # open_clip: ResNet
    r"|(text\.)?text_projection(\.weight|\.bias)?|text\.proj(\..*)?"  # open_clip: its own and transformers' text towers
    r"|visual_projection\.weight"  # CLIPModel, whose text projection is named as in open_clip
    r"|visual\.proj_contrast"  # CONCH
    r"|visual_head\..*|text\.pooler\..*"  # KEEP, whose text tower ends with BERT's pooler
    r"|(vision_head|language_head)\..*"  # MUSK
)
"""Pattern that matches the names of the weights that project into the joint space."""


class AdaptedTowers(nn.Module):
    """The towers of a VLM with some trainable weights.

    Attributes:
        towers: Towers of the VLM, which use the trained weights.
        network: Module of the VLM, with LoRA layers if `tuning` is `lora`.
        tuning: Kind of trained weights: `lora`, `full` or `projection`.
        trained_towers: Names of the trained towers.
        logit_scale: Logarithm of the factor that multiplies cosine similarities; the VLM's own parameter if it has one.
    """

    def __init__(self, towers: Towers, network: nn.Module, tuning: Tuning, trained_towers: tuple[Tower, ...]) -> None:
        super().__init__()
        self.towers = towers
        self.network = network
        self.tuning = tuning
        self.trained_towers = trained_towers
        self.logit_scale: nn.Parameter = log_scale(towers)

    def image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Encode normalised pixels as un-normalised embeddings in the joint space."""
        return self.towers.image(pixels)

    def text(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        """Encode tokens as un-normalised embeddings in the joint space."""
        return self.towers.text(tokens)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained weights by name, including the logit scale if it is learnt."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def train(self, mode: bool = True) -> "AdaptedTowers":
        """Switch dropout on or off; batch normalisation stays in evaluation mode.

        With `full`, dropout is active in the layers with trained weights. Otherwise it is active only inside the
        adapters: frozen weights cannot adjust to dropout, and their embeddings are used without it. Batch
        normalisation keeps its running statistics, because the statistics of a micro-batch would differ from those
        of the whole batch.
        """
        super().train(mode)
        trained = _parts_with_trained_weights(self.network) if self.tuning == "full" else frozenset()
        for name, part in self.network.named_modules():
            is_adapter = ".lora_dropout" in name
            is_norm = isinstance(part, nn.modules.batchnorm._BatchNorm)
            part.training = mode and (is_adapter or (name in trained and not is_norm))
        return self

    def merge(self) -> Towers:
        """Merge the updates into the VLM's module, in place, and return its towers with the learnt logit scale.

        Raises:
            ModelError: The trained weights are not finite.
        """
        self.eval()
        merged = merge_lora(self.network)
        self.network = merged
        broken = [name for name, weight in self.named_parameters() if not bool(weight.isfinite().all())]
        if broken:
            raise ModelError(
                f"the trained weights are not finite: {shortlist(broken)}",
                where="the adapted VLM",
                fix="the training diverged: lower adapt.learning_rate",
            )
        merged.requires_grad_(False)
        return replace(self.towers, logit_scale=float(self.logit_scale.detach().exp()))


def _parts_with_trained_weights(network: nn.Module) -> frozenset[str]:
    """Return the names of the modules with trained weights, and of their submodules that have no weights."""
    with_weights, trained = set[str](), set[str]()
    for name, weight in network.named_parameters(remove_duplicate=False):
        while name:
            name = name.rpartition(".")[0]
            with_weights.add(name)
            if weight.requires_grad:
                trained.add(name)
    names = set(trained)
    for name, _ in network.named_modules(remove_duplicate=False):
        parent = name
        while parent and parent not in with_weights:
            parent = parent.rpartition(".")[0]
        if parent in trained:
            names.add(name)
    return frozenset(names)


def log_scale(towers: Towers) -> nn.Parameter:
    """Return the module's `logit_scale` if it is the logarithm of the towers' scale, otherwise a new parameter."""
    module_scale = getattr(towers.module, "logit_scale", None)
    if (
        isinstance(module_scale, nn.Parameter)
        and module_scale.numel() == 1
        and math.isclose(float(module_scale.detach().exp()), towers.logit_scale, rel_tol=1e-4)
    ):
        return module_scale
    device = next(towers.module.parameters()).device
    return nn.Parameter(torch.tensor(math.log(towers.logit_scale), device=device))


def adapt_towers(
    towers: Towers,
    tuning: Tuning,
    trained_towers: Sequence[Tower],
    lora: LoraConfig,
    learn_temperature: bool,
    base_name: str | None = None,
) -> AdaptedTowers:
    """Make the selected weights of a VLM trainable, and freeze all others.

    The VLM's module is changed in place, so that `towers` uses the trained weights. LoRA updates start at zero; their
    factors are initialised with PyTorch's global generator.

    Args:
        towers: Towers of the VLM, in evaluation mode.
        tuning: `lora` (low-rank updates of the layers selected by `lora.targets`), `projection` (the projections into
            the joint space) or `full` (all weights that an embedding depends on).
        trained_towers: Towers to train. A weight shared by both towers is trained only if both are.
        lora: Rank, alpha, dropout and targets of LoRA.
        learn_temperature: Whether to train the logit scale.
        base_name: Name of the VLM to record in the adapter.

    Raises:
        ModelError: A tower has no weights of this kind, or gradients do not reach them.
    """
    ordered: tuple[Tower, ...] = tuple(name for name in ("image", "text") if name in trained_towers)
    towers.module.eval().requires_grad_(False)
    network = towers.module
    if tuning == "lora":
        names = _lora_layers(towers, ordered, lora)
        network = add_lora(towers.module, lora, names=names, base_name=base_name)
    else:
        _unfreeze(towers, ordered, tuning)
    adapted = AdaptedTowers(towers, network, tuning, ordered)
    adapted.eval()
    adapted.logit_scale.requires_grad_(False)
    if tuning == "lora":
        _check_reach(adapted)
    adapted.logit_scale.requires_grad_(learn_temperature)
    return adapted


def _lora_layers(towers: Towers, trained_towers: Sequence[Tower], lora: LoraConfig) -> list[str]:
    """Return the names of the layers to adapt, which the trained towers use but no frozen tower does."""
    usable = {tower: _usable_layers(towers, tower) for tower in ("image", "text")}
    frozen = set().union(*(layers for tower, layers in usable.items() if tower not in trained_towers))
    where = "adapt.lora.targets"
    by_tower: dict[str, list[str]] = {}
    all_usable = set().union(*usable.values()) - frozen
    default = lora.targets == LoraConfig().targets
    selected = [] if default else target_modules(towers.module, lora.targets, called=all_usable, where=where)
    for tower in trained_towers:
        trainable = usable[tower] - frozen
        if default:
            try:
                by_tower[tower] = target_modules(towers.module, lora.targets, called=trainable, where=where)
            except ModelError:
                by_tower[tower] = []
        else:
            by_tower[tower] = [name for name in selected if name in trainable]
    if missing := [tower for tower in trained_towers if not by_tower[tower]]:
        raise ModelError(
            f"LoRA adapts no layer of the {' and the '.join(missing)} tower: no layer matches "
            f"{', '.join(lora.targets)}, or the matching layers are not called (only their weights are read)",
            where=where,
            fix="set adapt.tuning: projection or full, name other layers in adapt.lora.targets, or train only the "
            f"other tower (adapt.towers); layers of this VLM: {shortlist(sorted(all_usable), 8)}",
        )
    return list(dict.fromkeys(name for tower in trained_towers for name in by_tower[tower]))


def _unfreeze(towers: Towers, trained_towers: Sequence[Tower], tuning: Tuning) -> None:
    """Make the projections or all weights of the trained towers trainable."""
    reached = {tower: _reached_weights(towers, tower) for tower in ("image", "text")}
    frozen = set().union(*(names for tower, names in reached.items() if tower not in trained_towers))
    weights = dict(towers.module.named_parameters())
    for tower in trained_towers:
        names = reached[tower] - frozen
        chosen = {name for name in names if tuning == "full" or _PROJECTIONS.fullmatch(name)}
        if not chosen:
            raise ModelError(
                f"the {tower} tower has no "
                + ("weights of its own" if tuning == "full" else "known projection into the joint space"),
                where=f"adapt.tuning: {tuning}",
                fix="set adapt.tuning: full or lora, or train only the other tower (adapt.towers)"
                if tuning == "projection"
                else "train both towers (adapt.towers)",
            )
        for name in chosen:
            weights[name].requires_grad_(True)


def _usable_layers(towers: Towers, tower: Tower) -> set[str]:
    """Return the names of the modules that a tower calls and that hold weights which affect its embeddings.

    An update of any other layer would have no effect: its weight is read without calling the layer (such as
    the output projection in PyTorch's attention), or its output is not used (such as CoCa's pooling for captions).
    """
    called: set[str] = set()

    def record(name: str) -> Callable[..., None]:
        return lambda *_: called.add(name)

    hooks = [part.register_forward_pre_hook(record(name)) for name, part in towers.module.named_modules()]
    try:
        with_used_weights = {name.rpartition(".")[0] for name in _reached_weights(towers, tower)}
    finally:
        for hook in hooks:
            hook.remove()
    return called & with_used_weights


def _reached_weights(towers: Towers, tower: Tower) -> set[str]:
    """Return the names of the weights that a tower's embeddings depend on."""
    weights = dict(towers.module.named_parameters())
    with _all_trainable(weights):
        gradients = torch.autograd.grad(
            _scalar(_embed_trial_inputs(towers, tower)), list(weights.values()), allow_unused=True
        )
    return {name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None}


@contextmanager
def _all_trainable(weights: dict[str, nn.Parameter]) -> Iterator[None]:
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)


def _check_reach(adapted: AdaptedTowers) -> None:
    """Check with one backward pass that the update of every adapted layer affects an embedding.

    Raises:
        ModelError: An update has no effect (the weight is read without calling the layer), or takes effect only while
            gradients are recorded (PyTorch's layers with a fast path for inference).
    """
    updates = {name: weight for name, weight in adapted.trainable().items() if "lora_B" in name}
    # a gradient of zero is not an error: a later weight may be zero
    idle, differs = set(updates), False
    with _noise(list(updates.values())):
        for tower in adapted.trained_towers:
            embedded = _embed_trial_inputs(adapted.towers, tower)
            with torch.no_grad():
                without = _embed_trial_inputs(adapted.towers, tower)
            if not embedded.requires_grad:
                continue
            gradients = torch.autograd.grad(_scalar(embedded), list(updates.values()), allow_unused=True)
            idle -= {name for name, gradient in zip(updates, gradients, strict=True) if gradient is not None}
            differs |= not bool((embedded - without).norm() <= _TOLERANCE * embedded.norm())
    if idle or differs:
        names = [name.split(".lora_B")[0].removeprefix("network.base_model.model.") for name in updates if name in idle]
        raise ModelError(
            f"{counted_of(len(idle), len(updates), 'adapted layer does', 'adapted layers do')} not affect any embedding"
            f": {shortlist(names)}"
            if idle
            else "the adapted layers compute different embeddings with and without gradients",
            where="adapt.lora.targets",
            fix="remove these layers from adapt.lora.targets, set adapt.tuning: projection or full, or, for layers of "
            "torch.nn.TransformerEncoder, call torch.backends.mha.set_fastpath_enabled(False) in the VLM's function",
        )


@contextmanager
def _noise(weights: list[nn.Parameter]) -> Iterator[None]:
    """Set weights that are zero to small random values inside the `with` block."""
    generator = torch.Generator().manual_seed(2)
    for weight in weights:
        weight.data += 1e-3 * torch.randn(weight.shape, generator=generator).to(weight)
    try:
        yield
    finally:
        for weight in weights:
            weight.data.zero_()


def _embed_trial_inputs(towers: Towers, tower: Tower) -> Tensor:
    """Embed random pixels or two short texts, without drawing from PyTorch's global generator."""
    device = next(towers.module.parameters()).device
    dtype = next(towers.module.parameters()).dtype
    if tower == "text":
        return towers.text({key: value.to(device) for key, value in towers.tokenise(list(_TRIAL_TEXTS)).items()})
    size = towers.preprocess.size
    generator = torch.Generator().manual_seed(0)
    return towers.image(torch.randn(2, 3, size, size, generator=generator).to(device, dtype))


def _scalar(embeddings: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Reduce embeddings to a random linear combination; the sum of squares of unit vectors would be constant."""
    noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1))
    return (embeddings * noise.to(embeddings)).sum()
