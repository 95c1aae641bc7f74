"""Perplexity of a stream: equal to transformers and to the paper's method, flat, and the same after any interruption."""

from __future__ import annotations

import gc
import itertools
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEXT, llama, tokenizer
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from edgemllm.cli.main import app
from edgemllm.commands.perplexity import scoring
from edgemllm.commands.perplexity.curve import POINTS
from edgemllm.commands.perplexity.run import Run
from edgemllm.media.text import Text
from edgemllm.models.loading import DEMO
from edgemllm.models.tokens import TokenStream
from edgemllm.policies.inf_mllm import InfMLLM
from edgemllm.policies.streaming_llm import StreamingLLM
from edgemllm.policies.window import Window
from edgemllm.session import Session

LICENSE = Path(__file__).parents[1] / "LICENSE"
STORIES = Path(__file__).parents[2] / "shared" / "data" / "models" / "stories260k"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only Llama with random weights, in a folder; one token a character."""
    folder = tmp_path_factory.mktemp("llama")
    llama().model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def measure(*arguments: object, code: int = 0, stdin: str | None = None) -> dict[str, Any]:
    """The runs of `edgemllm perplexity --json` by policy, and under "stderr" what was said."""
    command = ["perplexity", "--json", "--progress", "plain", *map(str, arguments)]
    done = CliRunner().invoke(app, command, input=stdin, env={"EDGEMLLM_POLICY": None})
    assert done.exit_code == code, done.output
    found = json.loads(done.stdout)
    assert (found["schema"], found["command"]) == ("edgemllm/1", "perplexity")
    return {run["policy"]: run for run in found["runs"]} | {"stderr": done.stderr}


def test_a_cache_that_holds_everything_gives_what_transformers_gives() -> None:
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

    runs = measure("--text", LICENSE, "--tokens", 600, "--policy", "inf-mllm,streaming-llm", "--kv-budget", 900, "--chunk", 70)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        stock = LlavaOnevisionForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(DEMO)(LICENSE.read_text(), return_offsets_mapping=True)
    ids = torch.tensor([words["input_ids"][:601]])
    with torch.no_grad():
        logits = stock(input_ids=ids, use_cache=False).logits[0, :-1]
    loss = float(F.cross_entropy(logits.double(), ids[0, 1:]))
    span = LICENSE.read_text()[words["offset_mapping"][0][1] : words["offset_mapping"][600][1]]
    for policy in ("inf-mllm", "streaming-llm"):
        run = runs[policy]
        assert run["tokens"] == 600
        assert run["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert run["nll_nats"] == pytest.approx(600 * loss, rel=1e-4)
        assert run["bits_per_byte"] == pytest.approx(600 * loss / math.log(2) / len(span.encode()), rel=1e-4)
        assert run["kv"]["evicted_tokens"] == 0
        assert run["chunk"] == 70
        assert any("nothing was evicted" in note for note in run["notes"])


def straight_line(model: Any, ids: list[int], budget: int, sinks: int) -> Tensor:
    """StreamingLLM token by token, as its paper describes it: no cache class, no chunks; the losses of ids[1:]."""
    decoder, config = model.model, model.config
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, decoder.layers[0].self_attn.head_dim
    speed = 10000.0 ** (-torch.arange(0, size, 2) / size)

    def turned(x: Tensor, first: int) -> Tensor:
        """x (heads, n, size) at positions first, first + 1, ..."""
        angle = torch.outer(torch.arange(first, first + x.shape[1]), speed)
        real, imaginary = x.chunk(2, -1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((real * cos - imaginary * sin, imaginary * cos + real * sin), -1)

    caches: list[list[tuple[Tensor, Tensor]]] = [[] for _ in decoder.layers]
    found = []
    for token, following in itertools.pairwise(ids):
        hidden = decoder.embed_tokens(torch.tensor([token]))
        for layer, cache in zip(decoder.layers, caches, strict=True):
            attend, normed = layer.self_attn, layer.input_layernorm(hidden)
            if len(cache) == budget:
                del cache[sinks]
            cache.append((attend.k_proj(normed).view(kv_heads, size), attend.v_proj(normed).view(kv_heads, size)))
            keys, values = (torch.stack(part, 1).repeat_interleave(heads // kv_heads, 0) for part in zip(*cache, strict=True))
            query = turned(attend.q_proj(normed).view(heads, 1, size), len(cache) - 1)
            weights = (query @ turned(keys, 0).mT / math.sqrt(size)).softmax(-1)
            hidden = hidden + attend.o_proj((weights @ values).reshape(1, -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits = model.lm_head(decoder.norm(hidden))
        found.append(F.cross_entropy(logits, torch.tensor([following])).double())
    return torch.stack(found)


@pytest.mark.usefixtures("inference")
def test_streaming_llm_token_by_token_is_the_papers_method(small: Path) -> None:
    text = LICENSE.read_text()[200:520]
    run = measure(
        "--model", small, "--chunk", 1, "--policy", "streaming-llm", "--kv-budget", 160, "--text", "-", stdin=text
    )["streaming-llm"]  # fmt: skip
    ids = tokenizer()(text)["input_ids"]
    wanted = float(straight_line(llama().model, ids, budget=160, sinks=4).sum())
    assert run["tokens"] == len(ids) - 1
    assert run["nll_nats"] == pytest.approx(wanted, rel=1e-6)
    window = measure("--model", small, "--chunk", 1, "--policy", "window", "--kv-budget", 160, "--text", "-", stdin=text)
    assert window["window"]["nll_nats"] != pytest.approx(wanted, rel=1e-6), "the reference tells the two methods apart"


@pytest.mark.usefixtures("inference")
def test_losses_in_slices_are_those_of_all_logits_at_once(monkeypatch: Any) -> None:
    family = llama().use("edgemllm").family
    ids = tokenizer()(LICENSE.read_text())["input_ids"][:90]
    whole = scoring.losses(Session(family, Window(), 100, chunk=40), ids)
    monkeypatch.setattr(scoring, "LOGITS", 7 * TEXT["vocab_size"])
    sliced = scoring.losses(Session(family, Window(), 100, chunk=40), ids)
    assert len(whole) == 89
    assert whole.dtype == torch.float64
    torch.testing.assert_close(sliced, whole)


@pytest.mark.parametrize("policy", [StreamingLLM(), InfMLLM(window=8), Window()])
def test_nothing_grows_with_the_stream(policy: Any) -> None:
    """KV bytes to the byte; Python objects and what a checkpoint would write, from 1500 to 6000 tokens."""
    family = llama().use("edgemllm").family
    run = Run("any", Session(family, policy, 48, chunk=16), TokenStream(Text([str(LICENSE)]), family.tokenizer, True), None)
    run.curve.stride = 2

    def go(tokens: int) -> tuple[int, int, int, int]:
        run.go(lambda run: run.sums.tokens >= tokens)
        gc.collect()
        return run.session.cache.nbytes, len(gc.get_objects()), len(json.dumps(run.state())), len(run.stream._waiting)

    sizes = [go(1500), go(6000)]
    assert sizes[0][0] == sizes[1][0]
    assert {point.kv_bytes for point in run.curve.points[1:]} == {sizes[0][0]}
    assert sizes[1][1] < sizes[0][1] + POINTS
    assert sizes[1][2] < 120 * POINTS
    assert max(sizes[0][3], sizes[1][3]) < 20_000
    assert len(run.curve.points) <= POINTS
    assert run.sums.tokens >= 6000


def test_policies_share_bytes_and_a_curve_adds_up(small: Path) -> None:
    names = "inf-mllm,streaming-llm,window,full"
    runs = measure(
        "--model", small, "--text", LICENSE, "--tokens", 1600, "--kv-budget", 96, "--chunk", 24, "--policy", names,
        "--set", "inf-mllm.window=8", "--set", "streaming-llm.sinks=2",
    )  # fmt: skip
    bounded = [runs[name] for name in names.split(",")[:3]]
    most = runs["window"]["kv"]["bytes"]
    for run in bounded:
        assert 0.9 * most < run["kv"]["bytes"] <= most
        assert run["kv"]["tokens"] <= run["kv"]["budget_tokens"] <= 96
        assert len({point["kv_bytes"] for point in run["curve"][1:]}) == 1
        last = run["curve"][-1]
        assert (last["tokens"], last["perplexity"]) == (1600, run["perplexity"])
        spans = [0, *(point["tokens"] for point in run["curve"])]
        total = sum(
            (end - start) * math.log(point["window_perplexity"])
            for start, end, point in zip(spans, spans[1:], run["curve"], strict=False)
        )
        assert total == pytest.approx(run["nll_nats"], rel=1e-9)
        assert run["exit_code"] == 0
        assert run["highest_position"] < 96
    assert runs["inf-mllm"]["settings"]["window"] == 8
    assert runs["streaming-llm"]["settings"]["sinks"] == 2
    assert any("attention sinks" in note for note in runs["window"]["notes"])
    assert not any("attention sinks" in note for note in runs["streaming-llm"]["notes"])
    assert "never evicts" in runs["full"]["stopped"], "the reference ends where the same bytes end"
    assert runs["full"]["tokens"] < 96


def test_full_beyond_the_trained_length_says_so(small: Path) -> None:
    run = measure("--model", small, "--text", LICENSE, "--tokens", 700, "--policy", "full")["full"]
    assert run["tokens"] == 700
    assert (run["trained_tokens"], run["highest_position"]) == (512, 700)
    assert any("the model was trained to 511" in note for note in run["notes"])


def test_agreement_with_the_full_cache(small: Path) -> None:
    def compared(budget: int) -> dict[str, Any]:
        command = ("--model", small, "--text", LICENSE, "--tokens", 300, "--chunk", 20, "--policy", "streaming-llm")
        found: dict[str, Any] = measure(*command, "--kv-budget", budget, "--compare-full")["streaming-llm"]["compare_full"]
        return found

    same = compared(400)
    assert (same["tokens"], same["same_top"], same["after_eviction"]) == (300, 1.0, None)
    assert same["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert same["perplexity"] == pytest.approx(same["full_perplexity"], rel=1e-5)
    other = compared(40)
    assert other["tokens"] == 300
    assert other["kl_nats"] > 1e-6
    assert other["after_eviction"]["tokens"] == 300 - 40
    assert other["after_eviction"]["kl_nats"] > other["kl_nats"]
    assert other["full_perplexity"] == pytest.approx(same["perplexity"], rel=1e-5)


def test_a_second_trained_model_streams_flat_beyond_its_512_tokens() -> None:
    if not STORIES.is_dir():
        pytest.skip("no stories260k beside this checkout")
    stories = STORIES.parents[1] / "text" / "tinystories"
    names = "inf-mllm,streaming-llm"
    runs = measure("-m", STORIES, "--text", stories, "--tokens", "3k", "--kv-budget", 256, "--chunk", 64, "--policy", names)
    for policy in names.split(","):
        run = runs[policy]
        assert run["perplexity"] < 5
        assert run["last_tenth_perplexity"] < 5
        assert len({point["kv_bytes"] for point in run["curve"][4:]}) == 1
