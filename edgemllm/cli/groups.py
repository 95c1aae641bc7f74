"""Groups of options as parameters of a command: spread into a flat signature for typer, gathered again at the call."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any


def grouped(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function whose parameters are options, or dataclasses of options.

    Each field of such a dataclass becomes an option in the place of its group; `defaults` are this command's own, by name.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        groups: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
        members = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in groups.items()}

        @functools.wraps(function)
        def command(**values: Any) -> None:
            gathered = {name: kind(**{member: values.pop(member) for member in members[name]}) for name, kind in groups.items()}
            function(**values, **gathered)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name in groups:
                parameters += _spread(groups[parameter.name], defaults)
            else:
                parameters.append(parameter.replace(annotation=hints[parameter.name]))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def _spread(group: Any, defaults: dict[str, Any]) -> list[inspect.Parameter]:
    hints = _hints(group)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, _default(field)),
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]


@functools.cache  # most groups stand in several commands, and help pages wait for this
def _hints(group: Any) -> dict[str, Any]:
    return typing.get_type_hints(group, include_extras=True)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
