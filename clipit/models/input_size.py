"""Look up input sizes of models in clipit's tables or the models' files, without loading a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipit.config.run import BackboneConfig, VLMConfig
from clipit.models.backbone_specs import BACKBONES
from clipit.models.loading import EMBEDDED, read_image_processor, read_model_json
from clipit.models.vlm_specs import VLMS


def input_pixels(model: VLMConfig | BackboneConfig) -> int | None:
    """Return the edge length of a model's input in pixels; None if it is known only after loading.

    Args:
        model: Configuration of the VLM or backbone.
    """
    is_backbone = isinstance(model, BackboneConfig)
    if isinstance(model, BackboneConfig) and model.pixels is not None:
        return model.pixels
    spec = (BACKBONES if is_backbone else VLMS).get(model.name)
    if spec is not None:
        return spec.pixels
    if model.name == "embedded":
        return _in_folder(EMBEDDED / ("backbone" if is_backbone else "vlm"))
    return _in_folder(Path(model.name.rpartition(":")[2]).expanduser())


def _in_folder(folder: Path) -> int | None:
    """Read the input size from the configuration files of timm, open_clip or transformers."""
    values: dict[str, dict[str, Any]] = {
        name: read_model_json(folder / name)
        for name in ("open_clip_config.json", "config.json")
        if (folder / name).is_file()
    }
    open_clip = values.get("open_clip_config.json", {})
    processor: Mapping[str, Any] = read_image_processor(folder) or {}
    timm = values.get("config.json", {})
    sizes = [
        _at(open_clip, "model_cfg", "vision_cfg", "image_size"),
        _at(processor, "crop_size"),
        _at(processor, "size"),
        _at(timm, "pretrained_cfg", "input_size"),
        _at(timm, "vision_config", "image_size"),
        _at(timm, "image_size"),
    ]
    return next((size for size in map(_edge, sizes) if size is not None), None)


def _at(values: Any, *keys: str) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _edge(size: Any) -> int | None:
    """Return the longest edge of a size written as a number, list or dictionary."""
    edges = size.values() if isinstance(size, Mapping) else size if isinstance(size, list | tuple) else [size]
    numbers = [edge for edge in edges if isinstance(edge, int) and not isinstance(edge, bool)]
    return max(numbers, default=None)
