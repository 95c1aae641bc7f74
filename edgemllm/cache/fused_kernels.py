"""What a decoded token reads of codes on CUDA, as kernels of Triton: unpacked in registers, and never written out.

A module of its own, as it needs Triton, which PyTorch's wheels for CUDA bring along. Codes are (B, H_kv, N, D), or of 4 bits
(B, H_kv, N, D / 2), uint8; scales (B, H_kv, N, groups, 2) float16; sums are float32. Each program of a kernel has one KV head
and one block of slots, and all query heads of the group, so that codes are read once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Slots of a program."""
PER_TOKEN = ("start", "stop", "length", "turn_batch", "turn_head")
"""Arguments that change with every token: one kernel serves all their values, while others are compiled for divisible ones."""

OPTIONS = {"enable_fp_fusion": True}
"""Triton 3.9 warns where it is not said whether x * y + z may be one operation."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, once for a machine; its parameters may have no annotations but Triton's."""
    return triton.jit(function, do_not_specialize=PER_TOKEN)


def scores(
    codes: Tensor,
    scales: Tensor,
    width: Tensor | None,
    mean: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    query: Tensor,
    out: Tensor,
    start: int,
    stop: int,
) -> None:
    """Write to `out` (B * H_kv, g, L) the products of query (B * H_kv, g, D) and the keys of slots start .. stop - 1.

    Unpacked keys are multiplied with `width` (1, H_kv, 1, D), `mean` is added, where there are any, and they are rotated by cos
    and sin (B, H_kv | 1, L, R / 2); R = 0 rotates nothing.
    """
    turn_batch, turn_head = cos.expand(*codes.shape[:2], -1, -1).stride()[:2]
    given = (width, mean, cos, sin, turn_batch, turn_head, query, out, out.shape[2], codes.shape[1])
    turned = {"TURNED": cos.shape[-1], "PAIRS": triton.next_power_of_2(query.shape[-1] // 2)}
    _launch(_scores, codes, scales, query, query.shape[-1], start, stop, *given, **turned)


def weighted(codes: Tensor, scales: Tensor, weights: Tensor, width: int, start: int, stop: int) -> Tensor:
    """Return the values (B * H_kv, g, D) of slots start .. stop - 1, added up by weights (B * H_kv, g, L); `width` is D."""
    out = weights.new_empty(triton.cdiv(stop - start, BLOCK), *weights.shape[:2], width)
    channels = triton.next_power_of_2(width)
    _launch(_weighted, codes, scales, weights, width, start, stop, weights, out, weights.shape[2], CHANNELS=channels)
    return out.sum(0)


def _launch(
    run: Any, codes: Tensor, scales: Tensor, rows: Tensor, width: int, start: int, stop: int, *given: Any, **shape: int
) -> None:
    """Run a kernel for every head of `rows` (B * H_kv, g, ...) and every block of slots."""
    if start == stop:
        return
    shape |= {"ROWS": rows.shape[1], "WIDTH": width, "BITS": 8 * codes.shape[3] // width, "GROUPS": scales.shape[3]}
    with torch.cuda.device_of(codes):
        grid = len(rows), triton.cdiv(stop - start, BLOCK)
        run[grid](codes, scales, codes.shape[2], start, stop, *given, BLOCK=BLOCK, **OPTIONS, **shape)


@kernel
def _unpacked(
    codes, scales, slots, channels, live,
    WIDTH: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Return what the codes of one head stand for at slots x channels; 0 where these are not `live`."""
    code = tl.load(codes + (slots * (WIDTH * BITS // 8))[:, None] + (channels % (WIDTH * BITS // 8))[None, :], live, 0)
    if BITS == 4:
        code = tl.where((channels < WIDTH // 2)[None, :], code & 15, code >> 4)
    step = scales + 2 * ((slots * GROUPS)[:, None] + (channels * GROUPS // WIDTH)[None, :])
    return code.to(tl.float32) * tl.load(step, live, 0).to(tl.float32) + tl.load(step + 1, live, 0).to(tl.float32)


@kernel
def _row(numbers, channels, known):
    """Return numbers of channels, the same for all slots."""
    return tl.load(numbers + channels, known, 0).to(tl.float32)[None, :]


@kernel
def _scores(
    codes, scales, capacity, start, stop, width, mean, cos, sin,
    turn_batch, turn_head, query, out, length, heads,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr,
    TURNED: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Write the scores of a block; channels come in the pairs that are rotated together, TURNED of them, and what is left."""
    head = tl.program_id(0).to(tl.int64)
    slots = start + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pairs = tl.arange(0, PAIRS)
    known = pairs < WIDTH // 2
    first = pairs + tl.where(pairs < TURNED, 0, TURNED)
    second = first + tl.where(pairs < TURNED, TURNED, WIDTH // 2 - TURNED)
    live = (slots < stop)[:, None] & known[None, :]
    codes += head * capacity * (WIDTH * BITS // 8)
    scales += head * capacity * (2 * GROUPS)
    x = _unpacked(codes, scales, slots, first, live, WIDTH, BITS, GROUPS)
    y = _unpacked(codes, scales, slots, second, live, WIDTH, BITS, GROUPS)
    if width is not None:
        width += head % heads * WIDTH
        mean += head % heads * WIDTH
        x = x * _row(width, first, known) + _row(mean, first, known)
        y = y * _row(width, second, known) + _row(mean, second, known)
    if TURNED > 0:
        turn = head // heads * turn_batch + head % heads * turn_head + (slots * TURNED)[:, None] + pairs[None, :]
        turns = live & (pairs < TURNED)[None, :]
        c = tl.load(cos + turn, turns, 1)
        s = tl.load(sin + turn, turns, 0)
        still = x
        x = x * c - y * s
        y = y * c + still * s
    for row in tl.static_range(ROWS):
        asked = query + (head * ROWS + row) * WIDTH
        total = tl.sum(x * _row(asked, first, known) + y * _row(asked, second, known), 1)
        tl.store(out + (head * ROWS + row) * length + slots, total, slots < stop)


@kernel
def _weighted(
    codes, scales, capacity, start, stop, weights, out, length,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the weighted sums of a block, which are added to those of other blocks afterwards."""
    head = tl.program_id(0).to(tl.int64)
    slots = start + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, CHANNELS)
    known = channels < WIDTH
    live = (slots < stop)[:, None] & known[None, :]
    codes += head * capacity * (WIDTH * BITS // 8)
    scales += head * capacity * (2 * GROUPS)
    values = _unpacked(codes, scales, slots, channels, live, WIDTH, BITS, GROUPS)
    out += (tl.program_id(1) * tl.num_programs(0) + head) * ROWS * WIDTH
    for row in tl.static_range(ROWS):
        share = tl.load(weights + (head * ROWS + row) * length + slots, slots < stop, 0)
        tl.store(out + row * WIDTH + channels, tl.sum(values * share[:, None], 0), known)
