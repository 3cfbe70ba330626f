"""Write an open_clip model in open_clip's own format, which `open_clip.create_model("local-dir:FOLDER")` reads."""

from pathlib import Path
from typing import Any

from torch import nn

from clipit.models.loading import OPEN_CLIP_CONFIG, hub_file, read_model_json
from clipit.models.weights import write_tensors
from clipit.output_files.artifacts import write_json

_WEIGHTS = "open_clip_model.safetensors"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def save_open_clip(model: Any, model_name: str, folder: Path) -> None:
    """Write the configuration, the current weights, and any transformers files of the tokeniser and text tower.

    Args:
        model: Model created by open_clip.
        model_name: Name that the model was created with: `local-dir:FOLDER`, `hf-hub:ID`, or a built-in architecture.
        folder: Existing folder to write to.
    """
    import open_clip

    description = _description(model_name)
    config = description["model_cfg"]
    if has_quick_gelu(model) != bool(config.get("quick_gelu")):  # set by the published weights or by the user
        config["quick_gelu"] = has_quick_gelu(model)
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    if text.get("hf_model_name"):  # do not fetch weights that are in this folder
        text["hf_model_pretrained"] = False
        model.text.config.save_pretrained(folder)
    if vision.get("timm_model_pretrained"):
        vision["timm_model_pretrained"] = False
    known = model.visual.preprocess_cfg
    description["preprocess_cfg"] = {key: known[key] for key in _PREPROCESSING if known.get(key) is not None}
    write_json(folder / OPEN_CLIP_CONFIG, description)
    write_tensors(folder / _WEIGHTS, model.state_dict())
    tokenizer: Any = open_clip.get_tokenizer(model_name)
    if hasattr(tokenizer, "tokenizer"):  # open_clip's own tokeniser has no files
        tokenizer.tokenizer.save_pretrained(folder)


def has_quick_gelu(model: nn.Module) -> bool:
    """Return whether a model uses QuickGELU, which cannot be inferred from its weights."""
    return any(type(part).__name__ == "QuickGELU" for part in model.modules())


def _description(model_name: str) -> dict[str, Any]:
    """Return the content of `open_clip_config.json` that the model was created from."""
    import open_clip

    scheme, _, source = model_name.partition(":")
    if scheme == "local-dir":
        return read_model_json(Path(source) / OPEN_CLIP_CONFIG)
    if scheme == "hf-hub":
        return read_model_json(hub_file(source, (OPEN_CLIP_CONFIG,)))
    return {"model_cfg": open_clip.get_model_config(model_name)}
