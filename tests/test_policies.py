"""Every published policy against its formulas: a straight-line reference, and the numbers that can be computed by hand."""

from __future__ import annotations

import dataclasses
import statistics
from typing import get_type_hints

import pytest
import straight_line as reference
import torch
from tiny import TEXT, llama, random_ids
from transformers import LlamaConfig, LlamaForCausalLM

from edgemllm import policies
from edgemllm.archive.held import Held
from edgemllm.cache.attention import NAME, forward
from edgemllm.cache.chunk import Modality
from edgemllm.cache.merging import merge
from edgemllm.errors import UsageError
from edgemllm.policies.base import Share, fit
from edgemllm.policies.h2o import H2O
from edgemllm.policies.look_m import LookM
from edgemllm.policies.meda import entropy, shares
from edgemllm.policies.pyramidkv import schedule
from edgemllm.policies.random import Random

pytestmark = pytest.mark.usefixtures("inference")
LENGTH, BUDGET = 90, 32

# Attention entropy of 32 layers on four data sets, read from the vector graphics of the MEDA repository.
ENTROPIES = {
    "CLEVR-Change": """5.85 5.84 2.65 1.89 1.94 2.00 2.00 2.19 2.29 2.26 2.46 2.51 2.44 2.56 2.67 2.35 2.21 2.18 1.80 1.79 1.92
        1.55 1.69 1.81 1.92 2.01 1.89 1.79 1.98 2.32 2.06 2.76""",
    "WikiVQA": """6.74 6.46 2.63 2.06 2.10 2.20 2.30 2.56 2.62 2.61 2.83 2.92 2.85 2.91 2.85 2.64 2.51 2.50 2.03 2.13 2.28 1.78
        1.91 1.91 2.10 2.04 2.13 1.88 2.10 2.34 2.02 3.10""",
    "Spot-the-Diff": """5.86 5.85 2.44 1.81 1.88 2.00 2.08 2.45 2.44 2.51 2.60 2.58 2.59 2.79 2.68 2.36 2.35 2.24 1.88 1.92 2.18
        1.69 1.74 1.70 1.80 1.80 1.94 1.76 1.95 2.23 2.02 2.77""",
    "MovingDirection": """6.67 6.72 2.72 1.89 1.95 1.98 2.00 2.31 2.37 2.31 2.54 2.80 2.65 2.81 3.06 2.55 2.42 2.37 1.90 1.90
        2.08 1.63 1.74 1.91 2.02 2.08 1.98 1.79 2.06 2.45 2.07 2.99""",
}
# First layer's and median layer's share at rho 0.2 before the clamp; mean share after it at rho 0.2 and 0.1.
SHARES = {
    "CLEVR-Change": (2.32, 0.056, 0.118, 0.090),
    "WikiVQA": (2.97, 0.036, 0.100, 0.081),
    "Spot-the-Diff": (2.30, 0.059, 0.120, 0.091),
    "MovingDirection": (2.62, 0.030, 0.094, 0.078),
}


