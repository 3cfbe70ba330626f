"""Export a classifier to ONNX or `torch.export`, and compare the exported program's logits with the classifier's."""

import contextlib
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from clipit.errors import ClipitError, ModelError, disk_errors, is_out_of_memory, out_of_memory
from clipit.models.inference import Classifier
from clipit.models.licences import model_licences
from clipit.models.loading import errors_only
from clipit.output_files.artifacts import locked, make_folder, whole_file, write_json
from clipit.versions import installed, package_version

Format = Literal["onnx", "torch_export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch_export": ".pt2"}
"""Suffix of the file in each format."""
TOLERANCE = 1e-4
"""Default for the largest logit difference allowed, relative to the largest logit (at least 1)."""
INPUT, OUTPUT = "pixels", "logits"
"""Names of the input and the output of an exported program."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGE = 1.8e9  # bytes; larger weights go into a second file, because an ONNX file is limited to 2 GiB


@dataclass(frozen=True)
class ExportedProgram:
    """A file written by `export_program`.

    Attributes:
        path: The program; ONNX weights above 1.8 GB are stored next to it in `<file>.data`.
        description: JSON file next to the program, with classes, preprocessing and the comparison of logits.
        differences: Largest logit difference for each test input.
        allowed: Largest logit difference allowed.
    """

    path: Path
    description: Path
    differences: dict[str, float]
    allowed: float


class _Logits(nn.Module):
    """Network of a classifier that returns only the logits."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixels)[0]
        return logits


def export_program(
    classifier: Classifier, path: Path, format: Format = "onnx", *, tolerance: float = TOLERANCE
) -> ExportedProgram:
    """Write a classifier as a self-contained program that maps normalised pixels [b,3,h,w] to logits [b,C].

    The program accepts any batch size. The classes and the preprocessing are stored in the file (ONNX: metadata;
    torch.export: extra file `clipit.json`) and in `<file>.json` next to it. The file
    replaces an earlier one only after the logits have been compared.

    Args:
        classifier: Classifier in float32; it is moved to the CPU.
        path: File to write, `.onnx` or `.pt2`; an earlier one is replaced.
        format: `onnx` (with torch's dynamo exporter) or `torch_export`.
        tolerance: Largest logit difference allowed, relative to the largest logit (at least 1).

    Raises:
        ModelError: Packages are missing, the backbone cannot be exported, or the logits differ.
        ArtifactError: The file cannot be written.
    """
    suffix = SUFFIXES[format]
    if path.suffix != suffix:
        other = "".join(f", or use the format {name}" for name, ending in SUFFIXES.items() if ending == path.suffix)
        raise ModelError(
            f"the name of a file in the format {format} must end in {suffix}",
            where=path,
            fix=f"name it {path.with_suffix(suffix)}{other}",
        )
    if format == "onnx":
        _require_onnx()
    if classifier.dtype != torch.float32:
        raise ModelError(
            f"the classifier is in {classifier.dtype}", where="dtype", fix="load it in float32 to export it"
        )
    classifier.to("cpu")
    model = _Logits(classifier).eval()
    description = describe_program(classifier, format)
    partial = path.with_name(f".{path.name}.partial")
    description_file = path.with_name(f"{path.name}.json")
    with locked(path):  # another export to this file would delete the partial one
        try:
            with disk_errors(path):
                shutil.rmtree(partial, ignore_errors=True)
                make_folder(partial)
                with _exporter_errors(path):
                    written = partial / path.name
                    write = _write_onnx if format == "onnx" else _write_torch
                    write(model, written, classifier.spec.preprocess.size, description)
                    run = _open_onnx(written) if format == "onnx" else _open_torch(written)
                    differences, allowed = _compare(classifier, model, run, tolerance, path)
                for file in sorted(partial.iterdir(), reverse=True):  # <file>.data before the file that refers to it
                    with whole_file(path.with_name(file.name)) as temporary:
                        shutil.move(file, temporary)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        write_json(description_file, description | {"largest_differences": differences, "allowed_difference": allowed})
    return ExportedProgram(path, description_file, differences, allowed)


