"""What a decoded token reads of codes on a processor, compiled by Numba: unpacked slot by slot, and never written out.

A module of its own, as it needs the extra `cpu`. Codes are (H_kv, N, D), or of 4 bits (H_kv, N, D / 2), uint8; scales
(H_kv, L, groups, 2) with a group for a whole head, or one for each half of its channels; everything else is float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemllm.loops.compiled import compiled

Array = Any


@compiled
def scores(
    codes: Array,
    scales: Array,
    width: Array,
    mean: Array,
    cos: Array,
    sin: Array,
    query: Array,
    out: Array,
    start: int,
    stop: int,
) -> None:
    """Write to `out` (H_kv, g, L) the products of query (H_kv, g, D) and the keys of slots start .. stop - 1.

    Unpacked keys are multiplied with `width` (H_kv, D), `mean` is added, and they are rotated by cos and sin
    (H_kv | 1, L, D / 2).
    """
    heads, rows, channels = query.shape
    half, last = channels // 2, scales.shape[2] - 1
    one_a_byte, key = codes.shape[2] > half, np.empty(2 * half, np.float32)
    for h in range(heads):
        turn = h if len(cos) > 1 else 0
        for slot in range(start, stop):
            step, low = scales[h, slot, 0, 0], scales[h, slot, 0, 1]
            step_2, low_2 = scales[h, slot, last, 0], scales[h, slot, last, 1]
            if one_a_byte:  # all in one loop: one that unpacks and one that rotates take half as long again
                for j in range(half):
                    x = (np.float32(codes[h, slot, j]) * step + low) * width[h, j] + mean[h, j]
                    y = (np.float32(codes[h, slot, half + j]) * step_2 + low_2) * width[h, half + j] + mean[h, half + j]
                    key[j] = x * cos[turn, slot, j] - y * sin[turn, slot, j]
                    key[half + j] = y * cos[turn, slot, j] + x * sin[turn, slot, j]
            else:
                for j in range(half):
                    pair = codes[h, slot, j]
                    x = (np.float32(pair & 15) * step + low) * width[h, j] + mean[h, j]
                    y = (np.float32(pair >> 4) * step_2 + low_2) * width[h, half + j] + mean[h, half + j]
                    key[j] = x * cos[turn, slot, j] - y * sin[turn, slot, j]
                    key[half + j] = y * cos[turn, slot, j] + x * sin[turn, slot, j]
            for row in range(rows):
                total = np.float32(0)
                for j in range(2 * half):
                    total += key[j] * query[h, row, j]
                out[h, row, slot] = total


@compiled
def weighted(codes: Array, scales: Array, weights: Array, out: Array, start: int, stop: int) -> None:
    """Add to `out` (H_kv, g, D) the values of slots start .. stop - 1, each by its weight in `weights` (H_kv, g, L)."""
    heads, rows, channels = out.shape
    half, last = channels // 2, scales.shape[2] - 1
    one_a_byte = codes.shape[2] > half
    first, second = np.empty(half, np.float32), np.empty(half, np.float32)
    for h in range(heads):
        for slot in range(start, stop):
            step, low = scales[h, slot, 0, 0], scales[h, slot, 0, 1]
            step_2, low_2 = scales[h, slot, last, 0], scales[h, slot, last, 1]
            if one_a_byte:
                for j in range(half):
                    first[j] = np.float32(codes[h, slot, j]) * step + low
                    second[j] = np.float32(codes[h, slot, half + j]) * step_2 + low_2
            else:
                for j in range(half):
                    pair = codes[h, slot, j]
                    first[j] = np.float32(pair & 15) * step + low
                    second[j] = np.float32(pair >> 4) * step_2 + low_2
            for row in range(rows):
                weight = weights[h, row, slot]
                for j in range(half):
                    out[h, row, j] += weight * first[j]
                for j in range(half):
                    out[h, row, half + j] += weight * second[j]
