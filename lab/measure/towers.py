"""Milliseconds that a vision tower takes per frame, by dtype and frames at once; all of them take turns.

    python -m lab.measure.towers random:smolvlm2-0.5b --at-once 1 4 --rounds 3
    python -m lab.measure.towers demo

`int8` packs the linear layers of the tower (activations in float32), which edgemllm itself never does.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

from edgemllm.media.frame import Frame
from edgemllm.models import loading
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.packed import packed
from lab.measure import pages
from lab.measure.ratios import table, turns

SIDES = ("float32", "bfloat16", "int8")


class Tower:
    """A model's tower in one dtype, fed `count` frames at once."""

    def __init__(self, family: ModelFamily, dtype: str, count: int) -> None:
        self.family, self.name = family, f"{dtype}, {count} at once"
        noise = np.random.default_rng(0).integers(0, 256, (count, 360, 640, 3), np.uint8)
        self.frames = [Frame(pixels, float(second), second) for second, pixels in enumerate(noise)]

    def __str__(self) -> str:
        return self.name

    def per_frame(self) -> float:
        """Return the milliseconds of a frame, preparation included."""
        began = time.perf_counter()
        self.family.video().frames(self.frames, 0)
        return (time.perf_counter() - began) * 1e3 / len(self.frames)


def loaded(model: str, side: str) -> ModelFamily:
    """Return a model whose tower is in the dtype of a side."""
    family = loading.load(loading.locate(model), dtype="float32" if side == "int8" else side)
    if side == "int8":
        inside = {id(module) for module in family.text_model.modules()}
        for name, module in list(family.model.named_modules()):
            if type(module) is nn.Linear and id(module) not in inside and name != "lm_head":
                family.model.set_submodule(name, packed(module, "int8"))
    return family


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    families = {side: loaded(options.model, side) for side in SIDES}
    towers = [Tower(family, dtype, count) for dtype, family in families.items() for count in options.at_once]
    print(f"{pages.machine()}, {torch.get_num_threads()} threads\n")
    print(table(turns(towers, Tower.per_frame, options.rounds, model=options.model)))


if __name__ == "__main__":
    main()
