"""Keys and values in 8 and 4 bits: they stand for what was stored, stay in the budget, and are continued to the last digit."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from command import run
from tape import taped  # noqa: F401
from test_bench import agree
from tiny import MODELS, Tiny, llama, qwen2_5_vl, random_ids

from edgemllm import policies, session_file
from edgemllm.cache import block_attention, compiled_attention
from edgemllm.cache.attention import NAME
from edgemllm.cache.bits import KVBits, dequantise, quantise
from edgemllm.cache.block_attention import BlockAttention
from edgemllm.cache.kv_store import KVStore
from edgemllm.errors import UsageError
from edgemllm.media.video import Video
from edgemllm.models.channels import channels
from edgemllm.models.loading import DEMO, load, locate
from edgemllm.session import Session

pytestmark = pytest.mark.usefixtures("inference")
FEWER = ("8", "4", "k8v4")
fewer = pytest.mark.parametrize("bits", FEWER)
every_family = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
BOUNDED = [name for name in policies.names() if policies.build(name).bounded]
SMALL = {"inf-mllm": ["window=8"], "snapkv": ["window=8"], "pyramidkv": ["window=8"], "edge": ["recent=0.5"]}


@functools.cache
def placed(make, device: str, dtype: torch.dtype) -> Tiny:
    """A model made once: what its channels look like is found out once too."""
    tiny = make().use(NAME)
    tiny.model.to(device, dtype)
    return tiny


def session(
    make, bits: str, policy: str = "inf-mllm", budget: int | None = 48, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Session:
    tiny = placed(make, device, dtype)
    chunk = max(16, tiny.family.sizes(tiny.model.config).indivisible)
    chosen = policies.build(policy, SMALL.get(policy, []))
    return Session(tiny.family, chosen, budget, chunk, bits=KVBits.parse(bits))


def feed(into: Session, count: int, seed: int = 1) -> torch.Tensor:
    return into.feed(into.family.text(random_ids(count, seed)[0].tolist(), into.position))


def coded_by(way):
    """What is put in the place of `attention.coded`: one way of reading codes."""
    return lambda layer, query: way(layer) if query.shape[2] == 1 else None


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


@pytest.mark.parametrize(("make", "bits"), [*((make, "4") for make in MODELS), (llama, "8"), (llama, "k8v4")])
def test_a_slot_is_what_came_or_what_its_code_stands_for(make, bits: str, monkeypatch) -> None:
    """Whatever was evicted: the first and the newest slots as they came, every other one rounded, once."""
    stream, asked, came = session(make, bits, "h2o", 96), KVBits.parse(bits), {}
    append = KVStore.append

    def remembered(store, keys, values):
        for name, rows in (("keys", keys), ("values", values)):
            came[store, name] = torch.cat([*([came[store, name]] if (store, name) in came else []), rows], 2)
        append(store, keys, values)

    monkeypatch.setattr(KVStore, "append", remembered)
    for seed, count in enumerate((90, 1, 1, 1, 1, 1, 40, 1)):
        feed(stream, count, seed)
    for layer in stream.cache.managed:
        exact, length = layer.store.exact, layer.length
        assert length - exact.since(length) == 3, "one in 32 slots"
        for name in ("keys", "values"):
            tokens = layer.positions[0].long()[..., None]
            whole = came[layer.store, name].gather(2, tokens.expand(-1, -1, -1, came[layer.store, name].shape[-1]))
            even = layer.channels.get(name)
            rounded = dequantise(*quantise(even.evened(whole) if even else whole, asked.of(name)), asked.of(name), whole.dtype)
            rounded = even.restored(rounded) if even else rounded
            rounded[:, :, : exact.first(length)] = whole[:, :, : exact.first(length)]
            rounded[:, :, exact.since(length) :] = whole[:, :, exact.since(length) :]
            torch.testing.assert_close(layer.store.read(name), rounded, rtol=0, atol=0)
            torch.testing.assert_close(layer.store.read(name, slice(-9, None)), rounded[:, :, -9:], rtol=0, atol=0)


def test_pictures_are_rounded_as_finely_as_words() -> None:
    """Pictures lie elsewhere than words: evened by sentences alone, those of the demo were off several times as far."""
    family = load(locate(DEMO.name))
    stream = Session(family, policies.build("full"), None, 64)
    with Video.open(DEMO / "lecture.mp4", max_frames=60) as video:
        stream.watch(video)
    for layer, known in zip(stream.cache.managed, channels(family), strict=True):
        for rows, even in ((layer.unrotated_keys(), known["keys"]), (layer.values, known["values"])):
            off = even.restored(dequantise(*quantise(even.evened(rows), 4), 4, torch.float32)) - rows
            assert off.square().mean() < 0.03 * rows.var(2).mean()


@fewer
def test_wide_key_channels_cost_the_others_nothing(bits: str) -> None:
    """A pair that rotates together, wide in keys and narrow in queries, as many models have some: the products are the same."""

    def widened(times: float):
        tiny = llama()
        for layer in tiny.text.layers:
            for part, factor in ((layer.self_attn.k_proj, times), (layer.self_attn.q_proj, 1 / times)):
                heads = part.weight.view(-1, layer.self_attn.head_dim, part.in_features)
                heads *= 20  # random weights look everywhere alike, whatever keys say
                heads[:, [heads.shape[1] // 2 - 1, -1]] *= factor
        return tiny

    def error(times: float) -> float:
        found = []
        for each in ("16", bits):
            stream = session(lambda: widened(times), each, "full", None)
            feed(stream, 60)
            found.append(stream.step(7))
        return float((found[0] - found[1]).abs().max())

    assert error(100) <= 2 * error(1) + 1e-4


@pytest.mark.parametrize(
    ("make", "bits", "policy"),
    [
        *((make, "4", "h2o") for make in MODELS),
        *((llama, bits, name) for bits in FEWER for name in ("inf-mllm", "edge", "full")),
    ],
)
def test_a_token_is_decoded_from_codes_as_from_unpacked_ones(make, bits: str, policy: str, monkeypatch) -> None:
    pytest.importorskip("numba", reason="codes are unpacked where Numba is not installed")
    threads, found = torch.get_num_threads(), []
    monkeypatch.setattr(compiled_attention, "SLOTS_EACH", 16)  # in two parts
    monkeypatch.setattr(block_attention, "BLOCK", 25)
    try:
        torch.set_num_threads(2)
        for way in ({}, {"compiled_attention.loops": lambda name: None}, {"attention.coded": lambda layer, query: None}):
            stream = session(make, bits, policy, None if policy == "full" else 64)
            feed(stream, 90)
            with monkeypatch.context() as patch:
                for name, instead in way.items():
                    patch.setattr(f"edgemllm.cache.{name}", instead)
                found.append(torch.cat([stream.step(token) for token in range(1, 5)]))
    finally:
        torch.set_num_threads(threads)
    for each in found[:2]:
        torch.testing.assert_close(each, found[2], atol=2e-4, rtol=1e-3)


@pytest.mark.usefixtures("taped")
@pytest.mark.parametrize("policy", ["h2o", "random", "inf-mllm"])
def test_a_graph_reads_exact_slots_where_they_are_at_every_replay(policy: str, monkeypatch) -> None:
    """`random` evicts some of the newest slots at one compaction and keeps all of them at the next."""
    monkeypatch.setattr("edgemllm.cache.attention.coded", coded_by(BlockAttention))
    agree(llama(), policy, "cpu", torch.float32, bits="4")


@every_family
def test_the_budget_is_known_to_the_byte_and_a_saved_stream_continues(make, tmp_path: Path) -> None:
    first, resumed = session(make, "4"), session(make, "4")
    feed(first, 130)
    feed(first, 1, 4)
    kv = first.kv()
    assert kv["bytes"] == kv["budget_bytes"] < session(make, "16").kv()["budget_bytes"]
    assert kv["bits"] == 4
    assert kv["parts"].keys() == {"keys", "values", "scales", "notes"}
    assert sum(kv["parts"].values()) == kv["bytes"]
    assert kv["parts"]["scales"] > 0
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


def test_a_stream_of_fewer_bits_is_saved_after_an_answer_and_continued(tmp_path: Path) -> None:
    """In processes of their own: what a command does between two steps is not done in inference mode."""
    watch = ("stream", "edgemllm/assets/demo/lecture.mp4", "--kv-bits", "4", "--policy", "edge", "--kv-budget", "96", "--json")
    ask, saved = ("--at", "end", "What number was with the red square?"), str(tmp_path / "saved.edge")
    whole = json.loads(run(*watch, "--end", "40", *ask, "--save", saved).stdout)
    again = json.loads(run(*watch, *ask, "--resume", saved).stdout)
    assert [found["turns"][-1]["answer"] for found in (whole, again)] == ["5", "5"]
    assert again["kv"]["bits"] == 4


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
