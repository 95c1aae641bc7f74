"""LLaVA-OneVision: SigLIP frames, pooled 2 x 2, in front of Qwen2 (https://arxiv.org/abs/2408.03326).

A video is its frames' tokens followed by one `image_newline`; a still image is tiled at any resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemllm.cache.chunk import Chunk
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.spec import Sizes
from edgemllm.models.vision.pixels import PixelSpec, anyres, pixels


class LlavaOnevisionFamily(ModelFamily):
    """LLaVA-OneVision checkpoints in transformers format."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    vision_types: ClassVar[tuple[str, ...]] = ("siglip_vision_model",)
    vision_modules: ClassVar[tuple[str, ...]] = ("model.vision_tower", "model.multi_modal_projector")

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        size = config.vision_config.image_size
        side = size // config.vision_config.patch_size
        grid = max((height // size * side) * (width // size * side + 1) for height, width in config.image_grid_pinpoints)
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * side * (side + 1)
        frame, image = math.ceil(side / 2) ** 2, side * side + min(grid, most)
        return replace(super().sizes(config, detail), frame_tokens=frame, image_tokens=image)

    def picture_spec(self, kind: str) -> PixelSpec:
        size = self.model.config.vision_config.image_size
        return PixelSpec.from_folder(self.folder, kind, PixelSpec(size, size))

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk:
        batch = pixels([frame.pixels for frame in frames], self.video_spec)
        features = self._video_features(batch)
        time = torch.tensor([frame.time for frame in frames]).repeat_interleave(len(features) // len(frames))
        return self.vision(features, offset, time)

    def _video_features(self, batch: Tensor) -> Tensor:
        """Return (n * tokens, E). Newer transformers close every call with `image_newline`: only the last may have it."""
        batch = self.upload(batch)
        output = self.model.model.get_video_features(batch[None], return_dict=True)
        features: Tensor = output.pooler_output
        return features[0, : len(batch) * self.sizes(self.model.config).frame_tokens]

    def video_end(self, offset: int) -> Chunk | None:
        return self.vision(self.model.model.image_newline[None], offset, torch.full((1,), torch.nan))

    def image(self, frame: Frame, offset: int) -> Chunk:
        tiles, size = anyres(frame.pixels, self.image_spec, self.model.config.image_grid_pinpoints)
        output = self.model.model.get_image_features(
            self.upload(tiles[None]),
            image_sizes=torch.tensor([size]),
            vision_aspect_ratio=self.model.config.vision_aspect_ratio,
            return_dict=True,
        )
        features = output.pooler_output[0]
        return self.vision(features, offset, torch.full((len(features),), torch.nan))
