"""KEEP, loaded by transformers with the Python code of its repository if the user trusts it.

Tested with code and files in the layout of the release and random weights; not tested with the released weights.
"""

from pathlib import Path
from typing import Any

from clipit.errors import ModelError, shortlist
from clipit.models.loading import CLIP_WEIGHTS, TOKENIZER_FILES, foreign_errors, hub_file, read_json, require_files
from clipit.models.preprocess import preprocess_from_spec
from clipit.models.specs import ModelSpec
from clipit.models.towers import Towers, transformers_token_counter, transformers_tokenise
from clipit.models.weights import read_tensors

_WEIGHTS = CLIP_WEIGHTS[:2]
_PARTS = ("encode_image", "encode_text", "visual", "logit_scale")
"""Attributes of the model that are used."""


def keep_towers(spec: ModelSpec, path: Path | None, trust_remote_code: bool) -> Towers:
    """Load KEEP from its hub id or a local folder.

    KEEP's code normalises the joint space itself. It predates transformers 5 and does not work with its
    `from_pretrained`, so the model is built from its configuration and the weights are loaded here.

    Raises:
        ModelError: Remote code is not trusted, files are missing, or weights do not match.
    """
    source = spec.source if path is None else str(path)
    if not trust_remote_code:
        raise ModelError(
            f"{spec.name} runs Python code of its repository (modeling_keep.py), which is not trusted yet",
            where=source,
            fix=f"read that code ({spec.page}), then set vlm.trust_remote_code: true",
        )
    if path is not None:
        require_files(
            path, spec.name, {"configuration": ("config.json",), "weights": _WEIGHTS, "tokeniser": TOKENIZER_FILES}
        )
        description = read_json(path / "config.json")
        if "auto_map" not in description:
            raise ModelError(
                f"not {spec.name}: its config.json names no Python code of its own (auto_map), but the model type "
                f"{description.get('model_type', 'none')}",
                where=path,
                fix=f"give a folder with all files of {spec.page}",
            )
    with foreign_errors(spec.name, None if path else spec.source, "Its code may ask for other package versions.", path):
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        config = AutoConfig.from_pretrained(source, trust_remote_code=True)
        model: Any = AutoModel.from_config(config, trust_remote_code=True).float()
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        file = (
            hub_file(spec.source, _WEIGHTS)
            if path is None
            else next(path / name for name in _WEIGHTS if (path / name).is_file())
        )
        _check_parts(spec, model, source)
        report = model.load_state_dict(read_tensors(file), strict=False)
    missing = [key for key in report.missing_keys if not key.endswith("position_ids")]
    if missing:
        raise ModelError(
            f"the weights do not fit {spec.name}; missing: {shortlist(missing)}",
            where=file,
            fix=f"copy all files of {spec.page} into one folder",
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
    )


def _check_parts(spec: ModelSpec, model: Any, source: str) -> None:
    absent = [part for part in _PARTS if not hasattr(model, part)]
    absent += ["visual.num_features"] if not absent and not hasattr(model.visual, "num_features") else []
    if absent:
        raise ModelError(
            f"not {spec.name}: a {type(model).__name__} without {', '.join(absent)}",
            where=source,
            fix=f"give a folder with all files of {spec.page}",
        )
