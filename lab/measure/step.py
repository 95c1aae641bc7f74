"""What a decoded token consists of: operators and microseconds a layer, by transformers' calls, the short way, compiled loops.

    python -m lab.measure.step SmolLM2-135M-Instruct.Q4_1.gguf --quant int4
    python -m lab.measure.step random:smolvlm2-0.5b --quant int4 --context 512

For models of Llama's shape, packed or not. All ways decode in alternation, on equal caches; where there are no loops for them,
the last one is the second again. A part is one of the short way, run in all layers, one after the other, so that what it reads
comes from where it lies in a step. `reading` is how long the sum of the same bytes takes: what a part would take if it cost
nothing but memory. The head is not part of a layer: its row is of one token.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from edgemllm.cache import attention
from edgemllm.cache.compiled_line import CompiledLine
from edgemllm.cache.straight import admitted, straight
from edgemllm.models import loading
from edgemllm.models.families.base import ModelFamily
from edgemllm.units import parse_count
from lab.measure import pages
from lab.measure.sides import Side

Run = Callable[[], object]
WAYS: Mapping[str, tuple[Callable[[Any], Any], bool]] = {
    "transformers' calls": (lambda text_model: None, False),
    "the short way": (straight, False),
    "compiled loops": (straight, True),
}
"""Who runs a token's layers, and whether by compiled loops where they fit (cache/compiled_line.py)."""
FITS = CompiledLine.fits
HEAD, ATTENTION = "head, per token", "cache write, attention"


def filled(family: ModelFamily, options: Any) -> Side:
    """Return a side with a context of random keys and values."""
    side = Side(options.policy, family, options.budget, 256)
    side.fill(options.context, 256)
    side.timed([7])
    return side


def step(side: Side, way: str) -> None:
    """Decode a token in one of the ways."""
    line, compiled = WAYS[way]
    vars(attention)["straight"] = line
    CompiledLine.fits = FITS if compiled else lambda *given: False  # type: ignore[method-assign]
    side.timed([7])


def runs(side: Side) -> dict[str, Run]:
    """Return the parts of a step by name, each one through all layers."""
    family, cache, spec = side.family, side.cache, side.family.spec.layers[0]
    line = straight(family.text_model)
    assert line is not None, "not a model of Llama's shape"
    layers, new = line.layers, functools.partial(torch.randn, dtype=family.dtype)
    x, wide = new(1, family.config.hidden_size), new(1, family.config.intermediate_size)
    out, query_key, value = (
        new(1, heads, 1, spec.head_dim) for heads in (spec.heads, spec.heads + spec.kv_heads, spec.kv_heads)
    )

    def attend() -> None:
        for layer in cache.layers:
            attention.attended(layer, admitted(layer, query_key, value, 1.0), 1.0)
            layer.slots.length -= 1

    return {
        "norms": lambda: [(each.first(x), each.second(x)) for each in layers],
        "q, k, v": lambda: [each.qkv(x) for each in layers],
        ATTENTION: attend,
        "o": lambda: [each.o(out.view(1, -1)) for each in layers],
        "gate, up": lambda: [each.gate_up(x) for each in layers],
        "activation": lambda: [each.act_fn(wide) * wide for each in layers],
        "down": lambda: [each.down(wide) for each in layers],
        HEAD: lambda: family.logits(x[None]).argmax(-1),
    }


def reads(side: Side) -> dict[str, Run]:
    """Return, for the parts that read much, the sum of what they read."""
    joint = {**dict.fromkeys(("q_proj", "k_proj", "v_proj"), "q, k, v"), **dict.fromkeys(("gate_proj", "up_proj"), "gate, up")}
    kept: dict[str, list[Tensor]] = {ATTENTION: [each for layer in side.cache.layers for each in (layer.keys, layer.values)]}
    for name, parameter in side.family.text_model.layers.named_parameters():
        part = name.split(".")[-2]
        kept.setdefault(joint.get(part, part.removesuffix("_proj")), []).append(parameter.data)
    kept[HEAD] = [side.family.model.lm_head.weight.data]
    return {name: functools.partial(total, tensors) for name, tensors in kept.items()}


def total(tensors: list[Tensor]) -> None:
    """Read tensors, eight bytes at once."""
    for each in tensors:
        (each.view(torch.int64) if each.shape[-1] * each.element_size() % 8 == 0 else each).sum()


def timed(each: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each one, taken in alternation; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in each}
    for number in range(rounds + 1):
        for name, run in each.items():
            began = time.perf_counter()
            run()
            found[name] += [(time.perf_counter() - began) * 1e3] if number else []
    return found


def operators(run: Run) -> int:
    """Return how many operators torch counts, those inside others too."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key.startswith("aten::"))


def spread(taken: list[float], unit: float) -> tuple[str, ...]:
    """Write the median, the middle half and the least of milliseconds, in multiples of `unit`."""
    low, middle, high = (f"{each / unit:.1f}" for each in statistics.quantiles(taken))
    return middle, f"{low}-{high}", f"{min(taken) / unit:.1f}"


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--policy", default="streaming-llm")
    parser.add_argument("--context", type=parse_count, default=1000)
    parser.add_argument("--budget", type=parse_count, default=2048)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    family = loading.load(loading.locate(options.model), options.quant, options.dtype)
    layers = family.config.num_hidden_layers
    whole = {way: functools.partial(step, filled(family, options), way) for way in WAYS}
    print(f"{pages.machine()}, {torch.get_num_threads()} threads, {options.quant}, {options.dtype}\n")
    ways = [(way, f"{operators(whole[way]) / layers:.0f}", *spread(ms, 1)) for way, ms in timed(whole, options.rounds).items()]
    print(pages.table(("a token", "operators per layer", "ms", "middle half", "least"), ways, left=["a token"]), "\n")
    side = filled(family, options)
    parts, sums = runs(side), timed(reads(side), 10)
    rows = []
    for name, ms in timed(parts, options.rounds).items():
        unit = 1e-3 * (1 if name == HEAD else layers)
        reading = f"{min(sums[name]) / unit:.1f}" if name in sums else ""
        rows.append((name, f"{operators(parts[name]) * 1e-3 / unit:.0f}", *spread(ms, unit), reading))
    print(pages.table(("part", "operators", "us per layer", "middle half", "least", "reading, least"), rows, left=["part"]))


if __name__ == "__main__":
    main()
