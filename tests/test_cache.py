"""The bounded cache: hard budget, what survives, exact bytes, and equality with masked full attention after eviction."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny import TEXT_MODELS, alternating, gemma4_text, lfm2, llama, qwen2, qwen2_vl, qwen3_5_text, random_ids

from edgemllm import policies
from edgemllm.cache.attention import NAME, forward
from edgemllm.cache.rope import renumber
from edgemllm.errors import OutOfMemoryError, UsageError
from edgemllm.policies.base import ALL, CachePolicy
from edgemllm.policies.edge import Edge
from edgemllm.policies.full import Full
from edgemllm.policies.inf_mllm import InfMLLM
from edgemllm.policies.streaming_llm import StreamingLLM
from edgemllm.policies.window import Window

pytestmark = pytest.mark.usefixtures("inference")
SMALL = {
    "inf-mllm": ["window=4", "sinks=2", "slack=2"],
    "snapkv": ["window=4"],
    "pyramidkv": ["window=4"],
    "infinipot-v": ["recent=4", "slack=2"],
    "edge": ["recent=0", "newest=4", "slack=2"],
}
BOUNDED = [name for name in policies.names() if policies.find(name).bounded]


def built(name: str) -> CachePolicy:
    return policies.build(name, SMALL.get(name, []))


@dataclass(frozen=True)
class Watching(CachePolicy):
    """Heavy hitters by accumulated attention: exercises `observe` over every query."""

    buffers: ClassVar[tuple[str, ...]] = ("mass",)

    observe_window: ClassVar[int] = ALL

    def observe(self, layer, attention) -> None:
        layer.buffer("mass").add_(attention.sum(2))

    def score(self, layer):
        score = layer.buffer("mass").clone()
        score[..., -4:] = torch.inf
        return score


def test_policies_are_discovered() -> None:
    assert {"full", "window", "streaming-llm", "inf-mllm"} <= set(policies.names())


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("name", BOUNDED)
def test_a_long_stream_stays_within_every_layers_budget(name: str, size: int) -> None:
    tiny, budgets = llama(), [16, 40, 24]
    tiny.use(NAME)
    policy = built(name)
    cache = tiny.new_cache(policy, budgets, size)
    bytes_seen, places, first_bytes = set(), set(), 0
    for part in tiny.text_chunk(random_ids(400 if size > 1 else 150)).split(size):
        assert forward(tiny.text, cache, part).isfinite().all()
        first_bytes = first_bytes or cache.nbytes
        bytes_seen.add(cache.nbytes)
        places.add(tuple(layer.keys.data_ptr() for layer in cache.layers))
        assert sum(layer.budget or 0 for layer in cache.layers) <= sum(budgets)
        for layer in cache.layers:
            live = layer.positions[0]
            assert layer.length <= (layer.budget or 0)
            assert (live.diff(dim=-1) > 0).all(), "temporal order is lost"
            assert (live[..., -1] == layer.counts.seen - 1).all(), "the newest token was evicted"
    assert max(bytes_seen) == first_bytes, "live bytes grew"
    # A policy that shares by what it has seen moves the slots once.
    assert len(places) <= (2 if policy.uneven else 1), "slots were allocated again"
    assert len(bytes_seen) <= len(places), "live bytes changed"


UNLIKE = [llama, gemma4_text, qwen3_5_text, lfm2]
"""Keys in every layer; keys that layers share, and windows; a constant state of two kinds."""
BYTES = [
    *((make, name) for make in UNLIKE for name in BOUNDED),
    *((make, alternating(BOUNDED, number)[0]) for number, make in enumerate(TEXT_MODELS) if make not in UNLIKE),
]


@pytest.mark.parametrize(("make", "name"), BYTES)
def test_bytes_are_known_beforehand(make, name: str) -> None:
    tiny, policy = make(), built(name)
    tiny.run(tiny.text_chunk(random_ids(60)), 8, policy, 32)
    spec = tiny.family.spec
    assert tiny.cache.total == len(spec.managed) * 32
    assert tiny.cache.nbytes == 32 * spec.token_bytes(policy) + spec.fixed_bytes(policy, chunk=8)


@pytest.mark.parametrize("name", BOUNDED)
def test_one_policy_object_serves_two_runs_bit_for_bit(name: str) -> None:
    tiny, policy, chunk = llama(), built(name), None
    chunk = tiny.text_chunk(random_ids(90))
    torch.testing.assert_close(tiny.run(chunk, 6, policy, 20), tiny.run(chunk, 6, policy, 20), rtol=0, atol=0)


def masked_reference(tiny, chunk, size: int, policy, budget: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Our logits after evictions, and full attention of the stock kind in which evicted tokens are masked.

    The reference keeps every token at its original position, so it needs a policy with `positions="original"`.
    """
    from transformers import AttentionInterface

    tiny.use(NAME)
    cache = tiny.new_cache(policy, budget)
    layers = {number: getattr(layer, "source", layer) for number, layer in enumerate(cache.layers)}
    read = {number: layer for number, layer in layers.items() if layer in cache.with_slots}
    got, visible = [], []
    for part in chunk.split(size):
        got.append(forward(tiny.text, cache, part))
        visible.append({number: layer.positions[0, 0].clone() for number, layer in read.items()})  # room is made beforehand
    total = len(chunk)
    kv_heads = cache.managed[0].keys.shape[1]
    windows = [shape.window or total for shape in tiny.family.spec.layers]
    masks = {number: torch.zeros(kv_heads, total, total, dtype=torch.bool) for number in visible[0]}
    for step, part in enumerate(visible):
        rows = range(step * size, min((step + 1) * size, total))
        for number, kept in part.items():
            for head in range(kv_heads):
                for row in rows:
                    distance = row - kept[head]
                    seen = kept[head][(distance >= 0) & (distance < windows[number])].long()
                    masks[number][head, row, seen] = True

    def eager(module, query, key, value, mask, scaling=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        allowed = masks[module.layer_idx].repeat_interleave(groups, 0)[None]
        scores = query @ key.repeat_interleave(groups, 1).mT * scaling
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2), None

    AttentionInterface.register("reference", eager)
    tiny.use("reference")
    positions = chunk.positions if tiny.family.rope.axes > 1 else chunk.positions[0]
    more = {} if chunk.tokens is None else {"per_layer_inputs": tiny.text.get_per_layer_inputs(chunk.tokens)}
    want = tiny.text(inputs_embeds=chunk.embeds, position_ids=positions, use_cache=False, **more).last_hidden_state
    return torch.cat(got, 1), want


