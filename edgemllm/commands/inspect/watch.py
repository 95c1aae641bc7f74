"""Looking inside: attention maps, entropy by layer, and which slots a policy kept over time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from edgemllm.cache.layer import CacheLayer
from edgemllm.policies.base import ALL, CachePolicy
from edgemllm.policies.meda import Meda
from edgemllm.session import Session

LONGEST = 4096
"""Tokens of which an attention map is drawn at most: the map grows with their square."""
COLUMNS = 512
"""Columns of the picture of kept slots: longer streams are summed up."""


@dataclass(frozen=True)
class Watcher(CachePolicy):
    """Keeps every token and remembers every row of attention, mean over the heads, beside MEDA's sums of entropy."""

    bounded: ClassVar[bool] = False
    layer_stats: ClassVar[tuple[str, ...]] = Meda.layer_stats
    per_query_head: ClassVar[bool] = True

    rows: dict[int, list[Tensor]] = field(default_factory=dict)

    observe_window: ClassVar[int] = ALL

    def observe(self, layer: CacheLayer, attention: Tensor) -> None:
        Meda().observe_entropy(layer, attention)
        self.rows.setdefault(id(layer), []).append(attention.mean(1)[0].cpu())

    def score(self, layer: CacheLayer) -> Tensor:
        raise NotImplementedError

    def map(self, layer: CacheLayer) -> Tensor:
        """Return (L, L), whose row i is what token i looked at."""
        whole = torch.zeros(layer.length, layer.length)
        first = 0
        for rows in self.rows.get(id(layer), []):
            whole[first : first + len(rows), : rows.shape[1]] = rows
            first += len(rows)
        return whole


@dataclass(frozen=True)
class LayerEntropy:
    """Nats. `cross` is None without both text and vision; `most`: that of attention to every earlier token alike."""

    own: float
    cross: float | None
    most: float


def entropies(session: Session) -> list[LayerEntropy]:
    """Return the entropies of every layer of a session that ran under `Watcher`."""
    found = []
    for layer in session.cache.managed:
        own = Meda(entropy="self").entropy_of(layer)
        both = float(layer.stats["text_rows"]) and float(layer.stats["vision_rows"])
        cross = Meda().entropy_of(layer) if both else None
        most = torch.arange(1, layer.length + 1).log().mean()
        found.append(LayerEntropy(own or 0.0, cross, float(most)))
    return found


@dataclass
class Kept:
    """Which part of a stream of `length` tokens is in the cache after each step: a share of layers and heads."""

    length: int
    rows: list[Tensor] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def step(self, session: Session) -> None:
        """Take note after a forward pass."""
        self.rows.append(share(session, self.length))
        self.seen.append(session.cache.seen)


def share(session: Session, length: int) -> Tensor:
    """Return (columns,) from 0 to 1: how much of each part of a stream of `length` tokens the layers and heads hold."""
    columns = min(COLUMNS, length)
    total = torch.zeros(columns)
    layers = [layer for layer in session.cache.managed if layer.is_initialized]
    for layer in layers:
        places = layer.positions[0, 0].flatten().float()
        column = (places * columns / length).long().clamp(0, columns - 1).cpu()
        total.scatter_add_(0, column, torch.ones(len(column)))
    heads = sum(layer.kv_heads for layer in layers)
    return total / max(heads, 1) / (length / columns)