def replayed(policy, size: int, budget: int = BUDGET, pictures: bool = True):
    """A policy's first layer over a random stream of text and vision, and the raw stream for the reference."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**{**TEXT, "num_hidden_layers": 1})).eval()
    tiny = llama()
    tiny.model, tiny.family.model = model, model
    # Every token once: equal keys would make equal likenesses, and any choice right.
    chunk = tiny.text_chunk(torch.randperm(LENGTH)[None])
    vision = torch.zeros(LENGTH, dtype=torch.bool)
    vision[10:40], vision[55:80] = pictures, pictures
    modality = torch.where(vision, Modality.VISION, Modality.TEXT).to(torch.uint8)[None]
    time = torch.where(vision, torch.arange(LENGTH) // 5 / 2, torch.nan)  # frames of five tokens
    chunk = dataclasses.replace(chunk, modality=modality, time=time[None])
    tiny.use(NAME)
    cache = tiny.new_cache(policy, [budget])
    for part in chunk.split(size):
        forward(tiny.text, cache, part)
    block = model.model.layers[0]
    hidden = block.input_layernorm(chunk.embeds)[0]

    def heads(projection) -> torch.Tensor:
        return projection(hidden).unflatten(-1, (-1, block.self_attn.head_dim)).transpose(0, 1)

    attention = block.self_attn
    stream = reference.Stream(heads(attention.q_proj), heads(attention.k_proj), heads(attention.v_proj), vision, time)
    return cache.layers[0], stream


CASES = {
    "window": ("window", [], reference.newest(), "none"),
    "streaming-llm": ("streaming-llm", [], reference.newest(4), "none"),
    "h2o": ("h2o", [], reference.h2o(0.5), "none"),
    "h2o, few recent": ("h2o", ["recent=0.25"], reference.h2o(0.25), "none"),
    "snapkv": ("snapkv", ["window=4"], reference.snapkv(4, 5, "avg"), "none"),
    "snapkv, max": ("snapkv", ["window=4", "kernel=7", "pooling=max"], reference.snapkv(4, 7, "max"), "none"),
    "pyramidkv": ("pyramidkv", ["window=4"], reference.snapkv(4, 5, "avg"), "none"),
    "inf-mllm": (
        "inf-mllm",
        ["window=4", "sinks=2", "slack=2", "bias=0.01", "recent=0.25", "shared_heads=true"],
        reference.inf_mllm(4, 0.01, 0.25, 2, BUDGET, True),
        "none",
    ),
    "inf-mllm, per head": (
        "inf-mllm",
        ["window=4", "sinks=2", "slack=2", "bias=0", "recent=0.5", "shared_heads=false"],
        reference.inf_mllm(4, 0.0, 0.5, 2, BUDGET, False),
        "none",
    ),
    "look-m, average": ("look-m", ["merge=average"], reference.text_first(0.5, True), "average"),
    "look-m, pivot": ("look-m", ["merge=pivot"], reference.text_first(0.5, True), "pivot"),
    "look-m, weighted": ("look-m", ["merge=weighted", "keep_text=false"], reference.text_first(0.5, False), "weighted"),
    "meda": ("meda", [], reference.text_first(0.75, False), "average"),
    "infinipot-v": ("infinipot-v", ["recent=6"], reference.infinipot_v(6, 0.5, BUDGET), "none"),
    "infinipot-v, mostly values": ("infinipot-v", ["recent=5", "tar=0.25"], reference.infinipot_v(5, 0.25, BUDGET), "none"),
    "edge": ("edge", ["recent=0", "newest=4", "span=3", "slack=2"], reference.edge(4, 4, 3, True), "none"),
    "edge, single words": (
        "edge",
        ["recent=0", "newest=4", "sinks=9", "span=1", "slack=2"],
        reference.edge(9, 4, 1, True),
        "none",
    ),
    "edge, by layer": (
        "edge",
        ["recent=0", "newest=4", "sinks=2", "span=5", "slack=2", "shared_layers=false"],
        reference.edge(2, 4, 5, False),
        "none",
    ),
}


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("case", CASES)
def test_a_policy_keeps_and_merges_what_its_formulas_say(case: str, size: int) -> None:
    name, settings, choose, how = CASES[case]
    policy = policies.build(name, settings)
    layer, stream = replayed(policy, size)
    heads = reference.replay(stream, size, BUDGET, policy.minimum(), policy.evict_at_least(BUDGET), choose, how)
    for number, head in enumerate(heads):
        live = slice(layer.length)
        assert layer.positions[0, 0, number, live].tolist() == head.place
        torch.testing.assert_close(layer.unrotated_keys()[0, number], head.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.values[0, number, live], head.values, atol=1e-5, rtol=1e-4)


def test_edge_keeps_more_of_the_newest_where_a_text_is_long() -> None:
    def newest_in_a_row(layer) -> int:
        kept = layer.positions[0, 0, 0, : layer.length].tolist()
        return next(n for n in range(1, len(kept)) if kept[-n - 1] != LENGTH - n - 1)

    long, short = (policies.build("edge", [f"horizon={horizon}", "recent_in_long=0.75"]) for horizon in (2, 4))
    layer, _ = replayed(long, 6, pictures=False)
    assert newest_in_a_row(layer) >= 24
    assert newest_in_a_row(replayed(short, 6, pictures=False)[0]) < 24
    assert newest_in_a_row(replayed(long, 6)[0]) < 24  # pictures are remembered however long the stream
    assert long.protected(layer, BUDGET)[1] == 24
    layer.focus = Held(None, 0, 0)  # something to look out for
    assert long.protected(layer, BUDGET)[1] == 16


def test_h2o_mass_is_the_number_of_queries_where_nothing_left() -> None:
    layer, _ = replayed(H2O(), 7, budget=LENGTH)
    torch.testing.assert_close(layer.buffer("mass").sum(-1), torch.full((1, 2), float(LENGTH)))


@pytest.mark.parametrize("name", ENTROPIES)
def test_meda_shares_of_the_published_entropies(name: str) -> None:
    found = [float(number) for number in ENTROPIES[name].split()]
    first, median, clamped, at_a_tenth = SHARES[name]
    raw = shares(found, 0.2)
    assert raw[0] == pytest.approx(first, abs=0.005)
    assert statistics.median(raw) == pytest.approx(median, abs=0.001)
    assert sum(raw) == pytest.approx(32 * 0.2)
    for rho, mean in ((0.2, clamped), (0.1, at_a_tenth)):
        cut = [min(max(share, 0.01), 1.0) for share in shares(found, rho)]
        assert statistics.mean(cut) == pytest.approx(mean, abs=0.001)
        prompt = 1000
        total = round(rho * prompt) * 32
        released = fit([share * prompt for share in cut], total, 1, spread=False)
        assert statistics.mean(released) / prompt == pytest.approx(mean, abs=0.002)
        filled = fit([share * prompt for share in shares(found, rho)], total, 1, ceiling=prompt)
        assert max(filled) == prompt
        assert total - 32 <= sum(filled) <= total


def test_equal_entropies_give_every_layer_the_same() -> None:
    assert shares([2.5] * 7, 0.2) == pytest.approx([0.2] * 7)
    assert fit([share * 500 for share in shares([2.5] * 7, 0.2)], 700, 8) == [100] * 7


def test_entropy_of_known_distributions() -> None:
    assert entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(2.0794, abs=1e-4)
    assert entropy(torch.tensor([1.0, 0, 0])).item() == 0


@pytest.mark.parametrize("layers", [2, 24, 32])
def test_pyramidkv_schedule(layers: int) -> None:
    base, beta = 480, 20
    low = base // beta
    high = 2 * base - low
    step = (high - low) // (layers - 1)
    assert schedule(base, layers, beta) == [high - number * step for number in range(layers)]
    assert sum(schedule(base, layers, beta)) / layers == pytest.approx(base, rel=0.05)


def test_fit_respects_floor_ceiling_and_total() -> None:
    assert fit([100, 10, 1], 60, 8) == pytest.approx([44, 8, 8], abs=1)
    assert fit([1000, 10, 10], 120, 5, ceiling=80)[0] == 80
    assert sum(fit([3.7, 9.2, 5.5], 1000, 1)) <= 1000
    with pytest.raises(ValueError, match="do not fit"):
        fit([1, 1, 1], 10, 8)


class TestMerging:
    """The identities of LOOK-M's and MEDA's merging."""

    def layer(self, keys: torch.Tensor, values: torch.Tensor):
        layer, _ = replayed(LookM(), 30, budget=LENGTH)
        count = keys.shape[0]
        layer.slots.length, layer.numbering.rotated = count, False
        layer.keys[0], layer.values[0] = keys, values
        return layer

    def test_nothing_dropped_changes_nothing(self) -> None:
        keys, values = torch.randn(6, 16), torch.randn(6, 16)
        layer = self.layer(keys, values)
        for how in ("average", "pivot", "weighted"):
            merge(layer, torch.arange(6).view(1, 1, -1), how)
            assert torch.equal(layer.keys[0, 0, :6], keys)
            assert torch.equal(layer.values[0, 0, :6], values)

    @pytest.mark.parametrize(("how", "share"), [("average", 1 / 2), ("pivot", 1 / 4), ("weighted", 1 / 2)])
    def test_a_twin_key_stays_and_its_value_is_averaged(self, how: str, share: float) -> None:
        keys, values = torch.randn(4, 16), torch.randn(4, 16)
        keys[3] = keys[1]
        layer = self.layer(keys, values)
        merge(layer, torch.arange(3).view(1, 1, -1), how)
        torch.testing.assert_close(layer.keys[0, 0, :3], keys[:3])
        torch.testing.assert_close(layer.values[0, 0, 1], (1 - share) * values[1] + share * values[3])
        assert torch.equal(layer.values[0, 0, 0], values[0])

    def test_values_alone(self) -> None:
        keys, values = torch.randn(5, 16), torch.randn(5, 16)
        layer = self.layer(keys, values)
        merge(layer, torch.arange(3).view(1, 1, -1), "average", keys=False)
        assert torch.equal(layer.keys[0, 0, :3], keys[:3])
        assert not torch.equal(layer.values[0, 0, :3], values[:3])


@pytest.mark.parametrize("name", [name for name in policies.names() if policies.find(name).one_shot])
def test_rho_keeps_that_share_of_a_prompt_and_gives_the_rest_back(name: str) -> None:
    """What the papers report as memory: after one prompt, kept tokens and live bytes shrink to rho."""
    tiny = llama()
    small = ["window=8"] if "kv" in name else []
    policy = policies.build(name, ["rho=0.2", *small])
    cache = tiny.family.new_cache(policy, 400, 50)
    tiny.use(NAME)
    for part in tiny.text_chunk(random_ids(300)).split(50):
        forward(tiny.text, cache, part)
    before = cache.nbytes
    policy.after_prefill(cache.managed)
    assert sum(layer.length for layer in cache.layers) <= 0.2 * 300 * 3
    assert cache.nbytes <= 0.25 * before
    forward(tiny.text, cache, tiny.text_chunk(random_ids(1), 300))
    assert cache.nbytes <= 0.28 * before  # an answer does not take it all back
    for part in tiny.text_chunk(random_ids(500), 301).split(50):  # and the stream goes on within the budget
        forward(tiny.text, cache, part)
        assert sum(layer.length for layer in cache.layers) <= 400 * 3


def read(policy, length: int, budget: int):
    """The cache of a tiny model after a prompt of so many tokens, in chunks of 50."""
    tiny = llama()
    cache = tiny.family.new_cache(policy, budget, 50)
    tiny.use(NAME)
    for part in tiny.text_chunk(random_ids(length)).split(50):
        forward(tiny.text, cache, part)
    policy.after_prefill(cache.managed)
    return tiny, cache


@pytest.mark.parametrize("name", [name for name in policies.names() if policies.find(name).one_shot])
def test_rho_never_cuts_below_what_the_policy_needs(name: str) -> None:
    """A short prompt, then a short second one; the window that is always kept stays whole."""
    policy = policies.build(name, ["rho=0.05"])
    tiny, cache = read(policy, 20, 400)
    least = min(20, policy.minimum())
    assert min(layer.length for layer in cache.layers) >= least
    forward(tiny.text, cache, tiny.text_chunk(random_ids(5), 20))
    policy.after_prefill(cache.managed)
    assert min(layer.length for layer in cache.layers) >= min(25, policy.minimum())


def test_rho_is_rounded_up_exactly() -> None:
    _, cache = read(policies.build("look-m", ["rho=0.07"]), 100, 400)
    assert [layer.length for layer in cache.layers] == [7] * 3


@pytest.mark.parametrize(
    ("rho", "sizes"),
    [
        ("0.8", [480] * 6),  # 600 < 2 x (480 - 32): all the same
        ("0.55", [600, 492, 384, 276, 168, 60]),  # no layer above the prompt, where 2b - b/beta + w is 614
        ("0.2", [202, 168, 135, 102, 69, 36]),
    ],
)
def test_pyramidkv_divides_a_prompt_as_its_authors_do(rho: str, sizes: list[int]) -> None:
    policy, kept = policies.build("pyramidkv", [f"rho={rho}"]), round(float(rho) * 600)
    found = policy.sizes([None] * 6, kept, 600)
    assert sum(found) <= 6 * kept
    assert found == pytest.approx(sizes, abs=3)


@pytest.mark.parametrize("name", [name for name in policies.names() if policies.find(name).one_shot])
def test_nothing_leaves_while_the_prompt_fits(name: str) -> None:
    _, cache = read(policies.build(name), 300, 320)
    assert [layer.length for layer in cache.layers] == [300] * 3
    assert not any(layer.counts.evicted for layer in cache.layers)


@pytest.mark.parametrize("setting", ["clamp=true", "as_released=true"])
def test_meda_clamps_the_shares_of_a_prompt_and_not_those_of_a_stream(setting: str) -> None:
    policy = policies.build("meda", [setting])
    tiny, cache = read(policy, 20, 200)
    for part in tiny.text_chunk(random_ids(400), 20).split(50):
        forward(tiny.text, cache, part)
    budgets = [layer.budget for layer in cache.layers]
    assert 600 - 3 <= sum(budgets) <= 600


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("snapkv", "rho=0", "a number above 0 to 1"),
        ("meda", "rho=nan", "a number above 0 to 1"),
        ("snapkv", "window=0", "a whole number from 1 upwards"),
        ("inf-mllm", "window=0", "a whole number from 1 upwards or prompt"),
        ("inf-mllm", "window=question", "a whole number from 1 upwards or prompt"),
        ("pyramidkv", "beta=0", "a whole number from 1 upwards"),
        ("snapkv", "kernel=0", "a whole number, odd, from 1 upwards"),
        ("snapkv", "kernel=4", "a whole number, odd, from 1 upwards"),
        ("infinipot-v", "recent=0", "a whole number from 1 upwards"),
        ("edge", "decay=2", "a number from 0 to 1"),
        ("edge", "span=4", "a whole number, odd, from 1 upwards"),
        ("window", "slack=-1", "a whole number from 0 upwards"),
        ("snapkv", "pooling=sum", "one of avg, max"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_with_what_is_allowed(name: str, setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"--set {setting} of policy {name}: {words} expected"):
        policies.build(name, [setting])


def test_random_keeps_an_even_sample() -> None:
    kept = torch.zeros(90)
    for seed in range(60):
        layer, _ = replayed(Random(seed=seed, recent=4), 6)
        kept[layer.positions[0, 0, 0].long()] += 1
    halves = kept[:40].mean(), kept[40:80].mean()
    assert halves[0] == pytest.approx(halves[1], rel=0.25)
    assert (kept[:80] > 0).all()


@pytest.mark.parametrize("name", policies.names())
def test_a_share_above_one_is_refused(name: str) -> None:
    shares = [key for key, kind in get_type_hints(policies.find(name), include_extras=True).items() if kind == Share]
    for key in shares:
        assert getattr(policies.build(name, [f"{key}=1"]), key) == 1
        with pytest.raises(UsageError, match=f"{key}=1.5 .*from 0 to 1"):
            policies.build(name, [f"{key}=1.5"])
