"""Model families by `model_type`: every file in this folder but `base` is one."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from edgemllm.errors import UsageError

if TYPE_CHECKING:
    from edgemllm.models.families.base import ModelFamily


def families() -> dict[str, type[ModelFamily]]:
    """Return every supported `model_type` and the family that serves it."""
    from edgemllm.models.families.base import ModelFamily

    found: dict[str, type[ModelFamily]] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name != "base":
            module = importlib.import_module(f"{__name__}.{info.name}")
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, ModelFamily):
                    found.update(dict.fromkeys(value.model_types, value))
    return found


def family_of(model_type: str) -> type[ModelFamily]:
    """Return the family of a `model_type`. Raises UsageError naming what works."""
    known = families()
    if model_type not in known:
        raise UsageError(
            f"model type {model_type!r} is not supported: its positions and inputs have not been verified",
            f"supported: {', '.join(sorted(known))}",
        )
    return known[model_type]
