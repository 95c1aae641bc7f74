"""One picture of a video, a camera or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""(H, W, 3) RGB, the right way up."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a source."""

    pixels: Pixels
    time: float
    """Seconds from the start of the video."""
    index: int
    """Frame number in the source."""
    name: str = ""
    """The file it came from, where a folder brings one after the other."""
