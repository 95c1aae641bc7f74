"""Watching a source for as long as it lasts, and answering on the way, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemllm import session_file
from edgemllm.device import memory
from edgemllm.display.answers import Answers
from edgemllm.display.line import Display, remembered, status, strip
from edgemllm.errors import EdgeError
from edgemllm.inputs.clock import clock
from edgemllm.inputs.feed import Feed, raise_error
from edgemllm.inputs.frame import Frame
from edgemllm.inputs.similarity import Similarity
from edgemllm.inputs.source import Source
from edgemllm.inputs.typed_lines import TypedLines
from edgemllm.launch import out_of_memory
from edgemllm.runs.schedule import Schedule
from edgemllm.session import FRAMES_AT_ONCE, Sampling, Session

STATS_S = 60.0
"""Seconds of the stream between two `stats` events."""
PIPE_S = 0.2
"""Time that piped questions get to arrive when the source has already ended."""
HELP = """\
a line        a question about everything seen so far
/stats        the cache, memory and speed; which seconds of the stream are still remembered
/save [FILE]  write the session to one file (default: that of --save)
/exit         end in order (also Ctrl-C)
an empty line stops the meter until the next line, so that it does not draw over what you type"""


@dataclass
class Stream:
    """One run: a session that watches a feed. The questions of `schedule` and `lines` go to it, its answers to `out`."""

    session: Session
    source: Source
    feed: Feed
    schedule: Schedule
    sampling: Sampling
    out: Answers
    display: Display
    stopping: Callable[[], bool] = lambda: False
    """Whether to end in order."""
    save_wanted: Callable[[], bool] = lambda: False
    """Whether to save now, once for every time it is true."""
    lines: TypedLines | None = None
    similarity: Similarity | None = None
    save_to: Path | None = None
    place: dict[str, Any] = field(default_factory=dict)
    """Where in the source the session is."""
    answers: int = 0

    def __post_init__(self) -> None:
        self._exit = False
        self._dropped = self.session.meter.dropped
        self._next_stats = self.session.meter.video_s + STATS_S

    def go_on(self, run: Mapping[str, Any]) -> None:
        """Take over what `state` of an earlier run gave."""
        self.place = dict(run.get("place") or {})
        if run.get("asked") is not None:
            self.schedule.asked = run["asked"]
        if self.similarity is not None and run.get("similar") is not None:
            self.similarity.latest = np.array(run["similar"], np.uint8)

    def state(self) -> dict[str, Any]:
        """What, besides the session, decides how the run goes on; JSON."""
        latest = None if self.similarity is None else self.similarity.latest
        return {
            "place": self.place,
            "asked": self.schedule.asked if self.schedule.asked > -1 else None,
            "similar": None if latest is None else latest.tolist(),
        }

    def run(self) -> None:
        """Watch and answer until the source ends or `stopping`. Raises MediaError where it was lost for good."""
        self.feed.begin()
        while not self._ending():
            self._tell()
            if self.save_wanted():
                self.save()
            self._answer_line()
            frames = self.feed.take(FRAMES_AT_ONCE, before=self.schedule.next)
            if frames:
                self._see(frames)
            elif (now := self.feed.next_time) is not None and now >= self.schedule.next:
                self._ask_due(now)
            elif self.feed.done:
                break
        if not self._ending():
            self._finish()
        self.feed.close()
        self._count()
        self._tell()
        raise_error(self.feed)

    def save(self, path: Path | None = None) -> None:
        """Write the session and where the stream is. Raises EdgeError where it cannot be written."""
        path = path or self.save_to
        if path is None:
            self.display.say("nowhere to save to: start with --save FILE, or type /save FILE")
            return
        size = session_file.save(self.session, path, self.state())
        self.display.say(f"saved to {path} ({size} bytes) at {clock(self.session.meter.video_s)}")
        self.out.event("saved", path=str(path), bytes=size, video_s=round(self.session.meter.video_s, 3))

    def summary(self) -> dict[str, Any]:
        """The `stats` event."""
        meter, video = self.session.meter, self.source.video
        return {
            "video_s": round(meter.video_s, 3),
            "answers": self.answers,
            "video": {
                "path": self.source.name,
                "frames_total": video.frames_total if video else None,
                "frames_seen": meter.frames,
                "frames_skipped": meter.skipped,
                "frames_dropped": meter.dropped,
                "frames_missed": self.feed.missed,
                "seconds": video.seconds if video else None,
            },
            "frame_s": round(meter.frame_s, 3),
            "kv": self.session.kv(),
            "memory": memory.report(self.display.device) | {"rss_bytes": memory.rss_bytes()},
            "speed": meter.rates(),
        }

    # ---- watching ----------------------------------------------------------------------------------------------

    def _ending(self) -> bool:
        return self._exit or self.stopping()

    def _see(self, frames: list[Frame]) -> None:
        meter, similarity = self.session.meter, self.similarity
        fresh = [frame for frame in frames if similarity is None or similarity.is_new(frame.pixels)]
        meter.skipped += len(frames) - len(fresh)
        if fresh:
            with out_of_memory():
                self.session.see(fresh)
        meter.video_s = frames[-1].time
        self.place = self.source.place(frames[-1])
        self._count()
        self.display.step(self.session)
        if meter.video_s >= self._next_stats:
            self._next_stats = meter.video_s + STATS_S
            self.out.event("stats", **self.summary())

    def _count(self) -> None:
        self.session.meter.dropped = self._dropped + self.feed.dropped

    def _tell(self) -> None:
        """Say what happened to the source."""
        while self.feed.notices:
            notice = self.feed.notices.popleft()
            self.display.say(notice.text)
            self.out.event(notice.event, **notice.fields)

    def _finish(self) -> None:
        """The source has ended: what is due until then, what waits, what was to be asked at the end."""
        video, seconds = self.source.video, self.session.meter.video_s
        if video is not None and video.span is not None and not video.shortfall:
            seconds = max(seconds, video.start + video.span + self.source.offset)
        while self.schedule.next <= seconds and not self._ending():
            self._ask_due(self.schedule.next)
        if self.lines is not None:
            self.lines.settle(PIPE_S)
        while not self._ending() and self._answer_line():
            pass
        for question in self.schedule.final:
            if not self._ending():
                self._ask(question, self.session.meter.video_s)
        for when, question in self.schedule.missed():
            self.display.say(f"not asked, the source ended at {clock(seconds)} before {clock(when)}: {question}")
        self._say_what_was_seen()

    def _say_what_was_seen(self) -> None:
        meter, folder = self.session.meter, self.source.folder
        parts = [f"{meter.frames} frames watched", f"{meter.skipped} skipped as similar"] if self.similarity else []
        parts = parts or [f"{meter.frames} frames watched"]
        parts += [f"{meter.dropped} dropped, because the model was busy"] if self.feed.live else []
        parts += [f"about {self.feed.missed} missed while it was away"] if self.feed.missed else []
        parts += [f"{folder.late} files came too late in order"] if folder and folder.late else []
        parts += [f"{folder.damaged} files are no image"] if folder and folder.damaged else []
        self.display.say(f"{self.source.name}: {', '.join(parts)}")
        if self.source.video is not None and self.source.video.shortfall:
            self.display.say(f"warning: {self.source.video.shortfall}")

    # ---- answering ---------------------------------------------------------------------------------------------

    def _ask_due(self, now: float) -> None:
        when = self.schedule.next
        for question in self.schedule.due(now):
            if not self._ending():
                self._ask(question, when)

    def _ask(self, question: str, seconds: float) -> None:
        seconds = round(seconds, 3)
        self.display.clear()
        self.out.ask(question, seconds)
        pieces: list[str] = []
        with out_of_memory():
            for piece in self.session.ask(question, self.sampling):
                if self.stopping():
                    self.session.stop()
                pieces.append(piece if pieces else piece.lstrip())
                self.display.clear()
                self.out.piece(pieces[-1])
        self.answers += 1
        self.out.answer(question, "".join(pieces).strip(), seconds, self.session.kv())
        self.display.say(f"  [{remembered(self.session)}]")

    def _answer_line(self) -> bool:
        """Answer or do one line that was typed; False if there is none. Nothing is asked before there is something to see."""
        line = self.lines.take() if self.lines and (self.session.cache.seen or self.feed.done) else None
        if line is None:
            return False
        self.display.resume()
        if not line:
            self.display.pause("ask> ")
        elif line.startswith("/"):
            self._command(line)
        else:
            self._ask(line, self.session.meter.video_s)
        return True

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        try:
            if name == "/stats":
                self.display.tell("\n".join((self._status(), remembered(self.session), strip(self.session))))
                self.out.event("stats", **self.summary())
            elif name == "/save":
                self.save(Path(argument.strip()) if argument.strip() else None)
            elif name == "/exit":
                self._exit = True
            elif name == "/help":
                self.display.tell(HELP)
            else:
                self.display.tell(f"error: unknown command {name}\n  try: /help")
        except EdgeError as error:
            self.display.tell(f"error: {error.message}\n  try: {error.hint}")

    def _status(self) -> str:
        return status(self.session, self.display.device, self.display.expected)
