"""InternVL3 and 2.5 in transformers format: InternViT tiles, unshuffled 2 x 2, in front of Qwen2 (arXiv 2504.10479).

A still image is cut into the best grid of tiles; every frame of a video is one tile, introduced as "Frame1: ".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from edgemllm.cache.chunk import Chunk
from edgemllm.errors import UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import Clip, ModelFamily
from edgemllm.models.spec import Sizes
from edgemllm.models.vision.pixels import PixelSpec, pixels, processor_config
from edgemllm.models.vision.tiles import best_grid

TILES = 12
"""Tiles of an image at most, where the checkpoint's files say nothing (transformers' default)."""


class InternVLFamily(ModelFamily):
    """InternVL checkpoints in transformers format (their names end in -hf)."""

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    vision_types: ClassVar[tuple[str, ...]] = ("internvl_vision",)
    vision_modules: ClassVar[tuple[str, ...]] = ("model.vision_tower", "model.multi_modal_projector")

    def setup(self) -> None:
        self.video_token = getattr(self.tokenizer, "video_token", "<video>")
        self.opening = getattr(self.tokenizer, "start_image_token", "<img>")
        self.closing = getattr(self.tokenizer, "end_image_token", "</img>")

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        each = config.image_seq_length
        if detail.tokens_per_frame is not None:
            raise UsageError(f"{config.model_type} gives every frame {each} tokens", "lower --fps instead")
        tiles = _most_tiles(config, TILES, detail)
        return Sizes(frame_tokens=each + 6, image_tokens=each * (tiles + (tiles > 1)) + 2)

    def picture_spec(self, kind: str) -> PixelSpec:
        height, width = self.model.config.vision_config.image_size
        return PixelSpec.from_folder(self.folder, kind, PixelSpec(height, width))

    def video(self, interval: float | None = None) -> Clip:
        return NumberedClip(self)

    def image(self, frame: Frame, offset: int) -> Chunk:
        found = processor_config(self.folder, "image")
        most = _most_tiles(self.model.config, found.get("max_patches", TILES), self.detail)
        features = self.features(best_grid(frame.pixels, self.image_spec, most, found.get("min_patches", 1)))
        return self.compose([self.opening, features.flatten(0, 1), self.closing], offset)

    def features(self, batch: Tensor) -> Tensor:
        """Encode tiles (n, 3, H, W) to features (n, tokens, E)."""
        output = self.model.model.get_image_features(self.upload(batch), return_dict=True)
        features: Tensor = output.pooler_output
        return features


class NumberedClip(Clip):
    """Frames with their number in words."""

    family: InternVLFamily
    counters = ("count",)
    count = 0

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk:
        features = self.family.features(pixels([frame.pixels for frame in frames], self.family.video_spec))
        chunks: list[Chunk] = []
        for frame, seen in zip(frames, features, strict=True):
            self.count += 1
            name = f"{chr(10) if self.count > 1 else ''}Frame{self.count}: "
            place = chunks[-1].next_position if chunks else offset
            chunks.append(self.family.compose([name + self.family.opening, seen, self.family.closing], place, frame.time))
        return Chunk.join(chunks)

    def end(self, offset: int) -> Chunk | None:
        return None


def _most_tiles(config: Any, tiles: int, detail: Detail) -> int:
    height, width = config.vision_config.image_size
    if detail.max_pixels is None:
        return tiles
    if detail.max_pixels < height * width:
        raise UsageError(
            f"--max-pixels {detail.max_pixels} is less than one tile of {width} x {height} pixels",
            f"--max-pixels {height * width} or more",
        )
    return int(min(tiles, detail.max_pixels // (height * width)))
