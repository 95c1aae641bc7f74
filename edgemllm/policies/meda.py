"""MEDA: layers share the cache by their cross-modal attention entropy (https://arxiv.org/abs/2502.17599).

For every layer, with text queries over visual keys and visual queries over text keys, each with a softmax of its own, averaged
over the heads (Eq. 4-6), and all layers together (Eq. 7):

    E_l = mean_i H(A_TV[i]) + mean_i H(A_VT[i]),   alpha_l = softmax_l(E) L rho

Inside a layer: accumulated attention with the text prior S_T += max(S) (Eq. 8-9), the best and the recent ones are kept
(Eq. 10), the rest is averaged into the kept token with the most similar key (Eq. 11-12).

The papers stop at one prompt (`rho`). Here attention is causal, so an image query sees only the text before it. The layers of
a stream share their slots once, when they first are full, and the stream then continues within these shares. Shares never
exceed the budget: what a layer cannot use goes to the others. Keys are compared and merged before rotation.

`as_released` takes from AIoT-MLSys-Lab/MEDA: entropy of the whole self-attention, the shares of a prompt clamped to [0.01, 1]
without handing on the surplus, recent and important tokens 1:1, text before any image token, and only tokens of at least mean
likeness folded. It does not reproduce the rest: the budget is hard, so text is kept only as far as it goes; the recent window
is not enlarged to the text's length and 100 more; the prompt is compressed at its end, not at the first decoded token; pure
text is compressed too; keys are merged before rotation, as the released code does after; its averages pair merged rows with
the wrong tokens, which is not copied. As published: `positions=original`; by default survivors are renumbered. `slack`
matters only while a stream overflows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from edgemllm.cache.chunk import Modality
from edgemllm.cache.merging import Merge, merge
from edgemllm.cache.scores import group_mean
from edgemllm.lazy import Tensor, torch
from edgemllm.policies.base import ALL, OneShot, Share, fit
from edgemllm.policies.look_m import text_prior

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class Meda(OneShot):
    """Entropy layer budgets, text prior, average merging."""

    buffers: ClassVar[tuple[str, ...]] = ("mass",)
    layer_stats: ClassVar[tuple[str, ...]] = ("text", "text_rows", "vision", "vision_rows", "self", "self_rows")
    per_query_head: ClassVar[bool] = True
    compaction_copies: ClassVar[int] = 8

    entropy: Literal["cross", "self"] = "cross"
    """cross: Eq. 4-6. self: of the whole causal attention, mean of the heads (the released code)."""

    recent: Share = 0.75
    """Share of the kept tokens that are the newest (the paper's 3:1; 0.5 in the released code)."""

    clamp: bool = False
    """A prompt's shares (`rho`) within [0.01, 1], what is cut off is lost (the released code): keeps less than rho."""

    merge: Merge = "average"
    """How dropped tokens are folded in."""

    merge_keys: bool = True
    """Fold keys too, where positions are 1-D; under M-RoPE an averaged key has no one place, and only values are folded."""

    as_released: bool = False
    """The released code's entropy, clamp, 1:1 split, text first and filtered merging, but within the budget (see above)."""

    observe_window: ClassVar[int] = ALL

    def minimum(self) -> int:
        return 2

    def observe(self, layer: CacheLayer, attention: Tensor) -> None:
        layer.buffer("mass").add_(group_mean(attention, layer.kv_heads).sum(2))
        if layer.counts.evicted == 0:  # heads that have chosen differently have no common columns any more
            self.observe_entropy(layer, attention)

    def observe_entropy(self, layer: CacheLayer, attention: Tensor) -> None:
        """Sum the entropies of rows of (B, H, q, L) into the layer's `stats`."""
        modality = layer.modality[0, 0]
        own = modality[layer.observed]
        text, vision = modality == Modality.TEXT, modality == Modality.VISION
        layer.stats["self"] += entropy(attention).mean(1).sum()
        layer.stats["self_rows"] += len(own)
        for name, queries, keys in (("text", own == Modality.TEXT, vision), ("vision", own == Modality.VISION, text)):
            if not (queries.any() and keys.any()):
                continue
            over = attention[:, :, queries] * keys
            total = over.sum(-1, keepdim=True)
            seen = (total > 0).all(1)[0, :, 0]
            mean = (over / total.clamp_min(1e-30)).mean(1)[:, seen]
            layer.stats[name] += entropy(mean).sum()
            layer.stats[f"{name}_rows"] += seen.sum()

    def score(self, layer: CacheLayer) -> Tensor:
        return text_prior(layer, layer.buffer("mass"), always=self.as_released)

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return 0, round((0.5 if self.as_released else self.recent) * size)

    def compress(self, layer: CacheLayer, size: int) -> None:
        kept = self.choose(layer, size)
        merge(layer, kept, self.merge, keys=self.merge_keys and layer.rope.axes == 1, filtered=self.as_released)
        layer.keep(kept)

    def allocate(self, layers: Sequence[CacheLayer], total: int, floor: int) -> list[int]:
        # A stream has no length that a layer could keep all of, nor 1% of: nothing is clamped.
        found = self.entropies(layers)
        return (
            super().allocate(layers, total, floor) if found is None else fit(shares(found, total / len(layers)), total, floor)
        )

    def sizes(self, layers: Sequence[CacheLayer], kept: int, prompt: int) -> list[int]:
        found = self.entropies(layers)
        if found is None:
            return super().sizes(layers, kept, prompt)
        share, total, floor = shares(found, kept / prompt), kept * len(layers), self.minimum()
        if self.clamp or self.as_released:
            return fit([min(max(a, 0.01), 1.0) * prompt for a in share], total, floor, spread=False)
        return fit([a * prompt for a in share], total, floor, ceiling=prompt)

    def entropies(self, layers: Sequence[CacheLayer]) -> list[float] | None:
        """Return E_l of every layer; None before anything was seen."""
        found = [one for one in map(self.entropy_of, layers) if one is not None]
        return found if len(found) == len(layers) else None

    def entropy_of(self, layer: CacheLayer) -> float | None:
        """Return E_l in nats; None before anything was seen. Without both modalities, that of the self-attention."""
        stats = {name: float(value) for name, value in layer.stats.items()}
        if not stats.get("self_rows"):
            return None
        both = stats["text_rows"] and stats["vision_rows"]
        if self.entropy == "self" or self.as_released or not both:
            return stats["self"] / stats["self_rows"]
        return stats["text"] / stats["text_rows"] + stats["vision"] / stats["vision_rows"]


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy of the rows of (..., L), in nats."""
    # Half the time of torch.special.entr on a CPU; the logarithm of zero or of a denormal number would take a detour.
    return -weights.clamp_min(1e-30).log_().mul_(weights).sum(-1)


def shares(entropies: Sequence[float], rho: float) -> list[float]:
    """Return alpha_l = softmax(E)_l L rho (Eq. 7): their mean is rho."""
    weights = torch.tensor(entropies, dtype=torch.float64).softmax(0)
    return [float(weight) * len(entropies) * rho for weight in weights]
