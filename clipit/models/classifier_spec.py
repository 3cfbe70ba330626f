"""The folder of an exported classifier: its files and its description `clipit.json`.

`config.json` and `model.safetensors` are in the format of the package that loads the backbone (`loader`). A plain
export (`plain`) is an ordinary timm model, which timm and transformers' image-classification pipeline load without
this package. It needs a timm backbone, timm's own pooling (`cls` but not `cls_mean`) and the linear head. All other
exports (late fusion, class token with the mean of the patches, transformers backbones) keep their head in
`heads.safetensors`, and only `load_classifier` loads them; `export_note` in the folder says so. The projector and
the prompts are never part of the plain files.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipit.artifacts import write_json
from clipit.errors import ModelError
from clipit.models.loading import read_json
from clipit.models.preprocess import Preprocess, preprocess_from_dict
from clipit.models.trunks import Loader, Pooling

FORMAT = 1
DESCRIPTION = "clipit.json"
CONFIG = "config.json"  # the loader's
WEIGHTS = "model.safetensors"  # the loader's
HEADS = "heads.safetensors"
ZERO_SHOT = "zero_shot.safetensors"
ADAPTER = "adapter"


@dataclass(frozen=True)
class ClassifierSpec:
    """Description of an exported classifier, the content of `clipit.json`.

    Attributes:
        classes: Class names, in the order of the logits.
        head: Head of the student in training.
        projector_layers: Layers of the projector; 0 if trained without text, which rules out zero-shot classification.
        plain: Whether the head is part of timm's own files (one linear layer) instead of `heads.safetensors`.
        dim: Number of features of the backbone.
        preprocess: Preprocessing of images.
        mpp: Expected micrometres per pixel; None if unknown.
        vlm: `VLM.describe()` of the VLM whose joint space it predicts.
        prompts: Cached prompt sets: name -> class names.
        provenance: Run, configuration and versions, as given by the caller.
        loader: Package whose format the backbone is in.
        pooling: Pooling of tokens by clipit; `default`: the package's own.
        remote_code: Whether Python code beside the weights defines the backbone.
        export_note: How to load this folder without clipit, and what is then unavailable.
    """

    classes: tuple[str, ...]
    head: Literal["linear", "late_fusion"]
    projector_layers: int
    plain: bool
    dim: int
    preprocess: Preprocess
    mpp: float | None
    vlm: dict[str, Any] | None
    prompts: dict[str, tuple[str, ...]]
    provenance: dict[str, Any] = field(default_factory=dict)
    loader: Loader = "timm"
    pooling: Pooling = "default"
    remote_code: bool = False
    export_note: str = ""


def export_note(loader: Loader, *, plain: bool, pooling: Pooling, head: str) -> str:
    """State how to load an exported folder without clipit, and what is then unavailable."""
    if plain:
        return (
            'timm.create_model("local-dir:FOLDER", pretrained=True) and '
            'transformers.pipeline("image-classification", model=FOLDER) load this folder and give the same logits; '
            "zero-shot classification needs clipit."
        )
    load_call = (
        'timm.create_model("local-dir:FOLDER", pretrained=True)'
        if loader == "timm"
        else "transformers.AutoModel.from_pretrained(FOLDER)"
    )
    reasons = [
        "its head is late fusion" if head == "late_fusion" else "",
        "its features are the class token and the mean of the patches" if pooling == "cls_mean" else "",
        "transformers has no linear head over this model's class token alone" if loader == "transformers" else "",
    ]
    reason = "; ".join(filter(None, reasons)) or "timm has no single linear layer on its features"
    return f"{load_call} loads the adapted backbone only; the classes need clipit.load_classifier ({reason})."


def write_spec(folder: Path, spec: ClassifierSpec) -> None:
    """Write `clipit.json`."""
    write_json(folder / DESCRIPTION, {"format": FORMAT, **asdict(spec)})


def read_spec(folder: Path) -> ClassifierSpec:
    """Read `clipit.json`.

    Raises:
        ModelError: The folder holds no classifier, is incomplete, or was written by a newer version.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ModelError(
            f"no classifier in this folder: {DESCRIPTION} is missing",
            where=folder,
            fix="use the folder classifier/ of a finished run",
        )
    values: Mapping[str, Any] = read_json(folder / DESCRIPTION)
    if values.get("format") != FORMAT:
        raise ModelError(
            f"unsupported classifier format {values.get('format')}; this version reads format {FORMAT}",
            where=folder / DESCRIPTION,
            fix="update clipit, or export the classifier again",
        )
    try:
        fields = {key: value for key, value in values.items() if key != "format"}
        fields["classes"] = tuple(fields["classes"])
        fields["preprocess"] = preprocess_from_dict(fields["preprocess"])
        fields["prompts"] = {name: tuple(classes) for name, classes in fields["prompts"].items()}
        spec = ClassifierSpec(**fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"damaged description: {error}", where=folder / DESCRIPTION, fix="export the classifier again"
        ) from error
    needed = [CONFIG, WEIGHTS, *([] if spec.plain else [HEADS]), *([ZERO_SHOT] if spec.projector_layers else [])]
    absent = [name for name in needed if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"files are missing: {', '.join(absent)}", where=folder, fix="copy or export the classifier again"
        )
    return spec