def describe_program(classifier: Classifier, format: Format) -> dict[str, Any]:
    """Describe an exported program: input, output, classes, preprocessing, licences and versions."""
    spec, size = classifier.spec, classifier.spec.preprocess.size
    return {
        "format": format,
        "input": {"name": INPUT, "shape": ["batch", 3, size, size], "type": "float32", "layout": "RGB, normalised"},
        "output": {"name": OUTPUT, "shape": ["batch", len(spec.classes)], "type": "float32"},
        "classes": list(spec.classes),
        "preprocess": asdict(spec.preprocess),
        "preprocess_in_words": spec.preprocess.describe(),
        "mpp": spec.mpp,
        "backbone": str(spec.provenance.get("backbone", {}).get("name", "unknown")),
        "licences": [f"{licence.role} {licence.model}: {licence.licence}" for licence in model_licences(spec)],
        "use": "research use only",
        "versions": {"clipit": package_version(), **installed(("torch", "timm", "transformers", *_ONNX_PACKAGES))},
    }


def _require_onnx() -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"export to ONNX needs packages that are not installed: {', '.join(missing)}",
            where="--format onnx",
            fix=f"pip install {' '.join(_ONNX_PACKAGES)}, or use --format torch_export",
        )


def _write_onnx(model: nn.Module, path: Path, size: int, description: dict[str, Any]) -> None:
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, size, size),),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={"pixels": {0: "batch"}},
        dynamo=True,
        verbose=False,
    )
    if program is None:  # torch.onnx.export returns None only if it writes the file itself
        raise ModelError(
            "torch.onnx.export returned no program",
            where=path,
            fix="pip install --upgrade torch onnxscript",
        )
    program.model.metadata_props.update(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
    )
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # contains paths of this machine
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    program.save(path, external_data=weights > _LARGE)


def _write_torch(model: nn.Module, path: Path, size: int, description: dict[str, Any]) -> None:
    batch = torch.export.Dim("batch", min=1)
    shapes = {"pixels": {0: batch}}
    program = torch.export.export(model, (torch.zeros(2, 3, size, size),), dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # contains paths of this machine
    torch.export.save(program, path, extra_files={"clipit.json": json.dumps(description)})


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.contiguous().numpy()})[0])


def _open_torch(path: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(path).module()
    return lambda pixels: module(pixels)


def _inputs(classifier: Classifier) -> dict[str, Float[Tensor, "b 3 h w"]]:
    """Return normalised pixels for comparing logits: random values, and smooth random images of realistic sizes."""
    preprocess, rng = classifier.spec.preprocess, np.random.default_rng(0)
    edges = ((preprocess.resize_to, preprocess.resize_to), (512, 512), (300, 400))
    images = [Image.fromarray(rng.integers(0, 256, (*edge, 3), dtype=np.uint8)) for edge in edges]
    smooth = [image.resize((16, 16)).resize(image.size, Image.Resampling.BICUBIC) for image in images]
    pixels = torch.from_numpy(np.stack([preprocess.pixels(image) for image in smooth]))
    noise = torch.randn(4, 3, preprocess.size, preprocess.size, generator=torch.Generator().manual_seed(0))
    return {"random values": noise, "one image": noise[:1], "images": preprocess.normalise(pixels)}


@torch.no_grad()
def _compare(
    classifier: Classifier, model: nn.Module, run: Callable[[Tensor], Tensor], tolerance: float, path: Path
) -> tuple[dict[str, float], float]:
    """Compare the logits of the exported program with the classifier's.

    Returns:
        Largest difference for each input, and the largest difference allowed.

    Raises:
        ModelError: A difference is larger than allowed.
    """
    differences: dict[str, float] = {}
    largest = 1.0
    for name, pixels in _inputs(classifier).items():
        expected = model(pixels)
        differences[name] = float((run(pixels) - expected).abs().max())
        largest = max(largest, float(expected.abs().max()))
    allowed = tolerance * largest
    if not max(differences.values()) <= allowed:  # also true for NaN
        listed = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
        raise ModelError(
            f"the exported program differs from the classifier: {listed} (allowed {allowed:.2g}); no file was written",
            where=path,
            fix="report this problem with the name of the backbone; if such differences are acceptable, pass a larger "
            "--tolerance",
        )
    return differences, allowed


@contextlib.contextmanager
def _exporter_errors(path: Path) -> Iterator[None]:
    """Silence the exporters' messages, and convert their errors into a `ModelError`."""
    quiet = errors_only("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    try:
        with quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ClipitError, OSError):
        raise
    except Exception as error:  # the exporters raise errors from many packages
        if is_out_of_memory(error):
            raise out_of_memory(error) from error
        raise ModelError(
            f"the backbone cannot be exported: {' '.join(str(error).split())[:300]}",
            where=path,
            fix="try the other --format; if that fails as well, report this problem with the name of the backbone",
        ) from error
