"""What is known about a model before it is loaded: the entries of both tables, VLMs and backbones."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clipit.errors import ModelError, explain

Triple = tuple[float, float, float]

OPENAI_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

COLUMNS = ("name", "family", "source", "dim", "px", "mpp", "licence", "access")
"""Heads of the columns of `spec_rows`."""

LICENCE_NOTE = (
    "Licences and access come from a third-party registry (lazyslide-models) and from what the packages say; "
    "the model's own page decides."
)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: where it comes from and what must be true of it once it is loaded.

    Attributes:
        name: What a configuration writes.
        kind: Which table it stands in.
        family: Which loader opens it.
        source: Hub id, or the built-in name of the loader's package.
        dim: Length of an embedding (VLM: of the joint space).
        pixels: Edge of the square input, pixels.
        mean: Of the normalisation, per channel, of values in 0..1.
        std: Of the normalisation, per channel, of values in 0..1.
        interpolation: Filter of the resizing.
        expected_mpp: Micrometres per pixel of its training tiles; None when unknown.
        context_length: VLM: most tokens of a text, special tokens included; None: no text tower.
        raw_dim: VLM: length of an image embedding before projection; None when it has none, or it is unknown.
        licence: As the registry names it; see `LICENCE_NOTE`.
        gated: Whether access must be asked for at `page`.
        page: Where its card and its licence stand.
        note: What a user should know besides.
        loader: Further arguments of the loader, JSON-like.
        pooling: Backbone: what becomes of the tokens (`cls_mean`: class token beside the mean of the patches).
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
    """The specs as cells, one row each, in the order of `COLUMNS`."""
    return [
        (
            spec.name,
            spec.family,
            spec.source,
            str(spec.dim),
            str(spec.pixels),
            "?" if spec.expected_mpp is None else f"{spec.expected_mpp:g}",
            spec.licence,
            f"gated: {spec.page}" if spec.gated else "open",
        )
        for spec in specs
    ]


def spec_table(specs: Iterable[ModelSpec]) -> str:
    """The same as aligned lines of text, with heads and the word on licences below."""
    rows = [COLUMNS, *spec_rows(specs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, LICENCE_NOTE])


def similar_names(name: str, known: Iterable[str], most: int = 5) -> list[str]:
    """Names of the table that somebody who wrote `name` may have meant (any case, `_` or `-`)."""
    plain = {key.lower().replace("_", "-"): key for key in known}
    near = difflib.get_close_matches(name.lower().replace("_", "-"), plain, most, 0.6)
    return [plain[key] for key in near]


def check_spec(spec: ModelSpec, found: Mapping[str, Any], where: object) -> None:
    """Compare what was loaded with what the table says.

    Args:
        spec: The entry.
        found: Attribute of `ModelSpec` -> what the loaded model has (dim, pixels, mean, std, ...).
        where: File, folder or hub id that was loaded.

    Raises:
        ModelError: They differ; every difference is named with both values.
    """
    wrong = [
        f"{key} is {value}, the table says {getattr(spec, key)}"
        for key, value in found.items()
        if not _equal(value, getattr(spec, key))
    ]
    if wrong:
        raise ModelError(
            explain(
                f"what was loaded is not {spec.name} as clipit's table describes it: {'; '.join(wrong)}",
                where=where,
                fix=f"give the files of {spec.page or spec.source}; if yours are another model, "
                "name its folder itself instead of this name",
            )
        )


def _equal(found: Any, wanted: Any) -> bool:
    """Equality, within 1e-4 for numbers that publishers round differently."""
    if wanted is None:
        return True  # the table does not know
    if isinstance(wanted, tuple):
        return len(found) == len(wanted) and all(_equal(a, b) for a, b in zip(found, wanted, strict=True))
    if isinstance(wanted, float):
        return math.isclose(found, wanted, abs_tol=1e-4)
    return bool(found == wanted)
