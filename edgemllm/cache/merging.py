"""Merging evicted slots into kept ones: keys decide where, values follow (LOOK-M, arXiv 2406.18139; MEDA, arXiv 2502.17599)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgemllm.cache.rope import rotate
from edgemllm.cache.slots import gather
from edgemllm.lazy import Tensor, torch

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer

Merge = Literal["average", "pivot", "weighted", "none"]
BLOCK = 128
"""Evicted slots whose similarities are held at once: bounds the scratch memory."""


def merge(layer: CacheLayer, kept: Tensor, how: Merge, keys: bool = True, filtered: bool = False) -> None:
    """Fold every slot that is not at `kept` (B, H_kv | 1, n), ascending, into the kept one with the most similar key.

    With c a kept row, e the n rows assigned to it and s their cosines, c becomes

        average (c + sum e) / (n + 1) · pivot (c + sum (e + c) / 2) / (n + 1) · weighted (c + sum s e) / (n + 1)

    Cosines and sums are of keys before rotation: rotated back, merged, and rotated to the kept row's place. The papers do not
    say which; both released codes take keys as cached, after rotation, which renumbering would make meaningless.

    `keys` = False leaves the keys as they are. `filtered` folds only rows whose similarity, averaged over the heads, reaches
    the mean of all (LOOK-M's released code). The caller drops the rest: this does not shorten the layer.
    """
    if how == "none" or kept.shape[-1] == layer.length:
        return
    unrotated = layer.unrotated_keys()
    heads, size = unrotated.shape[1], unrotated.shape[-1]
    kept = kept.expand(-1, heads, -1)
    gone = torch.ones(len(unrotated), heads, layer.length, dtype=torch.bool, device=layer.device)
    gone = gone.scatter_(-1, kept, False).nonzero()[:, 2].view(*kept.shape[:2], -1)

    def rows(buffer: Tensor, index: Tensor) -> Tensor:
        return gather(buffer, index).float()

    likeness, pivot = most_similar(*(torch.nn.functional.normalize(rows(unrotated, index), dim=-1) for index in (gone, kept)))
    folded = torch.ones_like(likeness)
    if filtered:
        mean = likeness.mean(1, keepdim=True)
        folded = (mean >= mean.mean(-1, keepdim=True)).float().expand_as(likeness)
    count = torch.ones(kept.shape, device=layer.device).scatter_add_(-1, pivot, folded)[..., None]
    place = pivot[..., None].expand(-1, -1, -1, size)
    share = (folded * likeness if how == "weighted" else folded / 2 if how == "pivot" else folded)[..., None]

    def merged(buffer: Tensor) -> Tensor:
        base = rows(buffer, kept)
        total = base.scatter_add(2, place, share * rows(buffer, gone))
        if how == "pivot":
            total = total + base * (count - 1) / 2
        return (total / count).to(buffer.dtype)

    layer.store.put("values", kept, merged(layer.values))
    if keys:
        _put_keys(layer, kept, merged(unrotated), changed=count > 1)


def _put_keys(layer: CacheLayer, index: Tensor, rows: Tensor, changed: Tensor) -> None:
    """Write unrotated rows (B, H_kv, n, D) to the slots at `index` (B, H_kv, n), where `changed` (B, H_kv, n, 1)."""
    if layer.numbering.rotated:
        cos, sin = (part.expand(-1, rows.shape[1], -1, -1) for part in layer.numbering.rotation(layer.now))
        rows = rotate(rows, (gather(cos, index), gather(sin, index)))
    layer.store.put("keys", index, torch.where(changed, rows, gather(layer.keys, index)))


def most_similar(rows: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest cosine of unit rows (B, H, m, D) with unit anchors (B, H, n, D), and whose it is; (B, H, m) each."""
    found = [(block @ anchors.mT).max(-1) for block in rows.split(BLOCK, dim=2)]
    return torch.cat([best.values for best in found], -1), torch.cat([best.indices for best in found], -1)
