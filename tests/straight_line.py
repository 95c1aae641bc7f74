"""The published methods once more, written straight down from their formulas: loops, full matrices, one attention layer.

In the first layer keys and values do not depend on the past, so a stream can be replayed from its raw queries, keys and values.
Nothing here uses the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

THETA = 10000.0


def rope(x: Tensor, places: Tensor) -> Tensor:
    """Rotate (n, D) to `places` (n,)."""
    half = x.shape[-1] // 2
    angle = places[:, None] * THETA ** (-torch.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


@dataclass
class Head:
    """One KV head's cache: row i of everything belongs to one token."""

    keys: Tensor
    values: Tensor
    place: list[int] = field(default_factory=list)
    """Stream positions of the cached tokens."""
    mass: list[float] = field(default_factory=list)
    """Attention summed over all later queries, mean of the query heads."""
    most: list[float] = field(default_factory=list)
    """The largest attention of any query head."""
    twin: list[float] = field(default_factory=list)
    """The largest cosine with a later key."""


@dataclass
class Stream:
    """Raw queries (H, N, D), keys and values (H_kv, N, D) of a whole stream, and what each token is."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    vision: Tensor
    """(N,) bool"""
    time: Tensor

    def weights(self, head: int, rows: list[int], cached: Head) -> Tensor:
        """(query heads of the group, rows, cached): causal attention on renumbered positions."""
        group = self.queries.shape[0] // self.keys.shape[0]
        keys = rope(cached.keys, torch.arange(len(cached.place)).float())
        result = torch.zeros(group, len(rows), len(cached.place))
        for g in range(group):
            for r, row in enumerate(rows):
                at = cached.place.index(row)
                query = rope(self.queries[head * group + g, row][None], torch.tensor([float(at)]))[0]
                logits = keys[: at + 1] @ query / math.sqrt(len(query))
                result[g, r, : at + 1] = logits.softmax(0)
        return result


Choose = Callable[[Stream, list[Head], int], list[list[int]]]
"""Which rows of each head's cache stay when `size` may."""


def replay(stream: Stream, size: int, budget: int, floor: int, slack: int, choose: Choose, merge: str = "none") -> list[Head]:
    """Chunks of `size` tokens with eviction before each that does not fit."""
    heads = [Head(stream.keys[h, :0], stream.values[h, :0]) for h in range(stream.keys.shape[0])]
    total = stream.keys.shape[1]
    for start in range(0, total, size):
        new = list(range(start, min(start + size, total)))
        length = len(heads[0].place)
        if length + len(new) > budget:
            wanted = min(max(budget - max(len(new), slack), min(floor, budget - len(new))), length)
            for head, rows in zip(heads, choose(stream, heads, wanted), strict=True):
                fold(head, rows, merge)
                head.keys, head.values = head.keys[rows], head.values[rows]
                for name in ("place", "mass", "most", "twin"):
                    setattr(head, name, [getattr(head, name)[row] for row in rows])
        for number, head in enumerate(heads):
            head.keys = torch.cat([head.keys, stream.keys[number, new]])
            head.values = torch.cat([head.values, stream.values[number, new]])
            head.place += new
            head.mass += [0.0] * len(new)
            head.most += [0.0] * len(new)
            head.twin += [0.0] * len(new)
            seen = stream.weights(number, new, head)
            head.mass = [old + float(more) for old, more in zip(head.mass, seen.mean(0).sum(0), strict=True)]
            head.most = [max(old, float(more)) for old, more in zip(head.most, seen.amax((0, 1)), strict=True)]
    return heads


def fold(head: Head, rows: list[int], how: str) -> None:
    """Merge every token that goes into the kept one with the most similar key."""
    gone = [row for row in range(len(head.place)) if row not in rows]
    if how == "none" or not gone:
        return
    chosen: dict[int, list[tuple[int, float]]] = {row: [] for row in rows}
    for row in gone:
        likeness = [float(torch.cosine_similarity(head.keys[row], head.keys[kept], dim=0)) for kept in rows]
        best = max(range(len(rows)), key=lambda i: likeness[i])
        chosen[rows[best]].append((row, likeness[best]))
    for buffer in (head.keys, head.values):
        before = buffer.clone()
        for kept, parts in chosen.items():
            terms = [before[kept]]
            for row, cosine in parts:
                other = before[row]
                terms.append({"average": other, "pivot": (other + before[kept]) / 2, "weighted": cosine * other}[how])
            buffer[kept] = torch.stack(terms).mean(0)


def best(scores: list[float], size: int, first: int = 0, newest: int = 0) -> list[int]:
    """The highest, with the first and the newest before all others."""
    length = len(scores)
    fixed = [*range(min(first, length)), *range(max(length - newest, first), length)]
    others = sorted((row for row in range(length) if row not in fixed), key=lambda row: -scores[row])
    return sorted((fixed + others)[: max(size, 0)])


def window_scores(stream: Stream, head: int, cached: Head, window: int) -> Tensor:
    """(group, rows, cached): the attention of the newest `window` tokens."""
    return stream.weights(head, cached.place[-window:], cached)


def h2o(recent: float) -> Choose:
    return lambda stream, heads, size: [best(head.mass, size, newest=round(recent * size)) for head in heads]


