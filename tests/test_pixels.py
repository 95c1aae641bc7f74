"""Pre-processing equals transformers' own.

Its video processor needs torchvision, which is not here; frame by frame it is the image processor's squash.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from edgemllm.inputs.pixels import PixelSpec, anyres, pixels

SIZES = [(48, 64), (64, 48), (31, 97), (200, 120), (64, 64), (720, 405)]
PINPOINTS = [[64, 64], [64, 128], [128, 64], [128, 128]]
SPEC = PixelSpec(64, 64)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_still_images_equal_transformers(height: int, width: int) -> None:
    processor = LlavaOnevisionImageProcessorPil(size={"height": 64, "width": 64}, image_grid_pinpoints=PINPOINTS)
    want = processor(picture(height, width), return_tensors="pt")
    tiles, size = anyres(picture(height, width), SPEC, PINPOINTS)
    assert size == tuple(want["image_sizes"][0].tolist())
    torch.testing.assert_close(tiles, want["pixel_values"][0].float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_frames_equal_transformers_squash(height: int, width: int) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(size={"height": 64, "width": 64}, resample=3)
    want = processor(picture(height, width), return_tensors="pt")["pixel_values"]
    spec = PixelSpec(64, 64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(pixels([picture(height, width)], spec), want.float(), atol=1e-6, rtol=0)


def test_the_files_of_a_checkpoint_are_read(tmp_path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 10, "width": 12}, "resample": 2}))
    assert PixelSpec.from_folder(tmp_path, "image").width == 12
    assert PixelSpec.from_folder(tmp_path, "video").resample == 2
    (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": {"size": {"shortest_edge": 32}}}))
    assert PixelSpec.from_folder(tmp_path, "video").height == 32
    assert PixelSpec.from_folder(tmp_path, "image").width == 12


def test_defaults_are_those_of_transformers() -> None:
    processor, spec = LlavaOnevisionImageProcessorPil(), PixelSpec.from_folder("nowhere")
    assert (processor.size["height"], processor.resample, tuple(processor.image_mean)) == (spec.height, spec.resample, spec.mean)
