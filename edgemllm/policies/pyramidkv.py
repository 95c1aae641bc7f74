"""PyramidKV: SnapKV with more room in early layers (https://arxiv.org/abs/2406.02069).

With b the mean budget beside the window, the layers' budgets fall linearly from 2b - b/beta to b/beta:

    k_l = max - l (max - min) / (L - 1),   min = b / beta,   max = 2 b - min

Follows Zefan-Cai/PyramidKV, including its integer divisions: of a prompt of N tokens (`rho`) no layer gets more than N - w
beside its window, the later ones take what is over, and where N < 2b all layers get the same. As there, `positions=original`
is the published setting; by default survivors are renumbered.

The layers of a stream have equal slots until they first are full, so that nothing leaves while all fits, and the schedule's
from then on, whose length nobody knows: early layers may then have more room than the prompt has tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgemllm.policies.base import Count, fit
from edgemllm.policies.snapkv import SnapKV

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV with linear layer budgets."""

    beta: Count = 20
    """How pointed the pyramid is: the last layer gets 1/beta of the mean (released default 20)."""

    def allocate(self, layers: Sequence[CacheLayer], total: int, floor: int) -> list[int]:
        beside = schedule(total // len(layers) - self.window, len(layers), self.beta)
        return fit([tokens + self.window for tokens in beside], total, floor)

    def sizes(self, layers: Sequence[CacheLayer], kept: int, prompt: int) -> list[int]:
        beside = schedule(kept - self.window, len(layers), self.beta, prompt, self.window)
        return fit([tokens + self.window for tokens in beside], kept * len(layers), self.minimum())


def schedule(base: int, layers: int, beta: int, prompt: float = math.inf, window: int = 0) -> list[int]:
    """Return the tokens beside the window for every layer, as released; their mean is `base` or a little more.

    No layer gets more than a prompt of this many tokens has beside its window; the last layers take what the first cannot. Of
    a prompt with fewer than 2 `base` tokens all layers keep the same.
    """
    if layers == 1 or prompt < 2 * base:
        return [base] * layers
    low = base // beta
    high = 2 * base - low
    if high > prompt - window:
        high = int(prompt) - window
        low = 2 * base - high
    step = (high - low) // (layers - 1)
    return [high - number * step for number in range(layers)]
