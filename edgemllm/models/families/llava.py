"""LLaVA-1.5, LLaVA-NeXT (1.6) and LLaVA-NeXT-Video: a CLIP tower in front of Vicuna, Mistral or Qwen2.

LLaVA-1.5 sees a still image as one square; NeXT tiles it (https://llava-vl.github.io/blog/2024-01-30-llava-next/); the
video model sees every frame as one square, pooled 2 x 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from edgemllm.cache.chunk import Chunk
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.spec import Sizes
from edgemllm.models.vision.pixels import PixelSpec, anyres, pixels


class LlavaFamily(ModelFamily):
    """LLaVA-1.5 and its kin."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    vision_types: ClassVar[tuple[str, ...]] = ("clip_vision_model", "siglip_vision_model")
    vision_modules: ClassVar[tuple[str, ...]] = ("model.vision_tower", "model.multi_modal_projector")

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        tokens = _side(config) ** 2 + (config.vision_feature_select_strategy == "full")
        return replace(super().sizes(config, detail), image_tokens=tokens)

    def picture_spec(self, kind: str) -> PixelSpec:
        size = self.model.config.vision_config.image_size
        return PixelSpec.from_folder(self.folder, kind, PixelSpec(size, size, edge=size))

    def image(self, frame: Frame, offset: int) -> Chunk:
        batch = self.upload(pixels([frame.pixels], self.image_spec))
        features = self.model.model.get_image_features(batch, return_dict=True).pooler_output[0]
        return self.vision(features, offset, torch.full((len(features),), torch.nan))


class LlavaNextFamily(LlavaFamily):
    """LLaVA-NeXT: still images at any resolution."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        side, size = _side(config), config.vision_config.image_size
        grid = max((height // size * side) * (width // size * side + 1) for height, width in config.image_grid_pinpoints)
        return replace(super().sizes(config, detail), image_tokens=side * side + grid)

    def image(self, frame: Frame, offset: int) -> Chunk:
        tiles, size = anyres(frame.pixels, self.image_spec, self.model.config.image_grid_pinpoints)
        batch = self.upload(tiles[None])
        output = self.model.model.get_image_features(batch, image_sizes=torch.tensor([size]), return_dict=True)
        features = output.pooler_output[0]
        return self.vision(features, offset, torch.full((len(features),), torch.nan))


class LlavaNextVideoFamily(LlavaNextFamily):
    """LLaVA-NeXT-Video: as above, and video."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)
    vision_modules: ClassVar[tuple[str, ...]] = (*LlavaFamily.vision_modules, "model.vision_resampler")

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        tokens = (_side(config) // config.spatial_pool_stride) ** 2
        return replace(super().sizes(config, detail), frame_tokens=tokens)

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk:
        batch = self.upload(pixels([frame.pixels for frame in frames], self.video_spec))
        output = self.model.model.get_video_features(batch[None], return_dict=True)
        features = torch.cat([part.flatten(0, -2) for part in output.pooler_output])
        time = torch.tensor([frame.time for frame in frames]).repeat_interleave(len(features) // len(frames))
        return self.vision(features, offset, time)


def _side(config: Any) -> int:
    return int(config.vision_config.image_size // config.vision_config.patch_size)