ORIGINAL = {
    "window": Window(positions="original"),
    "streaming-llm": StreamingLLM(positions="original"),
    "inf-mllm": InfMLLM(positions="original", window=4, sinks=2),
    "inf-mllm per head": InfMLLM(positions="original", window=4, shared_heads=False),
    "observing": Watching(positions="original"),
}
MASKED = [
    (make, policy, alternating([1, 5], row + column)[0])
    for row, make in enumerate([llama, qwen2, qwen2_vl, qwen3_5_text, gemma4_text])
    for column, policy in enumerate(ORIGINAL)
]
"""Every model under every policy, with single tokens and chunks in a chequered pattern."""


@pytest.mark.parametrize(("make", "policy", "size"), MASKED)
def test_after_eviction_equals_masked_full_attention(make, policy: str, size: int) -> None:
    tiny = make()
    got, want = masked_reference(tiny, tiny.text_chunk(random_ids(60)), size, ORIGINAL[policy], 20)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_renumbered_cache_equals_a_fresh_prompt_of_the_survivors_in_one_layer() -> None:
    """In the first layer keys do not depend on the past, so sinks + window renumbered = that text alone."""
    tiny = llama()
    tiny.model.model.layers = tiny.model.model.layers[:1]
    tiny.model.config.num_hidden_layers = 1
    ids = random_ids(50)
    got = tiny.run(tiny.text_chunk(ids), 1, StreamingLLM(sinks=4), [16])
    kept = torch.cat([ids[:, :4], ids[:, -12:]], 1)
    torch.testing.assert_close(got[:, -1], tiny.stock(input_ids=kept)[:, -1], atol=2e-5, rtol=1e-4)


