"""How alike two pictures are, cheaply, so that a scene in which nothing happens need not reach the vision tower."""

from __future__ import annotations

import cv2
import numpy as np

from edgemllm.errors import UsageError
from edgemllm.media.frame import Pixels

GRID = 16


class Similarity:
    """Compares each picture with the latest one that was let through, so that a slow change adds up.

    Pictures are averaged down to 16 x 16 cells; their similarity is 1 minus the largest difference of any cell and colour.
    Averaging takes the noise of a sensor away; the largest cell, not the mean, notices somebody small in a large scene.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise UsageError(f"--skip-similar {threshold:g} is no similarity", "a number above 0 up to 1, such as 0.98")
        self.threshold = threshold
        self.latest: Pixels | None = None
        """(16, 16, 3), of the picture let through."""

    def is_new(self, pixels: Pixels) -> bool:
        """Return whether a picture (H, W, 3) differs enough to be let through."""
        small = cv2.resize(pixels, (GRID, GRID), interpolation=cv2.INTER_AREA)
        if self.latest is not None and self.of(small, self.latest) >= self.threshold:
            return False
        self.latest = small
        return True

    @staticmethod
    def of(one: Pixels, other: Pixels) -> float:
        """Return the similarity of two small pictures, 1 for equal ones."""
        return 1 - float(np.abs(one.astype(np.int16) - other.astype(np.int16)).max()) / 255
