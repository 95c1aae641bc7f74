"""How the keys and values of a layer lie in their columns: as they are, or as small integers with scales."""

from __future__ import annotations

from edgemllm.cache.bits import WHOLE, Channels, KVBits, dequantise, quantise, scales_of
from edgemllm.cache.slots import Slots
from edgemllm.lazy import Tensor, torch

NAMES = ("keys", "values")


class KVStore:
    """Reads and writes the columns `keys` and `values` of slots."""

    def __init__(self, slots: Slots, bits: KVBits, dtype: torch.dtype, channels: Channels | None) -> None:
        self.slots, self.bits, self.dtype, self.channels = slots, bits, dtype, channels

    def read(self, name: str, slots: slice = slice(None)) -> Tensor:
        """Return keys or values of some live slots, (B, H_kv, n, D): a view, or a copy of what fewer bits stand for."""
        bits, stored = self.bits.of(name), self.slots.live(name)[:, :, slots]
        if bits == WHOLE:
            return stored
        rows = dequantise(stored, self.slots.live(scales_of(name))[:, :, slots], bits, self.dtype)
        return self.channels.restored(rows) if name == "keys" and self.channels else rows

    def write_newest(self, name: str, rows: Tensor) -> None:
        """Write rows (B, H_kv, n, D) of keys or values to the last n slots."""
        for column, numbers in self._stored(name, rows).items():
            self.slots.newest(column, rows.shape[2]).copy_(numbers)

    def put(self, name: str, index: Tensor, rows: Tensor) -> None:
        """Write rows (B, H_kv, n, D) of keys or values to the slots at `index` (B, H_kv, n)."""
        for column, numbers in self._stored(name, rows).items():
            wide = index.view(*index.shape, *(1 for _ in numbers.shape[3:])).expand(numbers.shape)
            self.slots.live(column).scatter_(2, wide, numbers)

    @property
    def live_bytes(self) -> int:
        """Return the bytes of live keys and values, with their scales."""
        return sum(self.slots.live(name).nbytes for name in self.slots.tensors if name.startswith(NAMES))

    def _stored(self, name: str, rows: Tensor) -> dict[str, Tensor]:
        """Return the columns that hold rows of keys or values."""
        bits = self.bits.of(name)
        if bits == WHOLE:
            return {name: rows}
        even = self.channels.evened(rows) if name == "keys" and self.channels else rows
        return dict(zip((name, scales_of(name)), quantise(even, bits), strict=True))
