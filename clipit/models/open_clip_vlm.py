"""VLMs that open_clip loads: built-in names, Hub ids and local folders."""

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipit.errors import ModelError, shortlist
from clipit.models.loading import (
    CLIP_WEIGHTS,
    OPEN_CLIP_CONFIG,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    foreign_errors,
    hub_file,
    read_model_json,
)
from clipit.models.open_clip_files import has_quick_gelu, save_open_clip
from clipit.models.preprocess import preprocess_from_open_clip
from clipit.models.remote_code import check_tokenizer_options, text_config
from clipit.models.specs import ModelSpec
from clipit.models.token_grids import open_clip_tokens
from clipit.models.towers import Towers
from clipit.models.weights import load_reports

_HUB_HINT = (
    "A text tower from the Hub (such as PubMedBERT) also needs its own configuration and tokeniser files. "
    "For a repository in transformers' format, use clip:ID."
)
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", *CLIP_WEIGHTS[:2])

_POSITIONS = "positional_embedding"
logger = logging.getLogger(__name__)

TRUST = "set vlm.trust_remote_code: true"
"""Fix given in errors about untrusted code."""


def listed_towers(spec: ModelSpec, quick_gelu: bool | None = None, trusted: bool = False) -> Towers:
    """Load a VLM in the table: an architecture built into open_clip, or a repository on the Hub.

    Raises:
        ModelError: The weights must be downloaded manually, or cannot be loaded.
    """
    if spec.loader.get("checkpoint"):
        raise ModelError(
            f"{spec.name} is published as a checkpoint file, not on the Hub",
            where=f"vlm.name: {spec.name}",
            fix=f"download it from {spec.page} and set vlm.path to the file",
        )
    if spec.loader.get("quick_gelu"):  # OpenAI's weights, under a built-in architecture
        return builtin_towers(spec.source, quick_gelu)
    return hub_towers(spec.source, quick_gelu, trusted)


