"""KEEP, loaded with the Python code from its own repository, if the user trusts that code.

Tested with random weights, using code and files laid out as in the release; not tested with the released weights.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from clipit.errors import ModelError, shortlist
from clipit.models.loading import (
    CLIP_WEIGHTS,
    TOKENIZER_FILES,
    foreign_errors,
    hub_access,
    hub_file,
    read_model_json,
    require_files,
)
from clipit.models.preprocess import preprocess_from_spec
from clipit.models.specs import ModelSpec
from clipit.models.token_grids import pool_each, trunk_grid
from clipit.models.towers import Towers, transformers_token_counter, transformers_tokenise
from clipit.models.weights import read_tensors, unused_layers, write_tensors

_WEIGHTS = CLIP_WEIGHTS[:2]
_ATTRIBUTES = ("encode_image", "encode_text", "visual", "logit_scale")
"""Attributes that the model must have."""
_COPIED = ["*.json", "*.py", "*.txt"]
"""Glob patterns for the code, configuration and tokeniser files."""
_LAYER_SCALES: dict[str, Any] = {}
"""Replacements for timm's `LayerScale` defined by KEEP's code, keyed by module name."""


def keep_towers(spec: ModelSpec, path: Path | None, trust_remote_code: bool) -> Towers:
    """Load KEEP from its Hub id or a local folder.

    KEEP's code returns unit-norm embeddings. It predates transformers 5 and does not work with that
    version's `from_pretrained`, so the model is built from its configuration and the weights are loaded here.

    Raises:
        ModelError: Remote code is not trusted, files are missing, or weights do not match.
    """
    source = spec.source if path is None else str(path)
    if not trust_remote_code:
        raise ModelError(
            f"{spec.name} runs Python code from its repository (modeling_keep.py), which is not trusted yet",
            where=source,
            fix=f"read that code ({spec.page}), then set vlm.trust_remote_code: true",
        )
    if path is not None:
        require_files(
            path, spec.name, {"configuration": ("config.json",), "weights": _WEIGHTS, "tokeniser": TOKENIZER_FILES}
        )
        description = read_model_json(path / "config.json")
        if "auto_map" not in description:
            raise ModelError(
                f"not {spec.name}: config.json refers to no Python code (auto_map), and its model type is "
                f"{description.get('model_type', 'none')}",
                where=path,
                fix=f"use a folder with all files from {spec.page}",
            )
    with foreign_errors(spec.name, None if path else spec.source, "Its code may need other package versions.", path):
        from transformers import AutoTokenizer

        model = _build(source)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        file = (
            hub_file(spec.source, _WEIGHTS)
            if path is None
            else next(path / name for name in _WEIGHTS if (path / name).is_file())
        )
        _check_attributes(spec, model, source)
        report = model.load_state_dict(read_tensors(file), strict=False)
    problems = [f"{key} is missing" for key in report.missing_keys if not key.endswith("position_ids")]
    problems += [f"{key} is not in the model of config.json" for key in unused_layers(model, report.unexpected_keys)]
    if problems:
        raise ModelError(
            f"the weights do not match {spec.name}: {shortlist(problems)}",
            where=file,
            fix=f"copy all files from {spec.page} into one folder",
        )
    context_length = int(spec.context_length or tokenizer.model_max_length)
    return Towers(
        module=model,
        preprocess=preprocess_from_spec(spec),
        context_length=context_length,
        logit_scale=float(model.logit_scale.detach().exp()),
        source=source,
        count_tokens=transformers_token_counter(tokenizer),
        tokenise=transformers_tokenise(tokenizer, context_length),
        vocabulary=tokenizer.get_vocab(),
        image=model.encode_image,
        text=lambda tokens: model.encode_text(dict(tokens)),
        raw=model.visual,
        raw_dim=int(model.visual.num_features),
        tokens=_tokens(model),
        save=lambda folder: _save(model, source, folder),
    )


def _tokens(model: Any) -> Callable[[Tensor], Tensor] | None:
    """Return a function from pixels to projected patch tokens; None if the model lacks the layers needed."""
    if not (hasattr(model.visual, "forward_features") and hasattr(model, "visual_head")):
        return None
    return lambda pixels: model.visual_head(pool_each(model.visual, trunk_grid(model.visual, pixels)))


def _save(model: Any, source: str, folder: Path) -> None:
    """Copy the code, configuration and tokeniser, and write the current weights."""
    origin = Path(source)
    if not origin.is_dir():
        from huggingface_hub import snapshot_download

        with hub_access():
            origin = Path(snapshot_download(source, allow_patterns=_COPIED))
    for file in sorted(file for pattern in _COPIED for file in origin.glob(pattern) if ".index." not in file.name):
        shutil.copyfile(file, folder / file.name)
    write_tensors(folder / _WEIGHTS[0], model.state_dict())


def _build(source: str) -> Any:
    """Import KEEP's code and build its model with random weights, without changing timm for the rest of the process.

    The code replaces timm's `LayerScale` with a class whose weight has a different name, and which does not accept the
    keywords `device` and `dtype` that newer timm versions pass. Here, the replacement lasts only while the model is
    built. transformers imports the code once per process, so later loads reuse the class stored by the first.
    """
    from timm.models import vision_transformer
    from transformers import AutoConfig, AutoModel
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    with patch.object(vision_transformer, "LayerScale", vision_transformer.LayerScale) as original:
        config = AutoConfig.from_pretrained(source, trust_remote_code=True)
        model_class = get_class_from_dynamic_module(config.auto_map["AutoModel"], source)
        if vision_transformer.LayerScale is not original:
            _LAYER_SCALES[model_class.__module__] = vision_transformer.LayerScale
        if model_class.__module__ in _LAYER_SCALES:
            vision_transformer.LayerScale = _without_placement(_LAYER_SCALES[model_class.__module__])
        model: Any = AutoModel.from_config(config, trust_remote_code=True).float()
    return model


def _without_placement(layer_scale: Any) -> Any:
    """Return a subclass that ignores the keywords `device` and `dtype`."""

    class LayerScale(layer_scale):  # type: ignore[misc]
        def __init__(self, *arguments: Any, device: object = None, dtype: object = None, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)

    return LayerScale


def _check_attributes(spec: ModelSpec, model: Any, source: str) -> None:
    absent = [name for name in _ATTRIBUTES if not hasattr(model, name)]
    absent += ["visual.num_features"] if not absent and not hasattr(model.visual, "num_features") else []
    if absent:
        raise ModelError(
            f"not {spec.name}: {type(model).__name__} has no {', '.join(absent)}",
            where=source,
            fix=f"use a folder with all files from {spec.page}",
        )
