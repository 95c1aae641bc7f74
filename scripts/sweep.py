#!/usr/bin/env python3
"""Vary a policy's settings one at a time and count which facts of long streams the demo model still knows.

    scripts/sweep.py --policy inf-mllm bias=0,0.003,0.01,0.03 recent=0.125,0.25,0.5 window=8,32,64

Each stream shows slides among drawn footage, more than the cache holds, then asks for each slide's number. All settings
see the same streams; the first row is the default.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from edgemllm import policies
from edgemllm.inputs import slides
from edgemllm.inputs.frame import Frame
from edgemllm.models import loading
from edgemllm.session import Sampling, Session

SHOWN, EACH = 8, 3
"""Slides of a stream, and how many frames each is seen."""


def stream(seed: int, frames: int) -> tuple[list[Frame], list[slides.Fact]]:
    """Frames at one a second with slides evenly among footage, diverse in every second stream."""
    rng = np.random.default_rng(seed)
    kinds = [slides.KINDS[int(k)] for k in rng.permutation(len(slides.KINDS))[:SHOWN]]
    facts = [slides.Fact(kind, int(rng.integers(10))) for kind in kinds]

    def pictures() -> Iterator[np.ndarray]:
        gap = (frames - SHOWN * EACH) // SHOWN
        for fact in facts:
            left = gap
            while left > 0:
                count = min(left, 1 if seed % 2 else int(rng.integers(3, 9)))
                yield from slides.footage(rng, count, 90, 160)
                left -= count
            image = slides.draw(fact, 90, 160, rng)
            yield from [image] * EACH

    return [Frame(image, float(k), k) for k, image in enumerate(pictures())], facts


def recall(family: object, policy: object, budget: int, streams: int, frames: int) -> tuple[float, float]:
    """Share of right numbers, for the older and the newer half of the slides."""
    right = np.zeros((streams, SHOWN))
    for seed in range(streams):
        pictures, facts = stream(seed, frames)
        session = Session(family, policy, budget, chunk=32)  # type: ignore[arg-type]
        session.watch(pictures)
        for number, fact in enumerate(facts):
            answer = "".join(session.ask(slides.ask("number", fact.kind), Sampling(max_tokens=6)))
            right[seed, number] = answer.strip() == str(fact.digit)
    return float(right[:, : SHOWN // 2].mean()), float(right[:, SHOWN // 2 :].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="inf-mllm")
    parser.add_argument("--kv-budget", type=int, default=192)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("settings", nargs="*", metavar="key=value,value")
    options = parser.parse_args()
    family = loading.load(loading.locate("demo"))
    rows = [""] + [f"{key}={value}" for key, values in (s.split("=") for s in options.settings) for value in values.split(",")]
    print(f"| {options.policy} | older half | newer half | all |\n|---|---:|---:|---:|")
    for row in rows:
        policy = policies.build(options.policy, [row] if row else [])
        old, new = recall(family, policy, options.kv_budget if policy.bounded else None, options.streams, options.frames)
        print(f"| {row or 'default'} | {old:.1%} | {new:.1%} | {(old + new) / 2:.1%} |", flush=True)


if __name__ == "__main__":
    main()