def check_builtin(spec: str) -> None:
    """Check `ARCH/PRETRAINED`: a built-in architecture with a pretrained tag or the path of a checkpoint.

    Raises:
        ModelError: The architecture or tag is unknown; known ones are listed.
    """
    import open_clip

    architecture, _, pretrained = spec.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        similar = difflib.get_close_matches(architecture, known, 5, 0.4)
        raise ModelError(
            f"open_clip has no architecture {architecture!r}",
            where=f"open_clip:{spec}",
            fix=f"use one of open_clip's architectures, such as {', '.join(similar) or shortlist(known)}",
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained.lower() not in tags and not Path(pretrained).is_file():
        raise ModelError(
            f"open_clip has no weights {pretrained!r} for {architecture}"
            if pretrained
            else "no pretrained weights given",
            where=f"open_clip:{spec}",
            fix=f"use open_clip:{architecture}/TAG with a published tag ({', '.join(tags) or 'there are none'}), "
            f"or open_clip:{architecture}/PATH with the path of a checkpoint file",
        )


def builtin_repository(spec: str) -> str | None:
    """Return the Hub repository of `ARCH/PRETRAINED`; None for a file, and for weights that are not on the Hub."""
    import open_clip

    architecture, _, pretrained = spec.partition("/")
    published = {} if Path(pretrained).is_file() else open_clip.get_pretrained_cfg(architecture, pretrained)
    return ((published or {}).get("hf_hub") or "").rstrip("/") or None


def builtin_towers(spec: str, quick_gelu: bool | None = None) -> Towers:
    """Load `ARCH/PRETRAINED`: a built-in architecture with a pretrained tag or the path of a checkpoint.

    Raises:
        ModelError: The architecture or tag is unknown (known ones are listed), or the download fails.
    """
    import open_clip

    check_builtin(spec)
    architecture, _, pretrained = spec.partition("/")
    hub_id = builtin_repository(spec)
    published = {} if Path(pretrained).is_file() else open_clip.get_pretrained_cfg(architecture, pretrained)
    # If weights and architecture disagree on the GELU variant, open_clip only warns; the weights decide.
    quick = quick_gelu if quick_gelu is not None else True if published.get("quick_gelu") else None
    file = Path(pretrained) if not published else None
    return _load(f"open_clip:{spec}", architecture, pretrained, hub_id, where=file, quick_gelu=quick)


def hub_towers(hub_id: str, quick_gelu: bool | None = None, trusted: bool = False) -> Towers:
    """Load an open_clip repository from the Hugging Face Hub.

    Raises:
        ModelError: The repository cannot be loaded, or requires code that is not trusted.
    """
    name = f"hf-hub:{hub_id}"
    with foreign_errors(name, hub_id, _HUB_HINT):
        description = read_model_json(hub_file(hub_id, (OPEN_CLIP_CONFIG,)))
    check_tokenizer_options(description, name, trusted, TRUST)
    _note_defaults(description, name)
    return _load(name, name, None, hub_id, _HUB_HINT, quick_gelu=quick_gelu)


def folder_towers(
    folder: Path, spec: ModelSpec | None = None, quick_gelu: bool | None = None, trusted: bool = False
) -> Towers:
    """Load a folder in open_clip's format, with the options of a table entry if one is given.

    Raises:
        ModelError: Weights or tokeniser are missing (open_clip would keep random weights, or contact the Hub), the
            weights do not match the configuration, or the folder requires code that is not trusted.
    """
    description = read_model_json(folder / OPEN_CLIP_CONFIG)
    check_tokenizer_options(description, folder / OPEN_CLIP_CONFIG, trusted, TRUST)
    _note_defaults(description, folder / OPEN_CLIP_CONFIG)
    text = text_config(description, folder / OPEN_CLIP_CONFIG)
    missing = []
    if not any((folder / name).is_file() for name in _WEIGHTS):
        missing.append(f"weights ({' or '.join(_WEIGHTS)})")
    if text.get("hf_tokenizer_name") and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append(f"tokeniser of {text['hf_tokenizer_name']} ({' or '.join(TOKENIZER_FILES)})")
    if text.get("hf_tokenizer_name") and not (folder / TOKENIZER_CONFIG).is_file():
        missing.append(f"{TOKENIZER_CONFIG} of {text['hf_tokenizer_name']}")
    if missing:
        raise ModelError(
            f"{OPEN_CLIP_CONFIG} is present, but files are missing: {'; '.join(missing)}",
            where=folder,
            fix="copy these files into the same folder",
        )
    options: dict[str, Any] = {}
    if quick_gelu is None and spec is not None and spec.loader.get("quick_gelu"):
        quick_gelu = True
    hint = ""
    if text.get("hf_model_name"):
        file = folder / "config.json"
        if file.is_file() and "model_type" in read_model_json(file):  # saves a request to the Hub
            options["text_cfg"] = {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}
        else:
            options["uses_hub"] = True
        hint = f"The text tower needs the config.json of {text['hf_model_name']}: copy that file into this folder."
    return _load(str(folder), f"local-dir:{folder}", None, None, hint, quick_gelu=quick_gelu, **options)


def _note_defaults(description: Mapping[str, Any], where: object) -> None:
    """Warn if a configuration does not state the normalisation of the pixels."""
    stated = description.get("preprocess_cfg") or {}
    missing = [key for key in ("mean", "std") if stated.get(key) is None]
    if missing:
        logger.warning(f"{where}: preprocess_cfg contains no {' and no '.join(missing)}; open_clip's default is used")


def checkpoint_towers(file: Path, spec: ModelSpec, quick_gelu: bool | None = None) -> Towers:
    """Load a checkpoint file for a table entry whose architecture is built into open_clip.

    Raises:
        ModelError: The architecture is not built into open_clip, so a folder with its configuration is needed.
    """
    if not (spec.loader.get("checkpoint") or spec.loader.get("quick_gelu")):
        raise ModelError(
            f"a weights file alone is not enough to build {spec.name}",
            where=file,
            fix=f"use the folder with {OPEN_CLIP_CONFIG} and all files from {spec.page}",
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
    uses_hub: bool = False,
    quick_gelu: bool | None = None,
    **options: Any,
) -> Towers:
    import open_clip

    if quick_gelu is not None:  # open_clip has one argument to force it on, and another to switch it off
        options["force_quick_gelu" if quick_gelu else "quick_gelu"] = quick_gelu
    own_files = where is not None or model_name.startswith("local-dir:")
    with foreign_errors(name, hub_id, hint, where, uses_hub=uses_hub):
        with load_reports(where or name, strict=True), _resizing_reported(where or name, is_error=own_files):
            model: Any = open_clip.create_model(model_name, pretrained=pretrained, require_pretrained=True, **options)
        tokenizer: Any = open_clip.get_tokenizer(model_name)
    if quick_gelu is not None and has_quick_gelu(model) != quick_gelu:
        raise ModelError(
            f"quick_gelu: {str(quick_gelu).lower()} has no effect on this model: its towers define "
            "their own activations",
            where=name,
            fix="remove vlm.quick_gelu",
        )
    raw, raw_dim = _before_projection(model.visual)

    return Towers(
        module=model,
        preprocess=preprocess_from_open_clip(model.visual.preprocess_cfg, name),
        context_length=int(tokenizer.context_length),
        logit_scale=float(model.logit_scale.detach().exp()),
        source=model_name.removeprefix("local-dir:"),
        count_tokens=lambda texts: _count(tokenizer, texts),
        tokenise=lambda texts: {"text": torch.as_tensor(tokenizer(list(texts)))},
        vocabulary=_vocabulary(tokenizer),
        image=lambda pixels: model.encode_image(pixels, normalize=False),
        text=lambda tokens: model.encode_text(tokens["text"], normalize=False),
        raw=raw,
        raw_dim=raw_dim,
        tokens=open_clip_tokens(model.visual),
        save=lambda folder: save_open_clip(model, model_name, folder),
    )


@contextmanager
def _resizing_reported(where: object, is_error: bool) -> Iterator[None]:
    """Raise an error or log a warning if open_clip resamples position embeddings that do not fit the configuration."""
    from open_clip import factory

    names = ("resize_pos_embed", "resize_text_pos_embed")
    originals = {name: getattr(factory, name) for name in names}

    def reported(resize: Callable[..., None]) -> Callable[..., None]:
        def run(weights: dict[str, Tensor], *arguments: Any, **options: Any) -> None:
            before = {name: tuple(value.shape) for name, value in weights.items() if name.endswith(_POSITIONS)}
            resize(weights, *arguments, **options)
            for name, shape in before.items():
                if (now := tuple(weights[name].shape)) != shape:
                    problem = f"the position embeddings do not fit the configuration: {name} is {shape} in the file, "
                    problem += f"but {now} in the model"
                    if is_error:
                        fix = f"correct image_size or context_length in {OPEN_CLIP_CONFIG}"
                        raise ModelError(problem, where=where, fix=fix)
                    logger.warning(f"{where}: {problem}; open_clip resamples them")

        return run

    for name, original in originals.items():
        setattr(factory, name, reported(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(factory, name, original)


def _before_projection(visual: Any) -> tuple[Callable[[Tensor], Tensor] | None, int | None]:
    """Return a function from pixels to features before the projection, and their dimension; None if not available."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer) and visual.proj is not None:
        width = int(visual.proj.shape[0])

        def pooled(pixels: Tensor) -> Tensor:
            identity = torch.eye(width, device=visual.proj.device, dtype=visual.proj.dtype)
            output = torch.func.functional_call(visual, {"proj": identity}, (pixels,))
            features: Tensor = output[0] if isinstance(output, tuple) else output  # CoCa also returns its tokens
            return features

        return pooled, width
    if (
        isinstance(visual, TimmModel)
        and set(visual.head._modules) & {"proj", "mlp"}
        and "pool" not in visual.head._modules
    ):
        return visual.trunk, int(visual.trunk.num_features)
    return None, None  # the projection is part of the pooling (ResNets), or absent


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """Return the vocabulary of open_clip's own tokeniser, or of a transformers tokeniser that it wraps."""
    inner = getattr(tokenizer, "tokenizer", None)
    vocabulary: dict[str, int] = tokenizer.encoder if inner is None else inner.get_vocab()
    return vocabulary


def _count(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Count tokens before open_clip's tokenisers truncate and pad."""
    from open_clip.tokenizer import SimpleTokenizer, basic_clean, canonicalize_text

    if isinstance(tokenizer, SimpleTokenizer):
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    if not texts:
        return []
    if hasattr(tokenizer, "clean_fn"):
        cleaned = [tokenizer.clean_fn(text) for text in texts]
    else:  # SigLIP
        cleaned = [canonicalize_text(basic_clean(text)) for text in texts]
    clips_mode = getattr(tokenizer, "tokenizer_mode", "") == "clips"  # adds begin, end and class tokens itself
    encoded = tokenizer.tokenizer(cleaned, add_special_tokens=not clips_mode, truncation=False, verbose=False)
    return [len(ids) + 3 * clips_mode for ids in encoded["input_ids"]]
