"""Time one row times all packed layers of SmolLM2-135M's shape, and its head, with and without compiled loops, in turn.

    python -m lab.measure.packed_rows

Weights are random; thirty layers lie one after the other in memory, so that none of them stays in a processor's cache.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edgemllm.loops import rows
from edgemllm.models import packed
from edgemllm.models.packed import Int4Linear, Int8Linear, PackedLinear
from lab.measure import pages

LAYER = ((960, 576), (576, 576), (3072, 576), (576, 1536))
HEAD = ((49152, 576),)
TURNS = 20

Run = Callable[[Tensor], Tensor]


def bound(layers: list[PackedLinear], compiled: bool) -> list[tuple[Run, Tensor]]:
    """Return what multiplies a row by each of the layers, by the loops or by torch's operators, and a row."""
    inputs = [torch.randn(1, layer.in_features) for layer in layers]
    if not compiled:
        return [(functools.partial(by_operator, layer.product()), row) for layer, row in zip(layers, inputs, strict=True)]
    return [(functools.partial(by_loop, layer.loop()), row) for layer, row in zip(layers, inputs, strict=True)]


def by_operator(product: Run, row: Tensor) -> Tensor:
    return product(row.bfloat16()).float()


def by_loop(weight: rows.Packed, row: Tensor) -> Tensor:
    out = torch.empty(len(weight.bias))
    rows.multiply(row.numpy()[0], weight, out.numpy(), 0, len(out))
    return out


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    vars(packed)["_loops"] = lambda: rows  # whatever the processor
    wholes: Mapping[str, list[PackedLinear]] = {
        "layers, 8 bits": [Int8Linear(torch.randn(shape)) for _ in range(30) for shape in LAYER],
        "layers, 4 bits": [Int4Linear(torch.randn(shape)) for _ in range(30) for shape in LAYER],
        "head, 8 bits": [Int8Linear(torch.randn(shape)) for shape in HEAD],
    }
    sides = {
        (name, way): bound(layers, way == "compiled loop")
        for name, layers in wholes.items()
        for way in ("torch's operator", "compiled loop")
    }
    times: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    for _ in range(TURNS):
        for side, runs in sides.items():
            began = time.perf_counter()
            for run, row in runs:
                run(row)
            times[side].append(1e3 * (time.perf_counter() - began))
    lines = [[*side, f"{statistics.median(found):.1f}", f"{min(found):.1f}"] for side, found in times.items()]
    print(pages.table(["one row times", "by", "median ms", "least"], lines, left=["one row times", "by"]))


if __name__ == "__main__":
    main()