def test_streaming_llm_keeps_exactly_sinks_and_window() -> None:
    tiny = llama()
    tiny.run(tiny.text_chunk(random_ids(100)), 1, StreamingLLM(), 32)
    assert tiny.cache.layers[2].positions[0, 0, 0].tolist() == [0, 1, 2, 3, *range(72, 100)]
    tiny.run(tiny.text_chunk(random_ids(100)), 1, Window(), 32)
    assert tiny.cache.layers[2].positions[0, 0, 0].tolist() == [*range(68, 100)]


def test_attention_seen_by_a_policy_is_conserved() -> None:
    tiny = llama()
    tiny.run(tiny.text_chunk(random_ids(300)), 300, Watching(), 400)
    torch.testing.assert_close(tiny.cache.layers[1].buffer("mass").sum(-1), torch.full((1, 2), 300.0))


@pytest.mark.parametrize("window", [4, 16])
def test_window_attention_is_the_attention_of_the_latest_queries(window: int) -> None:
    """Recomputed from kept queries = watched while it happened, whatever the chunks were."""
    tiny, chunk = llama(), None
    chunk = tiny.text_chunk(random_ids(50))
    tiny.run(chunk, 7, InfMLLM(window=window), 100)
    recomputed = tiny.cache.layers[1].window_attention()

    @dataclass(frozen=True)
    class Last(CachePolicy):
        @property
        def observe_window(self) -> int:
            return window

        def observe(self, layer, attention) -> None:
            layer.stats["seen"] = attention

    tiny.run(chunk, 50, Last(), 100)
    torch.testing.assert_close(recomputed, tiny.cache.layers[1].stats["seen"], atol=1e-5, rtol=1e-4)


def test_inf_mllm_keeps_what_the_window_looks_at_and_the_recent() -> None:
    tiny, policy = llama(), InfMLLM(window=4, sinks=2, bias=0.0, recent=0.25, slack=1)
    cache = tiny.new_cache(policy, 40)
    tiny.use(NAME)
    parts = list(tiny.text_chunk(random_ids(48)).split(8))
    for part in parts[:5]:
        forward(tiny.text, cache, part)
    layer = cache.layers[1]
    attention = layer.window_attention().sum(2).mean(1)[0] / 4
    best = attention[2:30].topk(32 - 10 - 2).indices + 2
    forward(tiny.text, cache, parts[5])
    kept = layer.positions[0, 0, 0, :32].tolist()
    assert kept == sorted([0, 1, *best.tolist(), *range(30, 40)])


@pytest.mark.parametrize(("count", "rows"), [(3, 3), (9, 9), (30, 12)])
def test_window_prompt_scores_by_the_newest_prompts_queries_alone(count: int, rows: int) -> None:
    """Of one that is longer than what is kept by its last queries."""
    tiny, policy = llama(), InfMLLM(window="prompt", longest=12, sinks=2, bias=0.0, recent=0.1, slack=14)
    chunk = tiny.text_chunk(random_ids(60 + count))
    cache = tiny.new_cache(policy, 60 + count, 8)
    tiny.use(NAME)
    *before, prompt = chunk.split(60)
    for part in before[0].split(8):
        forward(tiny.text, cache, part)
    cache.begin_prompt()
    for part in prompt.split(8):
        forward(tiny.text, cache, part)
    layer = cache.layers[1]
    assert layer.queries is not None
    assert layer.queries.shape[2] == policy.query_window == 12
    attention = layer.window_attention()[:, :, -rows:].mean(2).mean(1)[0]
    newest = max(rows, round(0.1 * (60 + count)))
    best = attention[2 : 60 + count - newest].topk(46 + count - newest - 2).indices + 2
    policy.after_prefill(cache.managed)
    kept = layer.positions[0, 0, 0].tolist()
    assert kept == sorted([0, 1, *best.tolist(), *range(60 + count - newest, 60 + count)])


