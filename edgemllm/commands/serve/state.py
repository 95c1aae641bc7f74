"""What a session holds and has lost, beside its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgemllm.session import Session

GAP = 0.01
"""Share of the whole below which a gap in what is remembered is closed."""


def state(session: Session) -> dict[str, Any]:
    """Return the `edgemllm` object: cache, evicted tokens, what is still remembered, and speed."""
    meter = session.meter
    video = spans(session.remembered("video"), max(1.0, meter.video_s * GAP)) if meter.frames else []
    lines = spans(session.remembered("text"), max(1.0, meter.lines * GAP)) if meter.lines else []
    return {"kv": session.kv(), "remembered": {"video": video, "lines": lines}, "speed": meter.rates()}


def spans(places: Sequence[float], gap: float) -> list[list[float]]:
    """Return first and last of each run of places, sorted, that are at most `gap` apart."""
    found: list[list[float]] = []
    for place in places:
        if found and place - found[-1][1] <= gap:
            found[-1][1] = place
        else:
            found.append([place, place])
    return found
