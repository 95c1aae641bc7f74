"""Architectures that come with edgemllm as configurations: `random:NAME` gives them random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgemllm.device.profiles import configs_folder
from edgemllm.errors import UsageError, nearest

PREFIX = "random:"


def names() -> list[str]:
    """What may stand behind `random:`."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def read(name: str) -> dict[str, Any]:
    """A configuration as in the checkpoint's own config.json. Raises UsageError."""
    found = _file(name)
    found.pop("parameters")
    return found


def hub_id(name: str) -> str:
    """Where the trained weights are; empty for an architecture of our own."""
    return str(_file(name)["_name_or_path"])


def parameters(name: str) -> int:
    """How many numbers its weights are."""
    return int(_file(name)["parameters"])


def _file(name: str) -> dict[str, Any]:
    if name not in names():
        raise UsageError(f"no model {PREFIX}{name}{nearest(name, names())}", f"one of {', '.join(names())}")
    found: dict[str, Any] = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _folder() -> Path:
    return configs_folder() / "models"
