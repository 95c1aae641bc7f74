"""One row times a packed weight: what a decoded token reads of a layer, where torch's operators are slow.

A module of its own, as it needs the extra `cpu`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgemllm.loops.compiled import compiled

Array = Any
GROUP = 32
"""Values of a row that share a scale and a zero point in 4 bits."""
BLOCK = 32
"""Rows that torch's operator for AVX2 packs together in 4 bits. A constant, without which a loop is not fast."""
HALF = BLOCK // 2


class Packed(NamedTuple):
    """A weight (N, K) in 8 bits, with a scale a row, or in 4 bits as torch's operator for AVX packs it."""

    weight: Array
    """(N, K) int8; or (N / BLOCK, K, HALF) uint8: low halves are of the first rows of a block, high ones of the others."""
    scales: Array
    """(N,) float32; or (K / 32, N) uint32: a group's zero point in the upper half, its scale in the lower, both bfloat16."""
    bias: Array
    """(N,) float32."""


@compiled
def multiply(row: Array, packed: Packed, out: Array, start: int, stop: int) -> None:
    """Write to `out` (N,) at start .. stop - 1, in 4 bits whole blocks, the product of row (K,) and a weight, with its bias."""
    by_width(row, packed.weight, packed.scales, packed.bias, out, start, stop)


@compiled
def by_width(row: Array, weight: Array, scales: Array, bias: Array, out: Array, start: int, stop: int) -> None:
    """Do so by the loop for its type, which is known when this is compiled."""
    if weight.ndim == 2:
        for n in range(start, stop):
            total = np.float32(0)
            for k in range(len(row)):
                total += np.float32(weight[n, k]) * row[k]
            out[n] = total * scales[n] + bias[n]
    else:
        multiply_blocks(row, weight, scales, bias, out, start // BLOCK, stop // BLOCK)


@compiled
def multiply_blocks(row: Array, codes: Array, scales: Array, bias: Array, out: Array, first: int, last: int) -> None:
    """Do so for the blocks first .. last - 1 of a weight in 4 bits: value = (code - 8) * scale + zero."""
    blocks, inputs, _ = codes.shape
    groups = inputs // GROUP
    weight, numbers = codes.reshape(blocks, groups, 4, 8, HALF), row.reshape(groups, 4, 8)
    sums = np.zeros(groups, np.float32)
    for k in range(inputs):
        sums[k // GROUP] += row[k]
    # One array for all of these: of several, every loop would first find out whether they overlap.
    own = np.empty((4, BLOCK), np.float32)
    products, scale, zero, total = own[0], own[1], own[2], own[3]
    scale_bits, zero_bits = own.view(np.uint32)[1], own.view(np.uint32)[2]
    for block in range(first, last):
        rows = slice(block * BLOCK, (block + 1) * BLOCK)
        done, plus = out[rows], bias[rows]
        for j in range(BLOCK):
            total[j] = plus[j]
        for g in range(groups):
            for j in range(BLOCK):
                products[j] = 0
            for eight in range(4):
                x, pairs = numbers[g, eight], weight[block, g, eight]
                for j in range(HALF):
                    low, high = np.float32(0), np.float32(0)
                    for k in range(8):
                        pair = np.int32(pairs[k, j])
                        low += x[k] * np.float32(np.int32(pair & 15))
                        high += x[k] * np.float32(np.int32(pair >> 4))
                    products[j] += low
                    products[HALF + j] += high
            both, sum_ = scales[g, rows], sums[g]
            for j in range(BLOCK):
                scale_bits[j] = np.uint32(both[j] << 16)
                zero_bits[j] = np.uint32(both[j] & 0xFFFF0000)
            for j in range(BLOCK):
                total[j] += scale[j] * (products[j] - np.float32(8) * sum_) + zero[j] * sum_
        for j in range(BLOCK):
            done[j] = total[j]
