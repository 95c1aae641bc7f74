"""LFM2 (https://arxiv.org/abs/2511.23404) and LFM3: short convolutions of constant state, and a few layers that attend.

LFM3 has layers of sliding attention too, with a rotation of their own. LFM3-VL reads pictures and videos as Qwen3-VL does,
through a tower of its own and with one position axis.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemllm.cache.rope import Rope
from edgemllm.cache.size import LayerSpec
from edgemllm.models.families.qwen_vl import QwenVLFamily
from edgemllm.models.families.text import TextFamily
from edgemllm.models.spec import head_shape


def short_convolution_layers(text: Any) -> tuple[LayerSpec, ...]:
    """Return what each layer of an LFM text configuration remembers."""
    shape = head_shape(text)
    kinds = {
        "conv": LayerSpec("state", state_values=text.hidden_size * text.conv_L_cache),
        "full_attention": LayerSpec("full", *shape),
        "sliding_attention": LayerSpec("sliding", *shape, getattr(text, "sliding_window", None)),
    }
    return tuple(kinds[kind] for kind in text.layer_types)


class LfmFamily(TextFamily):
    """LFM2 without eyes."""

    model_types: ClassVar[tuple[str, ...]] = ("lfm2",)
    text_types: ClassVar[tuple[str, ...]] = ("lfm2",)
    since: ClassVar[str] = "5.21"

    @classmethod
    def layers(cls, text: Any) -> tuple[LayerSpec, ...]:
        return short_convolution_layers(text)


class Lfm3Family(LfmFamily):
    """LFM3 without eyes."""

    model_types: ClassVar[tuple[str, ...]] = ("lfm3",)
    text_types: ClassVar[tuple[str, ...]] = ("lfm3",)
    since: ClassVar[str] = "5.23"

    def setup(self) -> None:
        self.rope, self.sliding_rope = ropes(self.text_model.rotary_emb)


class Lfm3VLFamily(QwenVLFamily):
    """LFM3-VL checkpoints."""

    model_types: ClassVar[tuple[str, ...]] = ("lfm3_vl",)
    text_types: ClassVar[tuple[str, ...]] = ("lfm3",)
    vision_types: ClassVar[tuple[str, ...]] = ("lfm3_vl_vision",)
    vision_modules: ClassVar[tuple[str, ...]] = ("model.vision_tower", "model.multi_modal_projector")
    since: ClassVar[str] = Lfm3Family.since
    axes: ClassVar[int] = 1

    def setup(self) -> None:
        super().setup()
        self.rope, self.sliding_rope = ropes(self.text_model.rotary_emb)

    @classmethod
    def layers(cls, text: Any) -> tuple[LayerSpec, ...]:
        return short_convolution_layers(text)

    def positions(self, grid: tuple[int, int, int], times: Tensor, offset: int) -> Tensor:
        """Return (1, t * h * w) positions: one after the other, like text."""
        merge = self.model.config.vision_config.spatial_merge_size
        return torch.arange(offset, offset + grid[0] * grid[1] * grid[2] // merge**2)[None]


def ropes(rotary: Any) -> tuple[Rope, Rope]:
    """Return the rotations of full and of sliding layers."""
    return Rope(rotary, layer_type="full_attention"), Rope(rotary, layer_type="sliding_attention")
