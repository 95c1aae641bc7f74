"""What a decoded token reads of packed weights where torch's operator is slow, compiled by Numba.

A module of its own, as it needs the extra `cpu`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemllm.device.compiled import compiled

Array = Any


@compiled
def multiplied(row: Array, weight: Array, scales: Array, out: Array, start: int, stop: int) -> None:
    """Write to `out` (N,) at start .. stop - 1 the products of row (K,) and weight (N, K) int8, each times its scale (N,)."""
    for n in range(start, stop):
        total = np.float32(0)
        for k in range(len(row)):
            total += np.float32(weight[n, k]) * row[k]
        out[n] = total * scales[n]
