"""Tests of the runtime shape and type checks that are active in all tests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jaxtyping
import numpy as np
import pytest
from first_call import checked
from jaxtyping import Float32, TypeCheckError

from clipit.reports.rules import Mention, label_report, load_rules
from clipit.vectors import centred

check = jaxtyping.jaxtyped(typechecker=checked)  # as the import hook does
Vector = Float32[np.ndarray, "n"]


def test_functions_and_data_classes_of_the_package_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        label_report(3, load_rules("msi"))
    with pytest.raises(TypeCheckError):
        Mention("a", "diagnosis", "text", "0", 1, "affirmed")
    with pytest.raises(TypeCheckError):
        centred(np.zeros((2, 3), np.float32), np.zeros(4, np.float32))


@check
def repeat(text: str, *, times: "int" = 1, by: "list[Unknown]" = ()) -> list[str]:
    """Return a value of the wrong type if `times` is 3."""
    return [text] * times if times != 3 else (text,) * 3


@pytest.mark.parametrize(("arguments", "keywords"), [((1,), {}), (("a",), {"times": "2"}), (("a",), {"times": 3})])
def test_arguments_and_results_without_arrays_are_checked(arguments: Any, keywords: Any) -> None:
    assert repeat("a", times=2, by=5) == ["a", "a"], "unresolved names accept any value"
    with pytest.raises(TypeCheckError, match="repeat"):
        repeat(*arguments, **keywords)
    with pytest.raises(TypeError, match="tmes"):
        repeat("a", tmes=2)


def test_shapes_are_compared_across_annotations() -> None:
    @check
    def add(one: Vector, other: dict[str, Vector] | None) -> "Vector":
        return one if other is None else one[1:]

    @check
    def apply(function: Callable[[Vector], Vector], values: list[Vector]) -> list[Vector]:
        return [function(value) for value in values]

    ones = np.ones(3, np.float32)
    assert add(ones, None) is ones
    for other in (ones, ones[1:]):
        with pytest.raises(TypeCheckError):
            add(ones, {"x": other})
    assert len(apply(lambda value: value, [ones])) == 1
    with pytest.raises(TypeCheckError):
        apply(lambda value: value, [ones.astype(np.float64)])


def test_generators_and_data_classes_are_checked() -> None:
    @check
    def count(last: int) -> Iterator[int]:
        yield from range(last)

    @check
    @dataclass
    class Point:
        x: int
        vector: Vector | None = None

    @check
    @dataclass
    class Named(Point):
        name: str = ""

    assert [*count(2)] == [0, 1] and Named(1, name="a").name == "a"
    with pytest.raises(TypeCheckError):
        count("2")
    for wrong in ({"x": "1"}, {"x": 1, "name": 2}, {"x": 1, "vector": np.ones((1, 1), np.float32)}):
        with pytest.raises(TypeCheckError):
            Named(**wrong)
    assert not hasattr(Point.__init__.__wrapped__, "__wrapped__")
