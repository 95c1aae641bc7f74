"""The first and the newest slots of a layer as they came, beside the codes that all slots have.

They are what queries look at most, so that rounding them costs most (docs/measurements/kv-bits.md). A slot that becomes an
older one is then read from its code, which depends on that slot alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemllm.cache.bits import FIRST
from edgemllm.lazy import Tensor, torch


class ExactRows:
    """Exact keys and values, or one of the two, of slots 0 .. `first` - 1 and of slots `since` .. L - 1."""

    def __init__(self, widths: Mapping[str, int], newest: int, like: Tensor) -> None:
        """Allocate for `newest` slots beside the first ones; `like` (B, H_kv, ...) has the type and device."""
        self.newest = newest
        self.tensors = {name: like.new_zeros(*like.shape[:2], FIRST + newest, width) for name, width in widths.items()}
        self.clear()

    def clear(self) -> None:
        """Forget every row and keep the memory."""
        self.intact, self.began = FIRST, 0  # the first slots that were never evicted; the newest ones are exact from here on

    def first(self, length: int) -> int:
        """Return how many slots from the beginning are exact, of `length`."""
        return min(self.intact, length)

    def since(self, length: int) -> int:
        """Return the slot from which on all are exact, of `length`."""
        return max(self.began, length - self.newest, self.first(length))

    def append(self, name: str, rows: Tensor, length: int) -> None:
        """Take in rows (B, H_kv, q, D) of the last q of `length` slots."""
        tensor, count = self.tensors[name], rows.shape[2]
        start, stop = length - count, min(length, FIRST)
        if start < stop:
            tensor[:, :, start:stop] = rows[:, :, : stop - start]
        if self.newest:
            past = tensor[:, :, FIRST + min(count, self.newest) :]
            tensor[:, :, FIRST:] = torch.cat((past, rows[:, :, -self.newest :]), 2)

    def replace(self, name: str, rows: Tensor) -> None:
        """Take the exact rows out of those of all slots, (B, H_kv, L, D), which were changed."""
        length = rows.shape[2]
        first, since = self.first(length), self.since(length)
        self.tensors[name][:, :, :first] = rows[:, :, :first]
        if since < length:
            self.tensors[name][:, :, since - length :] = rows[:, :, since:]

    def keep(self, index: Tensor, length: int) -> None:
        """Follow the slots at `index` (B, H_kv | 1, n), ascending, out of `length`."""
        since, size = self.since(length), index.shape[-1]
        front = min(size, self.intact)
        stays = index[..., :front] == torch.arange(front, device=index.device)
        leading, count = torch.stack((stays.cumprod(-1).sum(-1).amin(), (index >= since).sum(-1).amin())).tolist()
        if leading < front:
            self.intact = leading
        for tensor in self.tensors.values() if count else ():
            places = index[..., size - count :] - length + tensor.shape[2]
            wide = places[..., None].expand(*tensor.shape[:2], -1, tensor.shape[-1])
            tensor[:, :, tensor.shape[2] - count :] = tensor.gather(2, wide)
        self.began = size - count

    def newest_rows(self, name: str, count: int) -> Tensor:
        """Return the last `count` of the newest rows, (B, H_kv, count, D)."""
        return self.tensors[name][:, :, self.tensors[name].shape[2] - count :]

    def rows(self, name: str, length: int) -> Tensor:
        """Return the exact rows in the order of their slots, (B, H_kv, n, D)."""
        tensor, first, newest = self.tensors[name], self.first(length), length - self.since(length)
        if first + newest == tensor.shape[2]:
            return tensor
        return torch.cat((tensor[:, :, :first], tensor[:, :, tensor.shape[2] - newest :]), 2)

    def lay_over(self, name: str, rows: Tensor, start: int, length: int) -> None:
        """Write the exact rows over those of the slots from `start` on, (B, H_kv, n, D)."""
        tensor, stop = self.tensors[name], start + rows.shape[2]
        first, since = min(self.first(length), stop), max(self.since(length), start)
        if start < first:
            rows[:, :, : first - start] = tensor[:, :, start:first]
        if since < stop:
            end = tensor.shape[2] - length
            rows[:, :, since - start :] = tensor[:, :, end + since : end + stop]

    @property
    def nbytes(self) -> int:
        """Return the bytes of all rows."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a saved session holds of the rows: tensors by name, and plain values."""
        return {f"exact.{name}": tensor for name, tensor in self.tensors.items()}, {"exact": [self.intact, self.began]}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put in what `state` gave; of rows for a larger budget the newest ones."""
        self.intact, self.began = values["exact"]
        for name, tensor in self.tensors.items():
            saved = tensors[f"exact.{name}"]
            tensor[:, :, :FIRST] = saved[:, :, :FIRST]
            shared = min(saved.shape[2] - FIRST, self.newest)
            if shared:
                tensor[:, :, -shared:] = saved[:, :, -shared:]
