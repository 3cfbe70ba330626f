"""Base class of the configuration sections, and checks that several sections share."""

from collections.abc import Iterable
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from clipit.errors import has_controls, shortlist

Share = Annotated[float, Field(ge=0.0, le=1.0)]
MIN_MPP, MAX_MPP = 0.01, 100  # minimum and maximum accepted micrometres per pixel
MicrometresPerPixel = Annotated[float, Field(ge=MIN_MPP, le=MAX_MPP)]
MAX_SEED = 2**32 - 1  # largest seed that NumPy accepts
Entry = TypeVar("Entry")
Entries = TypeVar("Entries", bound=tuple[Any, ...])


class Section(BaseModel):
    """Base class of all configuration sections: unknown keys raise errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_values(cls, value: Any, info: Any) -> Any:
        """Reject booleans where a number is expected, and empty strings.

        YAML also reads yes, no, on and off as booleans. An empty string usually comes from a shell variable that is not
        set, as in `--arm=$ARM`; it would silently mean no arm, or the current folder.
        """
        field = cls.model_fields[info.field_name or ""]
        types = {getattr(alternative, "__origin__", alternative) for alternative in get_args(field.annotation)}
        types.add(field.annotation)
        if isinstance(value, bool) and bool not in types and types & {int, float}:
            raise ValueError("write a number, not true, false, yes, no, on or off")
        if isinstance(value, str) and not value.strip() and field.default != "":
            raise ValueError("the value is empty; write a value" + (", or null" if NoneType in types else ""))
        return value

    def unused_keys(self) -> frozenset[str]:
        """Return the section's own keys and subsections that have no effect given the values of its other keys."""
        return frozenset()


def check_once(values: Entries) -> Entries:
    """Reject a list with repeated entries; return any other list unchanged.

    Raises:
        ValueError: Entries are repeated; the message lists them.
    """
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"repeated entries: {', '.join(repeated)}; list each entry once")
    return values


def check_one_line(names: Iterable[str]) -> None:
    """Reject class names that are empty or contain line breaks or other control characters.

    Raises:
        ValueError: A name is invalid; the message lists all such names.
    """
    invalid = [repr(name) for name in names if not name.strip() or has_controls(name)]
    if invalid:
        raise ValueError(f"names are empty or contain a control character: {shortlist(invalid)}")


def check_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Reject repeated seeds, and seeds that NumPy does not accept.

    Raises:
        ValueError: Seeds are repeated or out of range.
    """
    check_once(seeds)
    if any(not 0 <= seed <= MAX_SEED for seed in seeds):
        raise ValueError(f"seeds must be whole numbers from 0 to {MAX_SEED}")
    return seeds


Distinct = Annotated[tuple[Entry, ...], AfterValidator(check_once)]
Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(check_seeds)]
