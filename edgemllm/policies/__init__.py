"""Policies by name: a file in this folder, `path/to/file.py:Class`, or an entry point of group `edgemllm.policies`."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
import traceback
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from edgemllm.cache.settings import allowed, kinds, taken_apart
from edgemllm.errors import MissingError, UsageError, nearest

GROUP = "edgemllm.policies"
FILE_PREFIX = "edgemllm_policy:"
"""Of the names of modules that were loaded from a policy file."""


def names() -> list[str]:
    """Return every installed policy, without importing one."""
    own = [info.name.replace("_", "-") for info in pkgutil.iter_modules(__path__) if info.name != "base"]
    return sorted({*own, *(point.name for point in _offered(tuple(sys.path)))})


@functools.cache
def _offered(path: tuple[str, ...]) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Return what packages on `path`, which is sys.path, offer: found once, as every package's metadata has to be read."""
    return tuple(importlib.metadata.entry_points(group=GROUP))


def find(name: str) -> type[Any]:
    """Return the policy class of a name or of `file.py:Class`.

    Raises UsageError for an unknown name, MissingError for a missing file.
    """
    path, _, attribute = name.partition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), attribute)
    module_name = name.replace("-", "_")
    if name in names() and (Path(__file__).parent / f"{module_name}.py").exists():
        return _only_policy(importlib.import_module(f"{__name__}.{module_name}"), "")
    for point in _offered(tuple(sys.path)):
        if point.name == name:
            return _loaded(point)
    raise UsageError(
        f"unknown policy {name!r}{nearest(name, names())}",
        f"one of {', '.join(names())}, or a file of your own: --policy ./mine.py:Mine",
    )


def _loaded(point: importlib.metadata.EntryPoint) -> type[Any]:
    try:
        found = point.load()
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"policy {point.name} ({point.value}) does not import: {type(error).__name__}: {error}", "the same with --verbose"
        ) from error
    return typing.cast("type[Any]", found)


def name_of(policy: Any) -> str:
    """Return what a user calls a policy, such as inf-mllm, or mine.py:Mine."""
    package, _, module = type(policy).__module__.rpartition(".")
    if package == __name__:
        return module.replace("_", "-")
    return f"{module.removeprefix('edgemllm_policy_')}.py:{type(policy).__name__}"


def build(name: str, settings: Sequence[str] = ()) -> Any:
    """Build a policy with `key=value` settings, as `--policy NAME --set key=value` gives them."""
    cls = find(name)
    fields = kinds(cls)
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
    try:
        return _value(text, kind)
    except (ValueError, KeyError, SyntaxError):
        raise UsageError(f"--set {key}={text} of policy {policy}: {allowed(kind)} expected") from None


def _value(text: str, kind: Any) -> Any:
    """Return what `text` means as a setting of type `kind`. Raises ValueError, KeyError or SyntaxError where nothing."""
    bare, numbers, choices = taken_apart(kind)
    if text in choices:
        return text
    if bare is bool:
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return words[text.lower()]
    if bare is None:
        raise ValueError(text)
    value = bare(text) if bare in (int, float, str) else ast.literal_eval(text)
    if numbers is not None and value not in numbers:
        raise ValueError(text)
    return value


def _from_file(path: Path, attribute: str) -> type[Any]:
    if not path.is_file():
        raise MissingError(f"no policy file {path}", "give an existing file: --policy ./mine.py:Mine")
    spec = importlib.util.spec_from_file_location(f"{FILE_PREFIX}{path.resolve()}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and typing look up what a class's annotations mean
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UsageError(f"policy file {path} does not import: {type(error).__name__}: {error}") from error
    return _only_policy(module, attribute)


def fault(error: BaseException) -> UsageError | None:
    """Return what to say of an error in a policy from outside, a file or a package; None where it arose elsewhere."""
    found, packages = None, {point.module.partition(".")[0] for point in _offered(tuple(sys.path))}
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        if name.startswith(FILE_PREFIX) or name.partition(".")[0] in packages:
            file = Path(frame.f_code.co_filename).name
            policy = type(frame.f_locals["self"]).__name__ if "self" in frame.f_locals else file
            where = f"policy {policy}: {frame.f_code.co_name}() in line {line} of {file}"
            found = UsageError(f"{where} raised {type(error).__name__}: {error}", "the same with --verbose")
    return found


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
