"""A renderer of slides written from their description alone, drawn with Pillow: the demo model never saw it."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (214, 36, 30), "green": (30, 168, 62), "blue": (44, 80, 220), "yellow": (240, 214, 30),
    "white": (245, 245, 245), "pink": (250, 130, 190), "cyan": (40, 220, 225), "orange": (245, 140, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")


def slide(colour: str, shape: str, digit: int, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one slide four times as large, and reduce it."""
    scale = 4
    w, h = width * scale, height * scale
    tint = tuple(int(c) for c in rng.integers(5, 60, 3))
    image = Image.new("RGB", (w, h), tint)
    draw = ImageDraw.Draw(image)
    fill = tuple(int(np.clip(c + rng.integers(-10, 11), 0, 255)) for c in COLOURS[colour])
    r = min(0.19 * w, 0.32 * h) * rng.uniform(0.9, 1.1)
    x, y = w * rng.uniform(0.23, 0.27), h * rng.uniform(0.46, 0.54)
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=round(r / 3))
    elif shape == "square":
        draw.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=fill)
    elif shape == "bar":
        draw.rectangle((x - 0.28 * r, y - r, x + 0.28 * r, y + r), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r * math.sin(2.0), y + 0.75 * r), (x - r * math.sin(2.0), y + 0.75 * r)], fill=fill)
    else:
        for a, b in (((x - r, y - r), (x + r, y + r)), ((x - r, y + r), (x + r, y - r))):
            draw.line((a, b), fill=fill, width=round(0.45 * r))
    size = h * rng.uniform(0.62, 0.75)
    font = ImageFont.load_default(size=min(size, 0.7 * w))
    draw.text(
        (w * rng.uniform(0.72, 0.78), h * rng.uniform(0.47, 0.53)),
        str(digit),
        font=font,
        fill=(250, 250, 250),
        anchor="mm",
    )
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
