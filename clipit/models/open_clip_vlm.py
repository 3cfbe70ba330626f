"""VLMs of the open_clip package: built-in names, hub ids, local folders."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipit.errors import ModelError, explain, shortlist
from clipit.models.loading import CLIP_WEIGHTS, TOKENIZER_FILES, TOKENIZER_RULES, foreign_errors, read_json
from clipit.models.preprocess import preprocess_from_open_clip
from clipit.models.specs import ModelSpec
from clipit.models.towers import Tokens, Towers

CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", *CLIP_WEIGHTS[:2])


def named_towers(spec: ModelSpec, quick_gelu: bool | None = None) -> Towers:
    """An entry of the table, from open_clip's own weights or from the hub.

    Raises:
        ModelError: Its weights are a file that has to be fetched by hand; else as the functions below.
    """
    if spec.loader.get("checkpoint"):
        raise ModelError(
            explain(
                f"{spec.name} is published as a checkpoint file, not on a hub",
                where=f"vlm.name: {spec.name}",
                fix=f"download it from {spec.page} and set vlm.path to the file",
            )
        )
    if spec.loader.get("quick_gelu"):  # of OpenAI: open_clip knows the architecture by name
        return builtin_towers(spec.source, quick_gelu)
    return hub_towers(spec.source, quick_gelu)


def builtin_towers(spec: str, quick_gelu: bool | None = None) -> Towers:
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
    published = {} if Path(pretrained).is_file() else open_clip.get_pretrained_cfg(architecture, pretrained)
    if published:
        hub_id = (published.get("hf_hub") or "").rstrip("/") or None
    # open_clip only warns when weights and architecture differ in their GELU; their own rule is the right one.
    quick = quick_gelu if quick_gelu is not None else True if published.get("quick_gelu") else None
    file = Path(pretrained) if not published else None
    return _load(f"open_clip:{spec}", architecture, pretrained, hub_id, where=file, quick_gelu=quick)


def hub_towers(hub_id: str, quick_gelu: bool | None = None) -> Towers:
    """An open_clip repository of the Hugging Face hub."""
    return _load(f"hf-hub:{hub_id}", f"hf-hub:{hub_id}", None, hub_id, quick_gelu=quick_gelu)


def folder_towers(folder: Path, spec: ModelSpec | None = None, quick_gelu: bool | None = None) -> Towers:
    """A folder in open_clip's own format; with an entry of the table, under its rules.

    Raises:
        ModelError: Weights or tokeniser are missing (open_clip would go on with random weights, or look for a
            hub); the weights do not fit the configuration.
    """
    text = read_json(folder / CONFIG).get("model_cfg", {}).get("text_cfg", {})
    missing = []
    if not any((folder / name).is_file() for name in _WEIGHTS):
        missing.append(f"weights ({' or '.join(_WEIGHTS)})")
    if text.get("hf_tokenizer_name") and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append(f"tokeniser of {text['hf_tokenizer_name']} ({' or '.join(TOKENIZER_FILES)})")
    if text.get("hf_tokenizer_name") and not (folder / TOKENIZER_RULES).is_file():
        missing.append(f"{TOKENIZER_RULES} of {text['hf_tokenizer_name']}")
    if missing:
        raise ModelError(
            explain(
                f"{CONFIG} is here, but no {', and no '.join(missing)}",
                where=folder,
                fix="put these files beside it",
            )
        )
    options: dict[str, Any] = {}
    if quick_gelu is None and spec is not None and spec.loader.get("quick_gelu"):
        quick_gelu = True
    hint = ""
    if text.get("hf_model_name"):
        beside = folder / "config.json"
        if beside.is_file() and "model_type" in read_json(beside):  # the text tower's own: no hub is asked
            options["text_cfg"] = {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}
        else:
            options["asks_hub"] = True
        hint = f"Its text tower is built from config.json of {text['hf_model_name']}: put that file into this folder."
    return _load(str(folder), f"local-dir:{folder}", None, None, hint, quick_gelu=quick_gelu, **options)


def checkpoint_towers(file: Path, spec: ModelSpec, quick_gelu: bool | None = None) -> Towers:
    """A checkpoint file of an entry whose architecture open_clip knows.

    Raises:
        ModelError: The entry's architecture stands in a folder's configuration, not in open_clip.
    """
    if not (spec.loader.get("checkpoint") or spec.loader.get("quick_gelu")):
        raise ModelError(
            explain(
                f"a file alone does not say how {spec.name} is built",
                where=file,
                fix=f"give the folder with {CONFIG} and all files of {spec.page}",
            )
        )
    return builtin_towers(f"{spec.source.partition('/')[0]}/{file}", quick_gelu)


def _load(
    name: str,
    model_name: str,
    pretrained: str | None,
    hub_id: str | None,
    hint: str = "",
    *,
    where: Path | None = None,
    asks_hub: bool = False,
    quick_gelu: bool | None = None,
    **options: Any,
) -> Towers:
    import open_clip

    if hub_id and pretrained is None:
        hint = (
            "A text tower from the hub (such as PubMedBERT) needs its own configuration and tokeniser files, too. "
            "A repository in transformers' format is named clip:ID."
        )
    if quick_gelu is not None:  # open_clip forces it on by one argument, and off by another
        options["force_quick_gelu" if quick_gelu else "quick_gelu"] = quick_gelu
    with foreign_errors(name, hub_id, hint, where, asks_hub=asks_hub):
        model: Any = open_clip.create_model(model_name, pretrained=pretrained, require_pretrained=True, **options)
        tokenizer: Any = open_clip.get_tokenizer(model_name)
    if quick_gelu is not None and has_quick_gelu(model) != quick_gelu:
        raise ModelError(
            explain(
                f"quick_gelu: {str(quick_gelu).lower()} has no effect on this model: its towers have activations "
                "of their own",
                where=name,
                fix="leave vlm.quick_gelu out",
            )
        )
    raw, raw_dim = _before_projection(model.visual)

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
        vocabulary=_vocabulary(tokenizer),
        image=image,
        text=text,
        raw=raw,
        raw_dim=raw_dim,
    )


def has_quick_gelu(model: nn.Module) -> bool:
    """Whether a model computes the quick GELU, which no weight shows."""
    return any(type(part).__name__ == "QuickGELU" for part in model.modules())


def _before_projection(visual: Any) -> tuple[Callable[[Tensor], Tensor] | None, int | None]:
    """What gives the pooled features before the projection, and their length; None where there are none."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer) and visual.proj is not None:
        width = int(visual.proj.shape[0])

        def pooled(pixels: Tensor) -> Tensor:
            """The tower with the identity for its projection."""
            identity = torch.eye(width, device=visual.proj.device, dtype=visual.proj.dtype)
            found = torch.func.functional_call(visual, {"proj": identity}, (pixels,))
            features: Tensor = found[0] if isinstance(found, tuple) else found  # CoCa's gives its tokens, too
            return features

        return pooled, width
    if (
        isinstance(visual, TimmModel)
        and set(visual.head._modules) & {"proj", "mlp"}
        and "pool" not in visual.head._modules
    ):
        return visual.trunk, int(visual.trunk.num_features)
    return None, None  # the projection is part of the pooling (ResNets), or there is none


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """Of open_clip's own tokeniser, or of the one of transformers that it wraps."""
    inner = getattr(tokenizer, "tokenizer", None)
    found: dict[str, int] = tokenizer.encoder if inner is None else inner.get_vocab()
    return found


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
