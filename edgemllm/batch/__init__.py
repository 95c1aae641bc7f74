"""Questions about many videos, in this process or on a Ray cluster.

`Answer` is a callable class for Ray Data pipelines of your own (docs/batch.md).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemllm.batch.answer import Answer

__all__ = ["Answer"]


def __getattr__(name: str) -> Any:
    """Import Answer, and with it torch, when it is first used. Raises AttributeError for any other name."""
    if name != "Answer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("edgemllm.batch.answer").Answer
