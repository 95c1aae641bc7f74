"""An answer up to the first of the texts at which a task ends it."""

from __future__ import annotations

from collections.abc import Sequence

from edgemllm.models.chat import Sampling
from edgemllm.session import Session


def generate(session: Session, sampling: Sampling, stops: Sequence[str]) -> str:
    """Answer what was put to the session, and return the text before the first of `stops`."""
    text = ""
    for piece in session.answer(sampling):
        text += piece
        found = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
        if found:
            session.stop()
            return text[: min(found)]
    return text
