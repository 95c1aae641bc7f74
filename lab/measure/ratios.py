"""Ratios of speed on a noisy machine: all sides take turns in one process, token by token, and medians are compared.

    python -m lab.measure.ratios decode --contexts 2k,8k --sides stock,full,streaming-llm,inf-mllm,edge
    python -m lab.measure.ratios prefill --contexts 8k --tokens 5 --sides stock,full      a whole prompt, and its first token
    python -m lab.measure.ratios stream --sides straight-h2o,h2o,inf-mllm        rounds of prefill and decode
    python -m lab.measure.ratios flat --sides inf-mllm --seen 10k,1M             the same policy early and late in a stream
    python -m lab.measure.ratios flat --model demo --seen 100k,4M --feed 256     the same, 256 tokens in at a time
    python -m lab.measure.ratios costs --sides h2o,inf-mllm,edge                 a layer alone: us a token and a compaction

A side is `stock` (transformers' DynamicCache), `straight-h2o` (straight_h2o.py) or a policy, with settings after it:
`streaming-llm/slack=1`. With `+turning` at the end, keys are stored as the model made them and turned at every step; with
`+eager`, no CUDA graphs are captured. The first side is what the others are divided by. Caches are filled with random keys and
values before decoding: speed does not depend on what they say.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from edgemllm import policies
from edgemllm.cache import attention as ours
from edgemllm.commands.bench.cell import now, warm_up
from edgemllm.errors import EdgeError
from edgemllm.models import loading
from edgemllm.models.families.base import ModelFamily
from edgemllm.session import Session
from edgemllm.units import parse_count, short_count
from lab.measure.straight_h2o import NAME as STRAIGHT
from lab.measure.straight_h2o import StraightH2O

S = TypeVar("S")
STOCK = "stock"
TURNING, EAGER = "+turning", "+eager"


def build(side: str) -> Any:
    """The policy of a side."""
    name, *settings = side.removesuffix(TURNING).removesuffix(EAGER).split("/")
    return policies.build(name, settings)


class Side:
    """One way of decoding, with a cache of its own."""

    def __init__(self, side: str, family: ModelFamily, budget: int, chunk: int) -> None:
        self.name, self.family, self.session = side, family, None
        self.cache: Any
        if side == STOCK:
            self.attention, self.cache = "sdpa", DynamicCache(config=family.config)
        elif side == STRAIGHT:
            self.attention, self.cache = STRAIGHT, StraightH2O(family.text_model.rotary_emb, budget)
        else:
            policy = build(side)
            self.attention = ours.NAME
            self.session = Session(family, policy, budget if policy.bounded else None, chunk)
            self.cache = self.session.cache
            for layer in self.cache.layers:
                layer.keeps_turned = not side.endswith(TURNING)
            self.session.decoder.capturing &= not side.endswith(EAGER)

    def __str__(self) -> str:
        return self.name

    def fill(self, count: int, chunk: int) -> None:
        """Put `count` random tokens into the cache without running the model."""
        config, spec = self.family.config, self.family.spec
        shape = (1, spec.kv_heads, chunk, spec.head_dim)
        keys, values = (torch.randn(shape, dtype=self.family.dtype, device=self.family.device) for _ in range(2))
        queries = torch.randn(1, config.num_attention_heads, chunk, spec.head_dim, dtype=keys.dtype, device=keys.device)
        for start in range(0, count, chunk):
            size = min(chunk, count - start)
            part = [each[:, :, :size] for each in (keys, values, queries)]
            if self.session is None:
                for number in range(spec.layers):
                    self.cache.update(part[0], part[1], number)
                continue
            self.cache.stage(self.family.text([0] * size, self.session.position))
            self.session.position += size
            for layer in self.cache.layers:
                layer.update(part[0], part[1])
                if layer.policy.query_window:
                    layer.remember_queries(part[2], spec.head_dim**-0.5)
                if layer.policy.observe_window:
                    heads = spec.heads if layer.policy.per_query_head else spec.kv_heads
                    layer.rows = slice(layer.length - 1, layer.length)
                    layer.policy.observe(layer, torch.rand(1, heads, 1, layer.length, device=keys.device).softmax(-1))

    def feed(self, ids: Sequence[int]) -> Tensor:
        """Logits (1, V) behind the tokens."""
        self.family.model.config.get_text_config()._attn_implementation = self.attention
        if self.session is not None:
            if len(ids) == 1:
                return self.session.step(ids[0])
            logits = self.session.feed(self.family.text(ids, self.session.position))
            self.session.policy.after_prefill(self.session.cache)
            return logits
        embeds = self.family.text_model.get_input_embeddings()(torch.tensor([list(ids)], device=self.family.device))
        more: dict[str, Any] = {}
        if self.attention == STRAIGHT:
            more = {"h2o": self.cache, "position_ids": torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)}
        more[ours.cache_keyword(type(self.family.text_model).forward)] = self.cache
        out = self.family.text_model(inputs_embeds=embeds, use_cache=True, **more)
        return self.family.logits(out.last_hidden_state[:, -1:])[:, 0]

    def warm(self) -> None:
        """Let graphs be captured."""
        if self.session is not None:
            warm_up(self.session, 7)

    def timed(self, ids: Sequence[int]) -> float:
        """Milliseconds until the next token is known."""
        began = now(self.family.device)
        int(self.feed(ids).argmax(-1))
        return (now(self.family.device) - began) * 1e3


def decode(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """ms a decoded token at each context."""
    found = []
    for context in counts(arguments.contexts):
        sides = [Side(side, family, arguments.budget, arguments.chunk) for side in arguments.sides]
        for side in sides:
            side.fill(context, min(arguments.chunk, context))
            side.warm()
        found += turns(sides, lambda side: side.timed([7]), arguments.tokens, context=context)
    return found


def prefill(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """ms from a whole prompt to its first token, each time with a new cache."""

    def once(name: str, context: int) -> float:
        return Side(name, family, arguments.budget, arguments.chunk).timed([7] * context)

    found = []
    for context in counts(arguments.contexts):
        found += turns(arguments.sides, functools.partial(once, context=context), arguments.tokens, context=context)
    return found


def stream(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """ms of a round: `--prompt` tokens in, `--tokens` out, with a full cache."""
    sides = [Side(side, family, arguments.budget, arguments.chunk) for side in arguments.sides]
    for side in sides:
        side.fill(arguments.budget, arguments.chunk)
        side.warm()

    def round_of(side: Side) -> float:
        prompt = side.timed(range(1, arguments.prompt + 1))
        return prompt + sum(side.timed([7]) for _ in range(arguments.tokens))

    return turns(sides, round_of, arguments.rounds, prompt=arguments.prompt, answer=arguments.tokens)


def flat(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """ms a step of the first side after so many seen tokens: a decoded token, or `--feed` tokens in."""
    sides = []
    for seen in counts(arguments.seen):
        side = Side(arguments.sides[0], family, arguments.budget, arguments.chunk)
        side.fill(seen, arguments.chunk)
        side.warm()
        side.name = f"{side.name} after {short_count(seen)}"
        sides.append(side)
    return turns(sides, lambda side: side.timed(range(1, arguments.feed + 1)), arguments.tokens)


def costs(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """us of one layer: a decoded token between compactions (update, attention, observation), and a compaction."""
    spec, found = family.spec, []
    for size in counts(arguments.sizes):
        for name in arguments.sides:
            side = Side(name, family, size, 64)
            side.fill(size - 1, 64)
            layer, module = side.cache.layers[0], SimpleNamespace(layer_idx=0)
            one = torch.randn(1, spec.kv_heads, 1, spec.head_dim)
            query = torch.randn(1, spec.heads, 1, spec.head_dim)
            tokens, compactions = [], []
            for _ in range(arguments.tokens):
                side.cache.stage(family.text([7], side.session.position))
                side.session.position += 1
                began = time.perf_counter()
                layer.make_room(1)
                middle = time.perf_counter()
                ours.attention(module, query, *layer.update(one, one), None, kv_cache=side.cache)
                tokens.append((time.perf_counter() - middle) * 1e6)
                if layer.since == 1:
                    compactions.append((middle - began) * 1e6)
            each = {"us_per_token": statistics.median(tokens), "tokens_between": layer.policy.spare(size)}
            found.append({"side": name, "slots": size, **each, "us_per_compaction": statistics.median(compactions or [0.0])})
    return found


def turns(sides: Sequence[S], run: Callable[[S], float], times: int, **about: Any) -> list[dict[str, Any]]:
    """Every side in turn, `times` times; the order is turned round each time."""
    samples: dict[str, list[float]] = {str(side): [] for side in sides}
    for number in range(times + 2):
        for side in sides if number % 2 else reversed(sides):
            taken = run(side)
            if number >= 2:  # the first two warm up
                samples[str(side)].append(taken)
    base = samples[str(sides[0])]
    return [
        {
            **about, "side": name, "median_ms": statistics.median(taken), "middle_half_ms": statistics.quantiles(taken)[::2],
            "mean_ms": statistics.fmean(taken), "ratio_of_medians": statistics.median(taken) / statistics.median(base),
            "ratio_of_means": statistics.fmean(taken) / statistics.fmean(base), "samples_ms": [round(x, 3) for x in taken],
        }
        for name, taken in samples.items()
    ]  # fmt: skip


def counts(text: str) -> list[int]:
    """Of "2k,8k"."""
    return [parse_count(word) for word in text.split(",")]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, without the samples."""

    def cell(name: str, value: Any) -> str:
        if isinstance(value, list):
            return "-".join(f"{each:.1f}" for each in value)
        return f"{value:.{2 if 'ratio' in name else 1}f}" if isinstance(value, float) else str(value)

    names = [name for name in rows[0] if name != "samples_ms"]
    rule = ["---" if isinstance(rows[0][name], str) else "---:" for name in names]
    lines = [[name.replace("_", " ") for name in names], rule, *([cell(name, row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("decode", "prefill", "stream", "flat", "costs"))
    parser.add_argument("--model", default="random:bench-134m")
    parser.add_argument("--sides", type=lambda text: text.split(","), default=["stock", "full", "inf-mllm"])
    parser.add_argument("--contexts", default="2k,8k,16k,32k")
    parser.add_argument("--seen", default="10k,1M")
    parser.add_argument("--sizes", default="512,2048,8192")
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--feed", type=int, default=1, help="flat: tokens of a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", action="store_true", help="samples too")
    arguments = parser.parse_args()
    if min(arguments.tokens, arguments.rounds) < 2:
        parser.error("--tokens and --rounds: 2 or more, for there to be a spread")
    try:
        for side in {*arguments.sides} - {STOCK, STRAIGHT}:
            build(side)
        for text in (arguments.contexts, arguments.seen, arguments.sizes):
            counts(text)
    except EdgeError as error:
        parser.error(error.message)
    family = loading.load(loading.locate(arguments.model), dtype=arguments.dtype, device=arguments.device)
    rows = {"decode": decode, "prefill": prefill, "stream": stream, "flat": flat, "costs": costs}[arguments.what](
        family, arguments
    )
    print(
        json.dumps({"command": sys.argv[1:], "threads": torch.get_num_threads(), "rows": rows})
        if arguments.json
        else table(rows)
    )


if __name__ == "__main__":
    main()
