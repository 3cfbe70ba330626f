"""Effect of each key of a run's configuration on results, speed or reporting, declared at the key."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel

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


_Value = TypeVar("_Value")
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
