"""The seam with transformers: while nothing is evicted, our logits are the stock model's.

A transformers release that moves an assumption fails here, in the test that names it.
"""

from __future__ import annotations

import pytest
import torch
from tiny import IMAGE, MODELS, TEXT_MODELS, VIDEO, Tiny, llava, llava_onevision, qwen2_5_vl, qwen2_vl, random_ids

from edgemllm.cache.attention import NAME
from edgemllm.cache.chunk import Chunk, Modality
from edgemllm.policies.full import Full
from edgemllm.policies.inf_mllm import InfMLLM
from edgemllm.policies.streaming_llm import StreamingLLM

pytestmark = pytest.mark.usefixtures("inference")
SIZES = (100, 7, 1)
EXACT = {"atol": 2e-5, "rtol": 1e-4}


@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_text_equals_stock(make, size: int, positions: str) -> None:
    tiny, ids = make(), random_ids(40)
    want = tiny.stock(input_ids=ids)
    for policy, budget in ((Full(positions=positions), None), (StreamingLLM(positions=positions), 64)):
        torch.testing.assert_close(tiny.run(tiny.text_chunk(ids), size, policy, budget), want, **EXACT)


def vision_chunk(
    tiny: Tiny, ids: torch.Tensor, features: torch.Tensor, token: int, positions: torch.Tensor | None = None
) -> Chunk:
    """Text with vision features in the places of `token`."""
    chunk = tiny.text_chunk(ids)
    place = ids == token
    embeds = chunk.embeds.clone()
    embeds[place] = features
    return Chunk(
        embeds, chunk.positions if positions is None else positions, place.to(torch.uint8) * Modality.VISION, chunk.time
    )


def llava_case() -> tuple[Tiny, torch.Tensor, Chunk]:
    tiny, ids = llava(), random_ids(30)
    ids[0, 5:9] = IMAGE
    pixels = torch.randn(1, 3, 16, 16)
    want = tiny.stock(input_ids=ids, pixel_values=pixels)
    features = tiny.model.model.get_image_features(pixels, return_dict=True).pooler_output
    return tiny, want, vision_chunk(tiny, ids, torch.cat(list(features)), IMAGE)


def onevision_case() -> tuple[Tiny, torch.Tensor, Chunk]:
    tiny, ids = llava_onevision(), random_ids(40)
    ids[0, 5:18] = VIDEO
    pixels = torch.randn(1, 3, 3, 32, 32)
    want = tiny.stock(input_ids=ids, pixel_values_videos=pixels)
    features = tiny.model.model.get_video_features(pixels, return_dict=True).pooler_output.flatten(0, -2)[:12]
    features = torch.cat([features, tiny.model.model.image_newline[None]])  # newer transformers have appended it already
    return tiny, want, vision_chunk(tiny, ids, features, VIDEO)


def qwen_case(make) -> tuple[Tiny, torch.Tensor, Chunk]:
    """An image of 2 x 3 tokens and a video of 3 x 2 x 2."""
    tiny, ids = make(), random_ids(50)
    ids[0, 5], ids[0, 6:12], ids[0, 12] = 94, IMAGE, 93
    ids[0, 20], ids[0, 21:33], ids[0, 33] = 94, VIDEO, 93
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    grids = {"image_grid_thw": torch.tensor([[1, 4, 6]]), "video_grid_thw": torch.tensor([[3, 4, 4]])}
    image, video = torch.randn(24, 3 * 2 * 16), torch.randn(48, 3 * 2 * 16)
    timing = {"second_per_grid_ts": torch.tensor([1.0])} if tiny.step > 1 else {}
    want = tiny.stock(input_ids=ids, pixel_values=image, pixel_values_videos=video, mm_token_type_ids=kinds, **grids, **timing)
    inner = tiny.model.model
    positions, _ = inner.get_rope_index(ids, mm_token_type_ids=kinds, **grids, **timing)
    seen = inner.get_image_features(image, grids["image_grid_thw"], return_dict=True).pooler_output
    watched = inner.get_video_features(video, grids["video_grid_thw"], return_dict=True).pooler_output
    chunk = vision_chunk(tiny, ids, torch.cat(list(seen)), IMAGE, positions)
    chunk.embeds[ids == VIDEO] = torch.cat(list(watched))
    return tiny, want, chunk


CASES = {
    "llava": llava_case,
    "llava_onevision": onevision_case,
    "qwen2_vl": lambda: qwen_case(qwen2_vl),
    "qwen2_5_vl": lambda: qwen_case(qwen2_5_vl),
}


@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_vision_equals_stock(case: str, size: int, positions: str) -> None:
    torch.manual_seed(1)
    tiny, want, chunk = CASES[case]()
    torch.testing.assert_close(tiny.run(chunk, size, Full(positions=positions)), want, **EXACT)
    torch.testing.assert_close(tiny.run(chunk, size, InfMLLM(positions=positions), 100), want, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", TEXT_MODELS, ids=lambda make: make.__name__)
def test_half_precision_is_as_close_to_exact_as_the_stock_model(make, dtype: torch.dtype) -> None:
    tiny, ids = make(), random_ids(40)
    exact = tiny.stock(input_ids=ids)
    tiny.model.to(dtype)
    stock = (tiny.stock(input_ids=ids).float() - exact).abs().max()
    ours = (tiny.run(tiny.text_chunk(ids), 7, Full()).float() - exact).abs().max()
    assert ours <= 2 * stock + 1e-3


def test_our_attention_gets_no_mask_and_the_cache() -> None:
    """What the seam rests on: an unregistered mask means none, forward kwargs arrive, position 0 rotates nothing."""
    tiny = llama_with_spy()
    assert tiny.mask is None, "transformers now builds a mask for unregistered attention names"
    assert tiny.kv_cache is tiny.cache, "transformers no longer passes forward kwargs to the attention function"
    cos, sin = tiny.text.rotary_emb(torch.zeros(1), torch.zeros(1, 3, dtype=torch.long))
    assert bool((cos == 1).all()), "position 0 no longer means no rotation"
    assert bool((sin == 0).all())


def llama_with_spy() -> Tiny:
    from tiny import llama
    from transformers import AttentionInterface

    from edgemllm.cache import attention

    tiny = llama()

    def spy(module, query, key, value, attention_mask, **kwargs):
        tiny.mask, tiny.kv_cache = attention_mask, kwargs.get("kv_cache")
        return attention.attention(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(NAME, spy)
    try:
        tiny.run(tiny.text_chunk(random_ids(9)), 4, Full())
    finally:
        AttentionInterface.register(NAME, attention.attention)
    return tiny


def test_two_caches_on_one_model_do_not_touch_each_other() -> None:
    tiny, ids, other = MODELS[0](), random_ids(40), random_ids(40, seed=9)
    alone = tiny.run(tiny.text_chunk(ids), 8, StreamingLLM(), 20)
    from edgemllm.cache.attention import forward

    caches = [tiny.new_cache(StreamingLLM(), 20) for _ in range(2)]
    mixed = []
    for mine, theirs in zip(tiny.text_chunk(ids).split(8), tiny.text_chunk(other).split(8), strict=True):
        mixed.append(forward(tiny.text, caches[0], mine))
        forward(tiny.text, caches[1], theirs)
    torch.testing.assert_close(tiny.model.lm_head(torch.cat(mixed, 1)), alone, rtol=0, atol=0)
