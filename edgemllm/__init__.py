"""edgemllm: multimodal language models over endless video and text, in a KV cache of fixed size.

The names below are the Python API (docs/python.md). They are imported when first used: `import edgemllm` loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edgemllm.version import __version__

if TYPE_CHECKING:
    from edgemllm.api import open
    from edgemllm.cache.chunk import Chunk
    from edgemllm.cache.layer import CacheLayer
    from edgemllm.errors import EdgeError
    from edgemllm.media.video import Video
    from edgemllm.models.chat import Sampling
    from edgemllm.policies.base import CachePolicy
    from edgemllm.session import Session

__all__ = ["CacheLayer", "CachePolicy", "Chunk", "EdgeError", "Sampling", "Session", "Video", "__version__", "open"]

_HOMES = {
    "CacheLayer": "edgemllm.cache.layer",
    "CachePolicy": "edgemllm.policies.base",
    "Chunk": "edgemllm.cache.chunk",
    "EdgeError": "edgemllm.errors",
    "Sampling": "edgemllm.models.chat",
    "Session": "edgemllm.session",
    "Video": "edgemllm.media.video",
    "open": "edgemllm.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used. Raises AttributeError for any other name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """The names for completion, also those not imported yet."""
    return sorted({*globals(), *__all__})
