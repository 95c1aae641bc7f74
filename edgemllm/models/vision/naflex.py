"""Still images for a SigLIP 2 tower of any resolution, whole or in tiles, as transformers' processor of LFM2-VL cuts them.

That processor needs torchvision, with which this could not be compared: its steps are repeated, resampling is Pillow's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from edgemllm.media.frame import Pixels
from edgemllm.models.vision.pixels import PixelSpec, normalise, processor_config, resize
from edgemllm.models.vision.tiles import cut

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class TileSpec:
    """How a checkpoint wants its pictures."""

    patch: int = 16
    merge: int = 2
    """Patches of a token, along height and along width."""
    least_tokens: int = 64
    most_tokens: int = 256
    """Of a picture that is not cut, and of the thumbnail."""
    side: int = 512
    """Of a tile, in pixels."""
    least_tiles: int = 2
    most_tiles: int = 10
    tolerance: float = 2.0
    """How many times `most_tokens` a picture may have before it is cut."""
    thumbnail: bool = True
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    rescale: float = 1 / 255
    resample: int = 2

    @property
    def factor(self) -> int:
        """Return the pixels of a token, along height and along width."""
        return self.patch * self.merge

    def from_folder(self, folder: str | Path) -> TileSpec:
        """Return this specification with what a checkpoint's files say otherwise."""
        found = processor_config(folder, "image")
        uncut = found.get("do_image_splitting") is False
        return replace(
            self,
            patch=found.get("encoder_patch_size", self.patch),
            merge=found.get("downsample_factor", self.merge),
            least_tokens=found.get("min_image_tokens", self.least_tokens),
            most_tokens=found.get("max_image_tokens", self.most_tokens),
            side=found.get("tile_size", self.side),
            least_tiles=1 if uncut else found.get("min_tiles", self.least_tiles),
            most_tiles=1 if uncut else found.get("max_tiles", self.most_tiles),
            tolerance=found.get("max_pixels_tolerance", self.tolerance),
            thumbnail=found.get("use_thumbnail", self.thumbnail),
            mean=tuple(found.get("image_mean") or self.mean),
            std=tuple(found.get("image_std") or self.std),
            rescale=found.get("rescale_factor", self.rescale),
            resample=found.get("resample", self.resample),
        )


def tiles_and_thumbnail(image: Pixels, spec: TileSpec) -> tuple[list[Tensor], int]:
    """Return the picture (3, H, W) alone, or its tiles row by row and the whole in small; and the columns of tiles."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    height, width = image.shape[:2]
    whole = resize(image, *fitting_size(height, width, spec), spec.resample)
    if spec.most_tiles == 1 or not _too_large(height, width, spec):
        return [_normalised(whole, spec)], 1
    columns, rows = get_optimal_tiled_canvas((height, width), (spec.side, spec.side), spec.least_tiles, spec.most_tiles)
    parts = cut(resize(image, rows * spec.side, columns * spec.side, spec.resample), spec.side, spec.side)
    return [_normalised(part, spec) for part in ([*parts, whole] if spec.thumbnail else parts)], columns


def fitting_size(height: int, width: int, spec: TileSpec) -> tuple[int, int]:
    """Return the size of whole tokens nearest to a picture's, of `least_tokens` to `most_tokens` of them."""
    factor = spec.factor
    tall, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    least, most = (tokens * factor**2 for tokens in (spec.least_tokens, spec.most_tokens))
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        return max(factor, int(height / shrink // factor) * factor), max(factor, int(width / shrink // factor) * factor)
    if tall * wide < least:
        grow = math.sqrt(least / (height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return tall, wide


def flat_patches(picture: Tensor, patch: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut (3, H, W) into (patches, patch * patch * 3), channels last, and say how many rows and columns there are."""
    rows, columns = picture.shape[1] // patch, picture.shape[2] // patch
    cells = picture.view(3, rows, patch, columns, patch).permute(1, 3, 2, 4, 0)
    return cells.reshape(rows * columns, -1), (rows, columns)


def _too_large(height: int, width: int, spec: TileSpec) -> bool:
    tall, wide = (max(spec.patch, round(side / spec.factor) * spec.factor) for side in (height, width))
    return tall * wide > spec.most_tokens * spec.factor**2 * spec.tolerance


def _normalised(image: Pixels, spec: TileSpec) -> Tensor:
    look = PixelSpec(mean=spec.mean, std=spec.std, rescale=spec.rescale)
    return normalise(np.asarray(image)[None], look)[0]
