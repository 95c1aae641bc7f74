"""One token through a decoder layer of Llama's shape, in single precision: all of it in one compiled function.

Threads share the rows of a weight and the slots of attention, and wait for each other five times a layer. A module of its own,
as it needs the extra `cpu`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from edgemllm.loops.barrier import meet
from edgemllm.loops.compiled import compiled
from edgemllm.loops.rows import BLOCK, Packed, multiply

Array = Any
f32 = np.float32
LOG2_E, LN_2 = f32(1 / math.log(2)), f32(math.log(2))
POWERS = f32(0.5) ** np.arange(128, dtype=np.float32)


class Weights(NamedTuple):
    """What a layer consists of; norms of heads (D,) are empty where it has none."""

    first: Array
    """(E,)"""
    qkv: Packed
    query_norm: Array
    key_norm: Array
    o: Packed
    second: Array
    """(E,)"""
    gate_up: Packed
    down: Packed
    epsilons: Array
    """(4,) of the first and the second norm, of queries and of keys."""


class Cached(NamedTuple):
    """A layer of the cache with the token's slot, the last one, still to be written."""

    keys: Array
    """(H_kv, N, D), rotated."""
    values: Array
    cos: Array
    """(H_kv | 1, R), R <= D rotated channels, as `rope.Rotation` has them."""
    sin: Array
    length: int
    scale: float


class Scratch(NamedTuple):
    """What threads write for each other."""

    heads: Array
    """(H D + 2 H_kv D,): queries, keys and values as they come out of the product."""
    weights: Array
    """(H, N): in the end the token's attention to the slots."""
    sums: Array
    """(threads, H, 2): the largest logit of a thread's slots, and what their exponentials sum to."""
    outputs: Array
    """(threads, H, D)"""
    out: Array
    """(E,), or as many as packed weights have rows."""
    gated: Array
    """(2 I,)"""


