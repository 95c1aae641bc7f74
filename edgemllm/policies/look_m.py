"""LOOK-M: text first, and what is dropped is merged (https://arxiv.org/abs/2406.18139).

Tokens are worth the attention that the whole prompt paid to them, text more than any image token:

    S_j = sum_i A_ij,   S_T += max(S)

Kept, once the prompt is in, are the best and the recent ones; every other token is folded into the kept token with the most
similar key (`merge`), values following the keys. The paper's text both limits the important tokens and keeps all text; its
code keeps all text (`keep_text`). Here the budget is hard: text beyond it is dropped, the least attended first.

Departures: keys are compared and merged before rotation (`cache/merging.py`); the released code does both with rotated keys.
The released average and weighted variants fold only tokens of at least mean likeness; here all are folded, as the paper says.
As published: `positions=original`, and `rho` for one prompt; by default survivors are renumbered. `slack` matters only while
a stream overflows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgemllm.cache.chunk import Modality
from edgemllm.cache.merging import Merge, merge
from edgemllm.lazy import Tensor
from edgemllm.policies.base import ALL, OneShot, Share

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class LookM(OneShot):
    """Accumulated attention, text prior, merging."""

    buffers: ClassVar[tuple[str, ...]] = ("mass",)
    compaction_copies: ClassVar[int] = 8

    recent: Share = 0.5
    """Share of the kept tokens that are the newest (published: as many as important ones)."""

    merge: Merge = "pivot"
    """How dropped tokens are folded in (the paper's best: pivot); none drops them."""

    merge_keys: bool = True
    """Fold keys too, where positions are 1-D; under M-RoPE, or if false, values only."""

    keep_text: bool = True
    """All text before any image token (released code); false: text competes with its prior."""

    observe_window: ClassVar[int] = ALL

    def minimum(self) -> int:
        return 2

    def observe(self, layer: CacheLayer, attention: Tensor) -> None:
        layer.buffer("mass").add_(attention.sum(2))

    def score(self, layer: CacheLayer) -> Tensor:
        return text_prior(layer, layer.buffer("mass"), always=self.keep_text)

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return 0, round(self.recent * size)

    def compress(self, layer: CacheLayer, size: int) -> None:
        kept = self.choose(layer, size)
        merge(layer, kept, self.merge, keys=self.merge_keys and layer.rope.axes == 1)
        layer.keep(kept)


def text_prior(layer: CacheLayer, mass: Tensor, always: bool = False) -> Tensor:
    """Return attention sums (B, H_kv, L), text raised by the largest one of its head; `always`: above everything else."""
    text = layer.modality == Modality.TEXT
    return mass + text * (mass.amax(-1, keepdim=True) * (2 if always else 1) + (1.0 if always else 0.0))
