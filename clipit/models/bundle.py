"""The folder of an exported classifier: its files and its description `clipit.json`.

`config.json` and `model.safetensors` are in the format of the package that opens the backbone (`loader`). The plain
export (`plain`) is an ordinary model of timm: timm and transformers' image-classification pipeline open it without
this package. It can carry one pooled token and one linear layer, so that it needs a timm backbone, timm's own pooling
(`cls` is, `cls_mean` is not) and the linear head. Everything else (late fusion, class token beside the patches' mean,
transformers backbones) keeps its head in `heads.safetensors`, and `load_classifier` alone puts it together;
`export_note` says so in the folder itself. The projector and the prompts never lie in the plain files.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipit.artifacts import write_json
from clipit.errors import ModelError, explain
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
    """What `clipit.json` says.

    Attributes:
        classes: Names, in the order of the logits.
        head: Of the student in training.
        projector_layers: 0: trained without text, so it answers no zero-shot questions.
        plain: The head lies in timm's own files (one linear layer); otherwise in `heads.safetensors`.
        dim: Features of the backbone.
        preprocess: From a picture to its input.
        mpp: Micrometres per pixel that it expects; None when unknown.
        vlm: `VLM.describe()` of the VLM whose joint space it predicts.
        prompts: Cached prompt sets: name -> class names.
        provenance: Run, configuration, versions: free for the caller.
        loader: The package whose format the backbone is in.
        pooling: Ours over its tokens; `default`: the package's own.
        remote_code: Whether Python code beside the weights defines the backbone.
        export_note: What opens this folder besides clipit, and what that leaves out.
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
    """What opens an exported folder besides clipit, and what that leaves out."""
    if plain:
        return (
            'timm.create_model("local-dir:FOLDER", pretrained=True) and '
            'transformers.pipeline("image-classification", model=FOLDER) open this folder and give the same logits; '
            "what answers zero-shot questions needs clipit."
        )
    opens = (
        'timm.create_model("local-dir:FOLDER", pretrained=True)'
        if loader == "timm"
        else "transformers.AutoModel.from_pretrained(FOLDER)"
    )
    reasons = [
        "its head is late fusion" if head == "late_fusion" else "",
        "its features are the class token beside the patches' mean" if pooling == "cls_mean" else "",
        "transformers has no linear head over this model's class token alone" if loader == "transformers" else "",
    ]
    why = "; ".join(reason for reason in reasons if reason) or "timm puts no single linear layer over its features"
    return f"{opens} opens the adapted backbone only; the classes need clipit.load_classifier ({why})."


def write_spec(folder: Path, spec: ClassifierSpec) -> None:
    """Write `clipit.json`."""
    write_json(folder / DESCRIPTION, {"format": FORMAT, **asdict(spec)})


def read_spec(folder: Path) -> ClassifierSpec:
    """Read `clipit.json`.

    Raises:
        ModelError: The folder is no classifier, or is incomplete, or was written by a newer version.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ModelError(
            explain(
                f"no classifier here: looked for {DESCRIPTION}",
                where=folder,
                fix="give the folder classifier/ of a finished run",
            )
        )
    found: Mapping[str, Any] = read_json(folder / DESCRIPTION)
    if found.get("format") != FORMAT:
        raise ModelError(
            explain(
                f"format {found.get('format')} of a classifier; this version reads {FORMAT}",
                where=folder / DESCRIPTION,
                fix="update clipit, or export the classifier again",
            )
        )
    try:
        fields = {key: value for key, value in found.items() if key != "format"}
        fields["classes"] = tuple(fields["classes"])
        fields["preprocess"] = preprocess_from_dict(fields["preprocess"])
        fields["prompts"] = {name: tuple(classes) for name, classes in fields["prompts"].items()}
        spec = ClassifierSpec(**fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            explain(f"damaged description: {error}", where=folder / DESCRIPTION, fix="export the classifier again")
        ) from error
    needed = [CONFIG, WEIGHTS, *([] if spec.plain else [HEADS]), *([ZERO_SHOT] if spec.projector_layers else [])]
    absent = [name for name in needed if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            explain(f"files are missing: {', '.join(absent)}", where=folder, fix="copy or export the classifier again")
        )
    return spec
