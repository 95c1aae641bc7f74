"""Pictures of any shape as patches that become at most a number of tokens, equal to Gemma 4's own processors."""

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
from edgemllm.models.vision.pixels import PixelSpec, normalise, processor_config, resize

MOST_TOKENS = (70, 140, 280, 560, 1120)
"""The limits that the models were trained with."""


@dataclass(frozen=True)
class PooledSpec:
    """How Gemma 4 wants its pictures: as large as `tokens` squares of `pool` x `pool` patches allow."""

    tokens: int
    patch: int = 16
    pool: int = 3
    whole: bool = False
    """A square comes as one patch, as the model of 12B wants it, which has no tower."""
    rescale: float = 1 / 255
    resample: int = 3

    @property
    def side(self) -> int:
        """Return the pixels of a token, along height and along width."""
        return self.patch * self.pool

    @property
    def patches(self) -> int:
        """Return the most patches of a picture."""
        return self.tokens if self.whole else self.tokens * self.pool**2

    def from_folder(self, folder: str | Path, kind: str) -> PooledSpec:
        """Return this specification with what a checkpoint's files say otherwise; `kind` is video or image."""
        found = processor_config(folder, kind)
        return replace(
            self,
            tokens=min(self.tokens, found.get("max_soft_tokens") or self.tokens),
            rescale=found.get("rescale_factor", self.rescale),
            resample=found.get("resample", self.resample),
        )

    def within(self, detail: Detail, video: bool) -> PooledSpec:
        """Return it within what the user wants to spend. Raises UsageError where that is less than the model knows."""
        spec = self
        if detail.max_pixels is not None:
            spec = spec._limited(detail.max_pixels, "--max-pixels", self.side**2)
        if video and detail.tokens_per_frame is not None:
            spec = spec._limited(detail.tokens_per_frame, "--tokens-per-frame", 1)
        return spec

    def _limited(self, most: int, option: str, unit: int) -> PooledSpec:
        """Return it with the most tokens that the model knows and `most` allows, of which a token takes `unit`."""
        if most // unit >= self.tokens:
            return self
        allowed = [tokens for tokens in MOST_TOKENS if tokens <= most // unit]
        if not allowed:
            raise UsageError(
                f"{option} {most} allows {most // unit} tokens, and this model knows pictures of {MOST_TOKENS[0]} or more",
                f"{option} {MOST_TOKENS[0] * unit} or more",
            )
        return replace(self, tokens=allowed[-1])


def pooled(frames: Sequence[Pixels], spec: PooledSpec) -> tuple[Tensor, Tensor]:
    """Cut frames (H, W, 3) of one size into (n, p, 3 * patch * patch) float32 from 0 to 1, and columns and rows (p, 2)."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

    height, width = frames[0].shape[:2]
    try:
        tall, wide = get_aspect_ratio_preserving_size(height, width, spec.patch, spec.tokens * spec.pool**2, spec.pool)
    except ValueError as error:
        raise MediaError(f"a picture of {width} x {height} pixels is too long and narrow: {error}", "crop it") from error
    look = PixelSpec(tall, wide, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), spec.rescale, spec.resample)
    batch = normalise(np.stack([resize(frame, tall, wide, spec.resample) for frame in frames]), look)
    cell = spec.side if spec.whole else spec.patch
    rows, columns = tall // cell, wide // cell
    cells = batch.view(len(batch), 3, rows, cell, columns, cell).permute(0, 2, 4, 3, 5, 1)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return cells.reshape(len(batch), rows * columns, -1), torch.stack((column, row), -1).view(-1, 2)
