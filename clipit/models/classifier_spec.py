"""The folder of an exported classifier: its files and its description `clipit.json`.

`config.json` and `model.safetensors` are in the format of the package that loads the backbone (`loader`). A plain
export (`plain`) is an ordinary timm model, which timm and transformers' image-classification pipeline load without
this package. It needs a timm backbone, timm's own pooling (which includes `cls`, but not `cls_mean`) and the linear
head. All other exports store their head in `heads.safetensors`. Among these, a backbone from transformers with the
linear head is also written as transformers' own image classifier, which the same pipeline opens, if that classifier
gives the same logits: ViT with the class token, DINOv2 and Hibou with the class token or with `cls_mean`. The
remaining exports (late fusion, other models and poolings) can only be loaded with `load_classifier`; the pipeline
raises an error for them. `export_note` in `clipit.json` states which case applies. The projector and the prompts are
never part of the files that timm or transformers read.

`README.md` is the classifier's card. It has no checksum, because every evaluation of the run rewrites it, and no loader
reads it.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from clipit.config.run import MAX_INPUT
from clipit.errors import ModelError, counted, shortlist
from clipit.input_files.git_lfs import PULL, find_pointer
from clipit.input_files.nearby_files import similar_names
from clipit.models.loading import read_model_json
from clipit.models.preprocess import Preprocess
from clipit.models.trunks import Loader, Pooling
from clipit.models.weights import check_finite_weights
from clipit.output_files.artifacts import file_sha256, write_json
from clipit.output_files.run_files import RUN_FINGERPRINT, check_same_run

FORMAT = 2
"""Version of `clipit.json`; format 1 had no checksums."""
DESCRIPTION = "clipit.json"
CONFIG = "config.json"  # in the loader's format
WEIGHTS = "model.safetensors"  # in the loader's format
HEADS = "heads.safetensors"
ZERO_SHOT = "zero_shot.safetensors"
ADAPTER = "adapter"
CARD = "README.md"
CLASSIFIER = "classifier"
"""Name of the classifier's folder inside its run's folder."""

_MIN_STD, _MAX_MEAN = 1e-4, 10.0  # generous limits, because some models are not trained on standardised pixels
_SELF = "sha256"  # key that holds the digest of all other keys
COPY_AGAIN = (
    "copy the classifier again from its source; or delete this folder and run clipit train with the run's "
    "configuration, which exports it again"
)


@dataclass(frozen=True)
class ClassifierSpec:
    """Description of an exported classifier, the content of `clipit.json`.

    Attributes:
        classes: Class names, in the order of the logits.
        head: Head that the student was trained with.
        projector_layers: Number of projector layers; 0 if trained without text, which rules out zero-shot use.
        plain: Whether the head is part of timm's own files (one linear layer) instead of `heads.safetensors`.
        mpp: Expected micrometres per pixel; None if unknown.
        vlm: `VLM.describe()` of the VLM whose text embeddings the projector predicts.
        prompts: Class names of each cached prompt set.
        provenance: Run, configuration and versions, as passed by the caller.
        loader: Package in whose format the backbone is saved.
        pooling: Token pooling by clipit; `default` leaves pooling to the package.
        remote_code: Whether Python code next to the weights defines the backbone.
        export_note: How to load this folder without clipit, and what is then unavailable.
        files: SHA-256 of every other file except the card, by path in the folder.
        tile_pixels: Edge length of the training tiles in pixels, before preprocessing; None if unknown or not uniform.
        mpp_assumed: Whether `mpp` is the backbone's expected value, because that of the training tiles is unknown.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

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
    files: dict[str, str] = field(default_factory=dict)
    tile_pixels: int | None = None
    mpp_assumed: bool = False


def export_note(loader: Loader, *, opens: bool, pooling: Pooling, head: str, backbone_class: str) -> str:
    """Describe how to load an exported folder without clipit, and what is then unavailable.

    Args:
        loader: Package in whose format the folder is saved.
        opens: Whether that package opens the folder as a classifier.
        pooling: Token pooling by clipit.
        head: Head that the student was trained with.
        backbone_class: Class of transformers that loads the backbone, if it loads one from this folder.
    """
    model = 'timm.create_model("local-dir:FOLDER", pretrained=True)'
    pipeline = 'transformers.pipeline("image-classification", model=FOLDER)'
    if opens:
        first = model if loader == "timm" else "transformers.AutoModelForImageClassification.from_pretrained(FOLDER)"
        return (
            f"{first} and {pipeline} load this folder and give the same logits; zero-shot classification needs clipit."
        )
    load_call = model if loader == "timm" else f"transformers.{backbone_class}.from_pretrained(FOLDER)"
    reasons = [
        "its head is late fusion" if head == "late_fusion" else "",
        "its features are the class token and the mean of the patch tokens"
        if pooling == "cls_mean" and loader == "timm"
        else "",
    ]
    reason = "; ".join(filter(None, reasons)) or f"{loader} has no classifier with one linear layer over its features"
    return f"{load_call} loads only the adapted backbone; class predictions need clipit.load_classifier ({reason})."


