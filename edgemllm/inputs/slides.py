"""The slide world of the demo model: what a slide shows, how one asks about it, and how to draw slides and footage.

A lecture is a video in which slides appear between other footage. A slide carries one fact: a coloured shape and a digit.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 30),
    "green": (30, 168, 62),
    "blue": (44, 80, 220),
    "yellow": (240, 214, 30),
    "white": (245, 245, 245),
    "pink": (250, 130, 190),
    "cyan": (40, 220, 225),
    "orange": (245, 140, 20),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
NOT_SEEN = "not seen"
NO_SLIDE = "no slide"

# The first phrasing of each topic is the canonical one.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "number": (
        "What number was with the {kind}?",
        "Which number was with the {kind}?",
        "What number did you see with the {kind}?",
        "What was the number next to the {kind}?",
        "Tell me the number of the {kind}.",
        "Number of the {kind}?",
    ),
    "seen": ("Was there {a} {kind}?", "Did you see {a} {kind}?", "Has {a} {kind} been shown?", "Was {a} {kind} shown?"),
    "screen": (
        "What is on the screen now?",
        "What do you see now?",
        "What is shown right now?",
        "What is on the screen?",
        "Describe the screen.",
    ),
    "list": (
        "Which shapes were {colour}?",
        "List the {colour} shapes.",
        "What {colour} shapes did you see?",
        "Which {colour} shapes were shown?",
    ),
}

Frame = np.ndarray[Any, np.dtype[np.uint8]]


class Kind(NamedTuple):
    """A colour and a shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


class Fact(NamedTuple):
    """What one slide says."""

    kind: Kind
    digit: int


KINDS = tuple(Kind(colour, shape) for colour in COLOURS for shape in SHAPES)


def ask(topic: str, kind: Kind, phrasing: int = 0, article: str = "a") -> str:
    """The question of a topic about a kind (`list` uses only its colour, `screen` nothing of it)."""
    return PHRASINGS[topic][phrasing].format(kind=kind, a=article, colour=kind.colour)


def describe(fact: Fact | None) -> str:
    """The right answer to what is on the screen. The article is `a` for every colour, orange too: a fixed form."""
    return NO_SLIDE if fact is None else f"a {fact.kind} with number {fact.digit}"


def answer(topic: str, kind: Kind, shown: Sequence[Fact], now: Fact | None = None) -> str:
    """The right answer after the slides `shown` (in order of appearance) with `now` on the screen."""
    if topic == "screen":
        return describe(now)
    if topic == "list":
        shapes = dict.fromkeys(fact.kind.shape for fact in shown if fact.kind.colour == kind.colour)
        return ", ".join(shapes) or "none"
    digits = [fact.digit for fact in shown if fact.kind == kind]
    if topic == "seen":
        return "yes" if digits else "no"
    return str(digits[-1]) if digits else NOT_SEEN
