"""What a policy's setting may be, beside its type."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from edgemllm.errors import UsageError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have, as in `Annotated[int, Range(1)]`; a policy refuses all others."""

    least: float = 0
    most: float = math.inf
    above: bool = False
    """`least` itself is refused."""
    odd: bool = False

    def __contains__(self, value: float) -> bool:
        low = self.least < value if self.above else self.least <= value
        return low and value <= self.most and value < math.inf and not (self.odd and value % 2 == 0)

    def __str__(self) -> str:
        low = f"above {self.least}" if self.above else f"from {self.least}"
        return f"{'odd, ' if self.odd else ''}{low} {'upwards' if self.most == math.inf else f'to {self.most}'}"


Share = Annotated[float, Range(0, 1)]
"""A setting from 0 to 1."""
Count = Annotated[int, Range(1)]
"""A setting from 1 upwards."""


def allowed(kind: Any) -> str:
    """Return the values of a setting of type `kind`, in words: "a whole number from 1 upwards"."""
    bare, numbers, choices = taken_apart(kind)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    ways = [f"one of {', '.join(choices)}"] if len(choices) > 1 else list(choices)
    if bare is not None:
        name = str(names.get(bare) or getattr(bare, "__name__", bare))
        ways.insert(0, name if numbers is None else f"{name}, {numbers}" if numbers.odd else f"{name} {numbers}")
    return " or ".join(ways)


def taken_apart(kind: Any) -> tuple[Any, Any, tuple[str, ...]]:
    """Return the plain type of a setting (None: words alone), the Range of its numbers if any, and the words it also knows."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        parts = [taken_apart(part) for part in typing.get_args(kind)]
        bare, numbers = next(((bare, numbers) for bare, numbers, _ in parts if bare is not None), (None, None))
        return bare, numbers, tuple(word for *_, words in parts for word in words)
    if typing.get_origin(kind) is typing.Literal:
        return None, None, typing.get_args(kind)
    if typing.get_origin(kind) is typing.Annotated:
        bare, *notes = typing.get_args(kind)
        return bare, next((note for note in notes if isinstance(note, Range)), Range()), ()
    return kind, Range() if kind in (int, float) else None, ()


def check(policy: Any) -> None:
    """Raise UsageError where a setting of a policy has a value that its type excludes."""
    for name, kind in kinds(type(policy)).items():
        value = getattr(policy, name)
        bare, numbers, choices = taken_apart(kind)
        if isinstance(value, str):
            wrong = bare is not str and value not in choices
        else:
            wrong = numbers is not None and not isinstance(value, bool) and value not in numbers
        if wrong:
            raise UsageError(f"{name}={value!r} of policy {type(policy).__name__}: {allowed(kind)} expected")


def kinds(policy: Any) -> dict[str, Any]:
    """Return the type of each setting of a policy class, with its Range."""
    hints = typing.get_type_hints(policy, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(policy)}
