"""Pictures of towers that tile or take any resolution equal what transformers' own processors make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgemllm.models.vision.patches import PatchSpec, patches
from edgemllm.models.vision.pixels import PixelSpec, anyres, pixels
from edgemllm.models.vision.pooled import PooledSpec, pooled
from edgemllm.models.vision.tiles import best_grid, split, squares

SIZES = [(48, 64), (64, 48), (31, 97), (200, 120), (64, 64), (33, 33)]
HALF = (0.5, 0.5, 0.5)
sizes = pytest.mark.parametrize(("height", "width"), SIZES)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((height, seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want.float(), atol=0, rtol=0)


@sizes
def test_gemma(height: int, width: int) -> None:
    want = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})(picture(height, width), return_tensors="pt")
    assert_same(pixels([picture(height, width)], PixelSpec(56, 56, HALF, HALF, resample=2)), want["pixel_values"])


@pytest.mark.parametrize(("height", "width"), [*SIZES, (20, 900), (700, 30)])
@pytest.mark.parametrize("tokens", [70, 280])
def test_gemma4(tmp_path: Path, height: int, width: int, tokens: int) -> None:
    """Its patches; and what the model of 12B takes, whose squares are the same pixels in another order."""
    processor = Gemma4ImageProcessorPil(max_soft_tokens=tokens)
    processor.save_pretrained(tmp_path)
    want = processor(picture(height, width), return_tensors="pt")
    count, places = 9 * int(want["num_soft_tokens_per_image"][0]), want["image_position_ids"][0]
    assert (places[count:] == -1).all()
    cells, where = pooled([picture(height, width)], PooledSpec(1120).from_folder(tmp_path, "image"))
    assert torch.equal(where, places[:count])
    assert_same(cells[0], want["pixel_values"][0, :count])
    columns, rows = (places[:count].amax(0) + 1).tolist()
    whole = cells.view(rows, columns, 16, 16, 3).transpose(1, 2).reshape(rows * 16, columns * 16, 3)
    squares, coarse = pooled([picture(height, width)], PooledSpec(tokens, whole=True))
    for square, (x, y) in zip(squares[0], (48 * coarse).tolist(), strict=True):
        assert_same(square.view(48, 48, 3), whole[y : y + 48, x : x + 48])


@sizes
@pytest.mark.parametrize("most", [1, 4, 12])
def test_internvl(height: int, width: int, most: int) -> None:
    processor = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=most)
    want = processor(picture(height, width), return_tensors="pt")["pixel_values"]
    assert_same(best_grid(picture(height, width), PixelSpec(28, 28), most), want)


@sizes
@pytest.mark.parametrize("processor_class", [Idefics3ImageProcessorPil, SmolVLMImageProcessorPil])
def test_idefics_and_smolvlm(processor_class: type, height: int, width: int) -> None:
    processor = processor_class(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})
    want = processor(picture(height, width), return_tensors="pt", return_row_col_info=True)
    spec = PixelSpec(32, 32, HALF, HALF, resample=1)
    batch, rows, columns = split(picture(height, width), spec, 96)
    assert ([[rows]], [[columns]]) == (want["rows"], want["cols"])
    assert_same(batch, want["pixel_values"][0])
    # A frame of a video is what the image processor makes of a picture that it does not cut.
    whole = processor(picture(height, width), return_tensors="pt", do_image_splitting=False)["pixel_values"][0]
    assert_same(squares([picture(height, width)], spec, 96), whole)


@sizes
def test_llava_next(tmp_path: Path, height: int, width: int) -> None:
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
    )
    processor.save_pretrained(tmp_path)
    want = processor(picture(height, width), return_tensors="pt")
    tiles, size = anyres(picture(height, width), PixelSpec.from_folder(tmp_path, "image"), pinpoints)
    assert size == tuple(want["image_sizes"][0].tolist())
    assert_same(tiles, want["pixel_values"][0])


@sizes
def test_qwen(tmp_path: Path, height: int, width: int) -> None:
    """An image; and a pair of frames, each of which has to be what it is as an image."""
    processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 2, max_pixels=28 * 28 * 6)
    processor.save_pretrained(tmp_path)
    spec = PatchSpec(1, 10**6).from_folder(tmp_path, "image")
    frames = [picture(height, width, seed) for seed in (1, 2)]
    stills = []
    for frame in frames:
        want = processor(frame, return_tensors="pt")
        flat, grid = patches([frame], spec)
        assert torch.tensor([grid]).equal(want["image_grid_thw"])
        assert_same(flat, want["pixel_values"])
        stills.append(flat.view(len(flat), 3, 2, -1))
    pair, _ = patches(frames, spec)
    both = pair.view(len(pair), 3, 2, -1)
    assert_same(both[:, :, 0], stills[0][:, :, 0])
    assert_same(both[:, :, 1], stills[1][:, :, 1])


def test_an_odd_frame_at_the_end_is_doubled_and_limits_hold() -> None:
    spec = PatchSpec(28 * 28, 28 * 28 * 4)
    flat, grid = patches([picture(90, 70, seed) for seed in range(3)], spec)
    assert grid[0] == 2
    last = flat.view(2, -1, 3, 2, 14 * 14)[1]
    assert_same(last[:, :, 0], last[:, :, 1])
    assert grid[1] * grid[2] <= 4 * 4