def text_first(recent: float, always: bool) -> Choose:
    """LOOK-M and MEDA: text gains the largest mass of its head, or comes before everything."""

    def choose(stream: Stream, heads: list[Head], size: int) -> list[list[int]]:
        kept = []
        for head in heads:
            top = max(head.mass)
            gain = 1e6 if always else top
            scores = [m + (0 if stream.vision[p] else gain) for m, p in zip(head.mass, head.place, strict=True)]
            kept.append(best(scores, size, newest=round(recent * size)))
        return kept

    return choose


def snapkv(window: int, kernel: int, pooling: str) -> Choose:
    def choose(stream: Stream, heads: list[Head], size: int) -> list[list[int]]:
        kept = []
        for number, head in enumerate(heads):
            summed = window_scores(stream, number, head, window).mean(0).sum(0)[: len(head.place) - window].tolist()
            half, pooled = kernel // 2, []
            for i in range(len(summed)):
                near = summed[max(0, i - half) : i + half + 1]
                pooled.append(max(near) if pooling == "max" else sum(near) / kernel)
            kept.append(best(pooled + [0.0] * min(window, len(head.place)), size, newest=window))
        return kept

    return choose


def inf_mllm(window: int, bias: float, recent: float, sinks: int, budget: int, shared: bool) -> Choose:
    """Mean attention of the retrieval window minus a bias that grows with age."""

    def choose(stream: Stream, heads: list[Head], size: int) -> list[list[int]]:
        length = len(heads[0].place)
        newest = min(max(round(recent * budget), window), length)
        past = length - newest
        each = []
        for number, head in enumerate(heads):
            scores = window_scores(stream, number, head, window).mean((0, 1)).tolist()
            each.append([s - (bias * (past - 1 - i) / past if i < past else 0) for i, s in enumerate(scores)])
        if shared:
            each = [[sum(column) / len(column) for column in zip(*each, strict=True)]] * len(heads)
        return [best(scores, size, sinks, newest) for scores in each]

    return choose


def edge(sinks: int, recent: int, span: int, ranks: bool) -> Choose:
    """The largest attention ever, for pictures times one minus the largest cosine to a later key; in words the best nearby.

    Of both kinds the same share stays.
    """

    def choose(stream: Stream, heads: list[Head], size: int) -> list[list[int]]:
        each = []
        for head in heads:
            for i in range(len(head.twin)):
                later = [float(torch.cosine_similarity(head.keys[i], key, dim=0)) for key in head.keys[i + 1 :]]
                head.twin[i] = max([head.twin[i], *later])
            novelty = [1 - twin if stream.vision[place] else 1 for twin, place in zip(head.twin, head.place, strict=True)]
            each.append([memory * new for memory, new in zip(head.most, novelty, strict=True)])
        mean = [sum(column) / len(column) for column in zip(*each, strict=True)]
        if ranks:
            order = sorted(range(len(mean)), key=lambda i: mean[i])
            each = [[float(order.index(i)) for i in range(len(mean))]]
        words = [not stream.vision[place] for place in heads[0].place]
        passages = [
            [max(row[j] for j in around(i, span, len(row)) if words[j]) if words[i] else row[i] for i in range(len(row))]
            for row in each
        ]
        if any(words) and not all(words):
            passages = [[share_of_its_kind(i, row, words) for i in range(len(row))] for row in passages]
        mean = [sum(column) / len(column) for column in zip(*passages, strict=True)]
        return [best(mean, size, sinks, recent)] * len(heads)

    return choose


def share_of_its_kind(i: int, worth: list[float], words: list[bool]) -> float:
    """How much of all words, or of all pictures, token i leaves behind, itself included; of equals, the earlier ones."""
    kind = [j for j in range(len(worth)) if words[j] == words[i]]
    return sum((worth[j], j) <= (worth[i], i) for j in kind) / len(kind)


def around(i: int, span: int, length: int) -> range:
    return range(max(i - span // 2, 0), min(i + span // 2 + 1, length))


def infinipot_v(recent: int, tar: float, budget: int) -> Choose:
    """The least like the newest keys at their place in the frame have `tar` of the slots, the largest values the others."""

    def choose(stream: Stream, heads: list[Head], size: int) -> list[list[int]]:
        kept = []
        for head in heads:
            times, rank = [float(stream.time[p]) for p in head.place], [0] * len(head.place)
            for i in range(1, len(rank)):
                rank[i] = rank[i - 1] + 1 if times[i] == times[i - 1] else 0
            units = [key / key.norm() for key in head.keys]
            older = len(rank) - min(recent, len(rank))
            likeness = []
            for i in range(older):
                peers = [units[j] for j in range(older, len(rank)) if rank[j] == rank[i]]
                likeness.append(float(units[i] @ torch.stack(peers).mean(0)) if peers else 0.0)
            share = round(tar * (budget - (len(rank) - older)))
            novel = sorted(range(older), key=lambda i: likeness[i])[:share]
            scores = [float(value.norm()) for value in head.values]
            for i in novel:
                scores[i] = 1e6 - likeness[i]
            kept.append(best(scores, size, newest=recent))
        return kept

    return choose


def newest(first: int = 0) -> Choose:
    return lambda stream, heads, size: [best([float(p) for p in head.place], size, first) for head in heads]
