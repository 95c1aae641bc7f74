"""Watching or reading a source for as long as it lasts, and answering on the way, in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgemllm import session_file
from edgemllm.commands.stream.rounds import Rounds
from edgemllm.device import memory
from edgemllm.errors import EdgeError
from edgemllm.media.feed import Notice
from edgemllm.media.typed_lines import TypedLines
from edgemllm.screen import remembered, status, strips
from edgemllm.units import clock

STATS_S = 60.0
"""Seconds of the stream between two `stats` events."""
PIPE_S = 0.2
"""Time that piped questions get to arrive when the source has already ended."""
HELP = """\
a line        a question about everything seen so far
/stats        the cache, memory and speed; which part of the stream is still remembered
/save [FILE]  write the session to one file (default: that of --save)
/exit         end in order (also Ctrl-C)
what you type is hidden; an empty line stops the meter, and shows the next line while you type it"""


class Incoming(Protocol):
    """Where a stream comes from, piece by piece."""

    notices: deque[Notice]

    @property
    def done(self) -> bool:
        """Return whether nothing is left and nothing will come."""

    def begin(self) -> None:
        """Let the clock of the source start now."""

    def close(self) -> None:
        """Stop reading."""


@dataclass
class Stream:
    """One run: the session of `rounds` takes in what comes, and questions are put to it by schedule and by `lines`."""

    rounds: Rounds
    save_wanted: Callable[[], bool] = field(default=lambda: False, kw_only=True)
    """Whether to save now, once for every time it is true."""
    lines: TypedLines | None = field(default=None, kw_only=True)
    save_to: Path | None = field(default=None, kw_only=True)
    limit: int | None = field(default=None, kw_only=True)
    """Tokens a layer that a cache which never evicts may reach."""
    place: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """Where in the source the session is."""

    def __post_init__(self) -> None:
        self.session, self.display, self.out = self.rounds.session, self.rounds.display, self.rounds.out
        self._exit = False
        self._next_stats = self.session.meter.video_s + STATS_S

    def resume(self, run: Mapping[str, Any]) -> None:
        """Take over what `state` of an earlier run gave."""
        self.place = dict(run["place"])
        self.rounds.resume(run["rounds"])

    def state(self) -> dict[str, Any]:
        """Return what, besides the session, decides how the run continues; JSON."""
        return {"place": self.place, "rounds": self.rounds.state()}

    def run(self) -> None:
        """Take in and answer until the source ends or is to end. Raises the error with which it was lost for good."""
        self.incoming.begin()
        self.rounds.ask(at=self.session.meter.video_s)  # what an earlier run was stopped at
        while not self._ending():
            self._report_notices()
            if self.save_wanted():
                self._save_on_the_way()
            self._take_line()
            if not self._step():
                break
        nothing = self._nothing()
        if nothing is None and not self._ending():
            self._finish()
        self.incoming.close()
        self._report_notices()
        self._keep_lines()
        self.display.say(f"{self.came()}, {self.rounds.answers} questions answered")
        self._check_end()
        if nothing is not None and not self._ending():
            raise nothing

    def summary(self) -> dict[str, Any]:
        """Return the `stats` event."""
        meter = self.session.meter
        return {
            "video_s": round(meter.video_s, 3),
            "answers": self.rounds.answers,
            **self.source_json(),
            "frame_s": round(meter.frame_s, 3),
            "kv": self.session.kv(),
            "memory": memory.report(self.display.device) | {"rss_bytes": memory.rss_bytes()},
            "speed": meter.rates(),
        }

    # ---- what a kind of source decides -------------------------------------------------------------------------

    @property
    def incoming(self) -> Incoming:
        """Return where it comes from."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Return the name of the source."""
        raise NotImplementedError

    def source_json(self) -> dict[str, Any]:
        """Return what the source has brought, for the `stats` event."""
        raise NotImplementedError

    def came(self) -> str:
        """Return the same in words, for the end."""
        raise NotImplementedError

    def _nothing(self) -> EdgeError | None:
        """Return the error for a source that has ended and brought nothing."""
        raise NotImplementedError

    def _end_s(self) -> float:
        """Return the seconds of the stream up to which questions are due once the source has ended."""
        return self.session.meter.video_s

    def _check_end(self) -> None:
        """Report why the source has ended: raise its error, if there was one."""

    def save(self, path: Path | None = None) -> None:
        """Write the session and where the stream is. Raises EdgeError where it cannot be written."""
        path = path or self.save_to
        if path is None:
            raise EdgeError("nowhere to save to", "/save FILE, or start with --save FILE")
        size = session_file.save(self.session, path, self.state())
        self.display.say(f"saved to {path} ({memory.human_bytes(size)}) at {clock(self.session.meter.video_s)}")
        self.out.event("saved", path=str(path), bytes=size, video_s=round(self.session.meter.video_s, 3))

    # ---- on the way --------------------------------------------------------------------------------------------

    def _ending(self) -> bool:
        return self._exit or self.rounds.stopping()

    def _step(self) -> bool:
        """Take in what comes next, or ask what is due before it; False at the end."""
        raise NotImplementedError

    def _advance(self, place: dict[str, Any]) -> None:
        """Note where the stream is, and report it."""
        self.place = place
        self.display.step(self.session)
        if self.session.meter.video_s >= self._next_stats:
            self._next_stats = self.session.meter.video_s + STATS_S
            self.out.event("stats", **self.summary())

    def _report_notices(self) -> None:
        """Say what happened to the source."""
        while self.incoming.notices:
            notice = self.incoming.notices.popleft()
            self.display.say(notice.text)
            self.out.event(notice.event, **notice.fields)

    def _finish(self) -> None:
        """Ask, once the source has ended, what is due until then, what waits, and what was to be asked at the end."""
        seconds, schedule = self._end_s(), self.rounds.schedule
        while schedule.next <= seconds and not self._ending():
            self.rounds.ask_due(schedule.next)
        if self.lines is not None:
            self.lines.settle(PIPE_S)
        while not self._ending() and self._take_line():
            pass
        if not self._ending():
            self.rounds.ask(*schedule.final, at=self.session.meter.video_s)
            self.rounds.report_left(seconds)

    # ---- lines that are typed ----------------------------------------------------------------------------------

    def _take_line(self) -> bool:
        """Answer or do one line; False if there is none. Nothing is asked before there is something to see."""
        line = self.lines.take() if self.lines and (self.session.cache.seen or self.incoming.done) else None
        if line is None:
            return False
        self.display.close_prompt()
        if not line:
            self.display.open_prompt("ask> ")
        elif line.startswith("/"):
            self._command(line)
        else:
            self.rounds.ask(line, at=self.session.meter.video_s)
        return True

    def _keep_lines(self) -> None:
        """Let questions that a stop leaves unanswered wait in the saved session."""
        while self.lines is not None and (line := self.lines.take()) is not None:
            if line and not line.startswith("/"):
                self.rounds.waiting.append((round(self.session.meter.video_s, 3), line))
        for _, question in self.rounds.waiting:
            self.display.say(f"not answered{', --resume asks it again' if self.save_to else ''}: {question}")

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        try:
            if name == "/stats":
                now = status(self.session, self.display.device, self.display.expected)
                self.display.report("\n".join((now, remembered(self.session), *strips(self.session))))
                self.out.event("stats", **self.summary())
            elif name == "/save":
                self.save(Path(argument.strip()) if argument.strip() else None)
            elif name == "/exit":
                self._exit = True
            elif name == "/help":
                self.display.report(HELP)
            else:
                raise EdgeError(f"unknown command {name}", "/help")
        except EdgeError as error:
            self.display.report(f"error: {error.message}\n  try: {error.hint}")

    def _save_on_the_way(self) -> None:
        try:
            self.save()
        except EdgeError as error:  # no reason to end the watching
            self.display.report(f"warning: {error.message}; the earlier file is as it was, and watching continues")
