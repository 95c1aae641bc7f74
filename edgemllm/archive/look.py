"""What was looked at again for a question, as the note, the JSON and the archive say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgemllm.archive.archive import Place, Span
from edgemllm.units import clock

GAP_S = 2.0
"""Frames that are no further apart make one span."""


@dataclass(frozen=True)
class Look:
    """A second look: where, how many tokens it took in, and what it cost."""

    places: tuple[Place, ...] = ()
    tokens: int = 0
    ms: float = 0.0

    @property
    def spans(self) -> list[Span]:
        """Return seconds of video, or characters of text, first and last."""
        return [(part[0].first, part[-1].last) for part in parts(self.places)]

    def as_json(self) -> dict[str, Any]:
        """Return the fields of a turn."""
        spans = [[round(first, 3), round(last, 3)] for first, last in self.spans]
        return {"recalled": spans, "recall_tokens": self.tokens, "recall_ms": self.ms}

    def note(self) -> str:
        """Return a clause that ends the note below an answer; empty where nothing was looked at."""
        if not self.places:
            return ""
        return f"; looked again at {', '.join(map(named, parts(self.places)))} ({self.tokens} tokens, {self.ms:.0f} ms)"


def parts(places: Sequence[Place]) -> list[list[Place]]:
    """Return the places in parts without a gap: frames of consecutive seconds, passages that follow each other."""
    found: list[list[Place]] = []
    for place in places:
        last = found[-1][-1] if found else None
        near = last is not None and (last.medium, last.words) == (place.medium, place.words)
        if near and last is not None and 0 <= place.first - last.last <= (0 if place.words else GAP_S):
            found[-1].append(place)
        else:
            found.append([place])
    return found


def named(part: Sequence[Place]) -> str:
    """Return where a part is: times, or lines."""
    first, last = part[0], part[-1]
    if not first.timed:
        return f"line {first.line:,}" if first.line == last.line else f"lines {first.line:,}-{last.line:,}"
    return clock(first.first) if clock(first.first) == clock(last.last) else f"{clock(first.first)}-{clock(last.last)}"
