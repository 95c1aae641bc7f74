"""Idefics3 (arXiv 2408.12637) and SmolVLM2 (arXiv 2504.05299): SigLIP squares, unshuffled, in front of Llama / SmolLM2.

A still image is cut into squares with their row and column in words; every frame of a video is one square after its time.
The sentence in which transformers states a video's number of frames and length is left out: a stream has neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemllm.cache.chunk import Chunk
from edgemllm.errors import UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.spec import Sizes
from edgemllm.models.vision.pixels import PixelSpec, processor_config
from edgemllm.models.vision.tiles import split, squares

HALF = (0.5, 0.5, 0.5)
LANCZOS = 1
SQUARES = 4
"""Squares along the longest side of an image, where the checkpoint's files say nothing (transformers' default)."""


class Idefics3Family(ModelFamily):
    """Idefics3: still images."""

    model_types: ClassVar[tuple[str, ...]] = ("idefics3",)
    vision_types: ClassVar[tuple[str, ...]] = ("idefics3_vision", "smolvlm_vision")
    vision_modules: ClassVar[tuple[str, ...]] = ("model.vision_model", "model.connector")

    def setup(self) -> None:
        self.fake = getattr(self.tokenizer, "fake_image_token", "<fake_token_around_image>")
        self.whole = getattr(self.tokenizer, "global_image_token", "<global-img>")

    @property
    def text_model(self) -> Any:
        return self.model.model.text_model

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        if detail.tokens_per_frame is not None:
            raise UsageError(f"{config.model_type} gives every frame the same tokens", "lower --fps instead")
        side = config.vision_config.image_size
        squares = _longest(config, SQUARES * side, detail) // side
        return Sizes(image_tokens=(_tokens(config) + 7) * (squares**2 + 1))

    def picture_spec(self, kind: str) -> PixelSpec:
        found = processor_config(self.folder, kind)
        side = (found.get("max_image_size") or {}).get("longest_edge") or self.model.config.vision_config.image_size
        default = PixelSpec(side, side, HALF, HALF, resample=LANCZOS)
        return PixelSpec.from_folder(self.folder, kind, default).square(side)

    def image(self, frame: Frame, offset: int) -> Chunk:
        size = processor_config(self.folder, "image").get("size") or {}
        side = self.image_spec.height
        longest = _longest(self.model.config, size.get("longest_edge") or SQUARES * side, self.detail)
        batch, rows, columns = split(frame.pixels, self.image_spec, longest)
        *parts, whole = self.features(batch)
        pieces: list[str | Tensor] = []
        for number, part in enumerate(parts):
            row, column = divmod(number, columns)
            before = "\n" if number and column == 0 else ""
            pieces += [f"{before}{self.fake}<row_{row + 1}_col_{column + 1}>", part]
        gap = "\n\n" if rows else ""
        return self.compose([*pieces, f"{gap}{self.fake}{self.whole}", whole, self.fake], offset)

    def features(self, batch: Tensor) -> list[Tensor]:
        """Encode squares (n, 3, side, side) to the features (tokens, E) of each."""
        output = self.model.model.get_image_features(self.upload(batch[None]), return_dict=True)
        return list(torch.cat(list(output.pooler_output)).chunk(len(batch)))


class SmolVLMFamily(Idefics3Family):
    """SmolVLM and SmolVLM2: still images and video."""

    model_types: ClassVar[tuple[str, ...]] = ("smolvlm",)

    def setup(self) -> None:
        super().setup()
        self.video_token = getattr(self.tokenizer, "video_token", "<video>")
        self.media_wrappers = {"video": ("", "\n\n")}
        template = self.tokenizer.chat_template
        if isinstance(template, str) and "video" not in template:
            # As in transformers: the template of the first checkpoints has no place for a video.
            from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

            self.tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        return replace(super().sizes(config, detail), frame_tokens=_tokens(config) + 12)

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk:
        longest = (processor_config(self.folder, "video").get("size") or {}).get("longest_edge")
        batch = squares([frame.pixels for frame in frames], self.video_spec, longest)
        chunks: list[Chunk] = []
        for frame, seen in zip(frames, self.features(batch), strict=True):
            minutes, seconds = divmod(int(frame.time), 60)
            name = f"\nFrame from {minutes:02d}:{seconds:02d}:{self.fake}{self.whole}"
            place = chunks[-1].next_position if chunks else offset
            chunks.append(self.compose([name, seen, self.fake], place, frame.time))
        return Chunk.join(chunks)


def _tokens(config: Any) -> int:
    """Return the tokens of one square."""
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    return int(side**2)


def _longest(config: Any, longest: int, detail: Detail) -> int:
    """Return the longest side of an image: whole squares, within the pixels allowed."""
    side = int(config.vision_config.image_size)
    if detail.max_pixels is None:
        return longest
    if detail.max_pixels < side * side:
        raise UsageError(
            f"--max-pixels {detail.max_pixels} is less than one square of {side} x {side} pixels",
            f"--max-pixels {side * side} or more",
        )
    return min(longest, int(detail.max_pixels**0.5) // side * side)
