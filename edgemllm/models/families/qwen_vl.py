"""Qwen2-VL, Qwen2.5-VL (https://arxiv.org/abs/2502.13923) and Qwen3-VL: any resolution, M-RoPE, two frames a token.

A token has three positions: time, height and width. The time axis counts pairs of frames in Qwen2-VL and seconds x
`tokens_per_second` in Qwen2.5-VL; Qwen3-VL writes time stamps between the frames as text instead, and adds features of
several tower layers to the first decoder layers (DeepStack).

What follows a video starts after its largest position, as in Qwen's own code and as trained; transformers 5 starts it
after the larger of height and width, inside the video's span of time, which is the same while a video is short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemllm.cache.chunk import Chunk, Modality
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import Clip, ModelFamily
from edgemllm.models.spec import Sizes
from edgemllm.models.vision.patches import FRAME_TOKENS, PatchSpec, patches
from edgemllm.models.vision.pixels import CLIP_MEAN, CLIP_STD

HALF = (0.5, 0.5, 0.5)
STAMPED = ("qwen3_vl", "qwen3_5", "qwen3_5_moe", "lfm3_vl", "cosmos3_edge")
"""Types that write time stamps between the frames."""


class QwenVLFamily(ModelFamily):
    """Qwen-VL checkpoints in transformers format."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    text_types: ClassVar[tuple[str, ...]] = ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")
    vision_types: ClassVar[tuple[str, ...]] = ("qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision")
    vision_modules: ClassVar[tuple[str, ...]] = ("model.visual",)
    axes: ClassVar[int] = 3

    def setup(self) -> None:
        self.opening = self.word("vision_start_token_id")
        self.stamped = self.model.config.model_type in STAMPED
        if self.stamped:  # every pair of frames is wrapped by itself, so the template's own wrapping goes
            self.video_token = f"{self.opening}{self.video_token}{self.word('vision_end_token_id')}"

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        video, image = (default_spec(config, kind).within(detail, kind == "video") for kind in ("video", "image"))
        stamp = 8 if config.model_type in STAMPED else 0
        frame = math.ceil(video.most_tokens / video.temporal) + stamp
        return Sizes(frame, image.most_tokens, patches=video.most_tokens * video.merge**2)

    @cached_property
    def video_spec(self) -> PatchSpec:
        """Return how frames of a video are resized. What a checkpoint allows a whole video is too much for one frame."""
        spec = default_spec(self.model.config, "video").from_folder(self.folder, "video")
        most = FRAME_TOKENS * spec.factor**2 * (spec.temporal if self.stamped else 1)
        spec = spec.limited(most)
        if self.stamped:  # its limits count the pixels of all frames together
            spec = spec.shared(spec.temporal)
        return spec.within(self.detail, video=True)

    @cached_property
    def image_spec(self) -> PatchSpec:
        """Return how still images are resized."""
        return default_spec(self.model.config, "image").from_folder(self.folder, "image").within(self.detail, video=False)

    def video(self, interval: float | None = None) -> Clip:
        return QwenClip(self, interval or None)

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk:
        clip = QwenClip(self, None)
        found = [clip.frames(frames, offset)]
        found.append(clip.end(offset if found[0] is None else found[0].next_position))
        return Chunk.join([chunk for chunk in found if chunk is not None])

    def image(self, frame: Frame, offset: int) -> Chunk:
        flat, grid = patches([frame.pixels], self.image_spec)
        features, deep = self.features(flat, grid)
        positions = self.positions(grid, torch.zeros(1, dtype=torch.long), offset)
        return self.seen(features, deep, positions, torch.full((len(features),), torch.nan))

    # ---- what a clip uses --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def features(self, flat: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor | None]:
        """Encode patches to features (n, E) and, with DeepStack, to (d, n, E)."""
        output = self.encoded(self.model.model.visual, flat, grid)
        deep = getattr(output, "deepstack_features", None)
        return output.pooler_output, torch.stack(list(deep)) if deep else None

    def encoded(self, tower: Any, flat: Tensor, grid: tuple[int, int, int]) -> Any:
        """Return what the vision tower makes of patches."""
        return tower(self.upload(flat), grid_thw=torch.tensor([grid], device=self.device), return_dict=True)

    def positions(self, grid: tuple[int, int, int], times: Tensor, offset: int) -> Tensor:
        """Return (3, t * h * w) positions of a grid of patches, the first at `offset`; `times` (t,) are relative to it."""
        merge = self.model.config.vision_config.spatial_merge_size
        height, width = torch.arange(grid[1] // merge), torch.arange(grid[2] // merge)
        axes = torch.meshgrid(times, height, width, indexing="ij")
        return torch.stack(axes).reshape(3, -1) + offset

    def seen(self, features: Tensor, deep: Tensor | None, positions: Tensor, time: Tensor, step: int = 1) -> Chunk:
        """Return features (q, E) at positions (3, q), seen at `time` (q,), as a chunk."""
        modality = torch.full((1, len(features)), Modality.VISION, dtype=torch.uint8, device=self.device)
        deep = None if deep is None else deep[:, None].to(self.dtype)
        where = positions[:, None].to(self.device)
        return Chunk(features[None].to(self.dtype), where, modality, time[None].to(self.device), deep, step)

    def stamp(self, seconds: float, offset: int) -> Chunk:
        """Return the text that Qwen3-VL writes before a pair of frames."""
        return self.text(self.tokenize(f"<{seconds:.1f} seconds>{self.opening}"), offset)

    def wrap(self, offset: int) -> Chunk:
        """Return the text that it writes after them."""
        return self.text([self.model.config.vision_end_token_id], offset)


class QwenClip(Clip):
    """Pairs frames, and counts them from the first one of the video, however they come."""

    family: QwenVLFamily
    counters = ("interval", "start", "began", "pairs")

    def __init__(self, family: QwenVLFamily, interval: float | None) -> None:
        super().__init__(family)
        self.interval = interval
        self.start: int | None = None
        """Stream position of the first token."""
        self.began = 0.0
        """Seconds of the first frame."""
        self.pairs = 0

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk | None:
        ready = [*self.waiting, *frames]
        if self.start is None and ready:
            self.start, self.began = offset, ready[0].time
        whole = len(ready) - len(ready) % self.family.video_spec.temporal
        self.waiting = ready[whole:]
        return self._chunk(ready[:whole], offset) if whole else None

    def end(self, offset: int) -> Chunk | None:
        left, self.waiting = self.waiting, []
        return self._chunk(left, offset) if left else None

    def _chunk(self, frames: list[Frame], offset: int) -> Chunk:
        size = self.family.video_spec.temporal
        pairs = [frames[start : start + size] for start in range(0, len(frames), size)]
        flat, grid = patches([frame.pixels for frame in frames], self.family.video_spec)
        features, deep = self.family.features(flat, grid)
        each = len(features) // grid[0]
        if self.family.stamped:
            return self._stamped(pairs, features.split(each), deep, grid, offset)
        times, step = self._times(pairs)
        assert self.start is not None
        positions = self.family.positions(grid, times, self.start)
        seconds = torch.tensor([pair[0].time for pair in pairs]).repeat_interleave(each)
        return self.family.seen(features, deep, positions, seconds, step)

    def _times(self, pairs: list[list[Frame]]) -> tuple[Tensor, int]:
        """Return the pairs' positions on the time axis, relative to the video's first, and the step between them.

        Pairs are numbered by the clock, so that frames a camera drops leave their gap; without drops they are 0, 1, 2 ...
        """
        config = self.family.model.config.vision_config
        size = self.family.video_spec.temporal
        if self.interval is None and sum(len(pair) for pair in pairs) > 1:
            flat = [frame for pair in pairs for frame in pair]
            self.interval = (flat[-1].time - flat[0].time) / (len(flat) - 1) or None
        numbers = []
        for pair in pairs:
            ticks = 0 if self.interval is None else (pair[0].time - self.began) / self.interval
            self.pairs = max(self.pairs, round(ticks / size))
            numbers.append(self.pairs)
            self.pairs += 1
        per_second = getattr(config, "tokens_per_second", None)
        if per_second is None:
            return torch.tensor(numbers), 1
        # transformers multiplies in single precision and cuts off, which must be repeated exactly.
        gap = per_second * torch.tensor(size * (self.interval or 1.0))
        return (torch.tensor(numbers) * gap).long(), max(1, math.ceil(float(gap)))

    def _stamped(
        self,
        pairs: list[list[Frame]],
        features: Sequence[Tensor],
        deep: Tensor | None,
        grid: tuple[int, int, int],
        offset: int,
    ) -> Chunk:
        """Feed every pair as an image of its own, with its time in words, as Qwen3-VL does."""
        chunks: list[Chunk] = []
        zero = torch.zeros(1, dtype=torch.long)
        for number, (pair, seen) in enumerate(zip(pairs, features, strict=True)):
            place = chunks[-1].next_position if chunks else offset
            stamp = self.family.stamp((pair[0].time + pair[-1].time) / 2, place)
            positions = self.family.positions((1, *grid[1:]), zero, stamp.next_position)
            part = None if deep is None else deep[:, number * len(seen) : (number + 1) * len(seen)]
            picture = self.family.seen(seen, part, positions, torch.full((len(seen),), pair[0].time))
            chunks += [stamp, picture, self.family.wrap(picture.next_position)]
        return Chunk.join(chunks)


def default_spec(config: Any, kind: str) -> PatchSpec:
    """Return what transformers' processors do where a checkpoint's files say nothing."""
    vision = config.vision_config
    patch, merge = int(vision.patch_size), int(vision.spatial_merge_size)
    square = (patch * merge) ** 2
    limits = (4 * square, 1280 * square) if kind == "image" else (128 * square, FRAME_TOKENS * square)
    look = (HALF, HALF) if config.model_type in STAMPED else (CLIP_MEAN, CLIP_STD)
    spec = PatchSpec(*limits, patch, merge, int(getattr(vision, "temporal_patch_size", 1)), *look)
    return replace(spec, channels_last=config.model_type == "cosmos3_edge")
