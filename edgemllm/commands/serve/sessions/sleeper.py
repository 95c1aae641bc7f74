"""A session that is in memory, on disk, or both: it sleeps, wakes where there is room, and survives the server."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemllm import session_file
from edgemllm.archive.archive import Archive
from edgemllm.archive.extent import Extent
from edgemllm.commands.serve.engine import Engine
from edgemllm.commands.serve.memory_plan import Share
from edgemllm.commands.stream.schedule import Schedule
from edgemllm.errors import EdgeError, UsageError
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

    def __init__(self, name: str, engine: Engine, launch: Launch, folder: Path, record: Record, archived: bool = False) -> None:
        self.name, self.engine, self.launch, self.record, self.archived = name, engine, launch, record, archived
        self.session: Session | None = None
        self.archive: Archive | None = None
        self.notice = self.trouble = ""
        """What was said of the archive last, and why there is none although one is wanted."""
        self.heard: Callable[[str], None] = lambda notice: None
        """Given what is said of the archive."""
        self.archived_s = 0.0
        """The latest second of the archive when the server began."""
        self._extent = Extent()
        self.file, self.kept = folder / "session.edge", folder / "saved.edge"
        """Where it sleeps, and where it is saved on request."""
        self.saved, self.written = True, time.monotonic()
        """Whether what is on disk is what is in memory, and since when."""

    def peek(self) -> None:
        """Read what is known besides the cache, without waking."""
        if self.file.exists():
            self.record.load(session_file.run_of(self.file))
        if self.archived and self.engine.archives is not None:
            self.archived_s = self.engine.archives.latest(self.name)

    def wake(self) -> Session:
        """Return the session, read from disk where it slept. Raises Refusal where there is no room for it."""
        if self.session is None:
            self.engine.memory.reserve(self.name, Share.of(self.launch.plan))
            try:
                self.session = self._archiving() if self.archived else self._made(Session)
            except BaseException:
                self.engine.memory.release(self.name)
                raise
        return self.session

    def _archiving(self) -> Session:
        """Return the session with its archive; where that cannot be used, without, which is reported."""
        self.notice = ""
        try:
            with contextlib.ExitStack() as on_failure:
                if self.engine.archives is None:
                    raise UsageError("the server has no --archive")
                opened = self.engine.archives.open(self.engine.archives.path(self.name), self._say)
                on_failure.callback(opened.close)
                made = self._made(self.engine.archives.keeping(opened), opened)
                on_failure.pop_all()
        except EdgeError as error:
            self.trouble = f"it keeps no archive: {self._shown(error.message)}"
            self._say(f"warning: {self.trouble}")
            return self._made(Session)
        self.archive, self.trouble = opened, ""
        return made

    def _made(self, make: Callable[..., Session], archive: Archive | None = None) -> Session:
        made = self.launch.session(self.engine.family, make)
        if self.file.exists():
            self.record.load(session_file.load(made, self.file))
        self._continue(made, archive)
        return made

    def _continue(self, session: Session, archive: Archive | None) -> None:
        """Let the time of frames that are sent continue after all that is archived, so that none is replaced."""
        if archive is not None:
            self._extent = Extent()
            self._extent.look(archive)
            if not self.record.place:  # a source has its own time
                session.meter.video_s = max(session.meter.video_s, self._extent.end)

    def clear(self) -> None:
        """Forget everything that was seen, read and said, the archive too."""
        session = self.wake()
        self.record.answers.clear()
        self.file.unlink(missing_ok=True)
        if self.archive is None or self.engine.archives is None:
            session.clear()
        else:
            self.engine.archives.clear(self.name, self.archive)
            self.archive, self._extent = None, Extent()
            self.session = self._archiving()

    def drop(self) -> None:
        """Give the memory back, whatever is not saved."""
        self.session = None
        if self.archive is not None:
            self.archive.close()
            self.archive = None
        self.engine.memory.release(self.name)

    def about_archive(self) -> dict[str, Any] | None:
        """Return how much the archive holds, whether it grows, and what was said of it last; None where none is wanted."""
        if not self.archived:
            return None
        if self.archive is None:
            return {"bytes": 0, "video": [], "growing": False, "notice": self.notice}
        try:
            self._extent.look(self.archive)
        except EdgeError as error:
            self.archive.give_up(error)
        size = self.archive.database.nbytes
        return {"bytes": size, "video": self._extent.spans, "growing": self.archive.growing, "notice": self.notice}

    def _say(self, line: str) -> None:
        """Report what the archive says, to clients without where it lies."""
        self.engine.say(f"session {self.name}: {line}")
        self.notice = self._shown(line)
        self.heard(self.notice)

    def _shown(self, line: str) -> str:
        folders = [self.file.parent, *([self.engine.archives.folder] if self.engine.archives else [])]
        return functools.reduce(lambda text, folder: text.replace(f"{folder}{os.sep}", ""), folders, line)

    @property
    def unwritten_s(self) -> float:
        """Return how long what is in memory has been waiting to be written; 0 where nothing is."""
        return 0.0 if self.saved or self.session is None else time.monotonic() - self.written

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
        session = self.wake()
        self.record.load(session_file.load(session, self.kept))
        self._continue(session, self.archive)
