"""A lecture as a haystack: slides that show facts, between drawn footage."""

from __future__ import annotations

import numpy as np

from edgemllm.commands.recall.needles import Haystack, Needle, check_count, places
from edgemllm.media import slides
from edgemllm.media.frame import Frame

HOLD = 3
"""Frames for which a slide is shown."""
HEIGHT, WIDTH = 90, 160
IN_VAIN = 2
"""Questions about slides that were never shown."""


def slide_haystack(seed: int, frames: int, count: int, diverse: bool, asked_in_vain: int = IN_VAIN) -> Haystack:
    """Return slides between drawn footage: `diverse` changes with every frame, otherwise scenes last for many frames."""
    rng = np.random.default_rng([seed, frames, count, diverse])
    check_count(count, len(slides.KINDS) - asked_in_vain, "slides")
    kinds = [slides.KINDS[int(k)] for k in rng.permutation(len(slides.KINDS))]
    facts = [slides.Fact(kind, int(rng.integers(10))) for kind in kinds[:count]]
    images = _footage(rng, frames, diverse)
    needles = []
    for fact, first in zip(facts, places(frames, count, HOLD), strict=True):
        images[first : first + HOLD] = [slides.draw(fact, HEIGHT, WIDTH, rng)] * HOLD
        needles.append(Needle(first, first + HOLD - 1, slides.ask("number", fact.kind), str(fact.digit)))
    items = [Frame(image, float(second), second) for second, image in enumerate(images)]
    return Haystack(items, needles, [slides.ask("number", kind) for kind in kinds[count : count + asked_in_vain]], seed)


def _footage(rng: np.random.Generator, frames: int, diverse: bool) -> list[slides.Frame]:
    images: list[slides.Frame] = []
    while len(images) < frames:
        images += slides.footage(rng, 1 if diverse else int(rng.integers(6, 40)), HEIGHT, WIDTH)
    return images[:frames]
