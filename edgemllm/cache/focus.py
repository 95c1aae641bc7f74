"""What will be asked, where that is known: a few layers look out for it, and all layers keep what they find.

A question that is known beforehand goes through the model once, alone. Few layers of a model find a passage again by its
question; there the question's queries, unrotated, are kept, rotated as if it were asked now, and compared with the keys
whenever room is made. A token is worth the most attention that any of them pays to it in a query head, averaged over its
neighbourhood, as a part of a passage says nothing; each question counts alike. The best tokens stay in every layer, whatever
the policy thinks of them there. Our own; see docs/log.md.
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

LOOKERS = 2
"""Layers that look out."""

SPAN = 15
"""Tokens over which attention is averaged, odd."""

SHARE = 0.8
"""Of the slots that a policy does not protect: for what was looked out for."""

SINKS = 4
"""First tokens of a stream, to which every query pays attention."""

FOUND_SCORE = 2.0**59
"""Above every score and below that of protected tokens."""


@dataclass(frozen=True)
class Listener(CachePolicy):
    """Keeps everything, and the latest ROWS queries: what a question goes through on its own."""

    @property
    def query_window(self) -> int:
        return ROWS


def room(policy: CachePolicy, questions: int) -> int:
    """Return how many queries of one layer are kept in all when `questions` are known beforehand."""
    return ROWS * LOOKERS * questions if policy.takes_focus else 0


class Focus:
    """The queries of what will be asked, in the layers that look out for it."""

    def __init__(self, lookers: Sequence[CacheLayer]) -> None:
        self.lookers = list(lookers)
        self.queries: list[list[Tensor]] = []
        """For each question those of each looker, (B, H, n, D)."""
        self.scaling = 1.0
        self._seen = -1
        self._tokens = self._ranks = torch.empty(0)
        """The lookers' tokens by their identities, ascending, and the place of each among the finds: 0 is the best."""

    @property
    def nbytes(self) -> int:
        """Return the bytes of the queries."""
        return sum(queries.nbytes for question in self.queries for queries in question)

    def add(self, listeners: Sequence[CacheLayer]) -> None:
        """Look out for a question too; `listeners` are layers of a Listener, one for each looker, that it went through."""
        self.queries.append([latest_queries(layer) for layer in listeners])
        self.scaling = listeners[0].scaling

    def lift(self, score: Tensor, layer: CacheLayer, size: int, first: int, newest: int) -> None:
        """Put what was found in `layer` above everything else of `score` (B, H_kv | 1, L), before the protected are.

        Of the `size` slots that stay, `first` and `newest` are protected; SHARE of the others is for the finds.
        """
        count = int(SHARE * max(size - first - newest, 0))
        self._look(layer.counts.seen, max(first, SINKS), newest)
        ids, unknown = identities(layer)[:, : score.shape[1]], len(self._tokens)
        place = torch.searchsorted(self._tokens, ids).clamp_max(unknown - 1)
        rank = torch.where(self._tokens[place] == ids, self._ranks[place], unknown)
        rank[..., layer.length - newest :] = unknown
        chosen = rank.sort(dim=-1).indices[..., :count]
        score.scatter_(-1, chosen, torch.where(rank.gather(-1, chosen) < unknown, FOUND_SCORE, score.gather(-1, chosen)))

    def _look(self, seen: int, first: int, newest: int) -> None:
        """Rank the lookers' tokens, the most looked at first: once for all layers that make room after `seen` tokens."""
        if self._seen == seen:
            return
        ids = torch.cat([identities(layer).flatten() for layer in self.lookers])
        self._tokens, place = ids.unique(return_inverse=True)
        worth = torch.zeros(len(self._tokens), device=ids.device)
        for question in self.queries:
            looks = [
                neighbourhood(attention(queries, layer, self.scaling, first), first, newest).flatten()
                for queries, layer in zip(question, self.lookers, strict=True)
            ]
            total = torch.zeros_like(worth).index_add_(0, place, torch.cat(looks))
            torch.maximum(worth, total / total.max().clamp_min(1e-30), out=worth)
        self._seen, self._ranks = seen, worth.argsort(descending=True, stable=True).argsort()


def latest_queries(listener: CacheLayer) -> Tensor:
    """Return the queries (B, H, n, D) that a layer of a Listener kept, in their order."""
    assert listener.queries is not None
    seen = listener.counts.seen
    return listener.queries[:, :, torch.arange(max(seen - ROWS, 0), seen, device=listener.device) % ROWS]


def identities(layer: CacheLayer) -> Tensor:
    """Return a number for every slot, (B, H_kv, L) int64, that is the same for a token in every layer: its position's axes."""
    positions = layer.positions.long()
    return sum((axis << 21 * number for number, axis in enumerate(positions)), torch.zeros_like(positions[0]))


def attention(queries: Tensor, layer: CacheLayer, scaling: float, first: int) -> Tensor:
    """Return the most attention that a query (B, H, n, D) would pay to each slot now, (B, H_kv, L) float32.

    The first slots are left out, as they draw attention whatever is asked.
    """
    keys, count = layer.rotated_keys(), queries.shape[2]
    last = layer.numbering.positions().amax((0, 3), keepdim=True)
    following = last + 1 + torch.arange(count, device=layer.device)
    rotated = rotate_queries(queries, layer.rope.at(following.expand(layer.rope.axes, -1, -1, -1), keys))
    logits = (rotated.unflatten(1, (layer.kv_heads, -1)).flatten(2, 3) @ keys.mT).float().mul_(scaling)
    logits[..., :first] = -torch.inf
    best: Tensor = logits.softmax(-1).amax(2)
    return best


def neighbourhood(looks: Tensor, first: int, newest: int) -> Tensor:
    """Return the mean over SPAN slots of `looks` (B, H_kv, L), for all but the `first` and `newest`, which get 0."""
    found = torch.zeros_like(looks)
    body = slice(first, looks.shape[-1] - newest)
    if found[..., body].numel():
        found[..., body] = torch.nn.functional.avg_pool1d(looks[..., body], SPAN, 1, SPAN // 2)
    return found
