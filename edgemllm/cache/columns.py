"""What a slot consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ITEM_BYTES = {"float32": 4, "int32": 4, "uint8": 1}


@dataclass(frozen=True)
class Column:
    """What is stored of every token under one name, (B, H_kv, N, *shape)."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    """A PyTorch type; empty: that of the model's keys and values."""
    buffer: bool = False
    """Belongs to the policy, and is zero for a token that has just come in."""


def columns(head_dim: int, value_dim: int, axes: int, positions: str, buffers: Sequence[str]) -> tuple[Column, ...]:
    """Return every column of a slot: the one table that storage, saved sessions and the plan are made from.

    With several position axes renumbered positions are stored; with one they are the slots' own numbers.
    """
    renumbered = (Column("cache_positions", (axes,), "int32"),) if positions == "cache" and axes > 1 else ()
    return (
        Column("keys", (head_dim,), ""),
        Column("values", (value_dim,), ""),
        Column("positions", (axes,), "int32"),
        *renumbered,
        Column("modality", (), "uint8"),
        Column("time"),
        *(Column(name, buffer=True) for name in buffers),
    )
