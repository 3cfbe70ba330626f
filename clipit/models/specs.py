"""Specifications of known models: the entries of clipit's tables of VLMs and backbones."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from clipit.errors import ModelError

Triple = tuple[float, float, float]

OPENAI_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

COLUMNS = ("name", "family", "source", "dim", "px", "mpp", "tokens", "pooling", "licence", "access")
"""Column names of `spec_rows`."""

LICENCE_NOTE = (
    "Licences and access are taken from a third-party registry (lazyslide-models) and from the packages; "
    "the model's own page is authoritative."
)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A known model: its source, and properties that are checked after loading.

    Attributes:
        kind: Table that the entry belongs to.
        family: Loader of the model.
        source: Hub id, or built-in name of the package that loads the model.
        dim: Length of an embedding (VLM: in the joint space).
        pixels: Edge length of the square input, in pixels.
        mean: Per-channel mean for normalisation, for values in 0..1.
        std: Per-channel standard deviation for normalisation, for values in 0..1.
        expected_mpp: Micrometres per pixel of its training tiles; None if unknown.
        context_length: VLM: maximum number of tokens of a text, including special tokens; None without a text tower.
        raw_dim: VLM: length of an image embedding before projection; None if unknown or not available.
        licence: Licence as named by the registry; see `LICENCE_NOTE`.
        gated: Whether access must be requested at `page`.
        loader: Further arguments of the loader, JSON-serialisable; `facts` are checked like the attributes above.
        pooling: Backbone: pooling of its tokens (`cls_mean`: class token and mean of the patch tokens).
    """

    name: str
    kind: Literal["vlm", "backbone"]
    family: str
    source: str
    dim: int
    pixels: int
    mean: Triple
    std: Triple
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    expected_mpp: float | None = None
    context_length: int | None = None
    raw_dim: int | None = None
    licence: str = "unknown"
    gated: bool = False
    page: str = ""
    note: str = ""
    loader: Mapping[str, Any] = field(default_factory=dict, hash=False)
    pooling: Literal["default", "cls", "cls_mean"] = "default"


def spec_rows(specs: Iterable[ModelSpec]) -> list[tuple[str, ...]]:
    """Format specifications as rows of cells, in the order of `COLUMNS`."""
    return [
        (
            spec.name,
            spec.family,
            spec.source,
            str(spec.dim),
            str(spec.pixels),
            "?" if spec.expected_mpp is None else f"{spec.expected_mpp:g}",
            "-" if spec.context_length is None else str(spec.context_length),
            spec.pooling if spec.kind == "backbone" else "-",
            spec.licence,
            f"gated: {spec.page}" if spec.gated else "open",
        )
        for spec in specs
    ]


def spec_table(specs: Iterable[ModelSpec]) -> str:
    """Format specifications as an aligned table, followed by notes on models and licences."""
    specs = list(specs)
    rows = [COLUMNS, *spec_rows(specs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    names_by_note: dict[str, list[str]] = {}
    for spec in specs:
        if spec.note:
            names_by_note.setdefault(spec.note, []).append(spec.name)
    notes = [f"{', '.join(names)}: {note}" for note, names in names_by_note.items()]
    return "\n".join([*lines, *(["Notes"] if notes else []), *notes, LICENCE_NOTE])


def similar_models(name: str, known: Mapping[str, ModelSpec], limit: int = 5) -> list[str]:
    """Find names in the table that are similar to `name`.

    Case, the difference between `_` and `-`, and a prefix that ends with a colon are ignored; Hub ids also match.
    """
    normalised = _normalise_name(name.rpartition(":")[2])
    by_source = [key for key, spec in known.items() if _normalise_name(spec.source) == normalised]
    plain = {_normalise_name(key): key for key in known}
    similar = difflib.get_close_matches(normalised, plain, limit, 0.6)
    return list(dict.fromkeys([*by_source, *(plain[key] for key in similar)]))[:limit]


def _normalise_name(name: str) -> str:
    return name.partition("@")[0].lower().replace("_", "-")


def check_spec(spec: ModelSpec, loaded: Mapping[str, Any], where: object) -> None:
    """Compare a loaded model with its table entry.

    Args:
        loaded: Values of the loaded model, by attribute of `ModelSpec` or key of `loader["facts"]`.
        where: File, folder or Hub id that was loaded.

    Raises:
        ModelError: The model differs; each difference is listed with both values.
    """
    known = {**spec.loader.get("facts", {}), **{entry.name: getattr(spec, entry.name) for entry in fields(spec)}}
    differences = [
        f"{key} is {value}, but the table says {known[key]}"
        for key, value in loaded.items()
        if not _equal(value, known.get(key))
    ]
    if differences:
        raise ModelError(
            f"the loaded model does not match the table's entry for {spec.name}: {'; '.join(differences)}",
            where=where,
            fix=f"use the files from {spec.page or spec.source}; for a different model, use its folder as the name",
        )


def _equal(loaded: Any, expected: Any) -> bool:
    """Compare within 1e-4, because publishers round differently; an expected value of None matches any."""
    if expected is None:
        return True
    if isinstance(expected, tuple):
        return len(loaded) == len(expected) and all(_equal(a, b) for a, b in zip(loaded, expected, strict=True))
    if isinstance(expected, float):
        return math.isclose(loaded, expected, abs_tol=1e-4)
    return bool(loaded == expected)
