"""Gemma 4 (https://arxiv.org/abs/2607.02770): local layers beside a few global ones, pictures of any shape, video with times.

The last layers of the small models reuse the keys and values of an earlier one of their kind, and every layer gets an embedding
of the token of its own. The larger ones let a picture's tokens see each other both ways in local layers. Audio is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.size import LayerSpec
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import Clip, ModelFamily
from edgemllm.models.families.gemma3 import Gemma3TextFamily
from edgemllm.models.spec import Sizes, head_shape, layer_config
from edgemllm.models.vision.pooled import MOST_TOKENS, PooledSpec, pooled

FRAME_TOKENS = MOST_TOKENS[0]
"""A video frame takes at most this many, as in transformers' processor."""
IMAGE_TOKENS = 280
"""A still image takes at most this many, where the configuration says nothing."""


class Gemma4TextFamily(Gemma3TextFamily):
    """Gemma 4 without eyes."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma4_text", "gemma4_unified_text")
    text_types: ClassVar[tuple[str, ...]] = model_types
    since: ClassVar[str] = "5.23"
    example: ClassVar[str] = "google/gemma-4-E2B-it"

    @classmethod
    def unknown(cls, text: Any) -> list[str]:
        return ["use_bidirectional_attention = all"] if text.use_bidirectional_attention == "all" else []

    @classmethod
    def layers(cls, text: Any) -> tuple[LayerSpec, ...]:
        kinds = list(text.layer_types)
        own = kinds[: len(kinds) - text.num_kv_shared_layers]
        found = []
        for place, kind in enumerate(kinds):
            shape = head_shape(layer_config(text, place))
            window = text.sliding_window if kind == "sliding_attention" else None
            if place >= len(own):
                found.append(LayerSpec("shared", *shape, window, source=len(own) - 1 - own[::-1].index(kind)))
            else:
                found.append(LayerSpec("full" if window is None else "sliding", *shape, window))
        return tuple(found)

    def text(self, ids: Sequence[int], offset: int) -> Chunk:
        tokens = torch.tensor([list(ids)], dtype=torch.long, device=self.device)
        chunk = Chunk.of_text(self.text_model.get_input_embeddings()(tokens), offset)
        return replace(chunk, tokens=tokens) if self.per_layer else chunk

    @cached_property
    def per_layer(self) -> bool:
        """Return whether every layer has an embedding of the token."""
        return hasattr(self.text_model, "embed_tokens_per_layer")


class Gemma4Family(Gemma4TextFamily):
    """Gemma 4 with still images and video; the model of 12B (`gemma4_unified`) has no tower and takes in pixels themselves."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma4", "gemma4_unified")
    vision_types: ClassVar[tuple[str, ...]] = ("gemma4_vision", "gemma4_unified_vision")
    vision_modules: ClassVar[tuple[str, ...]] = ("model.vision_tower", "model.embed_vision")
    auto_class: ClassVar[str] = ModelFamily.auto_class
    attention: ClassVar[Any] = ModelFamily.attention

    def setup(self) -> None:
        super().setup()
        self.opening, self.closing = str(self.word("boi_token_id")), str(self.word("eoi_token_id"))
        self.media_wrappers = {"image": (self.opening, self.closing)}
        self.both_ways = self.config.use_bidirectional_attention == "vision"

    @property
    def text_model(self) -> Any:
        return self.model.model.language_model

    @classmethod
    def trimmed(cls, config: Any) -> Any:
        config.audio_config = None
        return config

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        video, image = (default_spec(config, kind).within(detail, kind == "video") for kind in ("video", "image"))
        both_ways = config.get_text_config().use_bidirectional_attention == "vision"
        return Sizes(
            frame_tokens=video.tokens + 10,
            image_tokens=image.tokens + 2,
            patches=max(video.patches, image.patches // 8),  # eight frames are encoded at once, an image by itself
            indivisible=max(video.tokens, image.tokens) if both_ways else 1,
        )

    def picture_spec(self, kind: str) -> PooledSpec:
        return default_spec(self.model.config, kind).from_folder(self.folder, kind).within(self.detail, kind == "video")

    def video(self, interval: float | None = None) -> Clip:
        return TimedClip(self)

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk:
        return TimedClip(self).frames(frames, offset)

    def image(self, frame: Frame, offset: int) -> Chunk:
        return self.compose([self.features([frame], self.image_spec)[0]], offset)

    def features(self, frames: Sequence[Frame], spec: PooledSpec) -> list[Tensor]:
        """Encode pictures of one size to the features (tokens, E) of each."""
        cells, places = pooled([frame.pixels for frame in frames], spec)
        where = places.expand(len(cells), -1, -1).to(self.device)
        output = self.model.model.get_image_features(self.upload(cells, torch.float32), where, return_dict=True)
        return list(output.pooler_output)

    def vision(self, features: Tensor, offset: int, time: Tensor) -> Chunk:
        chunk = super().vision(features, offset, time)
        if self.per_layer:
            chunk = replace(chunk, tokens=torch.full(chunk.modality.shape, self.config.pad_token_id, device=self.device))
        if self.both_ways:
            chunk = replace(chunk, block=torch.full_like(chunk.modality, offset, dtype=torch.long), local=True)
        return chunk


class TimedClip(Clip):
    """Frames with their time in words."""

    family: Gemma4Family
    counters = ("count",)
    count = 0

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk:
        chunks: list[Chunk] = []
        for frame, seen in zip(frames, self.family.features(frames, self.family.video_spec), strict=True):
            minutes, seconds = divmod(int(frame.time), 60)
            stamp = f"{' ' if self.count else ''}{minutes:02d}:{seconds:02d} {self.family.opening}"
            place = chunks[-1].next_position if chunks else offset
            chunks.append(self.family.compose([stamp, seen, self.family.closing], place, frame.time))
            self.count += 1
        return Chunk.join(chunks)


def default_spec(config: Any, kind: str) -> PooledSpec:
    """Return what transformers' processors do where a checkpoint's files say nothing."""
    most = int(getattr(config, "vision_soft_tokens_per_image", None) or IMAGE_TOKENS)
    vision = config.vision_config
    tokens = min(most, FRAME_TOKENS) if kind == "video" else most
    return PooledSpec(tokens, int(vision.patch_size), int(vision.pooling_kernel_size), whole=config.model_type != "gemma4")
