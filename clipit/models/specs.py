"""What is known about a model before it is loaded: the entries of both tables, VLMs and backbones."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from clipit.errors import ModelError, explain

Triple = tuple[float, float, float]

OPENAI_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

COLUMNS = ("name", "family", "source", "dim", "px", "mpp", "tokens", "pooling", "licence", "access")
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
        loader: Further arguments of the loader, JSON-like; `facts` in it are compared like the attributes above.
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
            "-" if spec.context_length is None else str(spec.context_length),
            spec.pooling if spec.kind == "backbone" else "-",
            spec.licence,
            f"gated: {spec.page}" if spec.gated else "open",
        )
        for spec in specs
    ]


def spec_table(specs: Iterable[ModelSpec]) -> str:
    """The same as aligned lines of text; below them what a user must know of single models, and of licences."""
    specs = list(specs)
    rows = [COLUMNS, *spec_rows(specs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    named: dict[str, list[str]] = {}
    for spec in specs:
        if spec.note:
            named.setdefault(spec.note, []).append(spec.name)
    notes = [f"{', '.join(names)}: {note}" for note, names in named.items()]
    return "\n".join([*lines, *(["Notes"] if notes else []), *notes, LICENCE_NOTE])


def similar_names(name: str, known: Mapping[str, ModelSpec], most: int = 5) -> list[str]:
    """Names of the table that somebody who wrote `name` may have meant.

    Any case, `_` or `-`; hub ids count as well, and what is written before a colon does not.
    """
    wanted = _plain(name.rpartition(":")[2])
    by_source = [key for key, spec in known.items() if _plain(spec.source) == wanted]
    plain = {_plain(key): key for key in known}
    near = difflib.get_close_matches(wanted, plain, most, 0.6)
    return list(dict.fromkeys([*by_source, *(plain[key] for key in near)]))[:most]


def _plain(name: str) -> str:
    return name.partition("@")[0].lower().replace("_", "-")


def check_spec(spec: ModelSpec, found: Mapping[str, Any], where: object) -> None:
    """Compare what was loaded with what the table says.

    Args:
        spec: The entry.
        found: Attribute of `ModelSpec`, or key of the entry's `loader["facts"]` -> what the loaded model has.
        where: File, folder or hub id that was loaded.

    Raises:
        ModelError: They differ; every difference is named with both values.
    """
    known = {**spec.loader.get("facts", {}), **{entry.name: getattr(spec, entry.name) for entry in fields(spec)}}
    wrong = [
        f"{key} is {value}, the table says {known[key]}"
        for key, value in found.items()
        if not _equal(value, known.get(key))
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
