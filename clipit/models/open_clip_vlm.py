"""VLMs of the open_clip package: built-in names, hub ids, local folders."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipit.errors import ModelError, explain, shortlist
from clipit.models.loading import foreign_errors
from clipit.models.preprocess import preprocess_from_open_clip
from clipit.models.towers import Tokens, Towers

_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")


def builtin_towers(spec: str) -> Towers:
    """`ARCH/PRETRAINED`: a built-in architecture with a weight tag, or with the path of a checkpoint.

    Raises:
        ModelError: Unknown architecture; no tag, or an unknown one (the known ones are listed); no download.
    """
    import open_clip

    architecture, _, pretrained = spec.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, 5, 0.4)
        raise ModelError(
            explain(
                f"open_clip has no architecture {architecture!r}",
                where=f"open_clip:{spec}",
                fix=f"similar names: {', '.join(near) or shortlist(known)}",
            )
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained.lower() not in tags and not Path(pretrained).is_file():
        raise ModelError(
            explain(
                f"open_clip has no weights {pretrained!r} for {architecture}" if pretrained else "no weights are named",
                where=f"open_clip:{spec}",
                fix=f"write open_clip:{architecture}/TAG with one of: {', '.join(tags) or 'none published'}; "
                f"or open_clip:{architecture}/PATH of a checkpoint file",
            )
        )
    hub_id = None
    if not Path(pretrained).is_file():
        hub_id = (open_clip.get_pretrained_cfg(architecture, pretrained).get("hf_hub") or "").rstrip("/") or None
    return _load(f"open_clip:{spec}", architecture, pretrained, hub_id)


def hub_towers(hub_id: str) -> Towers:
    """An open_clip repository of the Hugging Face hub."""
    return _load(f"hf-hub:{hub_id}", f"hf-hub:{hub_id}", None, hub_id)


def folder_towers(folder: Path) -> Towers:
    """A folder in open_clip's own format.

    Raises:
        ModelError: The weights are missing; open_clip would go on with random ones.
    """
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise ModelError(
            explain(
                f"{_CONFIG} is here, but no weights",
                where=folder,
                fix=f"put one of these files beside it: {', '.join(_WEIGHTS)}",
            )
        )
    return _load(str(folder), f"local-dir:{folder}", None, None)


def _load(name: str, model_name: str, pretrained: str | None, hub_id: str | None) -> Towers:
    import open_clip

    hint = "A text tower from the hub (such as PubMedBERT) needs its own configuration and tokeniser files, too."
    if hub_id and pretrained is None:
        hint += " A repository in transformers' format is named clip:ID."
    with foreign_errors(name, hub_id, hint):
        model: Any = open_clip.create_model(model_name, pretrained=pretrained, require_pretrained=True)
        tokenizer: Any = open_clip.get_tokenizer(model_name)

    def image(pixels: Tensor) -> Tensor:
        """Joint space, un-normalised."""
        embeddings: Tensor = model.encode_image(pixels, normalize=False)
        return embeddings

    def text(tokens: Tokens) -> Tensor:
        """Joint space, un-normalised."""
        embeddings: Tensor = model.encode_text(tokens["text"], normalize=False)
        return embeddings

    return Towers(
        module=model,
        preprocess=preprocess_from_open_clip(model.visual.preprocess_cfg, name),
        context_length=int(tokenizer.context_length),
        logit_scale=float(model.logit_scale.detach().exp()),
        source=model_name.removeprefix("local-dir:"),
        count_tokens=lambda texts: _count(tokenizer, texts),
        tokenise=lambda texts: {"text": torch.as_tensor(tokenizer(list(texts)))},
        image=image,
        text=text,
    )


def _count(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens before open_clip's tokenisers cut and pad."""
    from open_clip.tokenizer import SimpleTokenizer, basic_clean, canonicalize_text

    if isinstance(tokenizer, SimpleTokenizer):
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    if not texts:
        return []
    if hasattr(tokenizer, "clean_fn"):
        cleaned = [tokenizer.clean_fn(text) for text in texts]
    else:  # SigLIP
        cleaned = [canonicalize_text(basic_clean(text)) for text in texts]
    by_hand = getattr(tokenizer, "tokenizer_mode", "") == "clips"  # adds begin, end and class tokens itself
    encoded = tokenizer.tokenizer(cleaned, add_special_tokens=not by_hand, truncation=False, verbose=False)
    return [len(ids) + 3 * by_hand for ids in encoded["input_ids"]]
