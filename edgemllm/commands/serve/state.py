"""What a session holds and has lost, and what it looked at again, beside its answers."""

from __future__ import annotations

from typing import Any

from edgemllm.archive.extent import merged
from edgemllm.archive.look import parts
from edgemllm.archive.session import looked
from edgemllm.session import Session


def state(session: Session) -> dict[str, Any]:
    """Return the `edgemllm` object: cache, evicted tokens, what is still remembered or was looked at again, and speed."""
    meter = session.meter
    video = merged(([each, each] for each in session.remembered("video")), meter.video_s) if meter.frames else []
    lines = merged(([each, each] for each in session.remembered("text")), meter.lines) if meter.lines else []
    remembered = {"video": video, "lines": lines}
    return {"kv": session.kv(), "remembered": remembered, **recalled(session), "speed": meter.rates()}


def recalled(session: Session) -> dict[str, Any]:
    """Return what was looked at again for the newest question: seconds of video, lines of text; empty without an archive."""
    look = looked(session)
    if look is None:
        return {}
    seconds = [[part[0].first, part[-1].last] for part in parts([place for place in look.places if place.timed])]
    lines = [[part[0].line, part[-1].line] for part in parts([place for place in look.places if not place.timed])]
    return {"recalled": {"video": seconds, "lines": lines}, "recall_tokens": look.tokens, "recall_ms": look.ms}
