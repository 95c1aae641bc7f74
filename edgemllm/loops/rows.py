"""One row times a packed weight: what a decoded token reads of a layer, where torch's operators are slow or round more.

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
MOST = np.float32((2**15 - 1) // 8 - GROUP // 2)
"""What a group's numbers may sum to in steps, without their signs, so that times 8 they fit in 16 bits when each is rounded."""
SMALLEST = np.float32(1e-30)
"""That a group of zeros has a step, too."""


class Packed(NamedTuple):
    """A weight (N, K) in 8 bits, with a scale a row, or in 4 bits as torch's operator for AVX packs it."""

    weight: Array
    """(N, K) int8; or (N / BLOCK, K, BLOCK / 2) uint8: low halves are of the first rows of a block, high ones of the others."""
    scales: Array
    """(N,) float32; or (N / BLOCK, K / GROUP, BLOCK) uint32: bfloat16, zero points in the upper half, scales in the lower."""
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
    """Do so for the blocks first .. last - 1 of a weight in 4 bits: value = (code - 8) * scale + zero.

    The row is rounded to whole numbers, of which a vector multiplies twice as many. A number of 16 bits holds four codes: it is
    multiplied as it is and shifted by one, two and three codes, and what the codes above add is taken away in the end. Sums may
    wrap around on the way, as the whole sum of a group fits.
    """
    blocks, inputs, _ = codes.shape
    groups = inputs // GROUP
    whole, steps, sums = np.empty((inputs, 8), np.int16), np.empty(groups, np.float32), np.empty(groups, np.float32)
    round_groups(row, whole, steps, sums)
    weight, numbers = codes.view(np.uint16).reshape(blocks, groups, 2, 8, 16), whole.reshape(groups, 2, 8, 16)
    # One array for all of these: of several, every loop would first find out whether they overlap.
    own = np.empty((5, BLOCK), np.float32)
    parts, pairs, products = own[0].view(np.int16), own[1].view(np.uint32), own[1].view(np.int16)
    scale, zero, total = own[2], own[3], own[4]
    scale_bits, zero_bits = scale.view(np.uint32), zero.view(np.uint32)
    for block in range(first, last):
        rows = slice(block * BLOCK, (block + 1) * BLOCK)
        done, plus = out[rows], bias[rows]
        for j in range(BLOCK):
            total[j] = plus[j]
        for g in range(groups):
            for j in range(64):
                parts[j] = 0
            for half in range(2):
                x, fours = numbers[g, half], weight[block, g, half]
                for j in range(16):  # eight words each of two columns
                    a, b, c, d = np.int16(0), np.int16(0), np.int16(0), np.int16(0)
                    for k in range(8):
                        four = fours[k, j]
                        a = np.int16(a + x[k, j] * np.int16(four))
                        b = np.int16(b + x[k, j] * np.int16(four >> 4))
                        c = np.int16(c + x[k, j] * np.int16(four >> 8))
                        d = np.int16(d + x[k, j] * np.int16(four >> 12))
                    parts[j] += a
                    parts[16 + j] += b
                    parts[32 + j] += c
                    parts[48 + j] += d
            step, sum_, both = steps[g], sums[g], scales[block, g]
            eights = np.int16(8 * sum_)
            for j in range(8):
                a, b = parts[j] + parts[8 + j], parts[16 + j] + parts[24 + j]
                c, d = parts[32 + j] + parts[40 + j], parts[48 + j] + parts[56 + j]
                pairs[j] = np.uint32((a - 16 * b - eights) & 0xFFFF) | np.uint32((c - 16 * d - eights) << 16)
                pairs[8 + j] = np.uint32((b - 16 * c - eights) & 0xFFFF) | np.uint32((d - eights) << 16)
            for j in range(BLOCK):
                scale_bits[j] = np.uint32(both[j] << 16)
                zero_bits[j] = np.uint32(both[j] & 0xFFFF0000)
            for j in range(BLOCK):
                total[j] += step * (scale[j] * np.float32(products[j]) + zero[j] * np.float32(sum_))
        for j in range(BLOCK):
            done[j] = total[j]


@compiled
def round_groups(row: Array, whole: Array, steps: Array, sums: Array) -> None:
    """Write a row (K,) in steps of its groups to `whole` (K, 8), eight times, and to `steps` and `sums` (K / GROUP,) theirs.

    A step is as small as products with any codes allow; most errors are a third of those of 8 bits.
    """
    for g in range(len(steps)):
        x, n = row[g * GROUP : (g + 1) * GROUP], whole[g * GROUP : (g + 1) * GROUP]
        most, total = np.float32(0), np.float32(0)
        for k in range(GROUP):
            most += abs(x[k])
        steps[g] = max(most, SMALLEST) / MOST
        for k in range(GROUP):
            number = np.floor(x[k] / steps[g] + np.float32(0.5))
            total += number
            for j in range(8):
                n[k, j] = np.int32(number)
        sums[g] = total
