"""Still images cut into tiles of one size, equal to transformers' own processors of InternVL and Idefics3 / SmolVLM."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from edgemllm.media.frame import Pixels
from edgemllm.models.vision.pixels import PixelSpec, pixels, resize


def best_grid(image: Pixels, spec: PixelSpec, most: int, least: int = 1) -> Tensor:
    """Cut to InternVL's grid of `least` to `most` tiles nearest in shape, then the whole: (tiles + 1, 3, height, width).

    An image of one tile has no second picture of the whole.
    """
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    columns, rows = get_optimal_tiled_canvas(image.shape[:2], (spec.height, spec.width), least, most)
    large = resize(image, rows * spec.height, columns * spec.width, spec.resample)
    parts = cut(large, spec.height, spec.width)
    return pixels([*parts, image] if len(parts) > 1 else parts, spec)


def split(image: Pixels, spec: PixelSpec, longest: int) -> tuple[Tensor, int, int]:
    """Scale to a longest side of `longest`, cut into squares, then the whole, as Idefics3 does; with the rows and columns.

    0 rows and columns where the image is one square by itself.
    """
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    height, width = get_resize_output_image_size(image.transpose(2, 0, 1), longest)
    side, resample = spec.height, spec.resample
    scaled = resize(image, height, width, resample)
    shape = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / shape) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * shape) / side) * side
    scaled = resize(scaled, height, width, resample)
    if height <= side and width <= side:
        return pixels([scaled], spec), 0, 0
    return pixels([*cut(scaled, side, side), scaled], spec), height // side, width // side


def squares(frames: Sequence[Pixels], spec: PixelSpec, longest: int | None) -> Tensor:
    """Return SmolVLM's whole squares (n, 3, side, side) of video frames; like its processor in two steps, through `longest`."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    if longest is not None:
        sizes = [get_resize_output_image_size(frame.transpose(2, 0, 1), longest) for frame in frames]
        frames = [resize(frame, tall, wide, spec.resample) for frame, (tall, wide) in zip(frames, sizes, strict=True)]
    return pixels(frames, spec)


def cut(image: Pixels, height: int, width: int) -> list[Pixels]:
    """Return the tiles of an image, row by row."""
    rows, columns = range(0, image.shape[0], height), range(0, image.shape[1], width)
    return [image[row : row + height, column : column + width] for row in rows for column in columns]
