"""What a layer of the cache has gone through, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """What a layer has gone through."""

    seen: int = 0
    new_since_eviction: int = 0
    evicted: int = 0
    compactions: int = 0
    prompt: int = 0
    """Tokens of the stream before the newest prompt."""
    streamed: bool = False
    """Whether a policy published for one prompt had to evict before that prompt's end."""
