"""The seam with transformers: while nothing is evicted, our logits are the stock model's.

A transformers release that moves an assumption fails here, in the test that names it.
"""

from __future__ import annotations

import pytest
import torch
from media import both, footage, picture
from tiny import MODELS, TEXT_MODELS, VISION_MODELS, Tiny, qwen3, random_ids

from edgemllm.cache import attention, kernels
from edgemllm.cache.attention import NAME
from edgemllm.cache.policy import CachePolicy
from edgemllm.cache.straight import straight
from edgemllm.policies.edge import Edge
from edgemllm.policies.full import Full
from edgemllm.policies.h2o import H2O
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


def test_tokens_take_the_short_way_through_models_of_llamas_shape() -> None:
    short = {make.__name__ for make in MODELS if straight(make().text) is not None}
    assert short >= {"llama", "mistral", "qwen2", "qwen3", "smollm3", "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"}
    assert "yarn_llama" in short
    assert not short & {"gpt_neox", "gemma3_text", "gemma4_text", "qwen3_5_text"}


@pytest.mark.parametrize("policy", [InfMLLM(), StreamingLLM(), H2O(), Edge()], ids=lambda policy: type(policy).__name__)
def test_a_policy_sees_the_same_on_the_short_way(monkeypatch: pytest.MonkeyPatch, policy: CachePolicy) -> None:
    tiny, ids = qwen3(), random_ids(60)
    short = tiny.run(tiny.text_chunk(ids), 1, policy, 40)
    kept = [layer.positions for layer in tiny.cache.with_slots]
    monkeypatch.setattr(attention, "straight", lambda text_model: None)
    torch.testing.assert_close(tiny.run(tiny.text_chunk(ids), 1, policy, 40), short, **EXACT)
    torch.testing.assert_close([layer.positions for layer in tiny.cache.with_slots], kept)


CASES = {
    "image": (picture(1), []),
    "video": (None, footage(4)),
    "both": (picture(1, 40, 24), footage(3)),
}


@pytest.mark.parametrize("positions", ["cache", "original"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("make", VISION_MODELS, ids=lambda make: make.__name__)
def test_vision_equals_stock(make, case: str, positions: str) -> None:
    tiny = make()
    image, frames = CASES[case]
    if frames and tiny.family.video_token is None:
        pytest.skip("takes no video")
    want, chunk = both(tiny, image, frames)
    alone = tiny.family.video_token is None
    for size in SIZES if case == "both" or alone else SIZES[:2]:  # token by token, the longest, where all there is comes
        torch.testing.assert_close(tiny.run(chunk, size, Full(positions=positions)), want, **EXACT)
        torch.testing.assert_close(tiny.run(chunk, size, InfMLLM(positions=positions), len(chunk) + 16), want, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", TEXT_MODELS, ids=lambda make: make.__name__)
def test_half_precision_is_as_close_to_exact_as_the_stock_model(make, dtype: torch.dtype) -> None:
    tiny, ids = make(), random_ids(40)
    exact = tiny.stock(input_ids=ids)
    tiny.model.to(dtype)
    stock = (tiny.stock(input_ids=ids).float() - exact).abs().max()
    ours = (tiny.run(tiny.text_chunk(ids), 7, Full()).float() - exact).abs().max()
    assert ours <= 2 * stock + 1e-3


@pytest.mark.parametrize("make", VISION_MODELS, ids=lambda make: make.__name__)
def test_half_precision_with_pictures_is_as_close_to_exact_as_the_stock_model(make) -> None:
    tiny = make()
    image, frames = CASES["both" if tiny.family.video_token is not None else "image"]
    exact, _ = both(tiny, image, frames)
    tiny.model.to(torch.bfloat16)
    stock, chunk = both(tiny, image, frames)
    ours = tiny.run(chunk, 7, Full())
    assert (ours.float() - exact).abs().max() <= 2 * (stock.float() - exact).abs().max() + 1e-3


@pytest.mark.parametrize("fused", [True, False], ids=["two-calls", "mask"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_a_chunk_behind_others_attends_like_the_last_rows_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, fused: bool, heads: int, kv_heads: int
) -> None:
    if not fused:  # a torch without the operator
        monkeypatch.setattr(kernels, "CPU_FLASH", None)
    elif kernels.CPU_FLASH is None:
        pytest.skip("this torch has no flash attention for CPUs that can be called alone")
    torch.manual_seed(0)
    query = torch.randn(1, heads, 50, 16)
    key, value = torch.randn(2, 1, kv_heads, 50, 16)
    whole = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    for count in (2, 17, 49):
        chunk = kernels.attend(query[:, :, -count:], key, value, None, 0.3)
        torch.testing.assert_close(chunk, whole[:, :, -count:], atol=1e-6, rtol=1e-5)


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

    tiny = llama()

    def spy(module, query, key, value, attention_mask, **kwargs):
        tiny.mask, tiny.kv_cache = attention_mask, kwargs.get("kv_cache")
        return attention.attention(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(NAME, spy)
    try:
        tiny.run(tiny.text_chunk(random_ids(8)), 4, Full())
    finally:
        AttentionInterface.register(NAME, attention.attention)
    return tiny


def test_two_caches_on_one_model_do_not_touch_each_other() -> None:
    tiny, ids, other = MODELS[0](), random_ids(40), random_ids(40, seed=9)
    alone = tiny.run(tiny.text_chunk(ids), 8, StreamingLLM(), 20)
    from edgemllm.cache.attention import forward

    caches = [tiny.new_cache(StreamingLLM(), 20, 8) for _ in range(2)]
    mixed = []
    for mine, theirs in zip(tiny.text_chunk(ids).split(8), tiny.text_chunk(other).split(8), strict=True):
        mixed.append(forward(tiny.text, caches[0], mine))
        forward(tiny.text, caches[1], theirs)
    torch.testing.assert_close(tiny.family.logits(torch.cat(mixed, 1)), alone, rtol=0, atol=0)
