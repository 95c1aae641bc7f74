"""Policies by name: a file in this folder, `path/to/file.py:Class`, or an entry point of group `edgemllm.policies`."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from edgemllm.errors import MissingError, UsageError, nearest

GROUP = "edgemllm.policies"


def names() -> list[str]:
    """Every installed policy, without importing one."""
    own = [info.name.replace("_", "-") for info in pkgutil.iter_modules(__path__) if info.name != "base"]
    return sorted({*own, *(point.name for point in importlib.metadata.entry_points(group=GROUP))})


def find(name: str) -> type[Any]:
    """The policy class of a name or of `file.py:Class`.

    Raises UsageError for an unknown name, MissingError for a missing file.
    """
    path, _, attribute = name.partition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), attribute)
    module_name = name.replace("-", "_")
    if name in names() and (Path(__file__).parent / f"{module_name}.py").exists():
        return _only_policy(importlib.import_module(f"{__name__}.{module_name}"), "")
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == name:
            return typing.cast("type[Any]", point.load())
    raise UsageError(
        f"unknown policy {name!r}{nearest(name, names())}",
        f"one of {', '.join(names())}, or a file of your own: --policy ./mine.py:Mine",
    )


def name_of(policy: Any) -> str:
    """What a user calls a policy, such as inf-mllm, or mine.py:Mine."""
    package, _, module = type(policy).__module__.rpartition(".")
    if package == __name__:
        return module.replace("_", "-")
    return f"{module.removeprefix('edgemllm_policy_')}.py:{type(policy).__name__}"


def build(name: str, settings: Sequence[str] = ()) -> Any:
    """A policy with `key=value` settings, as `--policy NAME --set key=value` gives them."""
    cls = find(name)
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in fields:
            raise UsageError(
                f"policy {name} has no setting {setting!r}{nearest(key, fields)}",
                f"--set key=value with one of: {', '.join(fields)}",
            )
        values[key] = _parse(name, key, text.strip(), fields[key])
    return cls(**values)


def _parse(policy: str, key: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Annotated:
        value = _parse(policy, key, text, typing.get_args(kind)[0])
        if value > 1:
            raise UsageError(f"--set {key}={text} of policy {policy}: a share from 0 to 1 expected")
        return value
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if text in choices:
            return text
        raise UsageError(f"--set {key}={text} of policy {policy}: not one of {', '.join(map(str, choices))}")
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    try:
        if kind is bool:
            return words[text.lower()]
        value = kind(text) if kind in (int, float, str) else ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError):
        expected = getattr(kind, "__name__", str(kind))
        raise UsageError(f"--set {key}={text} of policy {policy}: {expected} expected") from None
    if kind in (int, float) and not 0 <= value < float("inf"):
        raise UsageError(f"--set {key}={text} of policy {policy}: a number from 0 upwards expected")
    return value


def _from_file(path: Path, attribute: str) -> type[Any]:
    if not path.is_file():
        raise MissingError(f"no policy file {path}", "give an existing file: --policy ./mine.py:Mine")
    spec = importlib.util.spec_from_file_location(f"edgemllm_policy_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"policy file {path} does not import: {type(error).__name__}: {error}") from error
    return _only_policy(module, attribute)


def _only_policy(module: ModuleType, attribute: str) -> type[Any]:
    from edgemllm.policies.base import CachePolicy

    found = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, CachePolicy) and value.__module__ == module.__name__
    }
    if attribute in found:
        return found[attribute]
    if not attribute and len(found) == 1:
        return next(iter(found.values()))
    raise UsageError(
        f"{module.__file__} has {'no policy ' + attribute if attribute else f'{len(found)} policies'}"
        f" ({', '.join(found) or 'a policy is a frozen dataclass derived from CachePolicy'})",
        "name one: --policy file.py:Class",
    )
