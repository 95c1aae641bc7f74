"""LFM2 (https://arxiv.org/abs/2511.23404) and LFM3: short convolutions of constant state, and a few layers that attend.

LFM3 has layers of sliding attention too, with a rotation of their own. LFM2-VL reads still images: whole, or where they are
large in tiles of 512 pixels and a thumbnail. LFM3-VL reads pictures and videos as Qwen3-VL does, through a tower of its own
and with one position axis.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.rope import Rope
from edgemllm.cache.size import LayerSpec
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.families.qwen_vl import QwenVLFamily
from edgemllm.models.families.text import TextFamily
from edgemllm.models.spec import Sizes, head_shape
from edgemllm.models.vision.naflex import TileSpec, flat_patches, tiles_and_thumbnail


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


class Lfm2VLFamily(ModelFamily):
    """LFM2-VL checkpoints, which were trained on no video."""

    model_types: ClassVar[tuple[str, ...]] = ("lfm2_vl",)
    text_types: ClassVar[tuple[str, ...]] = ("lfm2",)
    vision_types: ClassVar[tuple[str, ...]] = ("siglip2_vision_model",)
    vision_modules: ClassVar[tuple[str, ...]] = ("model.vision_tower", "model.multi_modal_projector")
    since: ClassVar[str] = LfmFamily.since

    def setup(self) -> None:
        names = (("image_start", "<|image_start|>"), ("image_end", "<|image_end|>"), ("image_thumbnail", "<|img_thumbnail|>"))
        self.opening, self.closing, self.thumbnail = (getattr(self.tokenizer, f"{name}_token", word) for name, word in names)

    @classmethod
    def layers(cls, text: Any) -> tuple[LayerSpec, ...]:
        return short_convolution_layers(text)

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        spec = TileSpec(int(config.vision_config.patch_size), int(config.downsample_factor))
        each = max(spec.most_tokens, (spec.side // spec.factor) ** 2)
        return replace(
            super().sizes(config, detail), image_tokens=(spec.most_tiles + 1) * (each + 1) + 2, patches=each * spec.merge**2
        )

    def picture_spec(self, kind: str) -> TileSpec:
        config = self.model.config
        return TileSpec(config.vision_config.patch_size, config.downsample_factor).from_folder(self.folder)

    def image(self, frame: Frame, offset: int) -> Chunk:
        parts, columns = tiles_and_thumbnail(frame.pixels, self.image_spec)
        pieces: list[str | Tensor] = [self.opening]
        for number, part in enumerate(parts):
            if len(parts) > 1:
                last = number == len(parts) - 1
                row, column = divmod(number, columns)
                pieces.append(self.thumbnail if last else f"<|img_row_{row + 1}_col_{column + 1}|>")
            pieces.append(self.features(part))
        return self.compose([*pieces, self.closing], offset)

    def features(self, picture: Tensor) -> Tensor:
        """Encode a picture (3, H, W) to features (tokens, E)."""
        flat, shape = flat_patches(picture, self.image_spec.patch)
        mask = torch.ones(1, len(flat), dtype=torch.int32, device=self.device)
        found = self.model.model.get_image_features(
            self.upload(flat)[None], torch.tensor([shape], device=self.device), mask, return_dict=True
        )
        features: Tensor = found.pooler_output[0]
        return features


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

    @torch.inference_mode()
    def features(self, flat: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, None]:
        seen = self.encoded(self.model.model.vision_tower, flat, grid).last_hidden_state
        return self.model.model.multi_modal_projector(seen), None

    def positions(self, grid: tuple[int, int, int], times: Tensor, offset: int) -> Tensor:
        """Return (1, t * h * w) positions: one after the other, like text."""
        merge = self.model.config.vision_config.spatial_merge_size
        return torch.arange(offset, offset + grid[0] * grid[1] * grid[2] // merge**2)[None]


def ropes(rotary: Any) -> tuple[Rope, Rope]:
    """Return the rotations of full and of sliding layers."""
    return Rope(rotary, layer_type="full_attention"), Rope(rotary, layer_type="sliding_attention")
