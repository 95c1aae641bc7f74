"""The positions to which a layer's keys are rotated.

`original`: as in the stream. `cache`: survivors are renumbered without gaps. With one position axis that is a slot's own
number; with several (M-RoPE) it is stored beside the key.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from edgemllm.cache.forward_pass import Pass
from edgemllm.cache.rope import Rope, Rotation, inverse, renumber, renumber_appended
from edgemllm.cache.slots import Slots

T = TypeVar("T")
BLOCK = 256
"""Slots rotated at once in place: what they need stays in a processor's cache."""


class Numbering:
    """Numbers the slots of one layer, and rotates stored keys when their numbers change (`rotated`)."""

    def __init__(self, slots: Slots, rope: Rope, mode: str, rotated: bool) -> None:
        self.slots, self.rope, self.mode, self.rotated = slots, rope, mode, rotated
        self.stored = "cache_positions" in slots.tensors

    def positions(self) -> Tensor:
        """Return the position of every slot, (A, B, H_kv | 1, L)."""
        if self.mode == "original":
            return self._live("positions")
        if self.stored:
            return self._live("cache_positions")
        return torch.arange(self.slots.length, device=self.slots.device).view(1, 1, 1, -1)

    def rotation(self, now: Pass | None, slots: slice = slice(None)) -> Rotation:
        """Return the rotation of every slot, or of some."""
        if self.mode == "cache" and not self.stored:
            cos, sin = self._span(now, 0, self.slots.length)
            return cos[:, :, slots], sin[:, :, slots]
        return self.rope.at(self.positions()[..., slots], self.slots.like)

    def angles(self, now: Pass | None) -> Rotation:
        """Return the cosines and sines of every slot's angles in single precision, each (B, H_kv | 1, L, R / 2)."""
        return self.common(now, ("angles", self.slots.length), self._angles)

    def _angles(self) -> Rotation:
        cos, sin = self.rope.at(self.positions(), self.slots.like.float())
        half = cos.shape[-1] // 2  # both halves of a pair turn by the same angle
        return cos[..., :half].contiguous(), sin[..., half:].contiguous()

    def append(self, now: Pass, count: int, intact: bool) -> Rotation:
        """Number the last `count` slots and return their rotation, shared by layers that are `intact`: with nothing evicted."""
        like, first = self.slots.like, self.slots.length - count
        if self.mode == "original":
            positions = now.chunk.positions[:, :, None]
            return self._shared(now, "original", lambda: self.rope.at(positions, like))
        if not self.stored:
            return self._span(now, first, self.slots.length)
        self._number(now, first)
        numbers = self._live("cache_positions")[..., first:]
        if not intact:
            return self.rope.at(numbers, like)
        return self._shared(now, "intact", lambda: self.rope.at(numbers[:, :, :1], like))

    def shift(self, now: Pass | None, index: Tensor) -> Rotation | None:
        """Return what rotates the stored keys at `index` (B, H_kv | 1, n), ascending, to their new places once others go."""
        if not self.rotated or self.mode == "original" or self.stored:
            return None
        # A slot moves forward by as many as went before it; one that stays is rotated by exactly nothing.
        by = index - torch.arange(index.shape[-1], device=index.device)
        cos, sin = inverse(self._span(now, 0, self.slots.length - index.shape[-1] + 1))
        return cos[0, 0, by], sin[0, 0, by]

    def close_gaps(self) -> None:
        """Renumber what is left once slots are gone."""
        if self.stored:
            self._renumber(renumber(self._live("positions"), self.rope.stride))

    def _number(self, now: Pass, first: int) -> None:
        """Number the slots from `first` on, and those before them anew where the new ones fall among them."""
        positions, numbers, stride = self._live("positions"), self._live("cache_positions"), self.rope.stride
        if now.chunk.appends and first:
            known = positions[..., :first], numbers[..., :first]
            numbers[..., first:] = renumber_appended(*known, positions[..., first:], stride)
            return
        renumbered = renumber(positions, stride)
        self._renumber(renumbered[..., :first])
        numbers[..., first:] = renumbered[..., first:]

    def _renumber(self, numbers: Tensor) -> None:
        """Give the first slots the numbers (A, B, H_kv, n)."""
        count = numbers.shape[-1]
        if count:
            old = self._live("cache_positions")[..., :count]
            if self.rotated:
                keys = self.slots.live("keys")[:, :, :count]
                rotate_(keys, self.rope.at(numbers - old, keys))
            old.copy_(numbers)

    def _live(self, name: str) -> Tensor:
        """Return a column of positions as (A, B, H_kv, L)."""
        return self.slots.live(name).permute(3, 0, 1, 2)

    def _span(self, now: Pass | None, start: int, stop: int) -> Rotation:
        return self._shared(now, (start, stop), lambda: self.rope.span(start, stop, self.slots.like))

    def common(self, now: Pass | None, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what follows from slots' numbers, from the first layer of a pass where these are the same in all layers."""
        return self._shared(now, key, compute) if self.mode == "cache" and not self.stored else compute()

    def _shared(self, now: Pass | None, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what the first layer of a pass with this rotation computes for those after it."""
        return compute() if now is None else now.shared((self.rope, key), compute)


def rotate_(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate x (B, h, L, D) in place, and return it."""
    cos, sin = rotation
    if not cos.shape[-1]:
        return x
    half = cos.shape[-1] // 2  # both halves of a pair turn by the same angle
    for start in range(0, x.shape[2], BLOCK):
        block = slice(start, start + BLOCK)
        first, second = x[:, :, block, : 2 * half].chunk(2, dim=-1)
        c, s = cos[:, :, block, :half], sin[:, :, block, half:]
        turned = (first * c).addcmul_(second, s, value=-1)
        second.mul_(c).addcmul_(first, s)
        first.copy_(turned)
    return x
