"""Triton's kernels against what codes stand for; run by test_fused.py, in a process in which Triton interprets them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import unpacked
from test_fused import close, decoded
from test_peaks import Peak, grouped
from tiny import gpt_neox, llama, random_ids

from edgemllm import policies
from edgemllm.cache import fused_kernels
from edgemllm.cache.attention import NAME, forward
from edgemllm.cache.bits import Channels, KVBits, quantise
from edgemllm.cache.block_attention import BlockAttention
from edgemllm.cache.fused_attention import FusedAttention
from edgemllm.cache.kv_cache import KVCache
from edgemllm.models.spec import ModelSpec
from edgemllm.planning.peaks import activation_bytes

pytestmark = pytest.mark.usefixtures("inference")
LENGTH, CAPACITY = 75, 80
START, STOP = 1, 68
"""A whole block of a kernel and a part of one; the slots around them are exact."""


@pytest.fixture(autouse=True)
def without_falling_back() -> Iterator[None]:
    """An error in a kernel, or in what launches it, is one here."""
    yield
    assert FusedAttention.works


@pytest.mark.parametrize(
    ("bits", "width", "batch", "kv_heads", "group", "turned", "each", "evened"),
    [
        (8, 64, 1, 1, 4, 64, False, False),
        (4, 64, 1, 2, 1, 64, True, True),
        (8, 80, 2, 1, 3, 32, False, False),
        (4, 80, 2, 2, 3, 40, True, True),
        (4, 96, 1, 1, 2, 0, False, True),
        (8, 128, 1, 2, 2, 128, True, True),
        (4, 128, 1, 1, 7, 32, False, True),
        (8, 192, 1, 1, 1, 0, False, False),
        (4, 256, 1, 1, 2, 256, False, False),
        (4, 32, 1, 3, 2, 16, True, False),
    ],
)
def test_keys_are_unpacked_evened_rotated_and_multiplied(
    bits: int, width: int, batch: int, kv_heads: int, group: int, turned: int, each: bool, evened: bool
) -> None:
    """`turned` channels of a head are rotated, by angles of `each` head or of all."""
    torch.manual_seed(0)
    rows, query = torch.randn(batch, kv_heads, CAPACITY, width) * 3 + 1, torch.randn(batch * kv_heads, group, width)
    channels = Channels.of(rows[:1].bfloat16()) if evened else None
    codes, scales = quantise(channels.evened(rows) if channels else rows, bits)
    even = (channels.width, channels.mean) if channels else (None, None)
    angles = torch.rand(*((batch, kv_heads) if each else (1, 1)), LENGTH, turned // 2) * 6
    given = codes, scales, *even, angles.cos(), angles.sin(), query
    wanted, out = (torch.full((batch * kv_heads, group, LENGTH), torch.nan) for _ in range(2))
    unpacked.scores(*given, wanted, START, STOP)
    fused_kernels.scores(*given, out, START, STOP)
    largest = float(wanted[:, :, START:STOP].abs().max())
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5 * largest, equal_nan=True)


@pytest.mark.parametrize(
    ("bits", "width", "batch", "kv_heads", "group"),
    [
        (8, 64, 1, 1, 4),
        (4, 64, 1, 2, 1),
        (8, 80, 2, 2, 3),
        (4, 96, 2, 1, 2),
        (4, 128, 1, 1, 7),
        (8, 192, 1, 1, 2),
        (4, 256, 1, 1, 1),
    ],
)
def test_values_are_unpacked_and_added_up(bits: int, width: int, batch: int, kv_heads: int, group: int) -> None:
    torch.manual_seed(0)
    codes, scales = quantise(torch.randn(batch, kv_heads, CAPACITY, width) + 1, bits)
    weights = torch.randn(batch * kv_heads, group, LENGTH).softmax(-1)
    for start, stop in ((START, STOP), (3, 3)):
        found = fused_kernels.weighted(codes, scales, weights, width, start, stop)
        torch.testing.assert_close(found, unpacked.weighted(codes, scales, weights, width, start, stop), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "bits", "dtype"),
    [
        (llama, "8", torch.bfloat16),
        (llama, "k8v4", torch.float32),
        (gpt_neox, "4", torch.float32),
    ],
)
def test_a_token_is_decoded_as_in_blocks(make, bits: str, dtype: torch.dtype, monkeypatch) -> None:
    found = [decoded(make, bits, way, monkeypatch, dtype=dtype, count=1) for way in (FusedAttention, BlockAttention)]
    close(*found, dtype)


@pytest.mark.parametrize(
    ("heads", "policy", "bits"), [((12, 2), "h2o", "8"), ((8, 8), "inf-mllm", "4"), ((8, 8), "streaming-llm", "8")]
)
def test_a_token_takes_what_the_plan_allows_for_a_chunk(heads: tuple[int, int], policy: str, bits: str, monkeypatch) -> None:
    """Scores, weights, angles and partial sums are less than the keys and values that a prefill unpacks.

    What kernels write is made before they are launched, and takes as much if they are not.
    """
    tiny, chosen = grouped(*heads).use(NAME), policies.build(policy)
    tiny.model.bfloat16()
    cache = KVCache(chosen, tiny.family.rope, [1024] * 2, chunk=16, bits=KVBits.parse(bits))
    for part in tiny.text_chunk(random_ids(1100)).split(16):
        forward(tiny.text, cache, part)
    there = [each for layer in cache.layers for part in (layer.slots, layer.store.exact) for each in part.tensors.values()]
    there += [layer.queries for layer in cache.layers if layer.queries is not None]
    monkeypatch.setattr("edgemllm.cache.attention.coded", lambda layer, query: FusedAttention(layer))
    monkeypatch.setattr("edgemllm.cache.attention.straight", lambda model: None)
    monkeypatch.setattr(fused_kernels, "_launch", lambda *given, **shape: None)
    with Peak(tiny.model, there) as peak:
        forward(tiny.text, cache, tiny.text_chunk(random_ids(1), 1100))
    spec, length = ModelSpec.from_config(tiny.model.config), cache.layers[0].length
    assert peak.bytes <= activation_bytes(spec, "none", "bfloat16", 16, length, chosen.scratch)