def write_spec(folder: Path, spec: ClassifierSpec) -> None:
    """Write `clipit.json`, with a digest of its own content and the SHA-256 of every other file except the card."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: file_sha256(folder / name) for name in names if name not in (DESCRIPTION, CARD)}
    values = json.loads(json.dumps({"format": FORMAT, **asdict(replace(spec, files=files))}, default=str))
    write_json(folder / DESCRIPTION, {**values, _SELF: _digest(values)})


def read_spec(folder: Path, *, check_files: bool = True) -> ClassifierSpec:
    """Read and validate `clipit.json`, and check that the files it lists exist.

    Their content is verified by `verify_files`, which reads all of them.

    Args:
        check_files: Whether the files must exist.

    Raises:
        ModelError: The folder contains no classifier, is incomplete or damaged, or was written by a different version.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        if folder.is_dir() and _run_of(folder) is not None:
            raise ModelError(f"{DESCRIPTION} is missing from this run's classifier", where=folder, fix=COPY_AGAIN)
        raise ModelError(
            f"no classifier in this folder: {DESCRIPTION} is missing"
            if folder.exists()
            else f"no such folder; {similar_names(str(folder))}",
            where=folder,
            fix="use the folder of a finished run, such as outputs/runs/NAME/ARM-seed0, or its subfolder classifier/",
        )
    values = read_model_json(file)
    version = values.pop("format", None)
    if version != FORMAT:
        older = "; it was written before classifiers contained checksums" if version == 1 else ""
        raise ModelError(
            f"unsupported classifier format {version}{older}; this version reads format {FORMAT}",
            where=file,
            fix="export or train it again: delete this folder and run clipit train with the run's configuration",
        )
    digest = values.pop(_SELF, None)
    spec = _validated(values, file)
    if digest != _digest({"format": FORMAT, **values}):
        raise ModelError("the description was changed after the export", where=file, fix=COPY_AGAIN)
    needed = {CONFIG, WEIGHTS, *(() if spec.plain else (HEADS,)), *((ZERO_SHOT,) if spec.projector_layers else ())}
    if unlisted := needed - spec.files.keys():
        raise ModelError(f"no checksum for {', '.join(sorted(unlisted))}", where=file, fix=COPY_AGAIN)
    absent = [name for name in _loaded_files(spec) if check_files and not (folder / name).is_file()]
    if absent:
        raise ModelError(f"files are missing: {shortlist(absent)}", where=folder, fix=COPY_AGAIN)
    return spec


def verify_files(folder: Path, spec: ClassifierSpec, *, adapter: bool = False) -> None:
    """Verify the SHA-256 of all files that a classifier reads, its class names, and the run that it belongs to.

    Args:
        adapter: Whether to verify the files for peft too, which the classifier does not read.

    Raises:
        ModelError: A file was changed, or the classes in `clipit.json` and in the loader's configuration differ.
        ArtifactError: The classifier is in the folder of a run that did not export it, or `run.json` is damaged.
    """
    run = _run_of(folder)
    if run is not None:
        fix = "delete this folder, and run clipit train again; it is restored from the last checkpoint"
        check_same_run(folder, spec.provenance.get(RUN_FINGERPRINT), run, fix)
    names = _loaded_files(spec)
    names += [name for name in spec.files if adapter and name not in names and (folder / name).is_file()]
    changed = [name for name in names if file_sha256(folder / name) != spec.files[name]]
    if changed:
        if find_pointer(folder / changed[0]):
            raise ModelError("this file is a Git LFS pointer, not the data", where=folder / changed[0], fix=PULL)
        raise ModelError(f"damaged or changed files: {shortlist(changed)}", where=folder, fix=COPY_AGAIN)
    names = _label_names(read_model_json(folder / CONFIG))
    if (names or spec.plain) and names != list(spec.classes):
        raise ModelError(
            f"the classes are {shortlist(spec.classes)} in {DESCRIPTION}, but {shortlist(names)} in {CONFIG}",
            where=folder,
            fix=COPY_AGAIN,
        )


def opens_in_transformers(folder: Path, spec: ClassifierSpec) -> bool:
    """Return whether transformers' image-classification pipeline opens a classifier's folder."""
    return spec.plain or bool(_label_names(read_model_json(folder / CONFIG)))


def check_tensors(spec: ClassifierSpec, tensors: Mapping[str, torch.Tensor], where: object) -> None:
    """Check the tensors of `heads.safetensors` and `zero_shot.safetensors` against the description.

    Raises:
        ModelError: A tensor is not finite, or its shape does not match the number of classes, of features or of joint
            dimensions.
    """
    check_finite_weights(tensors, where, COPY_AGAIN)
    joint = tensors.get("projector.weight", tensors.get("projector.2.weight"))
    dim = 0 if joint is None else int(joint.shape[0])
    shapes: dict[str, tuple[int, ...]] = {}
    if not spec.plain:
        shapes["image_head.weight"] = (len(spec.classes), spec.dim)
    if spec.projector_layers:
        shapes |= {f"prompts.{name}": (len(classes), dim) for name, classes in spec.prompts.items()}
    if "text_mean" in tensors:
        shapes["text_mean"] = (dim,)
    mismatches = [
        f"{name} is {tuple(tensors[name].shape) if name in tensors else 'missing'}, not {shape}"
        for name, shape in shapes.items()
        if name not in tensors or tuple(tensors[name].shape) != shape
    ]
    if spec.vlm is not None and spec.projector_layers and spec.vlm["joint_dim"] != dim:
        mismatches.append(
            f"the projector has {dim} outputs, but the joint space has {spec.vlm['joint_dim']} dimensions"
        )
    if mismatches:
        raise ModelError(
            f"the weights do not match the description: {shortlist(mismatches)}", where=where, fix=COPY_AGAIN
        )