@compiled
def decode(part: int, parts: int, arrived: Array, x: Array, layer: Weights, cached: Cached, scratch: Scratch) -> None:
    """Add to x (E,) what the layer adds, as thread `part` of `parts`; writes the token's key and value into its slot."""
    heads, width = len(scratch.weights), cached.keys.shape[2]
    row, query = np.empty(len(x), np.float32), np.empty((heads, width), np.float32)
    normed(x, layer.first, layer.epsilons[0], row)
    start, stop = share(len(scratch.heads), part, parts)
    multiply(row, layer.qkv, scratch.heads, start, stop)
    meet(arrived, parts)

    for h in range(heads):
        turned(scratch.heads, h, layer.query_norm, layer.epsilons[2], cached, h // (heads // len(cached.keys)), query[h])
    if part == parts - 1:  # the newest slot is among its own
        for h in range(len(cached.keys)):
            key, value = cached.keys[h, cached.length - 1], cached.values[h, cached.length - 1]
            turned(scratch.heads, heads + h, layer.key_norm, layer.epsilons[3], cached, h, key)
            first = (heads + len(cached.keys) + h) * width
            for j in range(width):
                value[j] = scratch.heads[first + j]
    attend(part, parts, query, cached, scratch)
    meet(arrived, parts)

    merged(part, parts, cached.length, scratch, query)
    add(query.reshape(heads * width), layer.o, x, scratch.out, part, parts)
    meet(arrived, parts)

    inner = len(scratch.gated) // 2
    normed(x, layer.second, layer.epsilons[1], row)
    start, stop = share(inner, part, parts)
    multiply(row, layer.gate_up, scratch.gated, start, stop)
    multiply(row, layer.gate_up, scratch.gated, inner + start, inner + stop)
    for n in range(start, stop):
        gate = scratch.gated[n]
        small = exponential(-abs(gate))
        scratch.gated[n] = gate * scratch.gated[inner + n] / (f32(1) + small) * (f32(1) if gate > 0 else small)
    meet(arrived, parts)

    add(scratch.gated[:inner], layer.down, x, scratch.out, part, parts)
    meet(arrived, parts)


@compiled
def share(rows: int, part: int, parts: int) -> tuple[int, int]:
    """Return which rows a thread computes: whole blocks of packed ones."""
    blocks = (rows + BLOCK - 1) // BLOCK
    return blocks * part // parts * BLOCK, min(blocks * (part + 1) // parts * BLOCK, rows)


@compiled
def add(row: Array, weight: Packed, x: Array, out: Array, part: int, parts: int) -> None:
    """Add to a thread's share of x what the product of row and weight is."""
    start, stop = share(len(weight.bias), part, parts)
    multiply(row, weight, out, start, stop)
    for n in range(start, min(stop, len(x))):
        x[n] += out[n]


@compiled
def normed(x: Array, weight: Array, epsilon: float, out: Array) -> None:
    """Write to `out` the root-mean-square norm of x."""
    total = f32(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    scale = f32(1) / f32(math.sqrt(total / f32(len(x)) + epsilon))
    for i in range(len(x)):
        out[i] = x[i] * scale * weight[i]


@compiled
def turned(heads: Array, head: int, norm: Array, epsilon: float, cached: Cached, kv_head: int, out: Array) -> None:
    """Write to `out` (D,) one of `heads`, normed where there is a norm, and rotated as its KV head is."""
    x = heads[head * len(out) : (head + 1) * len(out)]
    if len(norm):
        own = np.empty(len(out), np.float32)
        normed(x, norm, epsilon, own)
        x = own
    rotation = kv_head if len(cached.cos) > 1 else 0
    cos, sin = cached.cos[rotation], cached.sin[rotation]
    half = len(cos) // 2
    for j in range(half):
        out[j] = x[j] * cos[j] + x[half + j] * sin[j]
        out[half + j] = x[half + j] * cos[half + j] + x[j] * sin[half + j]
    for j in range(2 * half, len(out)):
        out[j] = x[j]


@compiled
def attend(part: int, parts: int, query: Array, cached: Cached, scratch: Scratch) -> None:
    """Attend to a thread's share of the slots."""
    start, stop = cached.length * part // parts, cached.length * (part + 1) // parts
    group, width = len(query) // len(cached.keys), query.shape[1]
    for h in range(len(cached.keys)):
        rows = range(h * group, (h + 1) * group)
        for slot in range(start, stop):
            key = cached.keys[h, slot]
            for row in rows:
                total = f32(0)
                for j in range(width):
                    total += key[j] * query[row, j]
                scratch.weights[row, slot] = total * cached.scale
        for row in rows:
            weights, most, total = scratch.weights[row, start:stop], f32(-np.inf), f32(0)
            for i in range(len(weights)):
                most = max(most, weights[i])
            for i in range(len(weights)):
                weights[i] = exponential(weights[i] - most)
                total += weights[i]
            scratch.sums[part, row, 0], scratch.sums[part, row, 1] = most, total
            scratch.outputs[part, row] = 0
        for slot in range(start, stop):
            value = cached.values[h, slot]
            for row in rows:
                weight, out = scratch.weights[row, slot], scratch.outputs[part, row]
                for j in range(width):
                    out[j] += weight * value[j]


@compiled
def merged(part: int, parts: int, length: int, scratch: Scratch, out: Array) -> None:
    """Write to `out` (H, D) what the threads attended to together, and give their weights one denominator."""
    start, stop = length * part // parts, length * (part + 1) // parts
    for row in range(len(out)):
        most, total = f32(-np.inf), f32(0)
        for each in range(parts):
            most = max(most, scratch.sums[each, row, 0])
        for j in range(out.shape[1]):
            out[row, j] = 0
        for each in range(parts):
            factor = exponential(scratch.sums[each, row, 0] - most)
            total += factor * scratch.sums[each, row, 1]
            for j in range(out.shape[1]):
                out[row, j] += factor * scratch.outputs[each, row, j]
        for j in range(out.shape[1]):
            out[row, j] /= total
        own = exponential(scratch.sums[part, row, 0] - most) / total
        for slot in range(start, stop):
            scratch.weights[row, slot] *= own


@compiled
def exponential(x: Any) -> Any:
    """Return e to the power of x <= 0, with a relative error of some 1e-7: powers of two from a table, a polynomial between.

    The library's own would be called number by number.
    """
    y = min(-x * LOG2_E, f32(126))
    n = max(min(np.int32(y + f32(0.5)), np.int32(127)), np.int32(0))  # of what is no number, too
    z = (f32(n) - y) * LN_2
    terms = f32(1 / 6) + z * (f32(1 / 24) + z * (f32(1 / 120) + z * f32(1 / 720)))
    return POWERS[n] * (f32(1) + z * (f32(1) + z * (f32(1 / 2) + z * terms)))
