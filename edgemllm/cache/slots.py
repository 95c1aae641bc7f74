"""The slots of a layer: tensors allocated once, into which tokens are written and of which some are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.rope import Rotation, rotate

MOVED = 1 << 19
"""Bytes that a compaction moves at once on a CPU, or else a head."""


class Storage:
    """`length` live slots at the front of tensors with room for N, in the order of the stream.

    keys, values  (B, H_kv, N, D)
    positions     (A, B, H_kv, N) int32, as in the stream
    places        (A, B, H_kv, N) int32, renumbered, or None
    modality      (B, H_kv, N) uint8 · time (B, H_kv, N) float32, seconds of video or NaN
    slots         what a policy notes for each, by name, (B, H_kv, N) float32; zero for new tokens
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    places: Tensor | None
    modality: Tensor
    time: Tensor
    slots: dict[str, Tensor]
    length: int

    def allocate(self, keys: Tensor, values: Tensor, room: int, axes: int, numbered: bool, notes: Sequence[str]) -> None:
        """Make room for tokens like `keys` and `values` (B, H_kv, q, D); `numbered`: with places."""
        batch, heads, _, size = keys.shape
        self.keys = keys.new_zeros(batch, heads, room, size)
        self.values = values.new_zeros(batch, heads, room, values.shape[-1])
        self.positions = torch.zeros(axes, batch, heads, room, dtype=torch.int32, device=keys.device)
        self.places = torch.zeros_like(self.positions) if numbered else None
        self.modality = torch.zeros(batch, heads, room, dtype=torch.uint8, device=keys.device)
        self.time = torch.full((batch, heads, room), torch.nan, device=keys.device)
        self.slots = {name: torch.zeros(batch, heads, room, device=keys.device) for name in notes}

    def write(self, new: slice, values: Tensor, chunk: Chunk) -> None:
        """Put tokens into the slots `new`: everything but their keys, which turn by where the others are."""
        self.values[:, :, new] = values
        self.positions[..., new] = chunk.positions[:, :, None]
        self.modality[..., new] = chunk.modality[:, None]
        self.time[..., new] = chunk.time[:, None]

    def slot(self, name: str) -> Tensor:
        """The live part of a policy's notes, (B, H_kv, L), a view; new tokens start at zero."""
        return self.slots[name].narrow(-1, 0, self.length)

    def pick(self, index: Tensor, turn: Rotation | None = None) -> None:
        """Only the slots at `index` (B, H_kv | 1, n), ascending, stay; their keys are turned."""
        index = index.expand(-1, self.keys.shape[1], -1)
        size = index.shape[-1]
        move(self.keys, index, turn)
        move(self.values, index)
        for notes in self.notes():
            notes[..., :size] = notes.gather(-1, index.expand(*notes.shape[:-1], -1))
        for notes in self.slots.values():
            notes[..., size : self.length] = 0
        self.length = size

    def reallocate(self, room: int) -> None:
        """Move the live slots to storage of `room` slots."""

        def moved(buffer: Tensor, dim: int) -> Tensor:
            new = buffer.new_empty([*buffer.shape[:dim], room, *buffer.shape[dim + 1 :]])
            new.narrow(dim, 0, self.length).copy_(buffer.narrow(dim, 0, self.length))
            return new  # beyond the live slots memory is not even touched

        self.keys, self.values, self.positions = moved(self.keys, 2), moved(self.values, 2), moved(self.positions, 3)
        self.places = None if self.places is None else moved(self.places, 3)
        self.modality, self.time = moved(self.modality, 2), moved(self.time, 2)
        self.slots = {name: moved(buffer, 2) for name, buffer in self.slots.items()}
        for notes in self.slots.values():
            notes[..., self.length :] = 0

    def notes(self) -> list[Tensor]:
        """What a slot has besides its key and value, each (..., B, H_kv, N)."""
        places = () if self.places is None else (self.places,)
        return [self.positions, *places, self.modality, self.time, *self.slots.values()]


def gather(buffer: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, H, L, C) at `index` (B, H, n), a copy: (B, H, n, C)."""
    return buffer.gather(2, index[..., None].expand(-1, -1, -1, buffer.shape[-1]))


def move(buffer: Tensor, index: Tensor, turn: Rotation | None = None) -> None:
    """Copy the slots at `index` (B, H_kv, n), ascending, to the front of `buffer` (B, H_kv, N, D), turned by `turn`."""
    size = index.shape[-1]
    if buffer.device.type != "cpu":  # as few kernels as possible
        kept = gather(buffer, index)
        buffer[:, :, :size] = kept if turn is None else rotate(kept, turn)
        return
    # Some heads at a time: what a step needs stays in the processor's cache, and rows are copied whole.
    every = buffer.view(-1, *buffer.shape[2:])
    rows = index.flatten(0, 1) + torch.arange(len(every))[:, None] * buffer.shape[2]
    turns = None if turn is None else [part.expand(-1, buffer.shape[1], -1, -1).flatten(0, 1) for part in turn]
    step = max(MOVED // max(size * buffer.shape[-1] * buffer.element_size(), 1), 1)
    for start in range(0, len(every), step):
        heads = slice(start, start + step)
        kept = every.flatten(0, 1).index_select(0, rows[heads].flatten()).view(-1, size, buffer.shape[-1])
        every[heads, :size] = kept if turns is None else rotate(kept, (turns[0][heads], turns[1][heads]))
