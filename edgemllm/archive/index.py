"""Finding frames and passages by the keys that a model itself made of them: what a question's queries look at.

Only numbers: a query head's queries (rows, D) against the kept keys of all places. Two ways to read them, both measured in
docs/measurements/archive.md: of pictures the `peak`, the largest standardised product of any query with any key; of words
the `share` of the attention that a place gets among all places, summed over the queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

FUSE = 10
"""Ranks are fused as 1 / (FUSE + rank): the first of each list counts twice as much as the tenth."""


def pooled(keys: Array, most: int) -> Array:
    """Return at most `most` means over neighbouring tokens of keys (n, heads, D)."""
    if len(keys) <= most:
        return keys
    return np.stack([part.mean(0) for part in np.array_split(keys, most)])


def packed(keys: Array) -> bytes:
    """Return keys as they are kept, in half precision."""
    return np.clip(keys, -65504, 65504).astype(np.float16).tobytes()


def unpacked(blobs: Sequence[bytes], heads: int, size: int) -> tuple[Array, Array]:
    """Return the keys (n, heads, D) of all blobs, and where each begins."""
    keys = np.frombuffer(b"".join(blobs), np.float16).reshape(-1, heads, size).astype(np.float32)
    lengths = np.array([len(blob) // (2 * heads * size) for blob in blobs])
    return keys, np.concatenate([[0], lengths[:-1].cumsum()]).astype(int)


class Looks:
    """Adds up, block by block, how one head's queries (rows, D) look at places."""

    def __init__(self, queries: Array, peak: bool) -> None:
        self.queries, self.peak = queries.astype(np.float32) * queries.shape[-1] ** -0.5, peak
        self._places: list[Array] = []
        self._count, self._sum, self._squares = 0, np.zeros(len(queries)), np.zeros(len(queries))

    def add(self, keys: Array, starts: Array) -> None:
        """Look at places with keys (n, D), which begin at `starts`."""
        logits = self.queries @ keys.T
        highest = np.maximum.reduceat(logits, starts, axis=1)
        if self.peak:
            self._count += logits.shape[1]
            self._sum += logits.sum(1)
            self._squares += (logits.astype(np.float64) ** 2).sum(1)
            self._places.append(highest)
            return
        lengths = np.diff([*starts, logits.shape[1]])
        shares = np.add.reduceat(np.exp(logits - highest.repeat(lengths, axis=1)), starts, axis=1)
        self._places.append(highest + np.log(shares))

    def scores(self) -> Array:
        """Return the worth of every place, in the order in which they came."""
        places = np.concatenate(self._places, 1)
        if self.peak:
            mean = self._sum / self._count
            deviation = np.sqrt(np.maximum(self._squares / self._count - mean**2, 1e-12))
            best: Array = ((places - mean[:, None]) / deviation[:, None]).max(0)
            return best
        shares = np.exp(places - places.max(1, keepdims=True))
        total: Array = (shares / shares.sum(1, keepdims=True)).sum(0)
        return total


def fused(*rankings: Iterable[Any]) -> list[Any]:
    """Return what is in any of some rankings, best first by the sum of its reciprocal ranks."""
    worth: dict[Any, float] = {}
    for ranking in rankings:
        for rank, each in enumerate(ranking):
            worth[each] = worth.get(each, 0.0) + 1 / (FUSE + rank)
    return sorted(worth, key=lambda each: -worth[each])
