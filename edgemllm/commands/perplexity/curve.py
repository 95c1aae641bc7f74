"""The course of a run in a bounded number of points, each with running sums, so that any span between two is exact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

POINTS = 400
"""More are never kept: when they are reached, every second one goes."""


class Point(NamedTuple):
    """Where a run was after `tokens` scored tokens."""

    tokens: int
    nll: float
    """Sum so far, in nats."""
    bytes: int
    """Of the text scored so far."""
    seconds: float
    kv_bytes: int
    rss_bytes: int


START = Point(0, 0.0, 0, 0.0, 0, 0)


@dataclass
class Curve:
    """Points at the multiples of `stride` tokens."""

    stride: int
    points: list[Point] = field(default_factory=list)

    def marks(self, before: int, after: int) -> Iterator[int]:
        """Return the multiples in (before, after]; the stride may double on the way."""
        mark = before
        while (mark := (mark // self.stride + 1) * self.stride) <= after:
            yield mark

    def add(self, point: Point) -> None:
        """Append a point; thin out at the bound."""
        self.points.append(point)
        if len(self.points) > POINTS:
            self.stride *= 2
            self.points = [each for each in self.points if each.tokens % self.stride == 0]

    def perplexity(self, start: int, end: int, last: Point) -> float | None:
        """Return the perplexity of the span between the points nearest to two places, None for an empty one."""
        points = [START, *self.points, last]
        first, second = (min(points, key=lambda point: abs(point.tokens - place)) for place in (start, end))
        return perplexity(second.nll - first.nll, second.tokens - first.tokens)

    def as_json(self, last: Point) -> list[dict[str, Any]]:
        """Return the `curve` of the JSON output, up to `last`; windows and speeds are those between neighbouring points."""
        points = self.points if self.points and self.points[-1].tokens == last.tokens else [*self.points, last]
        rows, before = [], START
        for point in points:
            rows.append(_row(before, point))
            before = point
        return rows


def _row(before: Point, point: Point) -> dict[str, Any]:
    tokens, seconds = point.tokens - before.tokens, point.seconds - before.seconds
    return {
        "tokens": point.tokens,
        "perplexity": perplexity(point.nll, point.tokens),
        "window_perplexity": perplexity(point.nll - before.nll, tokens),
        "kv_bytes": point.kv_bytes,
        "rss_bytes": point.rss_bytes,
        "tokens_per_s": round(tokens / seconds, 2) if seconds > 0 else 0.0,
        "nll_nats": point.nll,
        "bytes": point.bytes,
        "seconds": round(point.seconds, 3),
    }


def perplexity(nll: float, tokens: int) -> float | None:
    """Return exp of the mean loss; None where there is nothing to take it of, or it is beyond what a number can hold."""
    mean = nll / tokens if tokens else math.nan
    return math.exp(mean) if mean < 700 else None
