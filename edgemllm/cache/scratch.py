"""What a cache policy needs for a moment, besides its cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scratch:
    """The terms of a policy's peak memory; the plan turns them into bytes."""

    watched: int = 0
    """Queries of a chunk whose attention is shown to it at once."""

    window: int = 0
    """Kept queries whose attention is computed when room is made."""

    compaction_copies: int = 2
    """float32 copies of a layer's keys while that layer is compacted."""
