"""Time one row times all packed layers of SmolLM2-135M's shape, and its head, with and without compiled loops, in turn.

    python -m lab.measure.packed_rows

Weights are random; thirty layers lie one after the other in memory, so that none of them stays in a processor's cache.
"""

from __future__ import annotations

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


def bound(layers: list[PackedLinear], loops: object) -> list[tuple[Run, Tensor]]:
    """Return what multiplies a row by each of the layers, with the loops or without, and a row."""
    vars(packed)["_loops"] = lambda: loops
    return [(layer.row(), torch.randn(1, layer.in_features)) for layer in layers]


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    wholes: Mapping[str, list[PackedLinear]] = {
        "layers, 8 bits": [Int8Linear(torch.randn(shape)) for _ in range(30) for shape in LAYER],
        "layers, 4 bits": [Int4Linear(torch.randn(shape)) for _ in range(30) for shape in LAYER],
        "head, 8 bits": [Int8Linear(torch.randn(shape)) for shape in HEAD],
    }
    sides = {
        (name, way): bound(layers, loops)
        for name, layers in wholes.items()
        for way, loops in (("torch's operator", None), ("compiled loop", rows))
        if loops is None or isinstance(layers[0], Int8Linear)
    }
    times: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    for _ in range(TURNS):
        for side, runs in sides.items():
            began = time.perf_counter()
            for run, row in runs:
                run(row)
            times[side].append(1e3 * (time.perf_counter() - began))
    rows = [[*side, f"{statistics.median(found):.1f}", f"{min(found):.1f}"] for side, found in times.items()]
    print(pages.table(["one row times", "by", "median ms", "least"], rows, left=["one row times", "by"]))


if __name__ == "__main__":
    main()
