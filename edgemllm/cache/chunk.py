"""Consecutive tokens on their way into the model.

Shape letters, used in the whole package: **B** batch (1) · **A** position axes (1 RoPE; 3 M-RoPE: time, height, width) ·
**H** query heads · **H_kv** KV heads · **q** tokens of a chunk · **L** live slots · **N** budget in slots · **D** head size ·
**E** hidden size · **V** vocabulary · **w** observed queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from edgemllm.lazy import Tensor, torch


class Modality(IntEnum):
    """Where a token comes from."""

    TEXT = 0
    VISION = 1


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens, ready for the language model.

    embeds     (B, q, E)
    positions  (A, B, q) int64: places in the whole stream, never reset
    modality   (B, q) uint8
    time       (B, q) float32: seconds of the video the token shows, or the line of its document; NaN where there is none
    deepstack  (d, B, q, E) or None: what DeepStack adds to the output of the first d decoder layers
    stride     the native gap between neighbouring positions: renumbering never widens or narrows it
    appends    every position comes after all earlier ones: known of text, not of part of a picture
    block      (B, q) int64 or None: tokens of one block see each other both ways (Gemma's pictures); -1: only backwards
    local      blocks do so in sliding layers alone (Gemma 4)
    tokens     (B, q) int64 or None: what per-layer embeddings are looked up by (Gemma 4)
    """

    embeds: Tensor
    positions: Tensor
    modality: Tensor
    time: Tensor
    deepstack: Tensor | None = None
    stride: int = 1
    appends: bool = False
    block: Tensor | None = None
    local: bool = False
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return self.embeds.shape[1]

    @property
    def next_position(self) -> int:
        """Return the first position after this chunk."""
        return int(self.positions.max()) + 1 if len(self) else 0

    def split(self, size: int) -> Iterator[Chunk]:
        """Return pieces of at most `size` tokens, in order. A block is never cut: one that is longer comes whole."""
        start = 0
        while start < len(self):
            part = slice(start, self._cut(start, size))
            embeds, positions = self.embeds[:, part], self.positions[..., part]
            modality, time = self.modality[:, part], self.time[:, part]
            deepstack = None if self.deepstack is None else self.deepstack[:, :, part]
            block, tokens = (None if each is None else each[:, part] for each in (self.block, self.tokens))
            yield Chunk(embeds, positions, modality, time, deepstack, self.stride, self.appends, block, self.local, tokens)
            start = part.stop

    def _cut(self, start: int, size: int) -> int:
        """Return where the piece that begins at `start` ends."""
        stop = min(start + size, len(self))
        if self.block is None or stop == len(self):
            return stop
        name = self.block[0, stop]
        if name < 0 or self.block[0, stop - 1] != name:
            return stop
        inside = (self.block[0] == name).nonzero()
        first, last = int(inside[0]), int(inside[-1])
        return first if first > start else last + 1

    @staticmethod
    def of_text(embeds: Tensor, offset: int, axes: int = 1) -> Chunk:
        """Place text tokens (B, q, E) at positions offset, offset + 1, ... on every axis."""
        batch, count, device = *embeds.shape[:2], embeds.device
        positions = torch.arange(offset, offset + count, device=device).expand(axes, batch, count)
        modality = torch.full((batch, count), Modality.TEXT, dtype=torch.uint8, device=device)
        return Chunk(embeds, positions, modality, torch.full((batch, count), torch.nan, device=device), appends=True)

    @staticmethod
    def join(chunks: Sequence[Chunk]) -> Chunk:
        """Make one chunk of several that follow each other."""
        deepstack = None
        depth = max((len(chunk.deepstack) for chunk in chunks if chunk.deepstack is not None), default=0)
        if depth:
            parts = [c.embeds.new_zeros(depth, *c.embeds.shape) if c.deepstack is None else c.deepstack for c in chunks]
            deepstack = torch.cat(parts, 2)
        block = None
        if any(chunk.block is not None for chunk in chunks):
            alone = [torch.full_like(chunk.modality, -1, dtype=torch.long) for chunk in chunks]
            block = torch.cat([chunk.block if chunk.block is not None else alone[i] for i, chunk in enumerate(chunks)], 1)
        tokens = [chunk.tokens for chunk in chunks if chunk.tokens is not None]
        return Chunk(
            torch.cat([chunk.embeds for chunk in chunks], 1),
            torch.cat([chunk.positions for chunk in chunks], 2),
            torch.cat([chunk.modality for chunk in chunks], 1),
            torch.cat([chunk.time for chunk in chunks], 1),
            deepstack,
            max(chunk.stride for chunk in chunks),
            all(chunk.appends for chunk in chunks),
            block,
            any(chunk.local for chunk in chunks),
            torch.cat(tokens, 1) if len(tokens) == len(chunks) else None,
        )
