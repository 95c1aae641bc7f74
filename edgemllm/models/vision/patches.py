"""Pictures of any resolution as patches in the order of a Qwen-VL tower, equal to transformers' own processors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgemllm.errors import MediaError, UsageError
from edgemllm.media.detail import Detail
from edgemllm.media.frame import Pixels
from edgemllm.models.vision.pixels import CLIP_MEAN, CLIP_STD, PixelSpec, normalise, processor_config, resize

FRAME_TOKENS = 768
"""A video frame (of two that share their tokens) takes at most this many, as in qwen-vl-utils (VIDEO_MAX_PIXELS)."""


@dataclass(frozen=True)
class PatchSpec:
    """How a tower with dynamic resolution wants its pictures."""

    min_pixels: int
    max_pixels: int
    patch: int = 14
    merge: int = 2
    """Patches of a token, along height and along width."""
    temporal: int = 2
    """Frames of a token."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    rescale: float = 1 / 255
    resample: int = 3
    channels_last: bool = False
    """The values of a patch lie by row, column, channel and frame, instead of by channel, frame, row and column."""

    @property
    def factor(self) -> int:
        """Return the pixels of a token, along height and along width."""
        return self.patch * self.merge

    def from_folder(self, folder: str | Path, kind: str) -> PatchSpec:
        """Return this specification with what a checkpoint's files say otherwise; `kind` is video or image."""
        found = processor_config(folder, kind)
        size = found.get("size") or {}
        return replace(
            self,
            min_pixels=found.get("min_pixels") or size.get("shortest_edge") or self.min_pixels,
            max_pixels=found.get("max_pixels") or size.get("longest_edge") or self.max_pixels,
            patch=found.get("patch_size", self.patch),
            merge=found.get("merge_size", self.merge),
            temporal=found.get("temporal_patch_size", self.temporal),
            mean=tuple(found.get("image_mean") or self.mean),
            std=tuple(found.get("image_std") or self.std),
            rescale=found.get("rescale_factor", self.rescale),
            resample=found.get("resample", self.resample),
        )

    def limited(self, most: int | None) -> PatchSpec:
        """Return it with at most `most` pixels. Raises UsageError where not even one token is left."""
        if most is None or most >= self.max_pixels:
            return self
        if most < self.factor**2:
            raise UsageError(
                f"a picture of {most} pixels is less than one token, which is {self.factor} x {self.factor} pixels",
                f"--max-pixels {self.factor**2} or more",
            )
        return replace(self, max_pixels=most, min_pixels=min(self.min_pixels, most))

    def shared(self, frames: int) -> PatchSpec:
        """Return the limits of one frame, where these are those of `frames` together."""
        return replace(self, min_pixels=self.min_pixels // frames, max_pixels=self.max_pixels // frames)

    def within(self, detail: Detail, video: bool) -> PatchSpec:
        """Return it within what the user wants to spend; `temporal` frames of a video share their tokens."""
        spec = self.limited(detail.max_pixels)
        if video and detail.tokens_per_frame is not None:
            spec = spec.limited(detail.tokens_per_frame * self.temporal * self.factor**2)
        return spec

    @property
    def most_tokens(self) -> int:
        """Return the most tokens of a still image or of `temporal` frames."""
        return self.max_pixels // self.factor**2


def patches(frames: Sequence[Pixels], spec: PatchSpec) -> tuple[Tensor, tuple[int, int, int]]:
    """Cut frames (H, W, 3) of one size into (t * h * w, 3 * temporal * patch * patch) float32, and the grid (t, h, w).

    The last frame is repeated until `temporal` divides their number; a still image is one frame.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = frames[0].shape[:2]
    try:
        tall, wide = smart_resize(height, width, spec.factor, spec.min_pixels, spec.max_pixels)
    except ValueError as error:
        raise MediaError(f"a picture of {width} x {height} pixels is too long and narrow: {error}", "crop it") from error
    look = PixelSpec(tall, wide, spec.mean, spec.std, spec.rescale, spec.resample)
    batch = normalise(np.stack([resize(frame, tall, wide, spec.resample) for frame in frames]), look)
    batch = torch.cat([batch, batch[-1:].expand(-len(batch) % spec.temporal, -1, -1, -1)])
    t, h, w = len(batch) // spec.temporal, tall // spec.patch, wide // spec.patch
    cells = batch.view(t, spec.temporal, 3, h // spec.merge, spec.merge, spec.patch, w // spec.merge, spec.merge, spec.patch)
    values = (5, 8, 2, 1) if spec.channels_last else (2, 1, 5, 8)
    flat = cells.permute(0, 3, 6, 4, 7, *values).reshape(t * h * w, -1)
    return flat, (t, h, w)
