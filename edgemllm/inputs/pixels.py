"""Frames as a vision tower wants them, equal to transformers' own pre-processing, without torchvision.

Resampling is Pillow's, as in transformers' PIL back end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What transformers' LLaVA-OneVision processors use where the checkpoint's files say nothing."""

CONFIGS = {
    "video": ("video_preprocessor_config.json", "preprocessor_config.json"),
    "image": ("preprocessor_config.json",),
}


@dataclass(frozen=True)
class PixelSpec:
    """How a checkpoint wants its pictures."""

    height: int = 384
    width: int = 384
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    rescale: float = 1 / 255
    resample: int = 3
    """Pillow's code; 3 = bicubic."""

    @classmethod
    def from_folder(cls, folder: str | Path, kind: str = "video") -> PixelSpec:
        """Read a checkpoint's pre-processor files; `kind` is video or image."""
        found: dict[str, Any] = {}
        combined = Path(folder) / "processor_config.json"
        if combined.is_file():
            found = json.loads(combined.read_text()).get(f"{kind}_processor") or {}
        for name in CONFIGS[kind]:
            path = Path(folder) / name
            if not found and path.is_file():
                found = json.loads(path.read_text())
        size = found.get("size") or {}
        side = size.get("shortest_edge") or 384
        default = cls()
        return cls(
            height=size.get("height", side),
            width=size.get("width", side),
            mean=tuple(found.get("image_mean") or default.mean),
            std=tuple(found.get("image_std") or default.std),
            rescale=found.get("rescale_factor", default.rescale),
            resample=found.get("resample", default.resample),
        )


def resize(image: Pixels, height: int, width: int, resample: int) -> Pixels:
    """(H, W, 3) to (height, width, 3)."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), resample=Image.Resampling(resample)))


def pixels(frames: Sequence[Pixels], spec: PixelSpec) -> Tensor:
    """Frames (H, W, 3) squashed to the model's size and normalised, (n, 3, height, width) float32."""
    squashed = np.stack([resize(frame, spec.height, spec.width, spec.resample) for frame in frames])
    return normalise(squashed, spec)


def normalise(images: Pixels, spec: PixelSpec) -> Tensor:
    """(n, H, W, 3) uint8 to (n, 3, H, W) float32."""
    scaled = images.transpose(0, 3, 1, 2).astype(np.float64) * spec.rescale
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    return torch.from_numpy(((scaled.astype(np.float32) - mean) / std).astype(np.float32))


def anyres(image: Pixels, spec: PixelSpec, pinpoints: Sequence[Sequence[int]]) -> tuple[Tensor, tuple[int, int]]:
    """A still image at any resolution: the whole squashed, then tiles of the best fitting grid.

    Returns (1 + tiles, 3, height, width) and the image's own (height, width).
    """
    from transformers.image_processing_utils import select_best_resolution

    height, width = image.shape[:2]
    best_height, best_width = select_best_resolution((height, width), [list(point) for point in pinpoints])
    # As transformers' get_patch_output_size: fill one side, round the other up.
    scale_width, scale_height = best_width / width, best_height / height
    if scale_width < scale_height:
        new_width, new_height = best_width, min(-int(-(height * scale_width) // 1), best_height)
    else:
        new_height, new_width = best_height, min(-int(-(width * scale_height) // 1), best_width)
    canvas = np.zeros((best_height, best_width, 3), np.uint8)
    top, left = (best_height - new_height) // 2, (best_width - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = resize(image, new_height, new_width, spec.resample)
    tiles = [
        canvas[row : row + spec.height, column : column + spec.width]
        for row in range(0, best_height, spec.height)
        for column in range(0, best_width, spec.width)
    ]
    return pixels([image, *tiles], spec), (height, width)
