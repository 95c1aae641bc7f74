"""MiniCPM-V 4.6 and 4.7 (https://github.com/OpenBMB/MiniCPM-V): a SigLIP tower, slices of a picture, and Qwen3.5's text model.

A picture is shown whole, and where it is large also in slices. 4.6 gives its tokens consecutive positions. 4.7 lays them out on
a canvas: height and width say where on the picture a token lies, whole and slices alike, and the markers stand at corners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.size import LayerSpec
from edgemllm.errors import UsageError
from edgemllm.media.detail import ANY, Detail
from edgemllm.media.frame import Frame
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.families.qwen3_5 import delta_net_layers
from edgemllm.models.spec import Sizes
from edgemllm.models.vision.pixels import processor_config

MERGE = {"16x": 4, "4x": 2}
"""Patches of a token along height and width, by the checkpoint's `downsample_mode`."""
SIDE, SLICES = 448, 9
"""Of a slice in pixels, and how many at most, where the checkpoint's files say nothing (transformers' defaults)."""
WHOLE = (1, 1)
"""The grid of a picture that is not sliced."""


class MiniCPMVFamily(ModelFamily):
    """MiniCPM-V checkpoints in transformers format."""

    model_types: ClassVar[tuple[str, ...]] = ("minicpmv4_6", "minicpmv4_7")
    text_types: ClassVar[tuple[str, ...]] = ("qwen3_5_text",)
    vision_types: ClassVar[tuple[str, ...]] = ("minicpmv4_6_vision", "minicpmv4_7_vision")
    vision_modules: ClassVar[tuple[str, ...]] = ("model.vision_tower", "model.merger")
    since: ClassVar[str] = "5.21"
    axes: ClassVar[int] = 3

    def setup(self) -> None:
        names = (("image_start", "<img>"), ("image_end", "</img>"), ("slice_start", "<slice>"), ("slice_end", "</slice>"))
        self.markers = [str(getattr(self.tokenizer, f"{name}_token", default)) for name, default in names]
        self.canvas = self.model.config.model_type == "minicpmv4_7"
        self.merge = MERGE[self.model.config.downsample_mode]

    @classmethod
    def layers(cls, text: Any) -> tuple[LayerSpec, ...]:
        return delta_net_layers(text)

    @classmethod
    def sizes(cls, config: Any, detail: Detail = ANY) -> Sizes:
        if detail != ANY:
            raise UsageError(
                f"{config.model_type} slices pictures as its checkpoint says: {detail} has no meaning",
                "omit it and lower --fps",
            )
        patch = int(config.vision_config.patch_size)
        side = SIDE / patch / MERGE[config.downsample_mode]
        each = math.ceil((side + 0.5) ** 2) + 3  # both sides may be rounded up; two markers and a newline
        tokens = (1 + SLICES) * each
        return Sizes(frame_tokens=tokens, image_tokens=tokens, patches=(1 + SLICES) * math.ceil((SIDE / patch + 2) ** 2))

    def label(self, number: int) -> str:
        if not processor_config(self.folder, "image").get("use_image_id", True):
            return ""
        opening = getattr(self.tokenizer, "image_id_start_token", "<image_id>")
        return f"{opening}{number}{getattr(self.tokenizer, 'image_id_end_token', '</image_id>')}"

    def image(self, frame: Frame, offset: int) -> Chunk:
        return self.picture(frame, offset, math.nan, self.image_spec)

    def frames(self, frames: Sequence[Frame], offset: int) -> Chunk:
        chunks: list[Chunk] = []
        for frame in frames:
            place = chunks[-1].next_position if chunks else offset
            chunks.append(self.picture(frame, place, frame.time, self.video_spec))
        return Chunk.join(chunks)

    def picture(self, frame: Frame, offset: int, time: float, processor: Any) -> Chunk:
        """Return a picture, whole and in slices, with the markers between."""
        found = processor(images=[frame.pixels], return_tensors="pt")
        sizes = torch.as_tensor(found["target_sizes"])
        rows, columns = found["grids"][0]
        opening, closing, begin, end = self.markers
        seen = self.model.model.get_image_features(self.upload(found["pixel_values"]), sizes.to(self.device)).pooler_output
        pieces: list[str | Tensor] = [opening, seen[0], closing]
        for number, slice_ in enumerate(seen[1:], 1):
            pieces += [begin, slice_, end]
            if number % columns == 0 and number < rows * columns:
                pieces.append("\n")
        chunk = self.compose(pieces, offset, time)
        if not self.canvas:
            return chunk
        grids = [(height, width) for height, width in (sizes // self.merge).tolist()]
        positions = on_canvas(grids, (rows, columns) if len(seen) > 1 else WHOLE, offset)[:, None]
        return replace(chunk, positions=positions.to(self.device), appends=False)

    def picture_spec(self, kind: str) -> Any:
        """Return transformers' own processor, as the checkpoint's files say for still images or for frames of a video."""
        from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

        found = processor_config(self.folder, kind)
        known = ("max_slice_nums", "scale_resolution", "slice_mode", "image_mean", "image_std", "rescale_factor", "resample")
        options = {name: found[name] for name in known if found.get(name) is not None}
        options |= {"patch_size": self.model.config.vision_config.patch_size}
        return MiniCPMV4_6ImageProcessorPil(downsample_mode=self.model.config.downsample_mode, **options)


def on_canvas(grids: Sequence[tuple[int, int]], cut: tuple[int, int], origin: int) -> Tensor:
    """Return the positions (3, q) of a picture and its markers: `grids` are the tokens of the whole and of each slice.

    `cut`: rows and columns of slices. Time stands still at `origin`. The opening marker stands just outside the canvas, the
    closing one at its far corner; the whole is stretched over the canvas that the slices tile.
    """
    rows, columns = cut
    height, width = grids[0] if len(grids) == 1 else (rows * grids[1][0], columns * grids[1][1])
    before = max(origin - 1, 0) - origin
    places = [torch.tensor([[before, before]]), _grid(grids[0], (height, width)), torch.tensor([[height, width]])]
    for number, grid in enumerate(grids[1:]):
        corner = torch.tensor([number // columns * grids[1][0], number % columns * grids[1][1]])
        last = corner + torch.tensor(grid) - 1
        places += [corner[None], _grid(grid, grid) + corner, last[None]]
        if (number + 1) % columns == 0 and number + 1 < rows * columns:
            places.append(torch.tensor([[(number // columns + 1) * grids[1][0] - 1, width]]))
    flat = torch.cat(places).T
    return torch.cat((torch.zeros_like(flat[:1]), flat)) + origin


def _grid(size: tuple[int, int], over: tuple[int, int]) -> Tensor:
    """Return (h * w, 2) rows and columns of a grid stretched over (height, width)."""
    rows, columns = (torch.linspace(0, most - 1, count).round().long() for count, most in zip(size, over, strict=True))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
