"""InfiniPot-V: no attention needed, only keys and values (https://arxiv.org/abs/2506.15745).

Two attention-free scores share the kept tokens. Temporal redundancy (TaR): a token whose key resembles the keys of the newest
tokens adds nothing new,

    S_j = -cos(k_j, mean of the newest keys at the same place in their frames)

where the place in a frame is the token's rank among those of its second of video; text has place 0. Value norm (VaN): of the
others, the largest ||v_j||. `tar` says how many slots go to the first. In the style of the paper, on unrotated keys and
without its layer-wise pooling; the cheapest hard cap for video, since prefill needs no second look at attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgemllm.cache.chunk import Modality
from edgemllm.lazy import Tensor, torch
from edgemllm.policies.base import PROTECTED_SCORE, CachePolicy, Count, Share

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class InfiniPotV(CachePolicy):
    """Key novelty against the newest frames, then value norm."""

    compaction_copies: ClassVar[int] = 4

    tar: Share = 0.5
    """Share of the kept slots chosen by temporal redundancy, the rest by value norm (the paper's middle setting)."""

    recent: Count = 32
    """Newest tokens: always kept, and what older keys are compared with."""

    def minimum(self) -> int:
        return self.recent + 1

    def score(self, layer: CacheLayer) -> Tensor:
        keys = torch.nn.functional.normalize(layer.unrotated_keys().float(), dim=-1)
        place = places(layer.time.masked_fill(layer.modality == Modality.TEXT, torch.nan))
        newest = min(self.recent, layer.length)
        likeness = torch.zeros_like(layer.time)
        for number in place[..., -newest:].unique().tolist():
            here = (place[..., -newest:] == number)[..., None]
            mean = (keys[:, :, -newest:] * here).sum(2, keepdim=True) / here.sum(2, keepdim=True).clamp_min(1)
            likeness = torch.where(place == number, (keys @ mean.mT)[..., 0], likeness)
        size = round(self.tar * max((layer.budget or layer.length) - newest, 0))
        redundancy = -likeness
        redundancy[..., layer.length - newest :] = -torch.inf  # protected anyway: they take no share
        first = redundancy.sort(dim=-1, descending=True, stable=True)
        novel, values = first.indices[..., :size], first.values[..., :size]
        norm = layer.values.float().norm(dim=-1)
        score: Tensor = norm.scatter(-1, novel, PROTECTED_SCORE / 4 * (2 + values.clamp_min(-1)))
        return score

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return 0, self.recent


def places(time: Tensor) -> Tensor:
    """Return the rank of each slot among its neighbours of the same second of video, (B, H_kv, L); 0 for text."""
    index = torch.arange(time.shape[-1], device=time.device)
    begins = torch.ones_like(time, dtype=torch.bool)
    begins[..., 1:] = time[..., 1:] != time[..., :-1]  # NaN differs from itself: every text token begins anew
    start = torch.where(begins, index, 0).cummax(-1).values
    return index - start
