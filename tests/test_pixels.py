"""Pre-processing equals transformers' own, bit for bit.

Its video processors need torchvision, which is not a dependency; with the same settings they do to each frame what the
image processor does to an image (up to torchvision's own rounding when it resizes), so frames are compared with that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from edgemllm.errors import MissingError
from edgemllm.models.vision.pixels import PixelSpec, anyres, pixels

SIZES = [(48, 64), (64, 48), (31, 97), (200, 120), (64, 64), (720, 405), (33, 33), (9, 300)]
PINPOINTS = [[64, 64], [64, 128], [128, 64], [128, 128], [192, 64], [64, 192]]
SPEC = PixelSpec(64, 64)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want.float(), atol=0, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiled_still_images_equal_transformers(height: int, width: int) -> None:
    processor = LlavaOnevisionImageProcessorPil(size={"height": 64, "width": 64}, image_grid_pinpoints=PINPOINTS)
    want = processor(picture(height, width), return_tensors="pt")
    tiles, size = anyres(picture(height, width), SPEC, PINPOINTS)
    assert size == tuple(want["image_sizes"][0].tolist())
    assert_same(tiles, want["pixel_values"][0])


def test_the_released_grid_equals_transformers() -> None:
    processor = LlavaOnevisionImageProcessorPil()
    want = processor(picture(500, 1100), return_tensors="pt")["pixel_values"][0]
    tiles, _ = anyres(picture(500, 1100), PixelSpec.from_folder("nowhere", "image"), processor.image_grid_pinpoints)
    assert_same(tiles, want)


@pytest.mark.parametrize("processor_class", [SiglipImageProcessorPil, CLIPImageProcessorPil, LlavaImageProcessorPil])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_frames_equal_transformers(tmp_path: Path, processor_class: Any, height: int, width: int) -> None:
    """The spec is read from the files that the processor itself saves."""
    processor = processor_class()
    processor.save_pretrained(tmp_path)
    want = processor(picture(height, width), return_tensors="pt")["pixel_values"]
    for kind in ("video", "image"):
        assert_same(pixels([picture(height, width)], PixelSpec.from_folder(tmp_path, kind)), want)


def test_frames_come_as_one_batch() -> None:
    frames = [picture(48, 64), picture(100, 64)]
    batch = pixels(frames, SPEC)
    assert batch.shape == (2, 3, 64, 64)
    assert_same(batch[1:], pixels(frames[1:], SPEC))


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
def test_resampling_follows_the_file(resample: int) -> None:
    processor = SiglipImageProcessorPil(size={"height": 64, "width": 64}, resample=resample)
    want = processor(picture(90, 120), return_tensors="pt")["pixel_values"]
    half = (0.5, 0.5, 0.5)
    assert_same(pixels([picture(90, 120)], PixelSpec(64, 64, mean=half, std=half, resample=resample)), want)


def test_the_files_of_a_checkpoint_are_read(tmp_path: Path) -> None:
    def write(name: str, content: dict[str, Any]) -> None:
        (tmp_path / name).write_text(json.dumps(content))

    write("processor_config.json", {"image_processor": {"size": {"height": 8, "width": 9}}})
    assert PixelSpec.from_folder(tmp_path, "video").width == 9, "without a word on videos, frames are images"
    (tmp_path / "processor_config.json").unlink()
    write("preprocessor_config.json", {"size": {"height": 10, "width": 12}, "resample": 2, "image_mean": [0, 0, 0]})
    assert PixelSpec.from_folder(tmp_path, "image").width == 12
    assert PixelSpec.from_folder(tmp_path, "video").resample == 2
    write("video_preprocessor_config.json", {"size": {"height": 20, "width": 24}, "do_normalize": False})
    assert PixelSpec.from_folder(tmp_path, "video") == PixelSpec(20, 24, mean=(0, 0, 0), std=(1, 1, 1))
    write("processor_config.json", {"video_processor": {"size": {"shortest_edge": 32}}})
    assert PixelSpec.from_folder(tmp_path, "video") == PixelSpec(32, 32)
    assert PixelSpec.from_folder(tmp_path, "image").width == 12


def test_old_files_write_sizes_as_numbers(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": 32, "crop_size": 28, "do_center_crop": True}))
    assert PixelSpec.from_folder(tmp_path) == PixelSpec(28, 28, edge=32)
    file.write_text(json.dumps({"size": 32, "crop_size": 28, "do_center_crop": False}))
    assert PixelSpec.from_folder(tmp_path) == PixelSpec(32, 32)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"hei')
    with pytest.raises(MissingError, match=r"preprocessor_config\.json is not complete JSON"):
        PixelSpec.from_folder(tmp_path)


def test_defaults_are_those_of_transformers() -> None:
    processor, spec = LlavaOnevisionImageProcessorPil(), PixelSpec.from_folder("nowhere")
    assert (processor.size["height"], processor.size["width"]) == (spec.height, spec.width)
    assert (processor.resample, tuple(processor.image_mean), tuple(processor.image_std)) == (
        spec.resample,
        spec.mean,
        spec.std,
    )
