"""What a slot consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgemllm.cache.bits import WHOLE, KVBits, groups, scales_of

ITEM_BYTES = {"float32": 4, "int32": 4, "float16": 2, "uint8": 1}


@dataclass(frozen=True)
class Column:
    """What is stored of every token under one name, (B, H_kv, N, *shape)."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    """A PyTorch type; empty: that of the model's keys and values."""
    buffer: bool = False
    """Belongs to the policy, and is zero for a token that has just come in."""


def columns(
    head_dim: int, value_dim: int, axes: int, positions: str, buffers: Sequence[str], bits: KVBits
) -> tuple[Column, ...]:
    """Return every column of a slot: the one table that storage, saved sessions and the plan are made from.

    With several position axes renumbered positions are stored; with one they are the slots' own numbers.
    """
    renumbered = (Column("cache_positions", (axes,), "int32"),) if positions == "cache" and axes > 1 else ()
    return (
        *_numbers("keys", head_dim, bits.keys),
        *_numbers("values", value_dim, bits.values),
        Column("positions", (axes,), "int32"),
        *renumbered,
        Column("modality", (), "uint8"),
        Column("time"),
        *(Column(name, buffer=True) for name in buffers),
    )


def _numbers(name: str, width: int, bits: int) -> tuple[Column, ...]:
    """Return the columns of keys or values, (B, H_kv, N, width) in `bits` bits."""
    if bits == WHOLE:
        return (Column(name, (width,), ""),)
    return Column(name, (width * bits // 8,), "uint8"), Column(scales_of(name), (groups(width), 2), "float16")
