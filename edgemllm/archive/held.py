"""What was looked at again stays until the question is answered; then it competes like everything else."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edgemllm.cache.focus import FOUND_SCORE
from edgemllm.cache.lookout import Lookout

HELD_SCORE = 2 * FOUND_SCORE
"""Above what a focus finds, as high as what a policy protects."""


class Held:
    """Holds the tokens at stream positions `first` to `end` (excluded), beside what an `inner` lookout finds."""

    def __init__(self, inner: Lookout | None, first: int, end: int) -> None:
        self.inner, self.first, self.end = inner, first, end

    @property
    def nbytes(self) -> int:
        """Return the bytes that the inner lookout keeps."""
        return 0 if self.inner is None else self.inner.nbytes

    def lift(self, score: Tensor, layer: Any, size: int, first: int, newest: int) -> None:
        """Put what is held above everything else of `score` (B, H_kv | 1, L) but what is protected."""
        if self.inner is not None:
            self.inner.lift(score, layer, size, first, newest)
        places = layer.positions[0][:, : score.shape[1]]
        score.masked_fill_((places >= self.first) & (places < self.end), HELD_SCORE)
