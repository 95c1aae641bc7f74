"""The slots of a layer: tensors allocated once, into which tokens are written and of which some are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgemllm.cache.columns import Column
from edgemllm.cache.rope import Rotation, rotate
from edgemllm.lazy import Tensor, torch

MOVE_BYTES = 1 << 19
"""How much a compaction moves at once on a CPU, unless a single head is more."""


class Slots:
    """`length` live tokens, in the order of the stream, at the front of tensors with room for `capacity` = N.

    Every column is one tensor (B, H_kv, N, ...): keys, values, positions, modality, time (`columns.py`), and what a policy
    notes about each token.
    """

    def __init__(self, columns: Sequence[Column], like: Tensor, capacity: int) -> None:
        """Allocate for tokens like the keys `like` (B, H_kv, q, D); memory is touched when it is written to."""
        self.length, self.device = 0, like.device
        self.like = like.new_empty(0)
        """Of the type in which keys and values are computed."""
        self.tensors = {
            column.name: torch.zeros(
                *like.shape[:2], capacity, *column.shape,
                dtype=getattr(torch, column.dtype) if column.dtype else like.dtype, device=like.device,
            )
            for column in columns
        }  # fmt: skip
        self.buffers = [column.name for column in columns if column.buffer]

    @property
    def capacity(self) -> int:
        """Return N, the number of tokens there is room for."""
        return self.tensors["keys"].shape[2]

    def live(self, name: str) -> Tensor:
        """Return the live part of a column, (B, H_kv, L, ...), a view."""
        return self.tensors[name].narrow(2, 0, self.length)

    def newest(self, name: str, count: int) -> Tensor:
        """Return the last `count` live rows of a column, (B, H_kv, count, ...), a view."""
        return self.tensors[name].narrow(2, self.length - count, count)

    def append(self, count: int, tokens: Mapping[str, Tensor]) -> None:
        """Append tokens (B, H_kv | 1, count, ...); columns that are not named are for the caller to fill."""
        self.length += count
        for name, rows in tokens.items():
            self.newest(name, count).copy_(rows)

    def keep(self, index: Tensor, rotation: Rotation | None = None) -> None:
        """Keep the slots at `index` (B, H_kv | 1, n), ascending, and rotate their keys."""
        size = index.shape[-1]
        for name, tensor in self.tensors.items():
            wide = index.expand(-1, tensor.shape[1], -1)
            if name in ("keys", "values"):
                move(tensor, wide, rotation if name == "keys" else None)
            else:
                tensor[:, :, :size] = gather(tensor, wide)
        self._clear(size, self.length)
        self.length = size

    def resize(self, capacity: int) -> None:
        """Move the live slots to storage of another capacity."""
        for name, old in self.tensors.items():
            new = old.new_empty(*old.shape[:2], capacity, *old.shape[3:])  # beyond the live slots it is not even touched
            new[:, :, : self.length] = old[:, :, : self.length]
            self.tensors[name] = new
        self._clear(self.length, capacity)

    def clear(self) -> None:
        """Forget every token and keep the memory."""
        self._clear(0, self.length)
        self.length = 0

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put in the live columns of other slots, as `live` gives them."""
        self.length = tensors["keys"].shape[2]
        for name in self.tensors:
            self.live(name).copy_(tensors[name])

    @property
    def nbytes(self) -> int:
        """Return the bytes of all columns."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def _clear(self, start: int, stop: int) -> None:
        for name in self.buffers:
            self.tensors[name][:, :, start:stop] = 0


def gather(buffer: Tensor, index: Tensor) -> Tensor:
    """Return a copy of the rows of (B, H, L, ...) at `index` (B, H, n): (B, H, n, ...)."""
    wide = index.view(*index.shape, *(1 for _ in buffer.shape[3:])).expand(*index.shape, *buffer.shape[3:])
    return buffer.gather(2, wide)


def move(buffer: Tensor, index: Tensor, rotation: Rotation | None = None) -> None:
    """Copy the slots at `index` (B, H_kv, n), ascending, to the front of `buffer` (B, H_kv, N, D), and rotate them."""
    size = index.shape[-1]
    if buffer.device.type != "cpu":  # as few kernels as possible
        kept = gather(buffer, index)
        buffer[:, :, :size] = kept if rotation is None else rotate(kept, rotation)
        return
    # Some heads at a time: what a step needs stays in the processor's cache, and rows are copied whole.
    every = buffer.view(-1, *buffer.shape[2:])
    rows = index.flatten(0, 1) + torch.arange(len(every))[:, None] * buffer.shape[2]
    turns = None if rotation is None else [part.expand(-1, buffer.shape[1], -1, -1).flatten(0, 1) for part in rotation]
    step = max(MOVE_BYTES // max(size * buffer.shape[-1] * buffer.element_size(), 1), 1)
    for start in range(0, len(every), step):
        heads = slice(start, start + step)
        kept = every.flatten(0, 1).index_select(0, rows[heads].flatten()).view(-1, size, buffer.shape[-1])
        every[heads, :size] = kept if turns is None else rotate(kept, (turns[0][heads], turns[1][heads]))
