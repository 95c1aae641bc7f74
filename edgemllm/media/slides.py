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
    """Return the question of a topic about a kind (`list` uses only its colour, `screen` nothing of it)."""
    return PHRASINGS[topic][phrasing].format(kind=kind, a=article, colour=kind.colour)


def describe(fact: Fact | None) -> str:
    """Return the right answer to what is on the screen. The article is `a` for every colour, orange too: a fixed form."""
    return NO_SLIDE if fact is None else f"a {fact.kind} with number {fact.digit}"


def answer(topic: str, kind: Kind, shown: Sequence[Fact], now: Fact | None = None) -> str:
    """Return the right answer after the slides `shown` (in order of appearance) with `now` on the screen."""
    if topic == "screen":
        return describe(now)
    if topic == "list":
        shapes = dict.fromkeys(fact.kind.shape for fact in shown if fact.kind.colour == kind.colour)
        return ", ".join(shapes) or "none"
    digits = [fact.digit for fact in shown if fact.kind == kind]
    if topic == "seen":
        return "yes" if digits else "no"
    return str(digits[-1]) if digits else NOT_SEEN


# ---- drawing -------------------------------------------------------------------------------------------------------


def draw(
    fact: Fact,
    height: int = 180,
    width: int = 320,
    rng: np.random.Generator | None = None,
    glyph: np.ndarray[Any, Any] | None = None,
) -> Frame:
    """Return a slide, RGB (height, width, 3). `rng` varies it by some 10%; `glyph` is an alpha mask to use for the digit."""

    def vary(middle: float, spread: float) -> float:
        return middle if rng is None else middle + float(rng.uniform(-spread, spread))

    dark = (18, 20, 28) if rng is None else tuple(int(c) for c in rng.integers(0, 60, 3))
    image = np.full((height, width, 3), dark, np.uint8)
    colour = tuple(int(np.clip(vary(c, 14), 0, 255)) for c in COLOURS[fact.kind.colour])
    radius = min(height * vary(0.31, 0.08), width * vary(0.20, 0.04))
    centre = (width * vary(0.25, 0.04), height * vary(0.5, 0.07))
    draw_shape(image, fact.kind.shape, centre, radius, colour, vary(0, 6), vary(0.22, 0.07))
    bright = int(np.clip(vary(247, 8), 0, 255))
    where = (width * vary(0.75, 0.03), height * vary(0.5, 0.07))
    draw_digit(image, str(fact.digit), where, height * vary(0.48, 0.14), bright, glyph, rng)
    return image


