"""A session that is in memory, on disk, or both: it sleeps, wakes where there is room, and survives the server."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemllm import session_file
from edgemllm.commands.serve.engine import Engine
from edgemllm.commands.serve.memory_plan import Share
from edgemllm.commands.stream.schedule import Schedule
from edgemllm.launch import Launch
from edgemllm.session import Session

MOST_ANSWERS = 100
"""Of the latest, which a page that is opened again shows."""


@dataclass
class Record:
    """What belongs to a session besides its cache, and is saved with it."""

    schedule: Schedule
    place: dict[str, Any] = field(default_factory=dict)
    """Where in the source it is."""
    answers: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_ANSWERS))

    def as_json(self) -> dict[str, Any]:
        """Return it for `load`."""
        return {"place": self.place, "asked": max(self.schedule.asked, -1.0), "answers": list(self.answers)}

    def load(self, run: dict[str, Any]) -> None:
        """Take over what `as_json` gave."""
        self.place, self.schedule.asked = run["place"], run["asked"] if run["asked"] >= 0 else -math.inf
        self.answers.clear()
        self.answers.extend(run["answers"])


class Sleeper:
    """Everything here but `session` is for the model's thread."""

    def __init__(self, name: str, engine: Engine, launch: Launch, folder: Path, record: Record) -> None:
        self.name, self.engine, self.launch, self.record = name, engine, launch, record
        self.session: Session | None = None
        self.file, self.kept = folder / "session.edge", folder / "saved.edge"
        """Where it sleeps, and where it is saved on request."""
        self.saved, self.written = True, time.monotonic()
        """Whether what is on disk is what is in memory, and since when."""

    def peek(self) -> None:
        """Read what is known besides the cache, without waking."""
        if self.file.exists():
            self.record.load(session_file.run_of(self.file))

    def wake(self) -> Session:
        """Return the session, read from disk where it slept. Raises Refusal where there is no room for it."""
        if self.session is None:
            self.engine.memory.reserve(self.name, Share.of(self.launch.plan))
            launch, family = self.launch, self.engine.family
            try:
                made = Session(
                    family, launch.policy, launch.budget, launch.chunk, launch.request.system, launch.focus, launch.bits
                )
                if self.file.exists():
                    self.record.load(session_file.load(made, self.file))
            except BaseException:
                self.engine.memory.release(self.name)
                raise
            self.session = made
        return self.session

    def clear(self) -> None:
        """Forget everything that was seen, read and said."""
        self.wake().clear()
        self.record.answers.clear()

    def drop(self) -> None:
        """Give the memory back, whatever is not saved."""
        self.session = None
        self.engine.memory.release(self.name)

    def save(self) -> None:
        """Write down what changed."""
        if self.session is not None and not self.saved:
            session_file.save(self.session, self.file, self.record.as_json())
            self.saved, self.written = True, time.monotonic()

    def keep(self) -> int:
        """Save it for `restore`; returns the bytes of the file."""
        return session_file.save(self.wake(), self.kept, self.record.as_json())

    def restore(self) -> None:
        """Put the session back to what was kept. Raises MissingError where nothing was."""
        self.record.load(session_file.load(self.wake(), self.kept))