def _run_of(folder: Path) -> Path | None:
    """Return the folder of the run that a classifier's folder belongs to; None if it is not inside a run."""
    path = folder.resolve()
    return path.parent if path.name == CLASSIFIER and (path.parent / "config.yaml").is_file() else None


def _loaded_files(spec: ClassifierSpec) -> list[str]:
    """List the files that a classifier reads: all but the adapter, which is only for peft."""
    return [name for name in spec.files if not name.startswith(f"{ADAPTER}/")]


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _label_names(config: Mapping[str, Any]) -> list[str]:
    """Return the class names in timm's or transformers' configuration of a classifier; empty without a head."""
    if any(str(name).endswith("ForImageClassification") for name in config.get("architectures") or ()):
        return [str(config["id2label"][key]) for key in sorted(config["id2label"], key=int)]
    return [str(name) for name in config.get("label_names", ())]


def _validated(values: Mapping[str, Any], file: Path) -> ClassifierSpec:
    """Build the description from JSON values, and validate every field."""
    try:
        spec: ClassifierSpec = TypeAdapter(ClassifierSpec).validate_json(json.dumps(values))
    except ValidationError as error:
        details = [f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()]
        raise ModelError(f"damaged description: {shortlist(details, 3)}", where=file, fix=COPY_AGAIN) from error
    problems = list(_problems(spec))
    if problems:
        raise ModelError(f"damaged description: {shortlist(problems, 3)}", where=file, fix=COPY_AGAIN)
    return spec


def _problems(spec: ClassifierSpec) -> Iterator[str]:
    for name, names in {"classes": spec.classes, **{f"prompts.{key}": v for key, v in spec.prompts.items()}}.items():
        if len(set(names)) != len(names) or not all(names):
            yield f"{name}: empty or repeated names"
    if len(spec.classes) < 2:
        yield f"classes: {counted(len(spec.classes), 'class', 'classes')}; at least two are needed"
    if spec.dim < 1:
        yield f"dim: {spec.dim} is not positive"
    yield from _preprocess_problems(spec.preprocess)
    if spec.mpp is not None and not spec.mpp > 0:
        yield f"mpp: {spec.mpp} is not positive"
    if not 0 <= spec.projector_layers <= 2:
        yield f"projector_layers: {spec.projector_layers} is not 0, 1 or 2"
    if spec.plain and spec.head != "linear":
        yield f"plain: must be false, because {WEIGHTS} can contain only a linear head"
    if spec.head == "late_fusion" and not spec.projector_layers:
        yield "projector_layers: 0, but late fusion needs a projector"
    if not spec.projector_layers and (spec.prompts or spec.vlm):
        yield "prompts, vlm: present without a projector"
    if spec.vlm is not None:
        types = {"name": str, "fingerprint": str, "joint_dim": int, "logit_scale": float | int}
        yield from (
            f"vlm.{key}: missing or of the wrong type"
            for key, expected in types.items()
            if not isinstance(spec.vlm.get(key), expected) or isinstance(spec.vlm.get(key), bool)
        )
        scale = spec.vlm.get("logit_scale")
        if isinstance(scale, float | int) and not (math.isfinite(scale) and scale > 0):
            yield f"vlm.logit_scale: {scale} is not positive"
    yield from (f"files.{name}: outside the folder" for name in spec.files if _leaves_folder(name))


def _preprocess_problems(preprocess: Preprocess) -> Iterator[str]:
    if not all(_MIN_STD <= value <= 1 / _MIN_STD for value in preprocess.std):
        yield f"preprocess.std: {preprocess.std} is too small or too large for pixel values in 0..1"
    if not all(abs(value) <= _MAX_MEAN for value in preprocess.mean):
        yield f"preprocess.mean: {preprocess.mean} is too large for pixel values in 0..1"
    if not 1 <= preprocess.size <= preprocess.resize_to:
        yield f"preprocess: size {preprocess.size} is not between 1 and resize_to ({preprocess.resize_to})"
    elif preprocess.size > MAX_INPUT or preprocess.resize_to > 2 * MAX_INPUT:
        yield (
            f"preprocess: size {preprocess.size} or resize_to {preprocess.resize_to} is larger than its maximum of "
            f"{MAX_INPUT} or {2 * MAX_INPUT} pixels"
        )


def _leaves_folder(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts
