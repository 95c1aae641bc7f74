"""Rotary positions that the cache owns: the model runs at position 0, and keys are rotated here.

In single precision keys are stored rotated: a key is rotated when it comes in, and by the difference when renumbering moves
it, at most N times, since positions only fall. In half precision that drifts (54% error after 1000 moves in bf16), so where
slots move, keys stay unrotated there and are rotated at attention time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgemllm.lazy import Tensor, torch

if TYPE_CHECKING:
    from torch import nn


Rotation = tuple[Tensor, Tensor]
"""cos and signed sin, each (B, H_kv | 1, L, R), R <= D rotated channels: sin is negated where it meets a pair's second half."""


class Rope:
    """A model's own rotary embedding, asked for any positions."""

    def __init__(self, rotary: nn.Module | None, axes: int = 1, stride: int = 1, layer_type: str | None = None) -> None:
        self.rotary: Any = rotary
        self.axes = axes
        self.layer_type = layer_type
        """Which of its rotations, where a model has one a type of layer (Gemma 3)."""
        self.stride = stride
        """The largest gap between neighbouring positions in an intact prompt; wider gaps are closed to this."""

    @property
    def fixed(self) -> bool:
        """Return whether a position always has the same rotation, which need not be so with dynamic NTK."""
        kinds = getattr(self.rotary, "rope_type", "default")
        kind = kinds.get(self.layer_type) if isinstance(kinds, dict) else kinds
        return kind not in ("dynamic", "longrope")

    def span(self, start: int, stop: int, like: Tensor) -> Rotation:
        """Return the rotation for start, ..., stop - 1, the same for all heads."""
        return self.at(torch.arange(start, stop, device=like.device).view(1, 1, 1, -1), like)

    def at(self, positions: Tensor, like: Tensor) -> Rotation:
        """Return the rotation for positions (A, B, h, L), h being H_kv or 1, in the type of `like`."""
        axes, batch, heads, length = positions.shape
        flat = positions.reshape(axes, batch, heads * length)
        kind = () if self.layer_type is None else (self.layer_type,)
        cos, sin = self.rotary(like, flat if axes > 1 else flat[0], *kind)
        # Where the rotary embedding scales (YaRN), the model has already scaled q and k at its position 0.
        scale = getattr(self.rotary, "_".join((*kind, "attention_scaling")), 1.0)
        if scale != 1.0:
            cos, sin = cos / scale, sin / scale
        sin[..., : sin.shape[-1] // 2].neg_()
        return cos.view(batch, heads, length, -1), sin.view(batch, heads, length, -1)


class NoRope(Rope):
    """The rotation of layers that know no positions (NoPE, https://arxiv.org/abs/2305.19466): of no channel."""

    def __init__(self, axes: int = 1) -> None:
        super().__init__(None, axes)

    def at(self, positions: Tensor, like: Tensor) -> Rotation:
        none = like.new_empty(*positions.shape[1:], 0)
        return none, none


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate x (B, h, L, D); channels beyond the rotated ones pass unchanged (partial rotary)."""
    cos, sin = rotation
    turned = cos.shape[-1]
    if not turned:
        return x
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], rotation), x[..., turned:]), dim=-1)
    half, out = turned // 2, x * cos
    if x.shape[2] == 1:  # as few operations as possible
        return out.addcmul_(x.roll(half, -1), sin).type_as(x)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out.to(x.dtype)  # LFM3 rotates in single precision, whatever its keys are


def inverse(rotation: Rotation) -> Rotation:
    """Return the rotation that undoes it."""
    cos, sin = rotation
    return cos, -sin


def rotate_queries(queries: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries (B, H, q, D) by the rotation (B, H_kv | 1, q, R) of their KV head."""
    heads, shared = queries.shape[1], rotation[0].shape[1]
    if 1 < shared < heads:
        cos, sin = (part.repeat_interleave(heads // shared, dim=1) for part in rotation)
        return rotate(queries, (cos, sin))
    return rotate(queries, rotation)


def renumber(positions: Tensor, stride: int = 1) -> Tensor:
    """Renumber (A, B, h, L) from 0 per head, keeping order, equality across axes and gaps up to `stride`.

    For plain RoPE this is 0..L-1. For M-RoPE a frame keeps its height x width layout while evicted spans vanish;
    an intact prompt is unchanged.
    """
    axes, batch, heads, length = positions.shape
    values, order = positions.permute(1, 2, 0, 3).reshape(batch, heads, axes * length).sort(dim=-1)
    ranks = torch.nn.functional.pad(values.diff(dim=-1).clamp(max=stride).cumsum(dim=-1), (1, 0))
    dense = torch.zeros_like(values).scatter(-1, order, ranks.to(values.dtype))
    return dense.view(batch, heads, axes, length).permute(2, 0, 1, 3)


def renumber_appended(positions: Tensor, numbers: Tensor, coming: Tensor, stride: int = 1) -> Tensor:
    """Return what `renumber` gives the positions `coming` (A, B, h, q) after all `positions` (A, B, h, L), now `numbers`."""
    last = positions.amax((0, 3))[None, :, :, None].expand(*coming.shape[:3], 1)
    top = numbers.amax((0, 3))[None, :, :, None]
    return renumber(torch.cat((last, coming), -1), stride)[..., 1:] + top
