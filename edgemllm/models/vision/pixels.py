"""Frames as a vision tower wants them, equal to transformers' own pre-processing, without torchvision.

Resampling is Pillow's, as in transformers' PIL back end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgemllm.errors import MissingError
from edgemllm.media.frame import Pixels

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What transformers' LLaVA-OneVision processors use where the checkpoint's files say nothing."""


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
    edge: int | None = None
    """Length that the shortest side gets before the middle is cut out; None: the whole picture is squashed."""

    @classmethod
    def from_folder(cls, folder: str | Path, kind: str = "video", default: PixelSpec | None = None) -> PixelSpec:
        """Read a checkpoint's pre-processor files; `kind` is video or image. Where they say nothing: `default`."""
        default = default or cls()
        found = processor_config(folder, kind)
        if not found:
            return default
        height, width, edge = geometry(found, default)
        normalise_it = found.get("do_normalize", True)
        return cls(
            height=height,
            width=width,
            mean=tuple(found.get("image_mean") or default.mean) if normalise_it else (0.0, 0.0, 0.0),
            std=tuple(found.get("image_std") or default.std) if normalise_it else (1.0, 1.0, 1.0),
            rescale=found.get("rescale_factor", default.rescale) if found.get("do_rescale", True) else 1.0,
            resample=found.get("resample", default.resample),
            edge=edge,
        )

    def square(self, side: int) -> PixelSpec:
        """Return the same for squares, the whole picture squashed."""
        return replace(self, height=side, width=side, edge=None)


def processor_config(folder: str | Path, kind: str) -> dict[str, Any]:
    """Return what a checkpoint says about a kind of input, the combined file first as in transformers; "" is no folder."""
    if not str(folder):
        return {}
    folder = Path(folder)
    combined = read_json(folder / "processor_config.json")
    found: dict[str, Any] = combined.get(f"{kind}_processor") or {}
    if kind == "video":
        found = found or read_json(folder / "video_preprocessor_config.json")
    return found or read_json(folder / "preprocessor_config.json") or combined.get("image_processor") or {}


def read_json(path: Path) -> dict[str, Any]:
    """Return the file's object, empty where there is no file."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise MissingError(f"{path} is not complete JSON: {error}", "download the model again") from error
    return found


def geometry(found: dict[str, Any], default: PixelSpec) -> tuple[int, int, int | None]:
    """Return height, width and `edge`. Old files write `"size": 224`."""
    size, crop = found.get("size") or {}, found.get("crop_size") or {}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if not found.get("do_center_crop"):
        crop = {}
    if isinstance(size, int):
        size = {"shortest_edge": size}
    side = size.get("shortest_edge")
    if side and crop:
        return crop["height"], crop["width"], side
    # A shortest side without a crop would leave pictures of different sizes: towers with one input size get a square.
    return size.get("height") or side or default.height, size.get("width") or side or default.width, None


def pixels(frames: Sequence[Pixels], spec: PixelSpec) -> Tensor:
    """Bring frames (H, W, 3) RGB to the model's size and normalise them: (n, 3, height, width) float32."""
    return normalise(np.stack([fit(frame, spec) for frame in frames]), spec)


def fit(image: Pixels, spec: PixelSpec) -> Pixels:
    """Bring (H, W, 3) to (height, width, 3): squashed, or the middle of it."""
    if spec.edge is None:
        return resize(image, spec.height, spec.width, spec.resample)
    from transformers.image_transforms import center_crop, get_resize_output_image_size
    from transformers.image_utils import ChannelDimension

    last = ChannelDimension.LAST
    height, width = get_resize_output_image_size(image, spec.edge, default_to_square=False, input_data_format=last)
    resized = resize(image, height, width, spec.resample)
    middle: Pixels = center_crop(resized, (spec.height, spec.width), input_data_format=last)
    return middle


def resize(image: Pixels, height: int, width: int, resample: int) -> Pixels:
    """Resize (H, W, 3) to (height, width, 3)."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), resample=Image.Resampling(resample)))


def normalise(images: Pixels, spec: PixelSpec) -> Tensor:
    """Turn (n, H, W, 3) uint8 into (n, 3, H, W) float32, in transformers' order and precision of arithmetic."""
    scaled = (images.astype(np.float64) * spec.rescale).astype(np.float32)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(((scaled - mean) / std).transpose(0, 3, 1, 2)))


def anyres(image: Pixels, spec: PixelSpec, pinpoints: Sequence[Sequence[int]]) -> tuple[Tensor, tuple[int, int]]:
    """Prepare a still image at any resolution: the whole squashed, then the tiles of the best fitting grid.

    Returns (1 + tiles, 3, height, width) and the image's own (height, width).
    """
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.image_utils import ChannelDimension

    height, width = image.shape[:2]
    best = select_best_resolution((height, width), [list(point) for point in pinpoints])
    inner_height, inner_width = get_patch_output_size(image, best, input_data_format=ChannelDimension.LAST)
    canvas = np.zeros((*best, 3), np.uint8)
    top, left = (best[0] - inner_height) // 2, (best[1] - inner_width) // 2
    canvas[top : top + inner_height, left : left + inner_width] = resize(image, inner_height, inner_width, spec.resample)
    whole = resize(image, spec.edge or spec.height, spec.edge or spec.width, spec.resample)
    tiles = [
        canvas[row : row + spec.height, column : column + spec.width]
        for row in range(0, best[0], spec.height)
        for column in range(0, best[1], spec.width)
    ]
    return pixels([whole, *tiles], spec), (height, width)
