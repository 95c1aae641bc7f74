"""Keys and values in 8 and 4 bits: they stand for what was stored, stay in the budget, and are continued to the last digit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import run
from tiny import MODELS, llama, qwen2_5_vl, random_ids

from edgemllm import policies, session_file
from edgemllm.cache.attention import NAME
from edgemllm.cache.bits import KVBits, dequantise, quantise
from edgemllm.cache.layer import CacheLayer
from edgemllm.errors import UsageError
from edgemllm.models.finders import key_channels
from edgemllm.session import Session

pytestmark = pytest.mark.usefixtures("inference")
FEWER = ("8", "4", "k8v4")
fewer = pytest.mark.parametrize("bits", FEWER)
every_family = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
BOUNDED = [name for name in policies.names() if policies.build(name).bounded]
SMALL = {"inf-mllm": ["window=8"], "snapkv": ["window=8"], "pyramidkv": ["window=8"], "edge": ["recent=0.5"]}


def session(make, bits: str, policy: str = "inf-mllm", budget: int | None = 48) -> Session:
    tiny = make().use(NAME)
    chunk = max(16, tiny.family.sizes(tiny.model.config).indivisible)
    chosen = policies.build(policy, SMALL.get(policy, []))
    return Session(tiny.family, chosen, budget, chunk, bits=KVBits.parse(bits))


def feed(into: Session, count: int, seed: int = 1) -> torch.Tensor:
    return into.feed(into.family.text(random_ids(count, seed)[0].tolist(), into.position))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [16, 48, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_is_off_by_at_most_half_a_step(bits: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = torch.randn(1, 2, 30, width, dtype=dtype) * 3
    codes, scales = quantise(rows, bits)
    assert codes.shape[-1] * 8 == width * bits
    step = (rows.amax(-1) - rows.amin(-1)).max().float() / (2**bits - 1)
    off = (dequantise(codes, scales, bits, dtype).float() - rows.float()).abs().max()
    assert off <= 0.51 * step + 16 * torch.finfo(dtype).eps


@every_family
def test_attention_computes_with_what_the_codes_stand_for(make, monkeypatch) -> None:
    mine, reference = session(make, "4", "h2o"), session(make, "16", "h2o")
    check_against_rounded(mine, reference, "4", monkeypatch)


@fewer
def test_a_cache_without_bound_computes_with_what_the_codes_stand_for(bits: str, monkeypatch) -> None:
    check_against_rounded(session(llama, bits, "full", None), session(llama, "16", "full", None), bits, monkeypatch)


def check_against_rounded(mine: Session, reference: Session, bits: str, monkeypatch) -> None:
    """Compare with a cache that holds in full precision what the codes stand for."""
    channels = dict(zip(map(id, reference.cache.with_slots), key_channels(reference.family), strict=True))
    got, update, asked = feed(mine, 90), CacheLayer.update, KVBits.parse(bits)

    def rounded(layer, keys, values, *args, **kwargs):
        even = channels[id(layer)] if asked.keys == 4 else None
        keys = even.evened(keys) if even else keys
        keys = dequantise(*quantise(keys, asked.keys), asked.keys, keys.dtype)
        values = dequantise(*quantise(values, asked.values), asked.values, values.dtype)
        return update(layer, even.restored(keys) if even else keys, values, *args, **kwargs)

    monkeypatch.setattr(CacheLayer, "update", rounded)
    torch.testing.assert_close(got, feed(reference, 90), atol=2e-4, rtol=1e-3)


@every_family
def test_the_budget_is_known_to_the_byte_and_a_saved_stream_continues(make, tmp_path: Path) -> None:
    first, resumed = session(make, "4"), session(make, "4")
    feed(first, 130)
    kv = first.kv()
    assert kv["bytes"] == kv["budget_bytes"] < session(make, "16").kv()["budget_bytes"]
    assert kv["bits"] == 4
    session_file.save(first, tmp_path / "state.edge")
    session_file.load(resumed, tmp_path / "state.edge")
    for size, seed in ((1, 2), (40, 3)):
        torch.testing.assert_close(feed(resumed, size, seed), feed(first, size, seed), rtol=0, atol=0)


@fewer
@pytest.mark.parametrize("name", BOUNDED)
def test_no_policy_exceeds_its_budget_or_moves_its_storage(name: str, bits: str) -> None:
    stream = session(qwen2_5_vl, bits, name, 64)
    seen = set()
    for seed in range(8):
        assert feed(stream, 16, seed).isfinite().all()
        places = tuple(layer.slots.tensors["keys"].data_ptr() for layer in stream.cache.with_slots)
        seen.add((stream.cache.nbytes, places))
        assert stream.cache.nbytes <= (stream.kv()["budget_bytes"] or 0)
    assert len(seen) <= (2 if stream.policy.uneven else 1), "slots were allocated again"


def test_a_session_of_other_bits_is_refused_by_name(tmp_path: Path) -> None:
    saved = session(llama, "4")
    feed(saved, 20)
    session_file.save(saved, tmp_path / "state.edge")
    with pytest.raises(UsageError, match="kv_bits 4, this session has k8v4") as found:
        session_file.load(session(llama, "k8v4"), tmp_path / "state.edge")
    assert "--kv-bits" in str(found.value.hint)


@pytest.mark.parametrize("text", ["3", "k8", "8v4", "", "k2v4", "sixteen"])
def test_other_words_are_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(UsageError, match="--kv-bits") as found:
        KVBits.parse(text)
    assert "k8v4" in str(found.value.hint)


def test_the_demo_answers_with_fewer_bits_and_the_plan_counts_them() -> None:
    lecture = "edgemllm/assets/demo/lecture.mp4"
    asked = run("chat", "--video", lecture, "--kv-bits", "8", "--json", "What number was with the red square?")
    found = json.loads(asked.stdout)
    assert (found["turns"][0]["answer"], found["kv"]["bits"]) == ("5", 8)
    assert found["kv"]["bytes"] <= found["kv"]["budget_bytes"]
    sizes = [
        json.loads(run("plan", "-m", "qwen2.5-vl-3b", "-p", "agx-orin-64gb", "--kv-bits", bits, "--json").stdout)
        for bits in ("16", "8", "4")
    ]
    whole, half, quarter = (size["kv_bytes_per_token"] for size in sizes)
    assert 1.75 < whole / half < 2
    assert 3 < whole / quarter < 4