def draw_shape(
    image: Frame,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    colour: tuple[int, ...],
    tilt: float = 0.0,
    arm: float = 0.22,
) -> None:
    """Draw a filled shape of about the given radius, tilted by some degrees; `arm` is a cross's half thickness."""
    if shape in ("circle", "ring"):
        cv2.circle(image, (round(centre[0]), round(centre[1])), round(radius), colour, -1, cv2.LINE_AA)
        if shape == "ring":
            inside = tuple(int(c) for c in image[0, 0])
            cv2.circle(image, (round(centre[0]), round(centre[1])), round(radius * (0.86 - arm)), inside, -1, cv2.LINE_AA)
        return
    corners: dict[str, list[list[tuple[float, float]]]] = {
        "square": [[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]],
        "bar": [[(-arm - 0.08, -1), (arm + 0.08, -1), (arm + 0.08, 1), (-arm - 0.08, 1)]],
        "triangle": [[(0, -1), (0.95, 0.8), (-0.95, 0.8)]],
        "cross": [
            [
                (-0.85 - arm, -0.85 + arm),
                (-0.85 + arm, -0.85 - arm),
                (0.85 + arm, 0.85 - arm),
                (0.85 - arm, 0.85 + arm),
            ],
            [
                (0.85 - arm, -0.85 - arm),
                (0.85 + arm, -0.85 + arm),
                (-0.85 + arm, 0.85 + arm),
                (-0.85 - arm, 0.85 - arm),
            ],
        ],
    }
    angle = np.deg2rad(tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for polygon in corners[shape]:
        points = np.array(polygon) @ turn.T * radius + centre
        cv2.fillPoly(image, [np.round(points * 16).astype(np.int32)], colour, cv2.LINE_AA, shift=4)


def draw_digit(
    image: Frame,
    digit: str,
    centre: tuple[float, float],
    size: float,
    bright: int,
    glyph: np.ndarray[Any, Any] | None = None,
    rng: np.random.Generator | None = None,
) -> None:
    """Draw a digit `size` pixels high, no wider than the right half allows."""
    if glyph is None:
        face = cv2.FONT_HERSHEY_SIMPLEX if rng is None else int(rng.choice([0, 2, 3, 4]))
        thick = 3 if rng is None else int(rng.integers(2, 9))
        (wide, high), _ = cv2.getTextSize(digit, face, 2.0, thick)
        mask = np.zeros((high + 2 * thick + 4, wide + 2 * thick + 4), np.uint8)
        cv2.putText(mask, digit, (thick + 2, high + thick + 1), face, 2.0, 255, thick, cv2.LINE_AA)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        glyph = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min(size / glyph.shape[0], (0.42 if rng is None else rng.uniform(0.28, 0.52)) * image.shape[1] / glyph.shape[1])
    wide, high = max(1, round(glyph.shape[1] * scale)), max(1, round(glyph.shape[0] * scale))
    alpha = cv2.resize(glyph, (wide, high), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = round(centre[0] - wide / 2), round(centre[1] - high / 2)
    left, top = max(0, min(left, image.shape[1] - wide)), max(0, min(top, image.shape[0] - high))
    place = image[top : top + high, left : left + wide]
    share = alpha[:, : place.shape[1], None].astype(np.float32)[: place.shape[0]] / 255
    place[:] = (place * (1 - share) + bright * share).astype(np.uint8)


def footage(rng: np.random.Generator, count: int, height: int = 180, width: int = 320) -> Iterator[Frame]:
    """Return `count` frames in a row of one scene without a fact: black, plain, texture, noise, a moving blob, half slides."""
    scene = int(rng.integers(7))
    colour = rng.integers(0, 256, 3)
    cells = int(rng.choice([2, 4, 8, 16]))
    texture = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
    smooth = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_NEAREST, cv2.INTER_CUBIC]))
    base = np.full((height, width, 3), rng.integers(0, 60, 3) if scene in (0, 4, 5, 6) else colour, np.uint8)
    if scene == 2:
        base = cv2.resize(texture, (width, height), interpolation=smooth)
    fact = Fact(KINDS[int(rng.integers(len(KINDS)))], int(rng.integers(10)))
    where, speed = rng.uniform(0.2, 0.8, 2), rng.normal(0, 0.04, 2)
    axes = (int(width * rng.uniform(0.05, 0.25)), int(height * rng.uniform(0.05, 0.3)))
    for _ in range(count):
        image: Frame = base.copy()
        if scene == 3:
            image = rng.integers(0, int(rng.integers(40, 256)), (height, width, 3)).astype(np.uint8)
        elif scene == 4:
            where = (where + speed) % 1.0
            centre = (int(where[0] * width), int(where[1] * height))
            cv2.ellipse(image, centre, axes, 0, 0, 360, [int(c) for c in colour], -1, cv2.LINE_AA)
        elif scene == 5:
            side = width * (0.25 if cells < 8 else 0.75)
            draw_shape(image, fact.kind.shape, (side, height / 2), height * 0.3, COLOURS[fact.kind.colour])
        elif scene == 6:
            side = width * (0.25 if cells < 8 else 0.75)
            draw_digit(image, str(fact.digit), (side, height / 2), height * 0.5, 245, None, rng)
        yield image
