"""Keys and values in 8 or 4 bits: small integers with a scale and an offset for every group of channels of a slot.

A slot's numbers depend on that slot alone, so that keeping slots stays a copy of rows. Channels are grouped within a head, as
in vLLM's and llama.cpp's caches; keys are quantised before rotation, as slots move, and as KVQuant (arXiv 2401.18079) found
to cost least.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from edgemllm.errors import UsageError
from edgemllm.lazy import Tensor, torch

WHOLE = 16
"""Not quantised: the numbers of the model's dtype as they are, also where these have 32 bits."""
GROUP = 64
"""Channels that share a scale and an offset, where a head has a multiple of them; else all of the head's."""


@dataclass(frozen=True)
class KVBits:
    """The bits of a number of a key and of a value."""

    keys: int = WHOLE
    values: int = WHOLE

    @classmethod
    def parse(cls, text: str) -> KVBits:
        """Return the value of `--kv-bits`. Raises UsageError with what to type instead."""
        word = text.strip().lower()
        if word == "auto":
            return cls()
        found = re.fullmatch(r"(16|8|4)", word) or re.fullmatch(r"k(16|8|4)v(16|8|4)", word)
        if found is None:
            raise UsageError(f"--kv-bits {text} is unknown", "--kv-bits 16, 8 or 4, or k8v4 for keys and values apart")
        return cls(int(found[1]), int(found[found.lastindex or 1]))

    @property
    def name(self) -> int | str:
        """Return what JSON says: 16, 8, 4, or k8v4."""
        return self.keys if self.keys == self.values else f"k{self.keys}v{self.values}"

    @functools.cached_property
    def coded(self) -> tuple[str, ...]:
        """Return which of `keys` and `values` are stored as codes."""
        return tuple(name for name in ("keys", "values") if self.of(name) != WHOLE)

    def of(self, column: str) -> int:
        """Return the bits of `keys` or `values`."""
        return self.keys if column == "keys" else self.values


UNQUANTISED = KVBits()


@dataclass(frozen=True)
class Channels:
    """What a layer's unrotated keys look like, or its values: channel by channel, each (1, H_kv, 1, D).

    Some are far from zero, or wide: taking out means and widths before bits are spent makes neighbouring channels alike.
    """

    mean: Tensor
    width: Tensor

    def evened(self, rows: Tensor) -> Tensor:
        """Return rows (B, H_kv, n, D) as they are quantised."""
        return (rows - self.mean) / self.width

    def restored(self, rows: Tensor) -> Tensor:
        """Undo `evened`, in place."""
        return rows.mul_(self.width).add_(self.mean)

    @property
    def nbytes(self) -> int:
        return self.mean.nbytes + self.width.nbytes

    @classmethod
    def of(cls, rows: Tensor) -> Channels:
        """Return the channels of unrotated keys, or values, (B, H_kv, n, D)."""
        wide = rows.float()
        mean, width = wide.mean(2, keepdim=True), wide.std(2, keepdim=True).clamp_min(1e-6)
        return cls(mean.to(rows.dtype), width.to(rows.dtype))


FIRST = 1
"""The number of first slots that keep exact numbers beside their codes: every query looks there (KVQuant, section 3.6)."""
NEWEST = 16
"""The largest number of newest slots that keep theirs, as in KIVI (arXiv 2402.02750)."""
SLOTS_EACH = 32
"""A small cache keeps one exact slot for this many."""


def newest_exact(budget: int | None) -> int:
    """Return how many of the newest slots keep exact numbers in a layer of `budget` slots (None: without end)."""
    return NEWEST if budget is None else min(NEWEST, budget // SLOTS_EACH)


def scales_of(column: str) -> str:
    """Return the name of the column that holds the scales and offsets of `keys` or `values`."""
    return f"{column}_scales"


def groups(width: int) -> int:
    """Return how many groups the `width` channels of a head make."""
    return width // GROUP if width % GROUP == 0 else 1


def quantise(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes (..., D * bits / 8) uint8 and their scales and offsets (..., groups, 2) float16 of rows (..., D)."""
    grouped = rows.float().unflatten(-1, (groups(rows.shape[-1]), -1))
    least, most = grouped.aminmax(dim=-1, keepdim=True)
    steps, low = 2**bits - 1, least.half()
    scale = (most - low).div_(steps).half().clamp_min_(torch.finfo(torch.float16).tiny)
    codes = (grouped - low).div_(scale).round_().clamp_(0, steps).to(torch.uint8).flatten(-2)
    if bits == 4:  # a byte holds a channel of the first half and one of the second
        first, second = codes.chunk(2, -1)
        codes = first | second << 4
    return codes, torch.cat((scale, low), -1)


def dequantise(codes: Tensor, scales: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return the rows (..., D) that codes stand for."""
    if bits == 4:
        codes = torch.cat((codes & 15, codes >> 4), -1)
    scale, low = scales.to(dtype).split(1, -1)
    grouped: Tensor = codes.to(dtype).unflatten(-1, (scales.shape[-2], -1))
    return grouped.mul_(scale).add_(low).flatten(-2)
