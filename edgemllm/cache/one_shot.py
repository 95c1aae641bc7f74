"""What policies share that were published for one prompt: what stays of it, and how layers divide it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar

from edgemllm.cache.policy import CachePolicy
from edgemllm.cache.settings import Range

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class OneShot(CachePolicy):
    """A policy published for one prompt: it chooses when the prompt is in, and by need while a stream overflows."""

    one_shot: ClassVar[bool] = True

    rho: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Share of the prompt that is kept once it is in, and the cache gives back what it frees; 1: the budget alone decides."""

    def sizes(self, layers: Sequence[CacheLayer], kept: int, prompt: int) -> list[int]:
        """Return how many of `prompt` tokens each layer keeps: on average at most `kept`, never fewer than `minimum()`."""
        return [kept] * len(layers)

    def after_prefill(self, layers: Sequence[CacheLayer]) -> None:
        if self.rho >= 1:
            return
        seen = layers[0].counts.seen
        # Exactly, as a product of floats would now and then be rounded up to one token more.
        kept = max(math.ceil(Fraction(str(self.rho)) * seen), self.minimum())
        for layer, size in zip(layers, self.sizes(layers, kept, seen), strict=True):
            if layer.length > size:
                self.compress(layer, size)
            layer.trim()


def fit(wanted: Sequence[float], total: int, floor: int, ceiling: float = math.inf, spread: bool = True) -> list[int]:
    """Return whole slots near `wanted`, each within floor and ceiling, their sum at most `total`.

    What a layer at a limit leaves or takes is shared by the others in proportion (`spread`), until the sum is right.
    Raises ValueError where even `floor` for everyone is too much.
    """
    if floor * len(wanted) > total:
        raise ValueError(f"{len(wanted)} layers of at least {floor} slots do not fit {total}")
    low, high = 0.0, max(total / max(min(wanted), 1e-9), 1.0)

    def scaled(factor: float) -> list[int]:
        return [int(min(max(size * factor, floor), max(ceiling, floor))) for size in wanted]

    if not spread and sum(scaled(1.0)) <= total:
        return scaled(1.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(scaled(middle)) <= total else (low, middle)
    return scaled(low)
