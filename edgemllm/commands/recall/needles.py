"""Needles in a haystack: long streams with facts at known places between footage or prose, and the questions about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemllm.commands.recall import slides
from edgemllm.errors import UsageError
from edgemllm.media.frame import Frame

HOLD = 3
"""Frames for which a slide is shown."""
RECENT = 8
"""The newest needle ends within this many items of the end."""
HEIGHT, WIDTH = 90, 160

OWNERS = (
    "baker",
    "captain",
    "doctor",
    "farmer",
    "gardener",
    "judge",
    "miller",
    "nurse",
    "painter",
    "sailor",
    "tailor",
    "widow",
)
THINGS = ("box", "door", "locker", "room", "safe", "ticket")
PLACES = ("at the window", "by the old bridge", "in the garden", "near the harbour", "on the stairs", "under the lamp")
DOINGS = ("read a letter", "spoke of the weather", "waited for the coach", "looked for a key", "told a long story", "sat down")


@dataclass(frozen=True)
class Needle:
    """A fact, the items of the stream that state it, and how one asks for it."""

    first: int
    last: int
    question: str
    answer: str


@dataclass(frozen=True)
class Haystack:
    """Items are frames at one a second, or sentences."""

    items: Sequence[Any]
    needles: Sequence[Needle]
    """In the order of the stream; the last one is recent."""
    unseen: Sequence[str]
    """Questions about facts that were never shown."""
    seed: int


def places(length: int, count: int, hold: int) -> list[int]:
    """Return the first items of `count` needles of `hold` items each: evenly spread, the last one within RECENT of the end.

    Raises UsageError where they would lie on one another.
    """
    end = length - RECENT
    most = (end - 2 * hold) // hold + 1
    if count > most:
        raise UsageError(
            f"{count} facts do not fit into a stream of {length} items", f"--facts {most} at most, or more --tokens"
        )
    return [round(i * (end - 2 * hold) / max(count - 1, 1)) for i in range(count - 1)] + [length - RECENT + 1]


def slide_haystack(seed: int, frames: int, count: int, diverse: bool, asked_in_vain: int = 2) -> Haystack:
    """Return slides between drawn footage: `diverse` changes with every frame, otherwise scenes last for many frames."""
    rng = np.random.default_rng([seed, frames, count, diverse])
    _check(count, len(slides.KINDS) - asked_in_vain, "slides")
    kinds = [slides.KINDS[int(k)] for k in rng.permutation(len(slides.KINDS))]
    facts = [slides.Fact(kind, int(rng.integers(10))) for kind in kinds[:count]]
    images = _footage(rng, frames, diverse)
    needles = []
    for fact, first in zip(facts, places(frames, count, HOLD), strict=True):
        images[first : first + HOLD] = [slides.draw(fact, HEIGHT, WIDTH, rng)] * HOLD
        needles.append(Needle(first, first + HOLD - 1, slides.ask("number", fact.kind), str(fact.digit)))
    items = [Frame(image, float(second), second) for second, image in enumerate(images)]
    return Haystack(items, needles, [slides.ask("number", kind) for kind in kinds[count : count + asked_in_vain]], seed)


def _check(count: int, most: int, what: str) -> None:
    if count > most:
        raise UsageError(f"--facts {count}: there are no more than {most} different {what}", f"--facts {most}")


def _footage(rng: np.random.Generator, frames: int, diverse: bool) -> list[slides.Frame]:
    images: list[slides.Frame] = []
    while len(images) < frames:
        images += slides.footage(rng, 1 if diverse else int(rng.integers(6, 40)), HEIGHT, WIDTH)
    return images[:frames]


def text_haystack(seed: int, sentences: int, count: int, diverse: bool) -> Haystack:
    """Return codes between sentences of plain prose; without `diverse` the prose repeats itself."""
    rng = np.random.default_rng([seed, sentences, count, diverse, 1])
    prose = _prose(rng)
    few = [next(prose) for _ in range(8)]
    items = [next(prose) if diverse else few[i % len(few)] for i in range(sentences)]
    subjects = [f"The code of the {owner}'s {thing} is" for owner in OWNERS for thing in THINGS]
    _check(count, len(subjects), "codes")
    needles = []
    for subject, first in zip(rng.permutation(subjects)[:count], places(sentences, count, 1), strict=True):
        code = str(int(rng.integers(10)))
        items[first] = f" {subject} {code}."
        needles.append(Needle(first, first, f" {subject}", code))
    return Haystack(items, needles, (), seed)


def _prose(rng: np.random.Generator) -> Iterator[str]:
    while True:
        owner, doing, place = (words[int(rng.integers(len(words)))] for words in (OWNERS, DOINGS, PLACES))
        yield f" The {owner} {doing} {place}."
