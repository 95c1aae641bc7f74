"""The keys of tokens as they come in, which an archive's index is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgemllm.archive.heads import Head, keys_of
from edgemllm.archive.index import Array, packed, pooled
from edgemllm.cache.chunk import Chunk, Modality
from edgemllm.cache.kv_cache import KVCache

VECTORS = 16
"""Keys that are kept of a frame; of words each one is, as means of neighbours find little (docs/measurements/archive.md)."""


@dataclass
class Notes:
    """The keys that some heads look at, of what comes in from now on."""

    heads: tuple[Head, ...]
    times: list[Array] = field(default_factory=list)
    keys: list[Array] = field(default_factory=list)

    def add(self, cache: KVCache, chunk: Chunk, first: int, count: int) -> None:
        """Note the newest `count` tokens, those from `first` of a chunk. What is no picture has no time (NaN)."""
        part = slice(first, first + count)
        shown = (chunk.modality[0, part] == Modality.VISION).cpu().numpy()
        self.times.append(np.where(shown, chunk.time[0, part].float().cpu().numpy(), np.nan))
        self.keys.append(keys_of(cache, self.heads, count))

    def of_frame(self, seconds: float) -> bytes | None:
        """Return the keys of the frame of that second, or of the one that shares its tokens; None where there are none."""
        times = np.concatenate([*self.times, np.zeros(0)])
        earlier = times[times <= seconds + 0.01]
        if not len(earlier):
            return None
        return packed(pooled(np.concatenate(self.keys)[times == earlier.max()], VECTORS))
