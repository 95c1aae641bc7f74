"""Architectures that come with edgemllm as configurations: `random:NAME` gives them random weights."""

from __future__ import annotations

import copy
import difflib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemllm.device.profiles import configs_folder
from edgemllm.errors import UsageError, nearest

PREFIX = "random:"


def names() -> list[str]:
    """Return the names that may follow `random:`."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def read(name: str) -> dict[str, Any]:
    """Read a configuration as in the checkpoint's own config.json. Raises UsageError."""
    found = _file(name)
    found.pop("parameters")
    return found


def hub_id(name: str) -> str:
    """Return where the trained weights are; empty for an architecture of our own."""
    return str(_file(name)["_name_or_path"])


def full_name(name: str, say: Callable[[str], None] = lambda line: None) -> str:
    """Return the hub id that a name of `edgemllm models` is short for, after reporting it to `say`; any other name as it is.

    A folder of that name goes first. Raises UsageError for an architecture without trained weights.
    """
    if name not in names() or Path(name).is_dir():
        return name
    trained = hub_id(name)
    if not trained:
        raise UsageError(f"{name} has no trained weights", f"--model {PREFIX}{name}: the architecture with random weights")
    say(f"{name} is short for {trained} ({PREFIX}{name}: random weights, no download)")
    return trained


def architecture(name: str) -> str:
    """Return `random:NAME` where `name` or the hub id it is short for is shipped (a plan downloads nothing), else `name`."""
    if Path(name).is_dir():
        return name
    return next((f"{PREFIX}{each}" for each in names() if name in (each, hub_id(each))), name)


def smaller(count: int, vision: bool) -> list[str]:
    """Return models with trained weights and fewer than `count` parameters, largest first; only those that see, if `vision`."""
    found = [name for name in names() if hub_id(name) and parameters(name) < count]
    found = [name for name in found if not vision or sees(name)]
    return [*sorted(found, key=parameters, reverse=True), "demo"]


def sees(name: str) -> bool:
    """Whether a model takes pictures."""
    return "vision_config" in _file(name)


def matching(word: str) -> list[str]:
    """Return the names that contain `word`, or else the one that is nearest to it."""
    known = ["demo", *names()]
    return [name for name in known if word.lower() in name] or difflib.get_close_matches(word.lower(), known, n=1)


def parameters(name: str) -> int:
    """Return how many parameters it has."""
    return int(_file(name)["parameters"])


def _file(name: str) -> dict[str, Any]:
    if name not in names():
        raise UsageError(f"no model {PREFIX}{name}{nearest(name, names())}", f"one of {', '.join(names())}")
    return copy.deepcopy(_content(_folder() / f"{name}.json"))


@functools.cache
def _content(file: Path) -> dict[str, Any]:
    """Read a file once: a plan for every model and device asks for each a hundred times."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _folder() -> Path:
    return configs_folder() / "models"
