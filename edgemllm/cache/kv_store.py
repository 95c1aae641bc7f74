"""How the keys and values of a layer lie in their columns: as they are, or as small integers with scales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgemllm.cache.bits import WHOLE, Channels, KVBits, dequantise, quantise, scales_of
from edgemllm.cache.exact_rows import ExactRows
from edgemllm.cache.rope import Rotation
from edgemllm.cache.slots import Slots
from edgemllm.lazy import Tensor

NAMES = ("keys", "values")
EVERY = slice(None)


class KVStore:
    """Reads and writes the columns `keys` and `values` of slots."""

    def __init__(
        self, slots: Slots, bits: KVBits, channels: Mapping[str, Channels], widths: tuple[int, int], newest: int, like: Tensor
    ) -> None:
        """Allocate exact rows for `newest` slots of `widths` (keys, values), of the type of `like` (B, H_kv, ...)."""
        self.slots, self.bits, self.channels = slots, bits, channels
        coded = {name: width for name, width in zip(NAMES, widths, strict=True) if name in bits.coded}
        self.exact = ExactRows(coded, newest, like) if coded else None
        """Beside the codes; None where there are none."""
        self.late = bool(coded) and newest > 0 and like.device.type == "cpu"
        """Codes of single tokens are written together with others', while these are still exact; a graph could not."""
        self.written = 0
        """Slots whose codes are written, where that is late."""

    def read(self, name: str, slots: slice = EVERY) -> Tensor:
        """Return keys or values of some live slots, (B, H_kv, n, D): a view, or a copy of what fewer bits stand for."""
        bits, stored = self.bits.of(name), self.slots.live(name)
        if slots is not EVERY:
            stored = stored[:, :, slots]
        if bits == WHOLE:
            return stored
        rows = dequantise(stored, self.slots.live(scales_of(name))[:, :, slots], bits, self.slots.like.dtype)
        if name in self.channels:
            self.channels[name].restored(rows)
        assert self.exact is not None
        self.exact.lay_over(name, rows, slots.indices(self.slots.length)[0], self.slots.length)
        return rows

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Write keys and values (B, H_kv, n, D) to the last n slots."""
        length, count = self.slots.length, keys.shape[2]
        exact = self.exact.tensors if self.exact else {}
        wait = self.late and count == 1
        if self.exact and not (wait and self.written >= self.exact.since(length)):
            self._write_exact(length - count)
        for name, rows in zip(NAMES, (keys, values), strict=True):
            if not (wait and name in exact):
                self._write(name, length - count, rows)
            if self.exact and name in exact:
                self.exact.append(name, rows, length)
        self.written = self.written if wait else length

    def next_shape(self) -> tuple[int, ...]:
        """Return the numbers of the host that the kernels of one more token depend on: L, and which slots are exact then."""
        length = self.slots.length
        return (length, self.exact.first(length + 1), self.exact.since(length + 1)) if self.exact else (length,)

    def put(self, name: str, index: Tensor, rows: Tensor) -> None:
        """Write rows (B, H_kv, n, D) of keys or values to the slots at `index` (B, H_kv, n)."""
        self._write_exact(self.slots.length)
        if self.exact and name in self.exact.tensors:
            self.exact.replace(name, self.read(name).scatter_(2, index[..., None].expand(rows.shape), rows))
        for column, numbers in self._stored(name, rows).items():
            wide = index.view(*index.shape, *(1 for _ in numbers.shape[3:])).expand(numbers.shape)
            self.slots.live(column).scatter_(2, wide, numbers)

    def keep(self, index: Tensor, rotation: Rotation | None) -> None:
        """Keep the slots at `index` (B, H_kv | 1, n), ascending, and rotate their keys."""
        self._write_exact(self.slots.length)
        if self.exact:
            self.exact.keep(index, self.slots.length)
        self.slots.keep(index, rotation)
        self.written = self.slots.length

    def clear(self) -> None:
        """Forget every token and keep the memory."""
        if self.exact:
            self.exact.clear()
        self.slots.clear()
        self.written = 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a saved session holds of it: live columns and exact rows by name, and plain values."""
        self._write_exact(self.slots.length)
        tensors = {name: self.slots.live(name) for name in self.slots.tensors}
        exact, values = self.exact.state() if self.exact else ({}, {})
        return tensors | exact, values

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put in what `state` gave."""
        self.slots.load(tensors)
        self.written = self.slots.length
        if self.exact:
            self.exact.load(tensors, values)

    @property
    def parts(self) -> dict[str, int]:
        """Return the bytes of keys and values, with those that are exact beside their codes, and of the scales of both."""
        whole = {name: self.slots.tensors[name].nbytes for name in NAMES}
        exact = {name: tensor.nbytes for name, tensor in self.exact.tensors.items()} if self.exact else {}
        scales = sum(self.slots.tensors[scales_of(name)].nbytes for name in self.bits.coded)
        return {**{name: size + exact.get(name, 0) for name, size in whole.items()}, "scales": scales}

    @property
    def nbytes(self) -> int:
        """Return the bytes of all slots, with what is noted of them."""
        return self.slots.nbytes + (self.exact.nbytes if self.exact else 0)

    @property
    def live_bytes(self) -> int:
        """Return the bytes of live keys and values, with their scales."""
        return sum(self.slots.live(name).nbytes for name in self.slots.tensors if name.startswith(NAMES))

    def _write_exact(self, length: int) -> None:
        """Write the codes of exact rows that have none yet, of `length` slots."""
        if self.exact and self.late and self.written < length:
            for name in self.exact.tensors:
                self._write(name, self.written, self.exact.newest_rows(name, length - self.written))
            self.written = length

    def _write(self, name: str, start: int, rows: Tensor) -> None:
        for column, numbers in self._stored(name, rows).items():
            self.slots.tensors[column].narrow(2, start, rows.shape[2]).copy_(numbers)

    def _stored(self, name: str, rows: Tensor) -> dict[str, Tensor]:
        """Return the columns that hold rows of keys or values."""
        bits = self.bits.of(name)
        if bits == WHOLE:
            return {name: rows}
        even = self.channels[name].evened(rows) if name in self.channels else rows
        return dict(zip((name, scales_of(name)), quantise(even, bits), strict=True))


def split(stores: Iterable[KVStore], total: int) -> dict[str, int]:
    """Return what the bytes of a cache consist of: keys, values, their scales, and what is noted of tokens and layers."""
    found = dict.fromkeys((*NAMES, "scales"), 0)
    for store in stores:
        found = {name: size + store.parts[name] for name, size in found.items()}
    return {**found, "notes": total - sum(found.values())}
