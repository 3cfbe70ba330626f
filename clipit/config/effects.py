"""Effect of each key of a configuration on results, speed or reporting, and its place in fingerprints."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel

from clipit.config.section import Section

Effect = Literal["results", "data", "recipe", "evaluation", "speed", "reporting"]
EFFECTS: dict[Effect, str] = {
    "results": "changes the trained classifier; part of the run's fingerprint",
    "data": "names or selects data or models; the fingerprint covers their content, not their path",
    "recipe": "sets other keys, and has no other effect",
    "evaluation": "changes the results that are computed from the trained classifier; the run is re-evaluated",
    "speed": "changes how fast a run is, not its results",
    "reporting": "changes where a run is written and how it is reported",
}


@dataclass(frozen=True)
class KeyEffect:
    """Marker for a field's effect; an unmarked field inherits the effect of its section, `results` at the top level."""

    effect: Effect


@dataclass(frozen=True)
class LaterKey:
    """Marker for a key added later: fingerprints omit its default value, so that existing results stay valid."""


_Value = TypeVar("_Value")
AddedLater = Annotated[_Value, LaterKey()]
Results = Annotated[_Value, KeyEffect("results")]
Data = Annotated[_Value, KeyEffect("data")]
Recipe = Annotated[_Value, KeyEffect("recipe")]
Evaluation = Annotated[_Value, KeyEffect("evaluation")]
Speed = Annotated[_Value, KeyEffect("speed")]
Reporting = Annotated[_Value, KeyEffect("reporting")]


def select_keys(config: BaseModel, *effects: Effect) -> dict[str, Any]:
    """Select the keys of a configuration, or of a section, that have one of these effects.

    Returns:
        Dotted key -> JSON-serialisable value.
    """
    return _select(config, config.model_dump(mode="json"), "results", effects, "")


@dataclass(frozen=True)
class FingerprintKeys:
    """Keys of a configuration in a fingerprint.

    Attributes:
        keys: Keys that change results, by dotted name.
        unused: Keys and sections without effect, which `keys` omits; records of earlier versions may contain them.
        defaults: Keys with the marker `LaterKey` and their default value, which `keys` omits.
    """

    keys: dict[str, Any]
    unused: frozenset[str]
    defaults: dict[str, Any]


def fingerprint_keys(config: Section, prefix: str = "", unused: Collection[str] | None = None) -> FingerprintKeys:
    """Select the keys of a configuration, or of a section, that belong in fingerprints of its results.

    Args:
        prefix: Prefix of the dotted names, such as `adapt.`.
        unused: Keys and sections without effect; by default, those that the sections declare (`declared_unused`).
    """
    omitted = declared_unused(config) if unused is None else unused
    keys = {key: value for key, value in select_keys(config, "results").items() if not is_within(key, omitted)}
    later = _later_defaults(config)
    return FingerprintKeys(
        {prefix + key: value for key, value in keys.items() if key not in later},
        frozenset(prefix + key for key in omitted),
        {prefix + key: value for key, value in keys.items() if key in later},
    )


def declared_unused(config: BaseModel, prefix: str = "") -> frozenset[str]:
    """Collect the keys and sections that the sections of a configuration declare unused, by dotted name."""
    unused = {prefix + key for key in config.unused_keys()} if isinstance(config, Section) else set()
    for name in type(config).model_fields:
        if isinstance(section := getattr(config, name), BaseModel):
            unused |= declared_unused(section, f"{prefix}{name}.")
    return frozenset(unused)


def is_within(key: str, names: Collection[str]) -> bool:
    """Return whether a dotted key, or a section that contains it, is among these names."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _later_defaults(config: BaseModel, prefix: str = "") -> set[str]:
    """List the keys with the marker `LaterKey` that have their default value."""
    defaults = set()
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            defaults |= _later_defaults(value, f"{prefix}{name}.")
        elif any(isinstance(marker, LaterKey) for marker in field.metadata) and value == field.get_default():
            defaults.add(prefix + name)
    return defaults


def field_effect(model: type[BaseModel], name: str, section: Effect = "results") -> Effect:
    """Return the effect of a field, or that of its section if the field declares none."""
    markers = [marker for marker in model.model_fields[name].metadata if isinstance(marker, KeyEffect)]
    return markers[-1].effect if markers else section


def _select(
    config: BaseModel, values: dict[str, Any], section: Effect, effects: tuple[Effect, ...], prefix: str
) -> dict[str, Any]:
    selected: dict[str, Any] = {}
    for name in type(config).model_fields:
        effect, value = field_effect(type(config), name, section), getattr(config, name)
        if isinstance(value, BaseModel):
            selected |= _select(value, values[name], effect, effects, f"{prefix}{name}.")
        elif effect in effects:
            selected[prefix + name] = values[name]
    return selected
