"""How much detail of a picture the model gets to see: fewer tokens per frame let a longer video fit."""

from __future__ import annotations

from dataclasses import dataclass

from edgemllm.errors import UsageError


@dataclass(frozen=True)
class Detail:
    """Limits of what a picture may take; None leaves it to the checkpoint."""

    max_pixels: int | None = None
    """Pixels of a picture: larger ones are made smaller, keeping their shape."""

    tokens_per_frame: int | None = None
    """Tokens of a video frame, at most."""

    def __post_init__(self) -> None:
        for option, value in (("--max-pixels", self.max_pixels), ("--tokens-per-frame", self.tokens_per_frame)):
            if value is not None and value < 1:
                raise UsageError(f"{option} {value} leaves nothing to see", "a number from 1 upwards")

    def __str__(self) -> str:
        given = (("--max-pixels", self.max_pixels), ("--tokens-per-frame", self.tokens_per_frame))
        return " and ".join(f"{option} {value}" for option, value in given if value is not None)


ANY = Detail()
"""What the checkpoint says."""
