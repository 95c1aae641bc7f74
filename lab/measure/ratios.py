"""Ratios of speed on a noisy machine: all sides take turns in one process, token by token, and medians are compared.

    python -m lab.measure.ratios decode --contexts 2k,8k --sides stock,full,streaming-llm,inf-mllm,edge
    python -m lab.measure.ratios prefill --contexts 8k --tokens 5 --sides stock,full      a whole prompt, and its first token
    python -m lab.measure.ratios stream --sides straight-h2o,h2o,inf-mllm        rounds of prefill and decode
    python -m lab.measure.ratios flat --sides inf-mllm --seen 10k,1M             the same policy early and late in a stream
    python -m lab.measure.ratios flat --model demo --seen 100k,4M --feed 256     the same, 256 tokens in at a time
    python -m lab.measure.ratios costs --sides h2o,inf-mllm,edge                 a layer alone: us a token and a compaction

A side is `stock` (transformers' DynamicCache), `straight-h2o` (H2O as published) or a policy, with settings after it:
`streaming-llm/slack=1`. What follows a `+` at the end says how: `+turning` stores keys as the model made them and rotates them
at every step; `+eager` captures no CUDA graphs; `+8`, `+4` and `+k8v4` are the bits of the cache, which `+8+blocks` unpacks by
PyTorch's operators where Triton would read them. The first side is what the others are divided by. Caches are filled with
random keys and values before decoding: speed does not depend on what they say.
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

from edgemllm.cache import attention as ours
from edgemllm.errors import EdgeError
from edgemllm.models import loading
from edgemllm.models.families.base import ModelFamily
from edgemllm.units import parse_count, short_count
from lab.measure import pages
from lab.measure.sides import STOCK, STRAIGHT, Side, parts_of

S = TypeVar("S")


def decode(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """Measure ms per decoded token at each context."""
    found = []
    for context in counts(arguments.contexts):
        sides = [Side(side, family, arguments.budget, arguments.chunk) for side in arguments.sides]
        for side in sides:
            side.fill(context, min(arguments.chunk, context))
            side.warm()
        found += turns(sides, lambda side: side.timed([7]), arguments.tokens, context=context)
    return found


def prefill(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """Measure ms from a whole prompt to its first token, each time with a new cache."""

    def once(name: str, context: int) -> float:
        return Side(name, family, arguments.budget, arguments.chunk).timed([7] * context)

    found = []
    for context in counts(arguments.contexts):
        found += turns(arguments.sides, functools.partial(once, context=context), arguments.tokens, context=context)
    return found


def stream(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """Measure ms of a round: `--prompt` tokens in, `--tokens` out, with a full cache."""
    sides = [Side(side, family, arguments.budget, arguments.chunk) for side in arguments.sides]
    for side in sides:
        side.fill(arguments.budget, arguments.chunk)
        side.warm()

    def round_of(side: Side) -> float:
        prompt = side.timed(range(1, arguments.prompt + 1))
        return prompt + sum(side.timed([7]) for _ in range(arguments.tokens))

    return turns(sides, round_of, arguments.rounds, prompt=arguments.prompt, answer=arguments.tokens)


def flat(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """Measure ms per step of the first side after each number of seen tokens: a decoded token, or `--feed` tokens in."""
    sides = []
    for seen in counts(arguments.seen):
        side = Side(arguments.sides[0], family, arguments.budget, arguments.chunk)
        side.fill(seen, arguments.chunk)
        side.warm()
        side.name = f"{side.name} after {short_count(seen)}"
        sides.append(side)
    return turns(sides, lambda side: side.timed(range(1, arguments.feed + 1)), arguments.tokens)


def costs(family: ModelFamily, arguments: Any) -> list[dict[str, Any]]:
    """Measure us of one layer: a decoded token between compactions (update, attention, observation), and a compaction."""
    return [layer_cost(family, name, size, arguments.tokens) for size in counts(arguments.sizes) for name in arguments.sides]


def layer_cost(family: ModelFamily, name: str, size: int, times: int) -> dict[str, Any]:
    """Decode `times` tokens through the first layer alone, with `size` slots."""
    side, spec = Side(name, family, size, 64), family.spec.layers[0]
    side.fill(size - 1, 64)
    layer, module, position = side.cache.layers[0], SimpleNamespace(layer_idx=0), size - 1
    one = torch.randn(1, spec.kv_heads, 1, spec.head_dim)
    query = torch.randn(1, spec.heads, 1, spec.head_dim)
    tokens, compactions = [], []
    for number in range(times):
        side.cache.begin(family.text([7], position + number))
        began = time.perf_counter()
        layer.make_room(1)
        middle = time.perf_counter()
        key, value = layer.update(one, one)
        ours.attention(module, query, key, value, None, kv_cache=side.cache)
        tokens.append((time.perf_counter() - middle) * 1e6)
        if layer.counts.new_since_eviction == 1:
            compactions.append((middle - began) * 1e6)
    each = {"us_per_token": statistics.median(tokens), "tokens_between": layer.policy.evict_at_least(size)}
    return {"side": name, "slots": size, **each, "us_per_compaction": statistics.median(compactions or [0.0])}


def turns(sides: Sequence[S], run: Callable[[S], float], times: int, **about: Any) -> list[dict[str, Any]]:
    """Run every side in turn, `times` times; the order is reversed each time."""
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
    """Read counts such as "2k,8k"."""
    return [parse_count(word) for word in text.split(",")]


def table(rows: list[dict[str, Any]]) -> str:
    """Write the table in Markdown, without the samples."""

    def cell(name: str, value: Any) -> str:
        if isinstance(value, list):
            return "-".join(f"{each:.1f}" for each in value)
        return f"{value:.{2 if 'ratio' in name else 1}f}" if isinstance(value, float) else str(value)

    names = [name for name in rows[0] if name != "samples_ms"]
    left = [name.replace("_", " ") for name in names if isinstance(rows[0][name], str)]
    cells = ([cell(name, row[name]) for name in names] for row in rows)
    return pages.table([name.replace("_", " ") for name in names], cells, left)


MEASURES = {"decode": decode, "prefill": prefill, "stream": stream, "flat": flat, "costs": costs}


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASURES)
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
            parts_of(side)
        for text in (arguments.contexts, arguments.seen, arguments.sizes):
            counts(text)
        family = loading.load(loading.locate(arguments.model), dtype=arguments.dtype, device=arguments.device)
        rows = MEASURES[arguments.what](family, arguments)
    except EdgeError as error:
        parser.error(error.message)
    about = {"command": sys.argv[1:], "threads": torch.get_num_threads(), "rows": rows}
    print(json.dumps(about) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
