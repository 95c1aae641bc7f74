"""What a cache looks out for while a stream goes by, as its layers know it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Lookout(Protocol):
    """Something that raises the score of what it finds, as `Focus` does (focus.py)."""

    @property
    def nbytes(self) -> int:
        """Return the bytes that it keeps."""
        ...

    def lift(self, score: Tensor, layer: Any, size: int, first: int, newest: int) -> None:
        """Put what was found in `layer` above everything else of `score` (B, H_kv | 1, L)."""
        ...