def test_a_large_bias_makes_inf_mllm_a_window_with_sinks() -> None:
    tiny = llama()
    tiny.run(tiny.text_chunk(random_ids(200)), 4, InfMLLM(window=4, sinks=4, bias=100.0, slack=1), 32)
    biased = tiny.cache.layers[0].positions[0, 0, 0].tolist()
    tiny.run(tiny.text_chunk(random_ids(200)), 4, StreamingLLM(), 32)
    assert biased == tiny.cache.layers[0].positions[0, 0, 0].tolist()


def test_heads_choose_together_or_alone() -> None:
    for shared in (True, False):
        tiny = llama()
        tiny.run(tiny.text_chunk(random_ids(200)), 8, InfMLLM(window=8, bias=0.0, shared_heads=shared), 64)
        heads = tiny.cache.layers[1].positions[0, 0, :, :56]
        assert bool((heads[0] == heads[1]).all()) is shared


def test_edge_keeps_the_same_words_in_all_layers_around_what_most_of_them_looked_at() -> None:
    tiny = llama()
    tiny.run(tiny.text_chunk(random_ids(60)), 60, Edge(), 60)
    first, *others = tiny.cache.managed
    for layer in (first, *others):
        layer.buffer("memory").uniform_(0, 0.1)[..., 20] = 0.2
    first.buffer("memory")[..., 40] = 1.0  # more than anything, and there alone
    for layer in others:
        layer.buffer("memory")[..., 40] = 0.0
    settings = {"recent": 0.0, "newest": 4, "sinks": 0, "span": 5, "slack": 1}
    newest = list(range(56, 60))
    assert Edge(**settings).choose(first, 9).flatten().tolist() == [18, 19, 20, 21, 22, *newest]
    assert Edge(**settings, shared_layers=False).choose(first, 9).flatten().tolist() == [38, 39, 40, 41, 42, *newest]
    tiny.run(tiny.text_chunk(random_ids(200)), 8, Edge(**settings), 64)
    kept = {tuple(layer.positions[0, 0, head].tolist()) for layer in tiny.cache.managed for head in range(layer.kv_heads)}
    assert len(kept) == 1
    with pytest.raises(UsageError, match="shared_layers=true") as refused:
        Edge(shared_heads=False)
    assert "shared_layers=false" in refused.value.hint


def test_full_with_a_budget_stops_where_it_ends() -> None:
    tiny = llama()
    with pytest.raises(OutOfMemoryError, match="never evicts"):
        tiny.run(tiny.text_chunk(random_ids(50)), 8, Full(), 32)


def test_full_without_a_budget_grows() -> None:
    tiny, ids = llama(), random_ids(1500)
    tiny.text.config.max_position_embeddings = 4096
    got = tiny.run(tiny.text_chunk(ids), 500, Full())
    assert tiny.cache.layers[0].length == 1500
    torch.testing.assert_close(got, tiny.stock(input_ids=ids), atol=5e-5, rtol=1e-4)


def test_renumbering_closes_gaps() -> None:
    text = torch.tensor([3, 9, 10, 50]).expand(1, 1, 2, 4)
    assert renumber(text)[0, 0, 0].tolist() == [0, 1, 2, 3]
    #                text | a 2x2 frame at 7    | text
    time = torch.tensor([2, 7, 7, 7, 7, 40])
    high = torch.tensor([2, 7, 7, 8, 8, 40])
    wide = torch.tensor([2, 7, 8, 7, 8, 40])
    closed = renumber(torch.stack([time, high, wide])[:, None, None])[:, 0, 0]
    assert closed.tolist() == [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]
    assert renumber(torch.tensor([0, 4, 8, 90]).expand(1, 1, 1, 4), stride=4).flatten().tolist() == [0, 4, 8, 12]


def test_policies_are_frozen() -> None:
    policy = InfMLLM()
    with pytest.raises(AttributeError):
        policy.bias = 1.0  # type: ignore[misc]
    assert copy.copy(policy) == policy
