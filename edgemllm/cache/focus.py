"""What will be asked, where that is known: queries of its words, kept in every layer, score the cache while a stream goes by.

A policy that scores by a window of queries looks with those of the stream itself until somebody asks. A question that is known
beforehand goes through the model once, alone; its queries, unrotated, then stand in for the window. They are rotated as if
the question were asked now, and a slot is worth the most that any of them, in any query head, pays to it: a fact is looked at
by few heads, and by few words of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgemllm.cache.policy import CachePolicy
from edgemllm.cache.rope import rotate_queries
from edgemllm.lazy import Tensor, torch

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer

ROWS = 32
"""Queries kept of one question: of a longer one, its last."""


@dataclass(frozen=True)
class Listener(CachePolicy):
    """Keeps everything, and the latest ROWS queries: what a question goes through on its own."""

    @property
    def query_window(self) -> int:
        return ROWS


def room(policy: CachePolicy, questions: int) -> int:
    """Return how many queries a managed layer has room for when `questions` are known beforehand."""
    return ROWS * questions if policy.takes_focus else 0


def add_focus(layers: Sequence[CacheLayer], listeners: Sequence[CacheLayer]) -> None:
    """Give `layers` the queries that the layers of a Listener kept of a question, besides those that they have."""
    for layer, listener in zip(layers, listeners, strict=True):
        assert listener.queries is not None
        seen = listener.counts.seen
        order = torch.arange(max(seen - ROWS, 0), seen, device=listener.device) % ROWS
        queries = listener.queries[:, :, order]
        layer.focus = queries if layer.focus is None else torch.cat((layer.focus, queries), 2)
        layer.scaling = listener.scaling


def focus_attention(layer: CacheLayer) -> Tensor:
    """Return the most attention that a query of `layer.focus` (B, H, n, D) would pay to each slot now, (B, H_kv, L) float32."""
    assert layer.focus is not None
    keys, count = layer.rotated_keys(), layer.focus.shape[2]
    last = layer.numbering.positions().amax((0, 3), keepdim=True)
    following = last + 1 + torch.arange(count, device=layer.device)
    queries = rotate_queries(layer.focus, layer.rope.at(following.expand(layer.rope.axes, -1, -1, -1), keys))
    best = keys.new_zeros(keys.shape[:3], dtype=torch.float32)
    for part in queries.unflatten(1, (layer.kv_heads, -1)).split(ROWS, 3):  # as much at once as the plan leaves room for
        logits = (part.flatten(2, 3) @ keys.mT).float().mul_(layer.scaling)
        torch.maximum(best, logits.softmax(-1).amax(2), out=best)
    return best
