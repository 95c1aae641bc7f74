"""Milliseconds that a vision tower takes per frame, by dtype and frames at once; all of them take turns.

python -m lab.measure.towers random:smolvlm2-0.5b
python -m lab.measure.towers demo
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from edgemllm.media.frame import Frame
from edgemllm.models import loading
from edgemllm.models.families.base import ModelFamily
from lab.measure import pages
from lab.measure.ratios import table, turns

SIDES = ("float32", "bfloat16")


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


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    families = {dtype: loading.load(loading.locate(options.model), dtype=dtype) for dtype in SIDES}
    towers = [Tower(family, dtype, count) for dtype, family in families.items() for count in options.at_once]
    print(f"{pages.machine()}, {torch.get_num_threads()} threads\n")
    print(table(turns(towers, Tower.per_frame, options.rounds, model=options.model)))


if __name__ == "__main__":
    main()
